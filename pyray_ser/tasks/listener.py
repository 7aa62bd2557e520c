"""The socket at which an actor accepts processes that received its handle."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from _thread import start_new_thread
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .. import _core
from .._calls import Descriptor
from .._descriptors import above_standard, socket_above_standard

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["KILLED", "WELCOME", "Visitors", "leave_word", "listen", "word_is_left"]

# Format of the actor's message to a new caller: the actor's process id and start time.
WELCOME = struct.Struct("<QQ")
# Suffix of the address to which another process connects to report that it killed the actor.
KILLED = "-killed"


class Visitors:
    """
    A thread that accepts connections; `fd` is readable if there are new connections.

    Parameters
    ----------
    listener : socket.socket
        A socket that listens on an abstract address. Any process of this host can connect, so the listener first checks
        the credentials that the kernel reports, and then multiprocessing's authentication key.
    """

    def __init__(self, listener: socket.socket) -> None:
        from multiprocessing import current_process

        self._authkey = bytes(current_process().authkey)
        self._listener = listener
        self._taken: deque[Any] = deque()
        self._ended = False
        self.fd, self._bell = map(above_standard, os.pipe())
        # Not `threading.Thread`: a signal handler may have interrupted code that holds a lock of that module.
        start_new_thread(self._accept, ())

    def _accept(self) -> None:
        from multiprocessing.connection import Connection

        while True:
            try:
                end = socket_above_standard(self._listener.accept()[0])
            except OSError:
                if self._ended:
                    return
                # The caller closed the connection, or there are too many open files.
                time.sleep(0.01)
                continue
            # Use one thread for each connection, so that a silent caller does not block the others.
            threading.Thread(target=self._greet, args=(Connection(end.detach()),), daemon=True).start()

    def _greet(self, connection: Connection) -> None:
        from multiprocessing import AuthenticationError
        from multiprocessing.connection import answer_challenge, deliver_challenge

        try:
            if _user(connection) != os.getuid():
                connection.close()
                return
            deliver_challenge(connection, self._authkey)
            answer_challenge(connection, self._authkey)
            connection.send_bytes(WELCOME.pack(os.getpid(), _core.start_time(os.getpid())))
            found = self.introduced(connection)
        except (OSError, EOFError, AuthenticationError):
            connection.close()
            return
        self._taken.append(found)
        os.write(self._bell, b".")

    def introduced(self, connection: Connection) -> Any:
        """Return what `take` returns for a new connection."""
        return connection

    def end(self) -> None:
        """Accept no more connections."""
        self._ended = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def take(self) -> list[Any]:
        """Return the new connections."""
        os.read(self.fd, 4096)
        found = []
        while self._taken:
            found.append(self._taken.popleft())
        return found

    def waiting(self) -> bool:
        """Return whether there are connections that the server has not accepted yet."""
        return bool(self._taken)


def listen(address: str) -> Descriptor:
    """Return a socket that listens at an address. The process that is about to start the actor calls this."""
    listener = socket_above_standard(socket.socket(socket.AF_UNIX))
    try:
        listener.bind(address)
        listener.listen(64)
        return Descriptor(listener.detach())
    finally:
        listener.close()


def leave_word(address: str) -> None:
    """Tell the owner of an actor that this process is killing the actor."""
    with socket_above_standard(socket.socket(socket.AF_UNIX)) as end:
        # If the backlog of the socket is full, other processes have already reported this.
        end.setblocking(False)
        try:
            end.connect(address + KILLED)
        except OSError:
            return  # the actor has ended already


def word_is_left(killers: Descriptor) -> bool:
    """Return whether another process of this user has connected to a listening socket."""
    if killers.fileno() < 0:
        return False
    listener = socket.socket(fileno=killers.fileno())
    try:
        listener.setblocking(False)
        while True:
            try:
                end = socket_above_standard(listener.accept()[0])
            except OSError:
                return False
            with end:
                if _user_of(end) == os.getuid():
                    return True
    finally:
        # The `Descriptor` object closes the file descriptor.
        listener.detach()


def _user(connection: Connection) -> int:
    with socket.socket(fileno=above_standard(os.dup(connection.fileno()))) as end:
        return _user_of(end)


def _user_of(end: socket.socket) -> int:
    found: tuple[int, ...] = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return found[1]
