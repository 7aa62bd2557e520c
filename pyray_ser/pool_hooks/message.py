"""Pickle a message in one pass, exactly as the standard library does, but replace large buffers by references.

`dumps` runs the standard pickler once. Two hooks receive the large buffers when the pickler reaches them:

- a reducer for plain NumPy arrays, which is used only if the program registered none;
- the file that the pickler writes to. The C pickler passes a large `bytes`, `bytearray`, `str` or
  `PickleBuffer` to ``file.write`` in a separate call, immediately after the opcode that announces it.

Each hook decides immediately whether to replace its buffer. A refused buffer stays in the stream, so nothing is pickled
twice. A message without references is identical to the one that the standard library writes. A message with references
is still a plain pickle that any process can load repeatedly. A table of the references is appended after the end of the
pickle, for the receiver that reads the message from its pipe.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .. import _core, _log
from ..exceptions import PyraySerError
from . import imported, load, main_by_value
from .counts import counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..inspection.message_failure import Reducers

__all__ = ["Output", "PathOfFailure", "Taker", "array_reducer", "dumps", "keep", "loads", "refuse", "seal"]

# The C pickler writes payloads of at least this size in a separate call (FRAME_SIZE_TARGET).
DIRECT = 64 * 1024
# A message with references ends with the table of references, the length of the table, and this constant.
MAGIC = b"\xffpyray_ser:buffers"
_TAIL = struct.Struct(f"<I{len(MAGIC)}s")
# Opcode that precedes a payload, the width of its length field, and the function that loads the value.
_HEADERS = (
    (pickle.BINBYTES, 4, "to_bytes"),
    (pickle.BINBYTES8, 8, "to_bytes"),
    (pickle.BINUNICODE, 4, "to_str"),
    (pickle.BINUNICODE8, 8, "to_str"),
    (pickle.BYTEARRAY8, 8, "to_bytearray"),
)


class Taker(Protocol):
    """Decides which buffers of a message are replaced by references."""

    min_bytes: int
    mmap_mode: str

    # The size of the array that was refused last. If the pickler then writes its bytes, they stay in the message.
    refused: int

    def take(self, view: memoryview) -> tuple[Any, ...] | None:
        """Store a buffer and return the arguments for `load`, or None to leave it in the stream."""


class Output(io.BytesIO):
    """The file that the pickler writes to, which replaces large payloads by calls of `load`."""

    def __init__(self, taker: Taker) -> None:
        super().__init__()
        self._taker = taker
        self._least = max(DIRECT, taker.min_bytes)
        self._tail = b""

    def write(self, data: Any, /) -> int:
        """Write bytes of the pickler. A large payload may be replaced by a reference."""
        if type(data) is pickle.PickleBuffer:  # in protocol 5, for types that export their memory
            data = data.raw()
        size = len(data)
        if size >= self._least and size == self._taker.refused:
            self._taker.refused = -1  # do not ask again: the array with these bytes was refused and counted
        elif size >= self._least:
            header = self._header(data, size)
            if header is not None:
                found = self._taker.take(memoryview(data))
                if found is not None:
                    self._replace(header[0], header[1], found)
                    return size
        elif size >= DIRECT and self._header(data, size) is not None:
            refuse(self._taker, "below_min_bytes", size)
        self._tail = bytes(data[-9:])
        return super().write(data)

    def _header(self, data: Any, size: int) -> tuple[int, str] | None:
        """Return the length of the header before this payload, and its loader; None if it is not a payload."""
        if type(data) is bytes and _starts_with_frame(data):
            # The pickler also flushes its frames as bytes objects. A payload that looks like a frame stays in the
            # stream.
            return None
        for code, width, loader in _HEADERS:
            if size < 1 << (8 * width) and self._tail[-1 - width :] == code + size.to_bytes(width, "little"):
                return 1 + width, loader
        return None

    def _replace(self, length: int, loader: str, found: tuple[Any, ...]) -> None:
        self.seek(-length, io.SEEK_END)
        self.truncate()
        super().write(_call(loader, found))
        self._tail = b""


def _starts_with_frame(data: bytes) -> bool:
    at = 2 if data[:1] == pickle.PROTO else 0
    return data[at : at + 1] == pickle.FRAME and 9 + int.from_bytes(data[at + 1 : at + 9], "little") <= len(data) - at


def _call(loader: str, args: tuple[Any, ...]) -> bytes:
    """Return opcodes that call a function of `load` and do not change the memo."""
    parts = [pickle.GLOBAL, f"{load.__name__}\n{loader}\n".encode(), pickle.MARK]
    for value in args:
        if isinstance(value, bytes):
            parts += pickle.SHORT_BINBYTES, bytes([len(value)]), value
        else:
            text = int(value).to_bytes(9, "little", signed=True)
            parts += pickle.LONG1, bytes([len(text)]), text
    return b"".join([*parts, pickle.TUPLE, pickle.REDUCE])


def array_reducer(taker: Taker, protocol: int) -> Callable[[NDArray[Any]], Any]:
    """
    Return a reducer for plain arrays.

    Parameters
    ----------
    taker : Taker
    protocol : int
        Protocol of the pickler. With protocols below 5, NumPy's arrays arrive writable and in native byte order. With
        protocol 5, arrays that export a buffer keep their writable flag and byte order.

    Returns
    -------
    callable
    """

    def reduce(array: NDArray[Any]) -> Any:
        return take_array(array, taker, protocol) or array.__reduce_ex__(protocol)

    return reduce


def take_array(array: NDArray[Any], taker: Taker, protocol: int) -> tuple[Any, ...] | None:
    """Reduce an array to a reference; return None to send it as the standard library does."""
    dtype, flags, nbytes = array.dtype, array.flags, array.nbytes
    if nbytes < taker.min_bytes:
        if not dtype.hasobject:
            counts.refuse("below_min_bytes", nbytes)
            if nbytes >= DIRECT:
                taker.refused = nbytes
        return None
    if not flags.forc or dtype.hasobject or not 0 <= dtype.num < _BUILTIN_TYPES:
        return None
    exact = protocol >= 5 and _exports(array)
    if not exact and not dtype.isnative:
        return None  # the array arrives byte-swapped
    # None of these makes a copy, because the array is contiguous.
    flat: Any = (array if flags.c_contiguous else array.T).reshape(-1).view("u1")
    found = taker.take(memoryview(flat))
    if found is None:
        if nbytes >= DIRECT:
            taker.refused = nbytes
        return None
    mode = taker.mmap_mode if flags.writeable or not exact else "r"
    return load.array, (found, dtype, array.shape, "C" if flags.c_contiguous else "F", mode)


def refuse(taker: Taker, reason: str, nbytes: int) -> None:
    """Count a buffer that stays in its message, unless it contains the bytes of the array that was counted last."""
    if nbytes == taker.refused:
        taker.refused = -1
    else:
        counts.refuse(reason, nbytes)


# Type numbers of those NumPy types whose items have no memory outside of the array; StringDType and foreign types have
# larger numbers.
_BUILTIN_TYPES = 24


def _exports(array: Any) -> bool:
    try:
        memoryview(array).release()
    except (ValueError, BufferError):  # datetime64 and timedelta64
        return False
    return True


# ---- sending ------------------------------------------------------------------------------------------------------------


class PathOfFailure:
    """
    Context manager for pickling a message. If an object cannot be pickled, it adds a note with the path to the object
    to the error.

    Parameters
    ----------
    obj : object
        The message.
    reducers : mapping, optional
        Reducers of the pickler in addition to the tables of `copyreg` and multiprocessing.
    by_value : bool, optional
        Whether the pickler is cloudpickle's.
    """

    __slots__ = ("_by_value", "_obj", "_reducers")

    def __init__(self, obj: object, reducers: Reducers | None = None, *, by_value: bool = False) -> None:
        self._obj = obj
        self._reducers = reducers
        self._by_value = by_value

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            from ..inspection.message_failure import add_path

            add_path(error, self._obj, self._reducers, by_value=self._by_value)


def dumps(obj: object, taker: Taker) -> Output:
    """
    Pickle a message as multiprocessing does, with large buffers replaced by references.

    Parameters
    ----------
    obj : object
    taker : Taker

    Returns
    -------
    Output
    """
    out = Output(taker)
    pickler = main_by_value.pickler()(out)
    numpy = imported.numpy()
    if numpy is not None:
        table: Any = pickler.dispatch_table
        # Reducers that the program registered come first.
        table.setdefault(numpy.ndarray, array_reducer(taker, pickle.DEFAULT_PROTOCOL))
    pickler.dump(obj)
    return out


def seal(out: io.BytesIO, blobs: list[bytes]) -> memoryview:
    """Append the table of references to the message, and return the message."""
    if blobs:
        table = b"".join(bytes([len(blob)]) + blob for blob in blobs)
        out.seek(0, io.SEEK_END)
        io.BytesIO.write(out, table + _TAIL.pack(len(table), MAGIC))
    return out.getbuffer()


# ---- receiving ----------------------------------------------------------------------------------------------------------

# Table of a message that was read as raw bytes -> references that keep the message's objects alive in this process.
_kept: dict[bytes, list[_core.ObjectRef[Any]]] = {}


def _table(data: Any) -> bytes:
    """Return the table of references of a message, or empty bytes if the message has no references."""
    if data[-len(MAGIC) :] != MAGIC or len(data) < _TAIL.size:
        return b""
    length = _TAIL.unpack(data[-_TAIL.size :])[0]
    return bytes(data[-_TAIL.size - length : -_TAIL.size]) if length + _TAIL.size <= len(data) else b""


def _take_over(table: bytes) -> list[_core.ObjectRef[Any]]:
    """
    Make this process, instead of the sender, hold the objects of a message.

    A process that left the store after the message was sent, and cannot attach to it again, holds nothing. The sender
    holds the objects until the message has left the pipe, and `load` copies their bytes from the file of the store.
    """
    refs = []
    at = 0
    while at < len(table):
        blob = table[at + 1 : at + 1 + table[at]]
        at += 1 + table[at]
        try:
            refs.append(_core.load_ref(blob))
        except (MemoryError, OSError, PyraySerError) as error:
            _log.debug("cannot hold a buffer of a message: %r", error)
    return refs


def keep(data: Any) -> None:
    """Hold the objects of a message that was read as raw bytes: the program may load it repeatedly, at any time."""
    table = _table(data)
    if not table:
        return
    try:
        refs = _take_over(table)
    except Exception as error:
        # The bytes are not a message with references. Loading the message raises the error.
        _log.debug("cannot hold the buffers of a message: %r", error)
        return
    _kept.setdefault(table, []).extend(refs)


def loads(data: Any, /, **kwargs: Any) -> Any:
    """Load a message that this process has read from its pipe; no other process can load the same message."""
    table = _table(data)
    refs = None
    if table:
        refs = _kept.pop(table, None)
        if refs is None:
            refs = _take_over(table)
    try:
        return pickle.loads(data, **kwargs)
    finally:
        del refs
