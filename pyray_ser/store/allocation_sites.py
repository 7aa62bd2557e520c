"""Record where objects are made, for ``pyray-ser ls``, if the environment variable ``PYRAY_SER_ORIGINS`` is set.

Each process keeps its own list, with one line per object, in an unnamed file (a memfd). Other processes of the same
user can read this file through ``/proc`` while the process lives. The lists are not part of the store. They show which
code fills a store; recording an object takes a few microseconds, and the lists grow with each object.
"""

from __future__ import annotations

import os
import sys

from .. import _core
from .._descriptors import above_standard

__all__ = ["ENVIRONMENT", "enable", "forget", "read"]

ENVIRONMENT = "PYRAY_SER_ORIGINS"
_NAME = "pyray_ser-origins:{:016x}"
# The maximum number of bytes that are read from the list of one process.
_READ_MAX = 64 << 20
# Store -> descriptor, and the identity of its file. The identity is checked, because if other code closes all
# descriptors, another file may get the same number.
_lists: dict[int, tuple[int, tuple[int, int]]] = {}


def enable() -> None:
    """Record where this process makes objects from now on."""
    _core.set_note_origin(_note)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _list_of(ident: int) -> int:
    fd, known = _lists.get(ident, (-1, (0, 0)))
    try:
        if fd >= 0 and _identity(fd) == known:
            return fd
    except OSError:
        pass  # other code closed the file, so begin a new list
    fd = above_standard(os.memfd_create(_NAME.format(ident), os.MFD_CLOEXEC))
    _lists[ident] = fd, _identity(fd)
    return fd


def _note(ident: int, serial: int) -> None:
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "pyray_ser":
        frame = frame.f_back
    code = frame.f_code
    text = f"{serial} {code.co_filename}:{frame.f_lineno} {code.co_qualname}"
    os.write(_list_of(ident), text.encode("unicode_escape") + b"\n")


def forget(ident: int) -> None:
    """Close the list for a store from which this process detaches."""
    fd, known = _lists.pop(ident, (-1, (0, 0)))
    try:
        if fd >= 0 and _identity(fd) == known:
            os.close(fd)
    except OSError:
        pass  # other code has closed the file


def read(ident: int, pids: list[int]) -> dict[int, str]:
    """
    Return where objects were made, if their creators are alive and recorded it.

    Parameters
    ----------
    ident : int
        The store.
    pids : list of int
        The processes that use the store.

    Returns
    -------
    dict of int to str
        Maps the serial number of an object to ``file:line function``. The text comes from other processes.
    """
    found: dict[int, str] = {}
    link = f"/memfd:{_NAME.format(ident)} (deleted)"
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            paths = [f"{folder}/{fd}" for fd in os.listdir(folder)]
        except OSError:
            continue  # the process has ended, or may not be examined
        for path in paths:
            try:
                if os.readlink(path) != link:
                    continue
                with open(
                    path, "rb", opener=lambda name, flags: above_standard(os.open(name, flags | os.O_NONBLOCK))
                ) as file:
                    file.seek(0)
                    data = file.read(_READ_MAX)
            except OSError:
                continue
            for line in data.split(b"\n"):
                serial, _, text = line.partition(b" ")
                if serial.isdigit() and len(serial) < 20:
                    found[int(serial)] = text.decode("ascii", "replace")
    return found
