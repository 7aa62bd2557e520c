#!/usr/bin/env python3
"""Compare put and get of each type with pickle and with the best zero-copy method of the type's own library.

    python bench/by_type.py                    all types whose library is installed
    python bench/by_type.py numpy torch --json figures.json

The values are those of docs/types.md, about 8 MB each. *Own way* means Arrow IPC for pyarrow and polars, `torch.save`
and `torch.load(mmap=True)` for torch, joblib's dump and memory-mapped load for the rest. The files are in /dev/shm, so
no disk slows these methods down. A figure is the median of the ratios of interleaved rounds, the other's time over
ours; the note has the median of our time.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from measuring.claim import Claim, measured
from measuring.program import main
from measuring.timing import interleaved, median, median_ratio, once
from types_rows import ROWS, Row

import pyray_ser

Way = tuple[str, Callable[[], Any], Callable[[], Any]]


def arrow_ipc(value: Any, path: str) -> Way:
    """Write Arrow IPC to a file, and open the file as a memory map."""
    import pyarrow as pa

    def write() -> None:
        table = value.to_arrow() if type(value).__module__.startswith("polars") else value
        if not isinstance(table, pa.Table):
            table = pa.table({"x": table})
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def read() -> Any:
        return pa.ipc.open_file(pa.memory_map(path)).read_all()

    return "Arrow IPC", write, read


def torch_file(value: Any, path: str) -> Way:
    """Write torch's own file format, and map the file."""
    import torch

    return (
        "torch.save",
        lambda: torch.save(value, path),
        lambda: torch.load(path, mmap=True, weights_only=False),
    )


def joblib_file(value: Any, path: str) -> Way:
    """Write joblib's file format, and map the arrays in the file."""
    import joblib

    return "joblib", lambda: joblib.dump(value, path), lambda: joblib.load(path, mmap_mode="r")


def own_way(row: Row, value: Any, path: str) -> Way | None:
    """Return the best method of the type's own library, or None if there is none."""
    if row.group == "pyarrow" or (row.group == "polars" and hasattr(value, "to_arrow")):
        way = arrow_ipc(value, path)
    elif row.group == "torch":
        way = torch_file(value, path)
    else:
        way = joblib_file(value, path)
    try:
        way[1]()
        way[2]()
    except Exception as error:  # joblib fails for the values for which pickle fails
        print(f"{row.group} {row.name}: no {way[0]}: {type(error).__name__}", file=sys.stderr)
        return None
    return way


def measure(row: Row, path: str, rounds: int) -> list[Claim]:
    """Compare put and get of one value with the other ways to write and read it."""
    value = row.make()
    ref = pyray_ser.put(value)
    contenders = {"put": once(lambda: pyray_ser.put(value)), "get": once(lambda: pyray_ser.get(ref))}
    others = []  # contender, what it is called, and what it is compared with
    try:
        stream = pickle.dumps(value, 5)
    except Exception as error:  # expected for memoryviews and ctypes arrays
        print(f"{row.group} {row.name}: no pickle: {type(error).__name__}", file=sys.stderr)
    else:
        contenders["dumps"] = once(lambda: pickle.dumps(value, 5))
        contenders["loads"] = once(lambda: pickle.loads(stream))
        others += [("dumps", "pickle.dumps", "put"), ("loads", "pickle.loads", "get")]
    way = own_way(row, value, path)
    if way is not None:
        contenders["own write"], contenders["own read"] = once(way[1]), once(way[2])
        others += [("own write", f"{way[0]}, writing", "put"), ("own read", f"{way[0]}, reading", "get")]
    times = interleaved(rounds, contenders)
    return [
        measured(
            row.group,
            f"{row.name}: {title} over {ours}",
            median_ratio(times[other], times[ours]),
            "x",
            note=f"{ours}: {median(times[ours]) * 1e3:.3f} ms",
        )
        for other, title, ours in others
    ]


def measure_group(group: str, quick: bool) -> list[Claim]:
    """Measure all types of one library."""
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for row in ROWS:
            if row.group == group:
                try:
                    claims += measure(row, os.path.join(folder, "value"), 3 if quick else 9)
                except ImportError as error:
                    claims.append(measured(group, row.name, None, "x", skipped=str(error)))
                gc.collect()
    return claims


if __name__ == "__main__":
    groups = {row.group: partial(measure_group, row.group) for row in ROWS}
    names = ("pandas", "pyarrow", "polars", "scipy", "torch", "xarray", "scikit-learn", "pillow", "joblib")
    sys.exit(main(__file__, __doc__, groups, packages=names))
