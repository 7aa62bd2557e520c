"""Measure how fast this machine copies, as a reference for `put` of large arrays."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np

__all__ = ["Cold", "Copy", "SecondHand", "copy"]

MADV_POPULATE_WRITE = 23  # Linux has this flag since 5.14, but the mmap module does not define it yet


@cache
def _library() -> ctypes.CDLL:
    """Compile copyrate.c; call this function before any measurement."""
    source = Path(__file__).with_name("copyrate.c")
    compiler = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "copyrate.so")
        subprocess.run([*compiler, "-O3", "-shared", "-fPIC", "-pthread", str(source), "-o", path], check=True)
        library = ctypes.CDLL(path)
    library.copyrate_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
    return library


def copy(dst: int, src: int, size: int, *, streaming: bool, threads: int) -> None:
    """Copy between two addresses without the GIL."""
    status = _library().copyrate_copy(dst, src, size, streaming, threads)
    if status:
        raise OSError(status, os.strerror(status))


def _kernels() -> dict[str, tuple[bool, int]]:
    found = {"memcpy": (False, 1)}
    cpus = len(os.sched_getaffinity(0))
    streams = bool(_library().copyrate_can_stream())
    if streams:
        found["non-temporal"] = (True, 1)
    if cpus > 1:
        threads = min(cpus, 8)
        found[f"memcpy, {threads} threads"] = (False, threads)
        if streams:
            found[f"non-temporal, {threads} threads"] = (True, threads)
    return found


class Copy:
    """
    Measure copies of `array` with every copy function into mapped memory that was used before, private and shared.

    The functions that `kernels` returns must not be called after `close`.
    """

    def __init__(self, array: np.ndarray):
        self._array = array
        size = array.nbytes
        self._private = np.empty(size, np.uint8)
        self._private[:] = 1
        self._file = os.memfd_create("copyrate")
        os.ftruncate(self._file, size)
        self._map = mmap.mmap(self._file, size)
        self._shared = np.frombuffer(self._map, np.uint8)
        self._shared[:] = 1

    def kernels(self) -> dict[str, Callable[[], None]]:
        """Return a dict of named functions, each of which copies the array once."""
        src, size = self._array.ctypes.data, self._array.nbytes

        def kernel(dst: int, streaming: bool, threads: int) -> Callable[[], None]:
            def run(_alive: Copy = self) -> None:
                copy(dst, src, size, streaming=streaming, threads=threads)

            return run

        made = {}
        for name, (streaming, threads) in _kernels().items():
            made[f"{name}, private"] = kernel(self._private.ctypes.data, streaming, threads)
            made[f"{name}, shared"] = kernel(self._shared.ctypes.data, streaming, threads)
        return made

    def close(self) -> None:
        del self._shared
        self._map.close()
        os.close(self._file)


def _write(file: int, data: memoryview) -> None:
    at = 0
    while at < len(data):
        at += os.pwrite(file, data[at:], at)


class Cold:
    """Measure three ways to copy an array into shared memory; each copy goes into a new file without pages."""

    def __init__(self, array: np.ndarray):
        _library()
        self._array = array
        self._bytes = memoryview(array).cast("B")

    def _file(self) -> int:
        file = os.memfd_create("copyrate")
        os.ftruncate(file, self._array.nbytes)
        return file

    def _timed(self, work: Callable[[int], object]) -> Callable[[], float]:
        def run() -> float:
            file = self._file()
            try:
                start = perf_counter()
                kept = work(file)
                taken = perf_counter() - start
                if isinstance(kept, mmap.mmap):
                    kept.close()
            finally:
                os.close(file)
            return taken

        return run

    def _mapped(self, file: int, populate: bool) -> mmap.mmap:
        size = self._array.nbytes
        mapping = mmap.mmap(file, size)
        if populate:
            mapping.madvise(MADV_POPULATE_WRITE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        streaming = populate and bool(_library().copyrate_can_stream())
        copy(address, self._array.ctypes.data, size, streaming=streaming, threads=1)
        return mapping

    def rounds(self) -> dict[str, Callable[[], float]]:
        """Return a dict of named functions, each of which copies once and returns the time in seconds."""
        return {
            "pwrite": self._timed(lambda file: _write(file, self._bytes)),
            "populate, then non-temporal copy": self._timed(lambda file: self._mapped(file, True)),
            "copy into the mapping": self._timed(lambda file: self._mapped(file, False)),
        }


class SecondHand(Cold):
    """Measure the same copies into a file whose pages exist, but that this process has never mapped."""

    def _file(self) -> int:
        file = super()._file()
        os.posix_fallocate(file, 0, self._array.nbytes)
        return file
