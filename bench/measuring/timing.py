"""Timing in short interleaved rounds.

A single figure means little on a machine with other load: the clock rate changes, and other processes start and stop.
So contenders take turns in many short rounds, and a ratio is the median of the ratios of the rounds. A disturbance
then either affects both sides of a round, or makes that round an outlier.
"""

from __future__ import annotations

import gc
import timeit
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from time import perf_counter

__all__ = ["Loop", "best", "interleaved", "median", "median_ratio", "once", "ratios", "typical"]

Round = Callable[[], float]


class Loop:
    """
    A callable that runs a statement in a tight loop and returns the seconds per execution, averaged over one round.

    The garbage collector stays on, unlike timeit's default, because an allocation that triggers it is part of the cost.

    Parameters
    ----------
    statement : str
    names : mapping
        The names that the statement uses.
    per : int
        The number of operations in one execution.
    seconds : float
        The intended duration of a round.
    """

    def __init__(self, statement: str, names: Mapping, *, per: int = 1, seconds: float = 2e-3, most: int = 1_000_000):
        self._timer = timeit.Timer(statement, "gc.enable()", timer=perf_counter, globals={**names, "gc": gc})
        self._per = per
        self.number = 1
        while self.number < most:
            taken = self._timer.timeit(self.number)
            if taken >= seconds / 2:
                break
            self.number = min(most, max(self.number * 2, int(self.number * seconds / max(taken, 1e-7) / 2)))

    def __call__(self) -> float:
        return self._timer.timeit(self.number) / self.number / self._per


def once(function: Callable[[], object]) -> Round:
    """Return a round that times one call, and drops its result only after the time was measured."""

    def call() -> float:
        start = perf_counter()
        kept = function()
        taken = perf_counter() - start
        del kept
        return taken

    return call


def interleaved(rounds: int, contenders: Mapping[str, Round], *, warm_up: int = 1) -> dict[str, list[float]]:
    """
    Run all contenders in every round, and begin each round with a different contender.

    Returns
    -------
    dict of list of float
        For each contender, the results of its rounds in order: results at the same index belong to the same round.
    """
    names = list(contenders)
    for _ in range(warm_up):
        for name in names:
            contenders[name]()
    results: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            results[name].append(contenders[name]())
    return results


def typical(results: Iterable[float]) -> float:
    """
    Return the lower quartile, as an estimate for a round without disturbance.

    Use this function for times that are not part of a ratio. Other load can only lengthen a round, and on a busy
    machine it lengthens most rounds; the fastest round, on the other hand, may be a lucky exception.
    """
    ordered = sorted(results)
    return ordered[len(ordered) // 4]


def ratios(numerators: Iterable[float], denominators: Iterable[float]) -> list[float]:
    """Return one ratio for each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def median_ratio(numerators: Iterable[float], denominators: Iterable[float]) -> float:
    """Return the median of the ratios of the rounds; it differs from the ratio of the medians."""
    return median(ratios(numerators, denominators))


def best(results: Mapping[str, list[float]], names: Iterable[str]) -> str:
    """Return the name in `names` that has the smallest median."""
    return min(names, key=lambda name: median(results[name]))
