"""Read a store's file without taking part in the store.

The commands that show objects read a few bytes of many objects. A reference or a view of this tool would change what it
shows, and a crashed store has no process through which an object could be opened. So this module reads the file: the
memfd of a process that uses the store, the file of a named store, and the files of spilled objects. It never writes.

The bytes come from other processes and may change meanwhile, so each offset is checked before it is used. The layout is
that of ``csrc/store/layout.h``; a store with another layout is refused when it is opened.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from .._descriptors import above_standard

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .stores import Found

__all__ = ["Holder", "Segment", "open_segment", "spill_file"]

# The beginning of prs_super: ready, version, page, layout_hash, store_id, file_size, capacity, the offsets of clients,
# names, buckets, slots, extents, links, backed pages and data; max_clients, holder_words, max_slots, slot_stride.
_SUPER = struct.Struct("<8sII12Q4I")
_MAGIC, _VERSION = b"PYRAYSER", 2
# The offset of `published`, which the counters of links and clients follow.
_PUBLISHED = 4096 + 128
_CLIENT, _LINK, _SLOT = 128, 48, 64
# The maximum number of bytes of the table of links that are read.
_LINKS_MAX = 256 << 20
_PIECE = 1 << 20
# The trailer of a spill file: magic, version, codec, algorithm, store, serial, size, stored, digest.
_TRAILER = struct.Struct("<4sHBBQQQQQ16x")
_RAW = 0
# Kinds of links by which one object holds another.
_EDGES = (3, 6)
# The fields of an edge. Links of other kinds have a client or a name in place of the outer object.
_LINK_FIELDS = ("slot", "generation", "kind", "outer_slot", "outer_generation", "next", "created", "pid")


class Holder(NamedTuple):
    """A client that holds an object. The pid is None for objects that a fork could not pass on."""

    pid: int | None
    reference: bool
    view: bool


def _open(path: str) -> int:
    """Open a regular file for reading. A path below /proc may name another file by now, even one that blocks."""
    fd = above_standard(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a file")
    return fd


def spill_file(spill_dir: str, store: int, record: dict[str, Any]) -> str:
    """Return the path of the file of a spilled object."""
    slot = int.from_bytes(bytes.fromhex(record["id"])[16:20], "little")
    return f"{spill_dir}/{store:016x}/{slot:08x}-{record['serial']:016x}"


class Segment:
    """
    The file of a store, open for reading.

    Parameters
    ----------
    fd : int
        The file; the caller closes it.
    ident : int
        The store that the file must belong to.

    Raises
    ------
    OSError
        If the file is not one of that store.
    """

    def __init__(self, fd: int, ident: int) -> None:
        head = os.pread(fd, _SUPER.size, 0)
        if len(head) != _SUPER.size:
            raise OSError("the file is too short for a store")
        magic, version, _, _, store, size, capacity, *offsets = _SUPER.unpack(head)
        self._clients, _, _, self._slots, _, self._links, _, self._data = offsets[:8]
        self._max_clients, self._words, self._max_slots, self._stride = offsets[8:]
        known = magic == _MAGIC and version == _VERSION and store == ident
        if not known or self._data > size or capacity > size - self._data or self._words > 64:
            raise OSError("the file is not that of the store")
        self._fd = fd
        self.id: int = store
        self.capacity: int = capacity

    def _read(self, size: int, offset: int) -> bytes:
        # A table or object may lie beyond what pread accepts only if the tables are damaged.
        return os.pread(self._fd, size, offset) if 0 <= offset < 1 << 62 else b""

    # ---- objects -------------------------------------------------------------------------------------------------------

    def read(self, record: dict[str, Any], offset: int, size: int, spill: tuple[str, Any] | None = None) -> bytes:
        """
        Return bytes of an object; fewer than asked for, or none, if they cannot be read.

        Parameters
        ----------
        record : dict
            From `Store.records`.
        offset, size : int
        spill : tuple of (str, Form or None), optional
            Spill directory and format of spill files.
        """
        size = min(size, record["size"] - offset)
        if size <= 0 or record["state"] == "creating":
            return b""
        if record["spilled"]:
            if spill is None:
                return b""
            try:
                return self._read_spilled(record, offset, size, *spill)
            except OSError:
                return b""  # the file was removed, as `check --spill` reports
        if record["offset"] > self.capacity or record["size"] > self.capacity - record["offset"]:
            return b""
        return self._read(size, self._data + record["offset"] + offset)

    def _read_spilled(self, record: dict[str, Any], offset: int, size: int, spill_dir: str, form: Any) -> bytes:
        fd = _open(spill_file(spill_dir, self.id, record))
        try:
            if form is None:
                return os.pread(fd, size, offset)
            length = os.fstat(fd).st_size
            trailer = os.pread(fd, _TRAILER.size, max(0, length - _TRAILER.size))
            if len(trailer) != _TRAILER.size or trailer[:4] != b"PRSF":
                return b""
            if _TRAILER.unpack(trailer)[2] == _RAW:
                return os.pread(fd, size, offset)
            # A compressed file consists of pieces. The first one is enough for what the commands show.
            count = int.from_bytes(os.pread(fd, 4, 0), "little")
            if count > 2 * _PIECE:
                return b""
            piece = form.expander()(memoryview(os.pread(fd, count, 4)), min(_PIECE, record["size"]))
            return b"" if piece is None else bytes(piece[offset : offset + size])
        finally:
            os.close(fd)

    # ---- holders -------------------------------------------------------------------------------------------------------

    def holders(self, record: dict[str, Any]) -> list[Holder]:
        """Return the clients that have a reference to an object or a view of it."""
        slot = int.from_bytes(bytes.fromhex(record["id"])[16:20], "little")
        width = 8 * self._words
        if slot >= self._max_slots or self._stride < _SLOT + 2 * width:
            return []
        bits = self._read(2 * width, self._slots + slot * self._stride + _SLOT)
        refs, pins = int.from_bytes(bits[:width], "little"), int.from_bytes(bits[width:], "little")
        found = []
        for client in range(min(self._max_clients, 8 * width)):
            mask = 1 << client
            if (refs | pins) & mask:
                # Client 0 is no process: it holds the objects that a fork could not pass on.
                state = self._read(16, self._clients + client * _CLIENT) if client else b""
                pid = int.from_bytes(state[12:16], "little") or None
                found.append(Holder(pid, bool(refs & mask), bool(pins & mask)))
        return found

    def outer_objects(self, record: dict[str, Any]) -> list[tuple[int, int]]:
        """Return the slot and generation of each stored object that refers to this one."""
        import numpy

        links: NDArray[Any] = self._link_table()
        found = links[(links["inner"] == record["serial"]) & numpy.isin(links["kind"], _EDGES)]
        return [(int(link["outer_slot"]), int(link["outer_generation"])) for link in found]

    def _link_table(self) -> NDArray[Any]:
        import numpy

        layout = [("serial", "<u8"), ("inner", "<u8"), *((name, "<u4") for name in _LINK_FIELDS)]
        counters = self._read(8, _PUBLISHED)
        count = min(int.from_bytes(counters[4:], "little"), _LINKS_MAX // _LINK)
        data = self._read(count * _LINK, self._links)
        return numpy.frombuffer(data[: len(data) // _LINK * _LINK], numpy.dtype(layout))


def _paths(found: Found) -> list[str]:
    if found.path is not None:
        return [found.path]
    return [f"/proc/{pid}/fd/{fd}" for pid, fd in found.holders.items()]


@contextmanager
def open_segment(found: Found) -> Iterator[Segment | None]:
    """Open the file of a store; yield None if it cannot be read."""
    fd, segment = -1, None
    for path in _paths(found):
        try:
            fd = _open(path)
        except OSError:
            continue  # the process has ended, or may not be examined
        try:
            segment = Segment(fd, int(found.id or "0", 16))
            break
        except OSError:
            os.close(fd)
            fd = -1
    try:
        yield segment
    finally:
        if fd >= 0:
            os.close(fd)
