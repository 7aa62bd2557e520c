"""Follow the versions of a named object."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .. import _core
from ..exceptions import GetTimeoutError, ObjectLostError
from . import by_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from .._core import ObjectRef
    from ..typing import MmapMode

__all__ = ["Versions", "watch"]

# Seconds after which an asynchronous reader checks the counter of the store again. The check takes no lock.
_PAUSE = 0.005


class Versions:
    """
    The versions of a named object, as values; always the newest, and each at most once. The function `watch` makes it.

    Attributes
    ----------
    version : int
        Version of the value that was returned last.
    ref : ObjectRef or None
        Reference to the value that was returned last.
    time : float
        When that value got the name, in seconds since the epoch, to the second.
    """

    def __init__(self, name: str, newer_than: int, timeout: float | None, mmap_mode: MmapMode) -> None:
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be None or a number >= 0, not {timeout!r}")
        if mmap_mode not in ("r", "c"):
            raise ValueError(f'mmap_mode must be "r" or "c", not {mmap_mode!r}')
        self.name = _core.usable_name(name)
        self.version = max(0, newer_than)
        self.ref: ObjectRef[Any] | None = None
        self.time = 0.0
        self._timeout = timeout
        self._mode = mmap_mode
        self._store = by_name.current()
        _core.find_name(self._store, self.name)  # raises if the name cannot be one

    def __repr__(self) -> str:
        return f"<versions of {self.name!r}, {self.version} is the last that was read>"

    def _value(self, entry: tuple[ObjectRef[Any], int, int, bool]) -> Any:
        ref, version, age, _ = entry
        value = _core.get(ref, mmap_mode=self._mode)
        self.ref, self.version, self.time = ref, version, time.time() - age
        return value

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        end = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            entry = _core.wait_name(self._store, self.name, left, self.version)
            try:
                return self._value(entry)
            except ObjectLostError as error:
                if not by_name.was_freed(error, self._store, self.name, entry[0]):
                    raise

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        import asyncio

        end = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            seen = _core.epoch(self._store)
            entry = _core.find_version(self._store, self.name)
            if entry is not None and entry[1] > self.version:
                try:
                    return self._value(entry)
                except ObjectLostError as error:
                    if not by_name.was_freed(error, self._store, self.name, entry[0]):
                        raise
            del entry  # do not hold an old version during the wait
            while _core.epoch(self._store) == seen:
                if end is not None and time.monotonic() >= end:
                    raise GetTimeoutError(ref=f"named {self.name!r}", timeout=self._timeout)
                await asyncio.sleep(_PAUSE)


def watch(name: str, *, newer_than: int = 0, timeout: float | None = None, mmap_mode: MmapMode = "r") -> Versions:
    """
    Iterate over the versions of a named object as processes replace it with ``put(value, name=..., replace=True)``.

    Each step waits until there is a version newer than the last one, and returns the newest; versions in between are
    skipped, so a slow reader holds one version and never falls behind. The iterator has no end; also use it with
    ``async for``.

    Parameters
    ----------
    name : str
    newer_than : int
        Skip versions up to this one, for example `Versions.version` of an earlier iterator. The default begins with the
        current version.
    timeout : float, optional
        Maximum number of seconds that a step waits.
    mmap_mode : {"r", "c"}
        As for `get`.

    Returns
    -------
    Versions

    Raises
    ------
    GetTimeoutError
        In a step, if there is no newer version in time.

    Examples
    --------
    >>> versions = pyray_ser.watch("weights", timeout=60)
    >>> ref = pyray_ser.put({"step": 1}, name="weights", replace=True)
    >>> next(versions)
    {'step': 1}
    >>> ref = pyray_ser.put({"step": 2}, name="weights", replace=True)
    >>> for weights in versions:
    ...     print(weights["step"])
    ...     break
    2
    """
    return Versions(name, newer_than, timeout, mmap_mode)
