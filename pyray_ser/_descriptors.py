"""Keep the library's descriptors away from the numbers of standard input, output and error (0 to 2).

If a program starts without descriptors 0 to 2, or closes them, the next file that it opens gets one of these numbers,
and messages to standard error are written into that file. All code of the library that makes a descriptor calls this
module; a test finds code that does not.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    import socket

__all__ = ["above_standard", "epoll_above_standard", "socket_above_standard"]


def above_standard(fd: int) -> int:
    """
    Return a descriptor for the same open file with a number above 2.

    Parameters
    ----------
    fd : int
        A descriptor that was just made; it is closed if its number is 0, 1 or 2.

    Returns
    -------
    int

    Examples
    --------
    >>> fd = above_standard(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    """
    if fd > 2:
        return fd
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def socket_above_standard(made: socket.socket) -> socket.socket:
    """Return the same socket under a number above 2."""
    if made.fileno() > 2:
        return made
    return type(made)(fileno=above_standard(made.detach()))


def epoll_above_standard(made: select.epoll) -> select.epoll:
    """Return the same epoll object under a number above 2."""
    if made.fileno() > 2:
        return made
    import fcntl

    try:
        return type(made).fromfd(fcntl.fcntl(made.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
    finally:
        made.close()
