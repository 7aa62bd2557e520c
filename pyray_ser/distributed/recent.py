"""Keep the copies of foreign objects for a while after their last use, so that the next task of the host finds them.

Tasks that read the same object often follow each other with gaps. Without this, the host would fetch the object again
after each gap. Each worker keeps the copies that its tasks have used; they are given up early if memory is short.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref as weak

from .. import _log
from ..exceptions import PyraySerError

if TYPE_CHECKING:
    from .._core import ObjectRef, Store

__all__ = ["Recent"]

# Seconds between two looks at the copies.
_LOOK = 1.0
# The copies that one worker keeps may take one part in _SHARE of the store.
_SHARE = 8
# How many copies one worker keeps; a store has room for 65,536 names.
_MOST = 1000


class _Entry(NamedTuple):
    """A copy that is kept: its name, its size, the record of the foreign object, and the time of its last use."""

    claim: ObjectRef[Any]
    nbytes: int
    record: weak[Any]
    used: float


class Recent:
    """
    The copies that the tasks of a worker have used last. All methods run in the event loop of the worker.

    Parameters
    ----------
    store : Store
        The store of the host.
    seconds : float
        How long a copy is kept after its last use; 0 keeps nothing.
    """

    def __init__(self, store: Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, identity: bytes, claim: ObjectRef[Any], nbytes: int, record: weak[Any]) -> None:
        """
        Keep a copy.

        Parameters
        ----------
        identity : bytes
            Of the foreign object.
        claim : ObjectRef
            The named object that keeps the copy.
        nbytes : int
        record : weakref.ref
            Refers to the record of the foreign object, which exists as long as this process holds references to it.
        """
        if not self._seconds or nbytes * _SHARE > self._store.capacity:
            return
        self._entries.pop(identity, None)
        self._entries[identity] = _Entry(claim, nbytes, record, time.monotonic())
        nbytes = sum(entry.nbytes for entry in self._entries.values())
        while len(self._entries) > _MOST or nbytes * _SHARE > self._store.capacity:
            _, oldest = self._entries.popitem(last=False)
            nbytes -= oldest.nbytes
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def clear(self) -> None:
        """Give up all copies."""
        self._entries.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Give up the copies whose time is over, or all if three quarters of the store are in use."""
        self._timer = None
        try:
            is_short = 4 * int(self._store.stats()["used"]) > 3 * self._store.capacity
        except PyraySerError as error:
            _log.debug("copies are not kept: %s", error)
            is_short = True
        if is_short:
            self._entries.clear()
            return
        now = time.monotonic()
        for identity, entry in list(self._entries.items()):
            if entry.record() is not None:
                # A task still holds the reference, so this is not the last use.
                self._entries[identity] = entry._replace(used=now)
            elif now - entry.used > self._seconds:
                del self._entries[identity]
        if self._entries:
            self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)
