"""The results of cached functions, as named objects: list, count and drop them.

`put` calls `drop_results` when the store is full, perhaps in a process that can no longer import modules, so this
module imports few.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from .. import _core
from ..exceptions import NameExistsError, ObjectLostError, ObjectStoreFullError, StoreFullError

__all__ = ["COUNTER", "PREFIX", "Entry", "count", "drop", "drop_results", "entries", "forget", "sized"]

PREFIX = _core.NAME_CACHED
# The last part of the name of a function's counter entry; in the other names it is the digest of the arguments.
COUNTER = "count"


class Entry(NamedTuple):
    """A row of the table of names: a result, or the counter entry of a function."""

    name: str
    identity: bytes
    age: int
    uses: int
    used: int
    note: int


# True while a thread drops results. If the put of a counter entry then finds the store full, it drops no more results.
_dropping = threading.local()


def entries(store: _core.Store, prefix: str) -> list[Entry]:
    """Return the entries whose names start with a prefix, including counter entries."""
    return [
        Entry(name, identity, age, uses, used, note)
        for name, identity, _, age, _, uses, used, note in _core.names_of(store, prefix)
    ]


def sized(store: _core.Store, prefix: str) -> list[tuple[Entry, int]]:
    """Return the results and their sizes in bytes, the least recently used ones first."""
    found = []
    for entry in entries(store, prefix):
        if entry.name.endswith(f"/{COUNTER}"):
            continue
        try:
            size = _core.ObjectRef.from_binary(entry.identity).size
        except ObjectLostError:
            continue  # dropped meanwhile
        found.append((entry, size or 0))
    return sorted(found, key=lambda pair: pair[0].used)


def drop(store: _core.Store, found: list[tuple[Entry, int]], excess: int, least: float = 0) -> int:
    """
    Drop the least recently used results until `excess` bytes are dropped.

    Parameters
    ----------
    store : Store
    found : list of tuple
        The results, as `sized` returns them.
    excess : int
        Number of bytes to drop.
    least : float
        Minimum share of the results to drop, from 0 to 1; their number is rounded up.

    Returns
    -------
    int
        The number of dropped results.
    """
    dropped = 0
    for entry, size in found:
        if excess <= 0 and dropped >= least * len(found):
            break
        try:
            ref = _core.ObjectRef.from_binary(entry.identity)
        except ObjectLostError:
            continue  # another process was faster
        if forget(store, entry.name, ref):
            excess -= size
            dropped += 1
    return dropped


def forget(store: _core.Store, name: str, ref: _core.ObjectRef[Any]) -> bool:
    """Drop one result. Processes that are reading the result keep it."""
    uses = _core.unbind_name(store, name, ref)
    if uses is None:
        return False  # another process was faster
    count(store, name.rpartition("/")[0] + "/", uses, 0)
    return True


def count(store: _core.Store, prefix: str, uses: int, misses: int) -> None:
    """Add to the counts of a function."""
    if not uses and not misses:
        return
    name = f"{prefix}{COUNTER}"
    while not _core.count_name(store, name.encode(), uses, misses):
        try:
            _core.put_reserved(None, name)
        except NameExistsError:
            continue  # another process was faster
        except (ObjectStoreFullError, StoreFullError):
            return  # no room: omit this from the counts


def drop_results(store: _core.Store, size: int) -> int:
    """
    Drop the least recently used results of all functions, until `size` bytes may be free.

    A `put` that finds the store full calls this, until there is room or no result is left. Each call drops at
    least a sixteenth of the results, because the free memory may lie in small pieces.

    Returns
    -------
    int
        The number of dropped results.
    """
    if getattr(_dropping, "now", False):
        return 0
    _dropping.now = True
    try:
        stats = store.stats()
        return drop(store, sized(store, PREFIX), size - (stats["capacity"] - stats["used"]), 1 / 16)
    finally:
        _dropping.now = False
