"""Objects under way in messages.

Each holds a token in the store until its receiver has taken over, with a note of the pipe that it went through. The sender keeps
a list, for two reasons: bytes under way are bounded, and tokens of messages that nobody will read must end. A message is taken
for lost when nobody can read its pipe any more; or when the pipe has been empty, so that somebody has read it, for long enough
to have loaded it. To end the token of a message that did arrive changes nothing, so the list need not know which did.

The list dies with its process, the tokens and their notes do not: whoever reaps a child looks for them, and after them by the
same rules.

An array that nobody can write is stored once, however often it is sent, as long as it lives.
"""

from __future__ import annotations

import os
import time
import weakref
from _thread import RLock
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ... import _store
from ...exceptions import StoreBusyError
from ...store import node_name
from . import arrived, pipes

if TYPE_CHECKING:
    import numpy

    from .patches import Options

__all__ = ["reaped", "send"]

# Seconds from seeing a pipe empty until what was read from it must have been loaded: nobody has the pipe any more; a process
# has died meanwhile; neither.
CLOSED, AFTER_DEATH, PATIENCE = 1.0, 5.0, 30.0
# Seconds between looks at what is under way.
LOOK = 0.25


class _Sent:
    """One object under way."""

    __slots__ = ("connection", "empty_since", "identity", "nbytes", "note", "store", "token")

    def __init__(
        self,
        identity: bytes,
        store: _store.Store,
        token: tuple[int, int],
        note: int,
        nbytes: int = 0,
        connection: Connection | None = None,
    ) -> None:
        self.identity = identity
        self.store = store
        self.token = token
        # Of the pipe.
        self.note = note
        self.nbytes = nbytes
        # None for one that another process sent.
        self.connection = None if connection is None else weakref.ref(connection)
        self.empty_since: float | None = None

    def lives(self) -> bool:
        """Tell whether the object still exists: under way, or with its receiver."""
        if self.store.closed:
            return False
        return _store.load_ref(self.identity).state == "sealed"

    def unread(self, readers: pipes.Readers) -> int | None:
        """Return how much of its pipe is unread; None if nobody can read it."""
        connection = self.connection and self.connection()
        if connection is not None and not connection.closed:
            try:
                return pipes.unread_here(connection)
            except OSError:
                pass  # closed just now
        return readers.unread(self.note)


_lock = RLock()
_sent: list[_Sent] = []
# What processes that are dead had sent: serial of the token -> its message
_orphans: dict[int, _Sent] = {}
_watching = False
_looked = 0.0
_deaths = 0.0
_children: set[int] = set()
# (address, bytes) -> (weak reference to the array that owns them, reference): what nobody can write, stored once
_constant: dict[tuple[int, int], tuple[weakref.ref[numpy.ndarray[Any, Any]], _store.ObjectRef]] = {}


def send(values: list[Any], connection: Connection, options: Options) -> list[bytes] | None:
    """
    Store buffers for a message.

    Parameters
    ----------
    values : list of bytes-like
    connection : multiprocessing.connection.Connection
        Where the message goes.
    options : Options

    Returns
    -------
    list of bytes or None
        What `load_ref` takes; None if too much is under way, or if the message may leave this host's processes.
    """
    inode = pipes.reading_side(connection)
    if not inode:
        return None
    store = _store.default()
    if store is None:
        from ...store import open_default

        store = open_default()
    limit = options.max_in_flight
    if limit is None:
        limit = store.capacity // 4
    total = sum(memoryview(value).nbytes for value in values)
    with _lock:
        _prune()
        under_way = sum(entry.nbytes for entry in _sent)
    if under_way + total > limit or under_way + total + _of_others(store) > limit:
        return None
    note = pipes.note_of(inode)
    blobs, entries = [], []
    try:
        for value in values:
            ref, nbytes = _stored(value)
            blob, token = ref.travel(1, node_name(), note)
            blobs.append(blob)
            entries.append(_Sent(ref.binary(), store, token, note, nbytes, connection))
    except BaseException:
        for entry in entries:
            _store.drop_token(store, entry.identity, entry.token)
        raise
    with _lock:
        _sent.extend(entries)
    _watch()
    return blobs


def _of_others(store: _store.Store) -> int:
    """Return how many bytes other processes have under way."""
    me = os.getpid()
    return sum(flight["size"] for flight in store.flights() if flight["note"] and flight["sender_pid"] != me)


# ---- storing ------------------------------------------------------------------------------------------------------------


def _stored(value):
    """Return a reference to the bytes of a value, and how many were added to the store for it."""
    view = memoryview(value)
    owner = None if type(value) is bytes else _constant_owner(view)
    if owner is None:
        ref = arrived.source(view)
        return (_store.put(view), view.nbytes) if ref is None else (ref, 0)
    key = (_address(view), view.nbytes)
    with _lock:
        known = _constant.get(key)
        if known is not None and known[0]() is owner and known[1].state == "sealed":
            return known[1], 0
    ref = _store.put(view)
    with _lock:
        _constant[key] = (weakref.ref(owner, lambda _: _constant.pop(key, None)), ref)
    return ref, view.nbytes


def _constant_owner(view: memoryview):
    """Return the array at the bottom of a view if nobody can write to it through any array on the way, else None."""
    import numpy

    # A read-only array lends its memory through ctypes, see `message`.
    found = getattr(view.obj, "lender", view.obj)
    owner = None
    while isinstance(found, numpy.ndarray):
        if found.flags.writeable:
            return None
        owner, found = found, found.base
    if owner is None:
        return None
    # What is below the arrays: nothing, immutable bytes, or bytes of ours, which no one can write.
    if found is None or type(found) is bytes or type(found).__module__.startswith("pyray_ser."):
        return owner
    return owner if isinstance(found, memoryview) and found.readonly and type(found.obj) is bytes else None


def _address(view: memoryview) -> int:
    import numpy

    return numpy.frombuffer(view, numpy.uint8).ctypes.data


# ---- what becomes of them ------------------------------------------------------------------------------------------------


def _watch() -> None:
    global _watching
    with _lock:
        if _watching:
            return
        _watching = True
    from ..channel import collector

    collector().repeat(_look)


def _prune() -> None:
    """Forget what has arrived and was let go of; the lock is held."""
    _sent[:] = [entry for entry in _sent if entry.lives()]


def reaped() -> None:
    """Look after what children that have ended had sent. Called when one was reaped; cheap if there is nothing."""
    global _deaths
    _deaths = time.monotonic()
    store = _store.default()
    try:
        found = store is not None and not store.closed and store.stats()["in_flight"] and _find_orphans(store)
    except StoreBusyError:
        found = True  # a stopped process has the lock: look later
    if found:
        _watch()


def _find_orphans(store: _store.Store) -> bool:
    """List the messages of dead senders; tell whether there are any."""
    found = {}
    for flight in store.flights():
        if flight["note"] and flight["once"] and not flight["sender_alive"]:
            token = flight["token"]
            known = _orphans.get(token[1])
            found[token[1]] = known or _Sent(bytes.fromhex(flight["id"]), store, token, flight["note"])
    with _lock:
        _orphans.clear()
        _orphans.update(found)
    return bool(found)


def _look() -> bool:
    """End the tokens of messages that are lost; tell whether anything is left to look after."""
    global _watching, _looked
    now = time.monotonic()
    if now - _looked < LOOK:
        return True
    _looked = now
    died = _death(now)
    store = _store.default()
    try:
        if store is not None and not store.closed:
            _find_orphans(store)
    except StoreBusyError:
        return True
    with _lock:
        _prune()
        entries = [*_sent, *_orphans.values()]
    readers = pipes.Readers()
    for entry in entries:
        if _is_lost(entry, readers, now, died):
            _store.drop_token(entry.store, entry.identity, entry.token)
            with _lock:
                _orphans.pop(entry.token[1], None)
                if entry in _sent:
                    _sent.remove(entry)
    with _lock:
        _watching = bool(_sent or _orphans)
        return _watching


def _death(now: float) -> float:
    """Return when a child of this process was last seen to be gone."""
    global _deaths, _children
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = set(map(int, file.read().split()))
    except OSError:
        return now  # a kernel that does not tell: the shorter patience holds
    if _children - children:
        _deaths = now
    _children = children
    return _deaths


def _is_lost(entry: _Sent, readers: pipes.Readers, now: float, died: float) -> bool:
    unread = entry.unread(readers)
    if unread:
        entry.empty_since = None
        return False
    if entry.empty_since is None:
        entry.empty_since = now
    patience = PATIENCE
    if unread is None:
        patience = CLOSED
    elif entry.connection is None or died >= entry.empty_since - LOOK:
        patience = AFTER_DEATH
    return now - entry.empty_since > patience


def _after_fork_in_child() -> None:
    # The parent's messages are the parent's.
    global _lock, _sent, _orphans, _watching, _children, _constant
    _lock = RLock()
    _sent = []
    _orphans = {}
    _watching = False
    _children = set()
    _constant = {}


os.register_at_fork(after_in_child=_after_fork_in_child)
