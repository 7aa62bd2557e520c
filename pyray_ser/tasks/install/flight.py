"""Objects under way in messages.

Each holds a token in the store until its receiver has taken over. The sender keeps a list, for two reasons: bytes under way
are bounded, and tokens of messages that nobody will read must end. A message is taken for lost when its pipe has been empty,
so that somebody has read it, for long enough to have loaded it; or when the pipe is gone. To end the token of a message that
did arrive changes nothing, so the list need not know which did.

An array that nobody can write is stored once, however often it is sent, as long as it lives.
"""

from __future__ import annotations

import array
import fcntl
import os
import stat
import termios
import time
import weakref
from _thread import RLock

from ... import _store
from ...store import node_name

__all__ = ["is_local", "send"]

# Seconds from seeing an empty pipe until what was read from it must have been loaded: if a child has died meanwhile, and if not.
AFTER_DEATH, PATIENCE = 2.0, 30.0
# Seconds between looks at what is under way.
LOOK = 0.25


class _Sent:
    """One object under way."""

    __slots__ = ("connection", "empty_since", "identity", "inode", "nbytes", "store", "token")

    def __init__(self, ref, store, token, nbytes: int, connection) -> None:
        self.identity = ref.binary()
        self.store = store
        self.token = token
        self.nbytes = nbytes
        self.connection = weakref.ref(connection)
        self.inode = os.fstat(connection.fileno()).st_ino
        self.empty_since: float | None = None

    def lives(self) -> bool:
        """Tell whether the object still exists: under way, or with its receiver."""
        if self.store.closed:
            return False
        return _store.load_ref(self.identity).state == "sealed"


_lock = RLock()
_sent: list[_Sent] = []
_watching = False
_pruned = 0.0
_deaths = 0.0
_children: set[int] = set()
# (address, bytes) -> (weak reference to the array that owns them, reference): what nobody can write, stored once
_constant: dict[tuple[int, int], tuple] = {}


def send(values: list, connection, options) -> list[bytes] | None:
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
        What `load_ref` takes; None if too much is under way.
    """
    if _store.default() is None:
        from ...store import open_default

        open_default()
    store = _store.default()
    limit = options.max_in_flight
    if limit is None:
        limit = store.capacity // 4
    total = sum(memoryview(value).nbytes for value in values)
    with _lock:
        _prune()
        if sum(entry.nbytes for entry in _sent) + total > limit:
            return None
    blobs, entries = [], []
    try:
        for value in values:
            ref, nbytes = _stored(value)
            blob, token = ref.travel(1, node_name())
            blobs.append(blob)
            entries.append(_Sent(ref, store, token, nbytes, connection))
    except BaseException:
        for entry in entries:
            _store.drop_token(store, entry.identity, entry.token)
        raise
    with _lock:
        _sent.extend(entries)
    _watch()
    return blobs


# ---- storing ------------------------------------------------------------------------------------------------------------


def _stored(value):
    """Return a reference to the bytes of a value, and how many were added to the store for it."""
    view = memoryview(value)
    owner = None if type(value) is bytes else _constant_owner(view)
    if owner is None:
        return _store.put(view), view.nbytes
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


# ---- pipes --------------------------------------------------------------------------------------------------------------


def is_local(connection) -> bool:
    """Tell whether a connection stays within this process tree: a pipe, or a pair of sockets without names."""
    fd = connection.fileno()
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        return True
    if not stat.S_ISSOCK(mode):
        return False
    import socket

    with socket.socket(fileno=os.dup(fd)) as end:
        return end.family == socket.AF_UNIX and not end.getsockname() and not end.getpeername()


def _unread(connection) -> int:
    """Return how many bytes nobody has read yet."""
    fd = connection.fileno()
    count = array.array("i", [0])
    request = termios.FIONREAD if stat.S_ISFIFO(os.fstat(fd).st_mode) else termios.TIOCOUTQ
    fcntl.ioctl(fd, request, count)
    return count[0]


def _exists(inode: int) -> bool:
    """Tell whether a process of this tree has the pipe open."""
    names = (f"pipe:[{inode}]", f"socket:[{inode}]")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in names:
                    return True
        except OSError:
            continue  # gone, or another user's
    return False


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


def _look() -> bool:
    """End the tokens of messages that are lost; tell whether anything is left to look after."""
    global _watching, _pruned
    now = time.monotonic()
    if now - _pruned < LOOK:
        return True
    _pruned = now
    died = _death(now)
    with _lock:
        _prune()
        entries = list(_sent)
    for entry in entries:
        if _is_lost(entry, now, died):
            _store.drop_token(entry.store, entry.identity, entry.token)
            with _lock:
                if entry in _sent:
                    _sent.remove(entry)
    with _lock:
        _watching = bool(_sent)
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


def _is_lost(entry: _Sent, now: float, died: float) -> bool:
    connection = entry.connection()
    if connection is None or connection.closed:
        # Somebody may still read it, as long as there is anybody.
        return not _exists(entry.inode)
    try:
        if _unread(connection):
            entry.empty_since = None
            return False
    except OSError:
        return not _exists(entry.inode)
    if entry.empty_since is None:
        entry.empty_since = now
    return now - entry.empty_since > (AFTER_DEATH if died >= entry.empty_since - LOOK else PATIENCE)


def _after_fork_in_child() -> None:
    # The parent's messages are the parent's.
    global _lock, _sent, _watching, _children, _constant
    _lock = RLock()
    _sent = []
    _watching = False
    _children = set()
    _constant = {}


os.register_at_fork(after_in_child=_after_fork_in_child)
