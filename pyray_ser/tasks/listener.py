"""In an actor: letting in callers that were given its handle."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Visitors", "listen"]


class Visitors:
    """
    A thread that accepts connections; `fd` is readable when some are there.

    Parameters
    ----------
    listener : socket.socket
        Listens on an abstract address. Anybody on this host can connect to that, so the kernel is asked who it is, and then
        they for multiprocessing's key.
    """

    def __init__(self, listener: socket.socket) -> None:
        from multiprocessing import current_process

        self._authkey = bytes(current_process().authkey)
        self._listener = listener
        self._taken: deque[Connection] = deque()
        self.fd, self._bell = os.pipe()
        threading.Thread(target=self._accept, name="pyray_ser-visitors", daemon=True).start()

    def _accept(self) -> None:
        from multiprocessing.connection import Connection

        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                continue  # it went away before it was let in
            # A thread each: a stranger who says nothing must not keep the others out.
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
        except (OSError, EOFError, AuthenticationError):
            connection.close()
            return
        self._taken.append(connection)
        os.write(self._bell, b".")

    def take(self) -> list[Connection]:
        """Return the connections that are new."""
        os.read(self.fd, 4096)
        found = []
        while self._taken:
            found.append(self._taken.popleft())
        return found

    def waiting(self) -> bool:
        """Tell whether there are connections that nobody took."""
        return bool(self._taken)


def listen(address: str) -> socket.socket:
    """Return a socket that listens at an address, in the process that is about to start the actor."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(address)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def _user(connection: Connection) -> int:
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        found: tuple[int, ...] = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return found[1]
