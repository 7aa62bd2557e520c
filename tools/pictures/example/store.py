"""Fill a store for the pictures of terminals, and read one of its objects in a worker."""

from __future__ import annotations

import multiprocessing
import sys

import numpy as np

import pyray_ser


def read(queue, ready, stop):
    """Hold a view of an object until the end of the program."""
    view = pyray_ser.get(queue.get())
    ready.set()
    stop.wait()
    del view


def main(name: str = "pictures") -> None:
    pyray_ser.init(name=name, capacity=96 << 20)
    context = multiprocessing.get_context("fork")
    queue, ready, stop = context.SimpleQueue(), context.Event(), context.Event()
    worker = context.Process(target=read, args=(queue, ready, stop))
    worker.start()
    rng = np.random.default_rng(0)
    kept = [
        pyray_ser.put(rng.random((500_000, 8)), name="measurements"),
        pyray_ser.put({f"layer{i}": rng.random((400, 500)) for i in range(8)}, name="weights"),
        pyray_ser.put(rng.integers(0, 9, 1_500_000), name="labels"),
    ]
    kept += [pyray_ser.put(rng.random(250_000)) for _ in range(4)]
    del kept[4]  # a gap
    queue.put(kept[0])
    ready.wait()
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    worker.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
