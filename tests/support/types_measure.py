"""Measure rows of docs/types.md in this process: copies in, copies out, bytes in-band, and the effect of a write.

    python types_measure.py LIBRARY [GROUP/NAME ...]

The program counts copies by the pages that they touch for the first time, because the kernel counts the page faults of
a process. For this, every large block of memory comes directly from the kernel (environment variables configure the
allocators, see `ENVIRONMENT`), and huge pages are off. Each call runs once before the measurement, so that the store's
own pages exist. The copy into the store or the file causes no such faults, so the program adds it to the count.

The program prints one JSON object: row -> figures.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0",
    "POLARS_MAX_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_PR_SET_THP_DISABLE = 41
_PAGE = resource.getpagesize()


def faults(function: Callable[[], Any]) -> tuple[int, Any]:
    """Return how many bytes of memory a call touches for the first time, and its result."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * _PAGE, kept


def least(function: Callable[[], Any], size: int) -> float:
    """Return the smallest number of copies of `size` bytes that a call makes in three tries."""
    found = []
    for _ in range(3):
        taken, kept = faults(function)
        del kept
        gc.collect()
        found.append(taken)
    return min(found) / size


class Ours:
    """The store of this package."""

    def __init__(self) -> None:
        import pyray_ser

        self.package = pyray_ser
        pyray_ser.init(capacity=1 << 30)

    def measure(self, value: Any, row: Any) -> dict[str, Any]:
        package = self.package
        _, stream, *buffers = package.dumps_frames(value)
        size = len(stream) + sum(buffer.nbytes for buffer in buffers)
        found: dict[str, Any] = {"bytes": size, "in_band": len(stream)}
        del stream, buffers
        for _ in range(2):
            package.put(value)
        found["in"] = 1 + least(lambda: package.put(value), size)
        ref = package.put(value)
        before = self.stored(ref)  # from now on, the pages of the store are mapped in this process
        package.get(ref)
        found["out"] = least(lambda: package.get(ref), size)
        if row.write is not None:
            try:
                row.write(package.get(ref))
            except Exception as error:
                found["write"] = type(error).__name__
            else:
                found["write"] = "private"
        if self.stored(ref) != before:
            raise AssertionError("the stored object was changed")
        return found

    def stored(self, ref: Any) -> list[bytes]:
        """Return the bytes of an object as they are in the store."""
        views = self.package.get_buffer(ref)
        return [bytes(view) for view in (views if isinstance(views, list) else [views])]


class Pickle:
    """The standard pickler, with all data in one stream."""

    def measure(self, value: Any, row: Any) -> dict[str, Any]:
        stream = pickle.dumps(value, 5)
        size = len(stream)
        return {
            "in_band": size,
            "in": least(lambda: pickle.dumps(value, 5), size),
            "out": least(lambda: pickle.loads(stream), size),
        }


class Ray:
    """Ray's method: its cloudpickle with out-of-band buffers, with stream and buffers copied into its store."""

    def __init__(self) -> None:
        from ray import cloudpickle

        self.package = cloudpickle

    def dump(self, value: Any, buffers: list[Any]) -> bytes:
        return self.package.dumps(value, protocol=5, buffer_callback=buffers.append)

    def measure(self, value: Any, row: Any) -> dict[str, Any]:
        buffers: list[Any] = []
        stream = self.dump(value, buffers)
        raw = [bytes(buffer.raw()) for buffer in buffers]
        size = len(stream) + sum(map(len, raw))
        # Values read from this store are read-only.
        views = [memoryview(data) for data in raw]
        return {
            "in_band": len(stream),
            "in": 1 + least(lambda: self.dump(value, []), size),
            "out": least(lambda: pickle.loads(stream, buffers=views), size),
        }


class Joblib:
    """joblib's method: dump to a file, load with memory mapping."""

    def __init__(self) -> None:
        import joblib

        self.package = joblib
        self.folder = tempfile.TemporaryDirectory()

    def measure(self, value: Any, row: Any) -> dict[str, Any]:
        path = os.path.join(self.folder.name, "value")
        self.package.dump(value, path)
        size = os.path.getsize(path)
        return {
            "in": 1 + least(lambda: self.package.dump(value, path), size),
            "out": least(lambda: self.package.load(path, mmap_mode="r"), size),
        }


LIBRARIES = {"ours": Ours, "pickle": Pickle, "ray": Ray, "joblib": Joblib}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from types_rows import ROWS

    if ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise OSError("huge pages cannot be switched off")
    library = LIBRARIES[sys.argv[1]]()
    found = {}
    for row in ROWS:
        key = f"{row.group}/{row.name}"
        if sys.argv[2:] and key not in sys.argv[2:]:
            continue
        try:
            value = row.make()
        except ImportError as error:
            found[key] = {"error": str(error)}
            continue
        try:
            found[key] = library.measure(value, row)
        except Exception as error:  # some libraries cannot store some types, which the page shows
            found[key] = {"error": f"{type(error).__name__}: {error}"[:200]}
        del value
        gc.collect()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
