"""Fill a store for the pictures of terminals: tables, weights and a spilled object, and a worker that reads one of them."""

from __future__ import annotations

import multiprocessing
import sys

import numpy as np

import pyray_ser


def read(ref, ready, stop):
    """Hold a view of an object until the end of the program."""
    view = pyray_ser.get(ref)
    ready.set()
    stop.wait()
    del view


def main(name: str, folder: str) -> None:
    pyray_ser.init(name=name, capacity=96 << 20, spill_dir=folder)
    rng = np.random.default_rng(0)
    kept = [
        pyray_ser.put(rng.random((500_000, 8)), name="measurements"),
        pyray_ser.put({f"layer{i}": rng.random((400, 500)) for i in range(8)}, name="weights"),
        pyray_ser.put(rng.integers(0, 9, 1_500_000), name="labels"),
    ]
    kept += [pyray_ser.put(rng.random(250_000)) for _ in range(4)]
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    worker = context.Process(target=read, args=(kept[0], ready, stop))
    worker.start()
    ready.wait()
    del kept[4]  # a gap
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    worker.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
