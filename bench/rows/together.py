"""Measure two processes that use one store at the same time.

With small objects the processes must not slow each other down; with large objects they share the memory bandwidth.
"""

from __future__ import annotations

import multiprocessing
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter

from measuring import data
from measuring.claim import Claim, at_least
from measuring.copyrate import Copy
from measuring.timing import best, median, median_ratio, ratios

import pyray_ser

SMALL, SPIN, LARGE = "small", "spin", "large"


def _small(array, seconds: float) -> int:
    put, count, end = pyray_ser.put, 0, perf_counter() + seconds
    while perf_counter() < end:
        for _ in range(200):
            put(array)
        count += 200
    return count


def _spin(array, seconds: float) -> int:
    """Do similar work without any sharing; its rate shows the best that two processes can reach on this machine."""
    count, end = 0, perf_counter() + seconds
    while perf_counter() < end:
        for _ in range(200):
            array.tolist()
        count += 200
    return count


def _repeat(work, seconds: float) -> float:
    """Return how many times `work` ran within the time, including a fraction for the last run."""
    count, start = 0, perf_counter()
    while True:
        before = perf_counter()
        work()
        after = perf_counter()
        if after - start >= seconds:
            return count + (start + seconds - before) / (after - before)
        count += 1


def _serve(pipe: Connection, size: int) -> None:
    """Do the requested work for the requested time, and reply with the number of runs."""
    array = data.large(size) if size else data.small()
    if size:
        works = {name: partial(_repeat, kernel) for name, kernel in Copy(array).kernels().items()}
        works[LARGE] = partial(_repeat, lambda: pyray_ser.put(array))
    else:
        works = {SMALL: partial(_small, array), SPIN: partial(_spin, array)}
    for work in works.values():
        work(0.01)
    pipe.send(list(works))
    while True:
        message = pipe.recv()
        if message is None:
            return
        name, start, seconds = message
        while perf_counter() < start:
            pass
        pipe.send(works[name](seconds))


class _Pair:
    """Two processes that work one at a time or together; together they start at the same moment."""

    def __init__(self, size: int):
        self._size = size

    def __enter__(self) -> _Pair:
        pyray_ser.put(0)  # opens the store that the processes find
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(2):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._size), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)
        self.works = [pipe.recv() for pipe in self._pipes][-1]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()

    def run(self, name: str, processes: int, seconds: float) -> float:
        """Return the total operations per second of `processes` processes that work together."""
        start = perf_counter() + 0.002
        for pipe in self._pipes[:processes]:
            pipe.send((name, start, seconds))
        return sum(pipe.recv() for pipe in self._pipes[:processes]) / seconds


def small(quick: bool) -> list[Claim]:
    """Compare the rate of put + free of small objects by two processes with the rate of one process."""
    rounds, seconds = (3, 0.02) if quick else (25, 0.1)
    rates: dict[tuple[str, int], list[float]] = {}
    with _Pair(0) as pair:
        for _ in range(rounds):
            for name in (SMALL, SPIN):
                for processes in (1, 2):
                    rates.setdefault((name, processes), []).append(pair.run(name, processes, seconds))
    scaling = ratios(rates[SMALL, 2], rates[SMALL, 1])
    limit = ratios(rates[SPIN, 2], rates[SPIN, 1])
    return [
        at_least(
            "two processes",
            "putting and freeing small objects, over one",
            median(scaling),
            1.6,
            "x",
            note=f"work that shares nothing: {median(limit):.2f} x",
            million_per_second={str(count): median(rates[SMALL, count]) / 1e6 for count in (1, 2)},
        ),
        # This is the same figure without the CPU time that other load on the machine takes from the second process.
        at_least(
            "two processes", "the same, share of work that shares nothing", 100 * median_ratio(scaling, limit), 80, "%"
        ),
    ]


def large(quick: bool) -> list[Claim]:
    """Compare two processes that put 100 MB at the same time with the best total rate of copies by one or two."""
    size = 10**7 if quick else 10**8
    rounds, seconds = (3, 0.05) if quick else (9, 0.2)
    rates: dict[tuple[str, int], list[float]] = {}
    with _Pair(size) as pair:
        copies = [name for name in pair.works if name != LARGE]
        for _ in range(rounds):
            for name in [*copies, LARGE]:
                for processes in (1, 2):
                    rates.setdefault((name, processes), []).append(pair.run(name, processes, seconds))
    times = {key: [1 / rate for rate in values] for key, values in rates.items()}
    limit = best(times, [key for key in times if key[0] != LARGE])
    share = 100 * median_ratio(rates[LARGE, 2], rates[limit])
    gb = {f"{name}, {count}": median(values) * size / 1e9 for (name, count), values in rates.items()}
    return [
        at_least(
            "two processes",
            "putting 100 MB, share of the machine's limit",
            share,
            85,
            "%",
            note=f"{gb[f'{LARGE}, 2']:.1f} of {median(rates[limit]) * size / 1e9:.1f} GB/s "
            f"({limit[0]}, {limit[1]} processes)",
            rates_gb_s=gb,
        )
    ]
