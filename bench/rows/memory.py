"""Measure the memory that an object takes in addition to its bytes, and the total memory of several readers."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
from measuring import data
from measuring.claim import Claim, at_least, at_most
from measuring.memory import do_nothing, pss

import pyray_ser

READERS = 8


def bookkeeping(quick: bool) -> list[Claim]:
    """Measure the growth of the store's control area per live object, in a store with default options."""
    array = data.small()
    kept = [pyray_ser.put(array) for _ in range(100)]
    count = 10_000 if quick else 100_000
    gc.collect()
    before, private = pyray_ser.stats(), pss(kind="Private_Dirty")
    kept += [pyray_ser.put(array) for _ in range(count)]
    gc.collect()
    after, private_after = pyray_ser.stats(), pss(kind="Private_Dirty")
    for ref in kept[:: max(1, count // 100)]:
        data.check("one of many", array, pyray_ser.get(ref))
    live = after["objects"]
    each = (after["overhead"] - before["overhead"]) / count
    data_each = (after["used"] - before["used"]) / count
    return [
        at_most(
            "memory",
            "bookkeeping per object in the store",
            each,
            256,
            "bytes",
            data_area_per_object=data_each,
            payload=array.nbytes,
            private_per_reference=(private_after - private) / count,
            note=f"an 80 B array takes {data_each:.0f} bytes of the data area, header included",
        ),
        at_least("memory", "live objects in a default store", float(live), float(count), "objects"),
    ]


def _read(pipe: Connection) -> None:
    """Read the whole object; report the shares of memory once all readers have read it."""
    array = pyray_ser.get(pipe.recv())
    pipe.send(_digest(array))
    pipe.recv()
    pipe.send((pss(), pss(kind="Pss_Shmem")))
    pipe.recv()


def _digest(array: np.ndarray) -> int:
    """Return the sum of all elements, which reads every page."""
    return int(array.sum(dtype=np.int64))


def _sum(work: Callable, message: object, expected: int) -> tuple[int, int]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(READERS):
        mine, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    for pipe in pipes:
        pipe.send(message)
    for pipe in pipes:
        if pipe.recv() != expected:
            raise AssertionError("a reader saw other bytes")
    for pipe in pipes:
        pipe.send(None)
    shares = [pipe.recv() for pipe in pipes]
    # This process also maps the object, so a share of the object's memory counts for this process and not for a reader.
    own = pss(kind="Pss_Shmem")
    for pipe in pipes:
        pipe.send(None)
    for process in processes:
        process.join()
    return sum(share for share, _ in shares), own


def readers(quick: bool) -> list[Claim]:
    """Measure the memory that 8 spawned readers of the same 1 GiB use beyond that of 8 processes without a store."""
    size = 2**24 if quick else 2**30
    array = np.arange(size // 8, dtype=np.int64)
    expected = _digest(array)
    ref = pyray_ser.put(array)
    del array
    used, own = _sum(_read, ref, expected)
    baseline, _ = _sum(do_nothing, None, 0)
    figure = (used + own - baseline) / size
    return [
        at_most(
            "memory",
            f"PSS of {READERS} readers of the same 1 GiB, beyond the baseline",
            figure,
            1.03,
            "GiB",
            readers_bytes=used,
            baseline_bytes=baseline,
            share_of_the_producer_bytes=own,
        )
    ]
