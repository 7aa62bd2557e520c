"""Read a buffer from the file of a store without being a client.

A process may be a client when a message is sent to it, but no longer be one when it reads the message. It may have
lowered its address space limit, or found no free slot after it was forked. Therefore a reference also contains the
offset of its bytes in the file of the store. The token of the message keeps these bytes allocated until the sender
concludes that the message was read.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Any

from .. import _core, _log
from .._descriptors import above_standard
from ..store import discovery
from . import imported

__all__ = ["hook_setrlimit", "left_store", "place", "read"]

# The parts of a reference: first the store, then the rest of the identity, then the sender's start time, pid and
# descriptor.
_STORE = struct.Struct("<Q")
_SENDER = struct.Struct("<Qii")
_SENDER_AT = 24
# Bytes of memory that a process needs in addition to the buffers.
_SLACK = 64 << 20

# Store -> (first address, last address, offset in the file) of each mapping of the store's file
_mappings: dict[int, list[tuple[int, int, int]]] = {}


def place(store: _core.Store, ref: _core.ObjectRef[Any]) -> int:
    """Return the offset of an object's only buffer in the file of its store; -1 if it is unknown or may change."""
    numpy = imported.numpy()
    if numpy is None or store.spill_dir is not None:
        return -1
    view: Any = _core.get_buffer(ref)
    address = int(numpy.frombuffer(view, "u1").__array_interface__["data"][0])
    for attempt in range(2):
        if attempt or store.id not in _mappings:
            _mappings[store.id] = _read_mappings(store)
        for first, last, offset in _mappings[store.id]:
            if first <= address and address + view.nbytes <= last:
                return address - first + offset
    return -1


def _read_mappings(store: _core.Store) -> list[tuple[int, int, int]]:
    found = []
    fd = store.locator[2]
    if fd < 0:
        return []
    inode = os.fstat(fd).st_ino
    with open("/proc/self/maps") as file:
        for line in file:
            fields = line.split(maxsplit=5)
            if int(fields[4]) == inode and "s" in fields[1]:
                first, last = (int(text, 16) for text in fields[0].split("-"))
                found.append((first, last, int(fields[2], 16)))
    # Merge pieces that are adjacent in memory and in the file.
    joined: list[tuple[int, int, int]] = []
    for piece in found:
        if joined and joined[-1][1] == piece[0] and joined[-1][2] + piece[0] - joined[-1][0] == piece[2]:
            joined[-1] = joined[-1][0], piece[1], joined[-1][2]
        else:
            joined.append(piece)
    return joined


def read(blob: bytes, offset: int, nbytes: int) -> bytearray | None:
    """
    Copy a buffer from the file of its store.

    Parameters
    ----------
    blob : bytes
        The reference.
    offset, nbytes : int
        Position and size of the buffer in the file; a negative offset means that the position is unknown.

    Returns
    -------
    bytearray or None
        None if the file cannot be opened.
    """
    if offset < 0 or len(blob) < _SENDER_AT + _SENDER.size:
        return None
    ident = _STORE.unpack_from(blob)[0]
    start, pid, _ = _SENDER.unpack_from(blob, _SENDER_AT)
    try:
        if _core.start_time(pid) != start:
            return None
        for found, fd in _core.stores_of(pid):
            if found == ident:
                return _copy(f"/proc/{pid}/fd/{fd}", offset, nbytes)
    except OSError as error:
        _log.debug("cannot read a buffer of process %d: %r", pid, error)
    return None


def _copy(path: str, offset: int, nbytes: int) -> bytearray | None:
    fd = above_standard(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        if offset + nbytes > os.fstat(fd).st_size:
            return None
        made = bytearray(nbytes)
        done = 0
        with memoryview(made) as view:
            while done < nbytes:
                count = os.preadv(fd, [view[done:]], offset + done)
                if not count:
                    return None
                done += count
        return made
    finally:
        os.close(fd)


def hook_setrlimit(original: Any) -> Any:
    """
    Return a replacement for ``resource.setrlimit``.

    The address space that a store reserves counts against RLIMIT_AS. A process that lowers the limit below its current
    size detaches from the store, because otherwise it could not allocate any memory.
    """
    import functools

    @functools.wraps(original)
    def setrlimit(kind: int, limits: Any, /) -> None:
        resource = sys.modules["resource"]
        if kind == getattr(resource, "RLIMIT_AS", None):
            _leave_if_above(limits)
        original(kind, limits)

    return setrlimit


# Whether this process left its store because of its address space limit.
_left = False


def left_store() -> bool:
    """Return whether this process left its store because of its address space limit."""
    return _left


def _leave_if_above(limits: Any) -> None:
    global _left
    store = _core.default()
    try:
        limit = int(limits[0])
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
        if store is not None and 0 <= limit < size + _SLACK:
            discovery.close_all()
            _left = True
    except Exception as error:
        # The original function rejects invalid arguments.
        _log.debug("the store stays: %r", error)
