"""Run a function for each item of an iterable, and return the results in order, with a bounded number in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

__all__ = ["check_count", "chunks", "results"]

_T = TypeVar("_T")


def check_count(name: str, value: object) -> None:
    """Raise an error unless a value is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def chunks(iterables: tuple[Iterable[Any], ...], size: int) -> Iterator[list[tuple[Any, ...]]]:
    """
    Yield lists of the arguments of `size` calls each.

    Parameters
    ----------
    iterables : tuple of iterable
        One for each argument; the shortest ends the iteration.
    size : int
    """
    calls = zip(*iterables, strict=False)
    while chunk := list(islice(calls, size)):
        yield chunk


def results(
    begin: Callable[[list[tuple[Any, ...]]], _T],
    calls: Iterator[list[tuple[Any, ...]]],
    in_flight: int | None,
    value: Callable[[_T, float | None], list[Any]],
    cancel: Callable[[_T], object],
    timeout: float | None,
) -> Iterator[Any]:
    """
    Begin some calls now, and return an iterator that yields their results in order and begins the others.

    Parameters
    ----------
    begin : callable
        Begins a chunk of calls and returns a reference to it.
    calls : iterator
        The chunks.
    in_flight : int or None
        Maximum number of chunks that were begun and whose results were not requested; None means that all chunks are
        begun now.
    value : callable
        Waits for the results of a chunk, for at most some seconds, and returns them.
    cancel : callable
        Cancels a chunk. Called for all unfinished chunks if the iterator is dropped, or after an error.
    timeout : float or None
        Seconds from now until which all results must have arrived.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    begun = deque(begin(chunk) for chunk in islice(calls, in_flight))
    ordered = _ordered(begin, calls, begun, value, cancel, deadline)
    # Enter the `try` statement, so that its `finally` runs even if no result is taken.
    next(ordered)
    return ordered


def _ordered(
    begin: Callable[[list[tuple[Any, ...]]], _T],
    calls: Iterator[list[tuple[Any, ...]]],
    begun: deque[_T],
    value: Callable[[_T, float | None], list[Any]],
    cancel: Callable[[_T], object],
    deadline: float | None,
) -> Iterator[Any]:
    try:
        yield None
        while begun:
            found = value(begun[0], None if deadline is None else deadline - time.monotonic())
            begun.popleft()
            begun.extend(begin(chunk) for chunk in islice(calls, 1))
            # Keep no reference to a result that was taken.
            found.reverse()
            while found:
                yield found.pop()
    finally:
        for reference in begun:
            cancel(reference)
