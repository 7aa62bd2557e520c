"""Objects under way in messages.

Each holds a token in the store until its receiver has taken over, with a note of the pipe that it went through. The sender keeps
a list, for two reasons: bytes under way are bounded, and tokens of messages that nobody will read must end. A message is taken
for lost when nobody can read its pipe any more; or when the pipe has been empty, so that somebody has read it, for long enough
to have loaded it. To end the token of a message that did arrive changes nothing, so the list need not know which did.

The list dies with its process, the tokens and their notes do not: whoever reaps a child looks for them, and after them by the
same rules.
"""

from __future__ import annotations

import os
import time
import weakref
from _thread import RLock
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from .. import _store
from ..exceptions import StoreBusyError
from ..store.discovery import node_name
from . import pipes, stored_once

if TYPE_CHECKING:
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
        connection = None if self.connection is None else self.connection()
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


def send(
    values: list[Any], connection: Connection, options: Options, argument: stored_once.Argument | None = None
) -> list[bytes] | None:
    """
    Store buffers for a message.

    Parameters
    ----------
    values : list of bytes-like
    connection : multiprocessing.connection.Connection
        Where the message goes.
    options : Options
    argument : Argument, optional
        What the one value is, if it is one that may be stored once.

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
        from ..store.discovery import open_default

        store = open_default()
    limit = options.max_in_flight
    if limit is None:
        limit = store.capacity // 4
    views = [memoryview(value) for value in values]
    known = [stored_once.find(view, argument) for view in views]
    total = sum(view.nbytes for view, ref in zip(views, known, strict=True) if ref is None)
    if total and _under_way(store) + total > limit:
        return None
    note = pipes.note_of(inode)
    blobs, entries = [], []
    try:
        for view, ref in zip(views, known, strict=True):
            kept = ref is not None
            if ref is None:
                ref, kept = stored_once.put(view, argument)
            blob, token = ref.travel(1, node_name(), note)
            blobs.append(blob)
            entries.append(_Sent(ref.binary(), store, token, note, 0 if kept else view.nbytes, connection))
    except BaseException:
        for entry in entries:
            _store.drop_token(store, entry.identity, entry.token)
        raise
    with _lock:
        _sent.extend(entries)
    _watch()
    return blobs


def _under_way(store: _store.Store) -> int:
    """Return how many bytes are under way: what this process sent until the object is gone, of others until it has arrived."""
    flights = _prune(store)
    me = os.getpid()
    others: int = sum(flight["size"] for flight in flights if flight["note"] and flight["sender_pid"] != me)
    with _lock:
        return others + sum(entry.nbytes for entry in _sent)


# ---- what becomes of them ------------------------------------------------------------------------------------------------


def _watch() -> None:
    global _watching
    with _lock:
        if _watching:
            return
        _watching = True
    from ..tasks.channel import collector

    collector().repeat(_look)


def _prune(store: _store.Store) -> list[dict[str, Any]]:
    """Forget what has arrived, but what counts until it is gone; return all that is under way in the store."""
    # In this order: what is sent meanwhile is not among the entries.
    with _lock:
        entries = list(_sent)
    flights = store.flights()
    waiting = {flight["token"][1] for flight in flights}
    arrived = [entry for entry in entries if entry.token[1] not in waiting]
    gone = {id(entry) for entry in arrived if not (entry.nbytes and entry.lives())}
    with _lock:
        _sent[:] = [entry for entry in _sent if id(entry) not in gone]
    return flights


def reaped() -> None:
    """Look after what children that have ended had sent. Called when one was reaped; cheap if there is nothing."""
    global _deaths
    _deaths = time.monotonic()
    store = _store.default()
    try:
        found = (
            store is not None
            and not store.closed
            and store.stats()["in_flight"]
            and _find_orphans(store.flights(), store)
        )
    except StoreBusyError:
        found = True  # a stopped process has the lock: look later
    if found:
        _watch()


def _find_orphans(flights: list[dict[str, Any]], store: _store.Store) -> bool:
    """List the messages of dead senders; tell whether there are any."""
    found = {}
    for flight in flights:
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
    flights: list[dict[str, Any]] = []
    try:
        if store is not None and not store.closed:
            flights = _prune(store)
            _find_orphans(flights, store)
    except StoreBusyError:
        return True
    waiting = {flight["token"][1] for flight in flights}
    left = stored_once.expire()
    with _lock:
        entries = [entry for entry in (*_sent, *_orphans.values()) if entry.token[1] in waiting]
    readers = pipes.Readers()
    for entry in entries:
        if _is_lost(entry, readers, now, died):
            _store.drop_token(entry.store, entry.identity, entry.token)
            with _lock:
                _orphans.pop(entry.token[1], None)
                if entry in _sent:
                    _sent.remove(entry)
    with _lock:
        _watching = bool(_sent or _orphans or left)
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
    global _lock, _sent, _orphans, _watching, _children
    _lock = RLock()
    _sent = []
    _orphans = {}
    _watching = False
    _children = set()


os.register_at_fork(after_in_child=_after_fork_in_child)
