"""Objects in flight in messages.

Each such object has a token in the store until its receiver holds the object. The token records the pipe through which
the message was sent. The sender keeps a list of these objects in order to limit the bytes in flight and to release the
tokens of messages that will not be read. A message counts as lost if no process can read its pipe any more. It also
counts as lost if the pipe has been empty for so long that its reader must have loaded the message by now. Releasing the
token of a message that did arrive has no effect, so the list need not know which messages arrived.

The list exists only as long as its process, but the tokens and the records in them remain. A process that reaps a child
finds the child's tokens and releases them by the same rules.

No thread does this work, because a thread would receive the program's signals, and Python 3.12 warns when a process
with threads forks. `tick` checks the list when a message may have been read or lost: when a message is sent, a child is
polled or reaped, a pipe is closed, a process starts, or the program calls `stats`.
"""

from __future__ import annotations

import os
import time
import weakref
from _thread import RLock
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from .. import _core, _log
from ..exceptions import ObjectStoreFullError, PyraySerError, StoreBusyError
from ..store.discovery import node_name
from . import audience, direct, pipes, stored_once
from .counts import counts

if TYPE_CHECKING:
    from .patches import Options

__all__ = ["Sending", "reaped", "tick"]

# Seconds after which a message must have been loaded, counted from the time when its pipe was empty: CLOSED if no process
# has the pipe open, AFTER_DEATH if a process has died meanwhile, and PATIENCE in all other cases.
CLOSED, AFTER_DEATH, PATIENCE = 5.0, 5.0, 30.0
# Minimum number of seconds between two checks of the list.
LOOK = 0.25
# The position of the token in a reference, see `_core`: kind, index and serial.
_TOKEN = slice(40, 56)


class _Sent:
    """One object in flight."""

    __slots__ = ("connection", "empty_since", "identity", "nbytes", "note", "store", "token", "written")

    def __init__(
        self,
        identity: bytes,
        store: _core.Store,
        token: tuple[int, int],
        note: int,
        nbytes: int = 0,
        connection: Connection | None = None,
    ) -> None:
        self.identity = identity
        self.store = store
        self.token = token
        # The number that identifies the pipe, see `pipes`.
        self.note = note
        self.nbytes = nbytes
        # None if another process sent the message.
        self.connection = None if connection is None else weakref.ref(connection)
        self.empty_since: float | None = None
        # The sender may wait for the lock of a queue before it writes the message. Until then, an empty pipe does not
        # show that the message was read.
        self.written = connection is None

    def lives(self) -> bool:
        """Return whether the object still exists, in flight or with its receiver."""
        if self.store.closed:
            return False
        return _core.load_ref(self.identity).state == "sealed"

    def unread(self, readers: pipes.Readers) -> int | None:
        """Return the number of unread bytes in the pipe of the message; None if no process can read the pipe."""
        connection = None if self.connection is None else self.connection()
        if connection is not None and not connection.closed:
            try:
                return pipes.unread_here(connection)
            except OSError:
                pass  # the connection was just closed
        return readers.unread(self.note)


_lock = RLock()
_sent: list[_Sent] = []
# Messages that dead processes have sent: serial number of the token -> message
_orphans: dict[int, _Sent] = {}
_looked = 0.0
_deaths = 0.0
_children: set[int] = set()


class Sending:
    """
    Puts the large buffers of one message into the store; implements `message.Taker`.

    Parameters
    ----------
    connection : multiprocessing.connection.Connection
        The destination of the message.
    options : Options
    """

    def __init__(self, connection: Connection, options: Options) -> None:
        self.min_bytes = options.min_bytes
        self.mmap_mode = options.mmap_mode
        self.blobs: list[bytes] = []
        self._connection = connection
        self._limit = options.max_in_flight
        self._entries: list[_Sent] = []
        self.refused = -1
        # Why the last buffer stays in the message.
        self._reason = ""
        # None means not determined yet; 0 means that buffers stay in the message.
        self._inode: int | None = None
        self._store: _core.Store | None = None

    def take(self, view: memoryview) -> tuple[Any, ...] | None:
        """Store a buffer, or find it in the store; return the arguments for `load`, or None to leave it in the stream."""
        try:
            found = self._take(view)
        except Exception as error:
            self._reason = "store_full" if isinstance(error, ObjectStoreFullError) else "error"
            found = None
            # Do not raise an error if the store is full, closed, busy, or cannot be made, or if the kernel does not
            # answer.
            _log.debug("a buffer stays in its message: %r", error)
        if found is None:
            counts.refuse(self._reason, view.nbytes)
        return found

    def _take(self, view: memoryview) -> tuple[Any, ...] | None:
        if self._inode is None:
            self._inode = 0
            store = _core.default()
            if store is None or store.closed:
                self._reason = "left_store" if direct.left_store() else "no_store"
                return None
            inode = pipes.reading_side(self._connection)
            blocks = view.nbytes > pipes.capacity(self._connection)
            if not inode:
                self._reason = "not_a_local_pipe"
                return None
            if not audience.all_can_attach(inode, store, blocks):
                self._reason = audience.reason(inode)
                return None
            self._inode, self._store = inode, store
            if self._limit is None:
                self._limit = store.capacity // 4
        store = self._store
        if not self._inode or store is None or self._limit is None:
            return None
        ref = stored_once.find(view)
        kept = ref is not None
        # A message that refers to bytes of the store needs no memory, so these bytes do not count.
        reused = kept or stored_once.lies_in(view, store)
        if ref is None:
            if not reused:
                gathered = sum(entry.nbytes for entry in self._entries)
                if _under_way(store) + gathered + view.nbytes > self._limit:
                    self._reason = "max_in_flight"
                    return None
            ref, kept = stored_once.put(view, self._limit // 2)
        note = pipes.note_of(self._inode)
        blob, token = ref.travel(1, node_name(), note)
        nbytes = 0 if kept or reused else view.nbytes
        self._entries.append(_Sent(ref.binary(), store, token, note, nbytes, self._connection))
        self.blobs.append(blob)
        # The reference in the stream has no token, so it may be loaded any number of times.
        sticky = blob[: _TOKEN.start] + bytes(_TOKEN.stop - _TOKEN.start) + blob[_TOKEN.stop :]
        where = direct.place(store, ref)
        counts.share(view.nbytes, reused)
        return sticky, where, view.nbytes

    def cancel(self) -> None:
        """Release all objects and tokens, because the message will not be sent."""
        for entry in self._entries:
            _core.drop_token(entry.store, entry.identity, entry.token)
        self._entries = []

    def enter(self) -> None:
        """Add the objects to the list, before the message is written."""
        with _lock:
            _sent.extend(self._entries)

    def written(self) -> None:
        """Record that the message is in its pipe, or that writing it failed."""
        for entry in self._entries:
            entry.written = True


def _under_way(store: _core.Store) -> int:
    """Return the bytes in flight. This process's own objects count until they are freed, others until they arrive."""
    tick()
    flights = _prune(store)
    me = os.getpid()
    others: int = sum(flight["size"] for flight in flights if flight["note"] and flight["sender_pid"] != me)
    with _lock:
        return others + sum(entry.nbytes for entry in _sent)


# ---- the end of messages -------------------------------------------------------------------------------------------------


def _prune(store: _core.Store) -> list[dict[str, Any]]:
    """Remove arrived messages from the list, except those that count until freed; return all tokens of the store."""
    # Copy the entries before listing the flights. Messages that are sent meanwhile are not among the entries, so they
    # are not removed.
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
    """Handle the messages of ended children. Called after a child was reaped; fast if no messages are left."""
    global _deaths
    _deaths = time.monotonic()
    store = _core.default()
    try:
        if store is not None and not store.closed and store.stats()["in_flight"]:
            _find_orphans(store.flights(), store)
    except (PyraySerError, OSError) as error:
        _log.debug("cannot check the messages of a process that ended: %r", error)
    tick()


def _find_orphans(flights: list[dict[str, Any]], store: _core.Store) -> None:
    """Add the messages of dead senders to the list."""
    found = {}
    for flight in flights:
        if flight["note"] and flight["once"] and not flight["sender_alive"]:
            token = flight["token"]
            known = _orphans.get(token[1])
            found[token[1]] = known or _Sent(bytes.fromhex(flight["id"]), store, token, flight["note"])
    with _lock:
        _orphans.clear()
        _orphans.update(found)


def tick() -> None:
    """Release the tokens of lost messages. Fast if nothing is in flight; never raise."""
    global _looked
    if not _sent and not _orphans:
        return
    now = time.monotonic()
    if now - _looked < LOOK or not _lock.acquire(blocking=False):
        return
    try:
        _looked = now
        _look(now)
    except StoreBusyError:
        pass  # a stopped process holds the lock: try later
    except Exception as error:
        _log.debug("cannot check the messages in flight: %r", error)
    finally:
        _lock.release()


def _look(now: float) -> None:
    died = _death(now)
    store = _core.default()
    flights: list[dict[str, Any]] = []
    if store is not None and not store.closed:
        flights = _prune(store)
        _find_orphans(flights, store)
    waiting = {flight["token"][1] for flight in flights}
    entries = [entry for entry in (*_sent, *_orphans.values()) if entry.token[1] in waiting]
    readers = pipes.Readers()
    for entry in entries:
        if _is_lost(entry, readers, now, died):
            _core.drop_token(entry.store, entry.identity, entry.token)
            _orphans.pop(entry.token[1], None)
            if entry in _sent:
                _sent.remove(entry)


def _death(now: float) -> float:
    """Return the last time at which a child of this process was found to have ended."""
    global _deaths, _children
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = set(map(int, file.read().split()))
    except OSError:
        return now  # the kernel does not report this, so use the shorter time
    if _children - children:
        _deaths = now
    _children = children
    return _deaths


def _is_lost(entry: _Sent, readers: pipes.Readers, now: float, died: float) -> bool:
    if not entry.written:
        return False
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
    # Messages of the parent are not handled here, because the parent handles them.
    global _lock, _sent, _orphans, _children
    _lock = RLock()
    _sent = []
    _orphans = {}
    _children = set()


os.register_at_fork(after_in_child=_after_fork_in_child)
