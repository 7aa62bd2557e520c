"""Ask the kernel which processes can read from a pipe, and how many of its bytes are unread.

The inode of its reading side identifies a pipe. This inode remains when the process that wrote to the pipe has ended.
The reading side of a socket pair is the other end, whose inode the kernel's socket diagnosis reports. If the kernel
does not support this request, no references are sent through socket pairs.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from multiprocessing.connection import Connection

from .. import _core
from .._descriptors import above_standard, socket_above_standard

__all__ = ["Readers", "capacity", "note_of", "reading_side", "unread_here"]

# NETLINK_SOCK_DIAG and its request for the Unix sockets of this host (linux/sock_diag.h, linux/unix_diag.h)
_SOCK_DIAG, _BY_FAMILY, _REQUEST = 4, 20, 1
_SHOW_PEER, _SHOW_QUEUES = 4, 16
_PEER, _QUEUES = 2, 4
_ERROR = 2


def reading_side(connection: Connection) -> int:
    """Return the inode of the reading side; 0 if a process on another host may receive the message."""
    try:
        fd = connection.fileno()
        status = os.fstat(fd)
        if stat.S_ISFIFO(status.st_mode):
            return status.st_ino
        if not stat.S_ISSOCK(status.st_mode):
            return 0
        with socket.socket(fileno=above_standard(os.dup(fd))) as end:
            # Any process could have connected to a socket that has a name. Only the two ends of socketpair() have no
            # name.
            if end.family != socket.AF_UNIX or end.getsockname() or end.getpeername():
                return 0
    except OSError:
        return 0  # one end of the pair is closed, so writing the message will raise the error
    return _ask(status.st_ino).get(_PEER, (0,))[0]


def capacity(connection: Connection) -> int:
    """Return the maximum number of bytes that a connection buffers while no process reads."""
    fd = connection.fileno()
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    with socket.socket(fileno=above_standard(os.dup(fd))) as end:
        return end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def note_of(inode: int) -> int:
    """Return the number that a token records to identify the pipe of its message."""
    return inode & 0xFFFFFFFF


def _ask(inode: int) -> dict[int, tuple[int, ...]]:
    """Return the kernel's data about a socket (kind of attribute -> numbers); empty if it is unknown or closed."""
    body = struct.pack(
        "=BBHIII2I", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, note_of(inode), _SHOW_PEER | _SHOW_QUEUES, 0xFFFFFFFF, 0xFFFFFFFF
    )
    try:
        with socket_above_standard(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)) as kernel:
            kernel.send(struct.pack("=IHHII", 16 + len(body), _BY_FAMILY, _REQUEST, 1, 0) + body)
            answer = kernel.recv(4096)
    except OSError:
        return {}
    if len(answer) < 32 or struct.unpack_from("=H", answer, 4)[0] == _ERROR:
        return {}
    found, at = {}, 32
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if length < 4 or at + length > len(answer):
            break
        found[kind] = struct.unpack_from(f"={(length - 4) // 4}I", answer, at + 4)
        at += (length + 3) & ~3
    return found


def _count(fd: int, request: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, request, count)
    return count[0]


def unread_here(connection: Connection) -> int | None:
    """Return the number of unread bytes, as seen from the writing end; None if no process can read them any more."""
    fd = connection.fileno()
    poller = select.poll()
    poller.register(fd, 0)
    # The kernel reports this for a pipe without readers, and for a socket whose other end is closed.
    if poller.poll(0):
        return None
    return _count(fd, termios.FIONREAD if stat.S_ISFIFO(os.fstat(fd).st_mode) else termios.TIOCOUTQ)


class Readers:
    """The readers of each pipe, as far as this process may examine them; looked up once, at the first use."""

    def __init__(self) -> None:
        # note -> a path under /proc
        self._found: dict[int, str] | None = None

    def unread(self, note: int) -> int | None:
        """Return the number of unread bytes of a pipe; None if no process has its reading side open."""
        if self._found is None:
            try:
                self._found = _scan()
            except OSError:
                return 1  # without /proc the number is unknown, so treat the message as unread
        path = self._found.get(note)
        if path is None:
            return 1 if _hidden_clients() else None
        queues = _ask(note).get(_QUEUES)
        if queues is not None:
            return queues[0]
        try:
            fd = above_standard(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            # The kernel does not report on the socket, or the process has just ended.
            return None if error.errno == errno.ENOENT else 1
        try:
            return _count(fd, termios.FIONREAD)
        finally:
            os.close(fd)


def _hidden_clients() -> list[int]:
    """Return the living clients that this process may not examine; each could be reading from any pipe."""
    store = _core.default()
    if store is None or store.closed:
        return []
    found = []
    for pid in store.client_pids():
        try:
            os.listdir(f"/proc/{pid}/fd")
        except OSError:
            found.append(pid)
    return found


def _scan() -> dict[int, str]:
    return {note_of(inode): path for pid in _pids() for inode, path in _readable(pid)}


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _readable(pid: int, complain: bool = False) -> Iterator[tuple[int, str]]:
    """Yield inode and path of each pipe or socket that a process has open for reading."""
    folder = f"/proc/{pid}/fd"
    try:
        fds = os.listdir(folder)
    except PermissionError:
        if complain:
            raise
        return  # the process belongs to another user
    except OSError:
        return  # it has ended
    for fd in fds:
        path = f"{folder}/{fd}"
        try:
            kind, _, inode = os.readlink(path).partition(":[")
            # The mode of the link shows whether the descriptor is open for reading.
            if kind in ("pipe", "socket") and os.lstat(path).st_mode & stat.S_IRUSR:
                yield int(inode[:-1]), path
        except OSError:
            continue  # the descriptor was closed meanwhile, as the one that listdir used always is
