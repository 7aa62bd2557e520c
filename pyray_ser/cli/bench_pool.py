"""The program that ``pyray-ser bench pool`` measures: the README's pool, with or without the lines for pyray_ser."""

import multiprocessing
import sys
import time
from typing import Any

__all__ = ["column_mean", "main"]

COLUMNS = 8


def column_mean(table: Any, column: int) -> float:
    """Return the mean of a column."""
    return float(table[:, column].mean())


def main(argv: list[str]) -> None:
    """Run the pool once for each line on standard input, and print the seconds. Arguments: before or after, MB, workers."""
    which, megabytes, workers = argv[0], int(argv[1]), int(argv[2])
    import numpy

    table = numpy.ones((megabytes * 125_000 // COLUMNS, COLUMNS)) * numpy.arange(COLUMNS)
    if which == "after":
        import pyray_ser

        pyray_ser.install()
        table = pyray_ser.get(pyray_ser.put(table))
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            means = pool.starmap(column_mean, [(table, column) for column in range(COLUMNS)])
        seconds = time.perf_counter() - began
        if means != list(map(float, range(COLUMNS))):
            raise RuntimeError(f"the pool returned {means}")
        print(seconds, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
