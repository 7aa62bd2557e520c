"""Share one array with a pool of processes that read it in place."""

import multiprocessing
import os

import numpy as np

import pyray_ser


def largest_row(ref, start, stop):
    table = pyray_ser.get(ref)  # views of shared memory: nothing is copied
    sums = table[start:stop].sum(axis=1)
    best = int(sums.argmax())
    return float(sums[best]), start + best, os.getpid()


def main():
    table = np.random.default_rng(1).random((200_000, 32))
    ref = pyray_ser.put(table)  # the only copy
    steps = range(0, len(table), 25_000)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        answers = pool.starmap(largest_row, [(ref, start, start + 25_000) for start in steps])
    best, row, _ = max(answers)
    pids = {pid for *_, pid in answers}
    print(f"row {row} has the largest sum, {best:.3f}; {len(pids)} processes looked at {table.nbytes / 1e6:.0f} MB")
    assert row == int(table.sum(axis=1).argmax())


if __name__ == "__main__":
    main()
