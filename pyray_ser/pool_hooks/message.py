"""Messages whose large buffers are objects in the store.

The message is pickled once more with protocol 5, whose out-of-band buffers show every array in it, however deep; large bytes
and bytearrays are seen by a second pass, through persistent ids, only if there are any. What goes through the pipe then is a
plain pickle of a call of `load`, so that a worker which never imported this library loads it too. A message without large
buffers is what the standard library makes of it.
"""

from __future__ import annotations

import ctypes
import functools
import io
import pickle
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import _store
from ..exceptions import PyraySerError
from . import in_flight, received_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .patches import Options

    Original = Callable[[object], Any]

__all__ = ["dumps", "load"]


class _Pickler(ForkingPickler):
    """As multiprocessing pickles, with everything registered there, but with buffers out-of-band."""

    def __init__(
        self, file: BinaryIO, buffer_callback: Callable[[pickle.PickleBuffer], bool], options: Options
    ) -> None:
        # ForkingPickler's own __init__ takes no keyword.
        pickle.Pickler.__init__(self, file, 5, buffer_callback=buffer_callback)
        # Both of ForkingPickler; the standard stubs do not tell of them.
        known: Any = type(self)
        self.dispatch_table = known._copyreg_dispatch_table.copy()
        numpy = sys.modules.get("numpy")
        if numpy is not None and options.mmap_mode == "c":
            self.dispatch_table[numpy.ndarray] = functools.partial(_reduce_array, options.min_bytes)
        self.dispatch_table.update(known._extra_reducers)


def _reduce_array(min_bytes: int, array: NDArray[Any]) -> Any:
    """Reduce an array. The stream of a read-only one would make it read-only again, but it is to arrive copy-on-write."""
    flags = array.flags
    if flags.writeable or array.nbytes < min_bytes or not flags.forc or array.dtype.hasobject:
        return array.__reduce_ex__(5)
    lent: Any = (ctypes.c_ubyte * array.nbytes).from_address(array.ctypes.data)
    lent.lender = array
    order = "C" if flags.c_contiguous else "F"
    return type(array), (array.shape, array.dtype, pickle.PickleBuffer(lent), 0, None, order)


class _BytesPickler(_Pickler):
    """Sees large bytes and bytearrays too."""

    def __init__(
        self, file: BinaryIO, buffer_callback: Callable[[pickle.PickleBuffer], bool], options: Options
    ) -> None:
        super().__init__(file, buffer_callback, options)
        self._min_bytes = options.min_bytes
        self.found: list[bytes | bytearray] = []
        self._known: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if (type(obj) is bytes or type(obj) is bytearray) and len(obj) >= self._min_bytes:
            number = self._known.get(id(obj))
            if number is None:
                number = self._known[id(obj)] = len(self.found)
                self.found.append(obj)
            return number
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, buffers: list[Any], found: list[bytes | bytearray]) -> None:
        super().__init__(file, buffers=buffers)
        self._found = found

    def persistent_load(self, pid: int) -> bytes | bytearray:
        return self._found[pid]


class _Envelope:
    """Pickles as a call of `load`."""

    def __init__(self, *args: Any) -> None:
        self._args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return load, self._args


def dumps(obj: object, original: Original, options: Options, destination: Callable[[], Connection | None]) -> Any:
    """
    Pickle a message.

    Parameters
    ----------
    obj : object
    original : callable
        What the standard library would pickle it with.
    options : Options
    destination : callable
        Returns the connection that it is for, None if it must not hold references. Asked only if there are large buffers.

    Returns
    -------
    bytes-like
    """
    buffers: list[pickle.PickleBuffer] = []

    def take(buffer: pickle.PickleBuffer) -> bool:
        try:
            large = buffer.raw().nbytes >= options.min_bytes
        except BufferError:
            return True  # not contiguous: the pickler copies it in-band
        if large:
            buffers.append(buffer)
        return not large

    try:
        file = io.BytesIO()
        found: list[bytes | bytearray] = []
        if not _shows_large_bytes(obj, options.min_bytes):
            _Pickler(file, take, options).dump(obj)
        if not file.tell() or file.tell() >= options.min_bytes:
            # Something large is inside that is not an array.
            del buffers[:]
            file = io.BytesIO()
            pickler = _BytesPickler(file, take, options)
            pickler.dump(obj)
            found = pickler.found
    except Exception:
        return _as_before(obj, original)
    if not buffers and not found:
        return file.getbuffer()
    connection = destination()
    if connection is None:
        return _as_before(obj, original)
    try:
        sent = in_flight.send([*(buffer.raw() for buffer in buffers), *found], connection, options)
    except (PyraySerError, OSError, MemoryError):
        # The store is full, closed, or cannot be made: never an error of ours.
        return _as_before(obj, original)
    if sent is None:
        return _as_before(obj, original)
    kinds = bytes(type(value) is bytearray for value in found)
    return original(_Envelope(file.getvalue(), sent, len(buffers), kinds, options.mmap_mode))


def _shows_large_bytes(obj: Any, min_bytes: int, depth: int = 4) -> bool:
    """Tell whether large bytes lie near the surface, so that the pass without them can be saved."""
    kind = type(obj)
    if kind is bytes or kind is bytearray:
        return len(obj) >= min_bytes
    if depth and (kind is tuple or kind is list) and len(obj) <= 16:
        return any(_shows_large_bytes(item, min_bytes, depth - 1) for item in obj)
    if depth and kind is dict and len(obj) <= 16:
        return any(_shows_large_bytes(item, min_bytes, depth - 1) for item in obj.values())
    return False


def _as_before(obj: object, original: Original) -> Any:
    """Pickle as the standard library does; what it refuses, by value."""
    try:
        return original(obj)
    except (pickle.PicklingError, AttributeError, TypeError) as refused:
        from .by_value import dumps as by_value

        try:
            return by_value(obj)
        except Exception:
            raise refused from None


# ---- the receiver -------------------------------------------------------------------------------------------------------


def load(stream: bytes, sent: list[bytes], narrays: int, kinds: bytes, mmap_mode: str) -> Any:
    """Make a message again, in whatever process."""
    refs = [_store.load_ref(blob) for blob in sent]
    found = [(bytearray if kind else bytes)(_store.get(ref)) for ref, kind in zip(refs[narrays:], kinds, strict=True)]
    buffers = [_buffer(ref, mmap_mode) for ref in refs[:narrays]]
    return _Unpickler(io.BytesIO(stream), buffers, found).load()


def _buffer(ref: _store.ObjectRef[Any], mmap_mode: str) -> Any:
    if mmap_mode == "c":
        try:
            return received_arrays.note(_store.get(ref, mmap_mode="c"), ref)
        except (MemoryError, OSError, PyraySerError):
            # Maps have run out (vm.max_map_count), or address space: a copy does not need one. What is lost is lost again here.
            return bytearray(_store.get(ref))
    return _store.get(ref)
