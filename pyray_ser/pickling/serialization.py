"""Convert values to bytes and back, in the form in which the store keeps them, and choose the pickler.

`serialize` and `dumps_frames` write the same form as `put`, but their results are self-contained, because they copy
arrays that are in a store.
"""

from __future__ import annotations

from pickle import PickleBuffer, PicklingError

from .. import _core, _pickle
from .._pickle import Pickler, dump, dumps
from .._unpickle import Unpickler, load, loads
from . import reducers, registry

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ..inspection.path import Step
    from ..typing import Allow, BufferLike

__all__ = [
    "PickleBuffer",
    "Pickler",
    "Unpickler",
    "deserialize",
    "dump",
    "dumps",
    "dumps_frames",
    "load",
    "loads",
    "loads_frames",
    "serialize",
]

# The pickler calls these functions for objects that it has no rule for. It cannot import them, because they belong to a
# higher layer.
_pickle._set_registry(reducers.meet, registry.version)
_pickle._set_put_reducers(reducers.reducers)


def _path_text(steps: list[Step]) -> str:
    from ..inspection.tracing import way_to_failure

    return way_to_failure(steps)


_pickle._set_path_text(_path_text)


def serialize(value: object) -> bytes:
    """
    Serialize a value into one bytes object.

    Parameters
    ----------
    value : object
        Anything that can be pickled.

    Returns
    -------
    bytes
        Header, table of buffers, pickle stream (protocol 5) and buffers.

    Raises
    ------
    TypeError
        If an object inside the value cannot be pickled; the message contains the path to this object.

    Examples
    --------
    >>> blob = pyray_ser.serialize({"a": numpy.zeros(3)})
    >>> pyray_ser.deserialize(blob)
    {'a': array([0., 0., 0.])}
    """
    try:
        return _core.pack(value)
    except _NOT_PICKLABLE as error:
        raise unpicklable(value, error) from error


def deserialize(blob: BufferLike, *, allow: Allow | None = None) -> Any:
    """
    Load the result of `serialize`.

    Parameters
    ----------
    blob : bytes-like
        Arrays in the value use these bytes in place, read-only, and keep the object alive.
    allow : collection of str or callable, optional
        The globals that may be loaded, as for `get`.

    Returns
    -------
    object

    Raises
    ------
    CorruptObjectError
        If the bytes are not a result of `serialize`.

    Examples
    --------
    >>> pyray_ser.deserialize(pyray_ser.serialize([1, "two"]))
    [1, 'two']
    """
    return _core.unpack(blob, allow)


def dumps_frames(value: object) -> list[memoryview]:
    """
    Serialize a value into frames, for sockets and files that write several buffers at once.

    Parameters
    ----------
    value : object

    Returns
    -------
    list of memoryview
        The frames: header and table, then the stream, then one frame per buffer. Buffers are not copied: do not change
        the value before the frames are sent.

    Examples
    --------
    >>> import socket
    >>> frames = pyray_ser.dumps_frames(numpy.zeros(1000))
    >>> sender, receiver = socket.socketpair()
    >>> sender.sendmsg(frames) == sum(frame.nbytes for frame in frames)
    True
    >>> sender.close(), receiver.close()
    (None, None)
    """
    try:
        return _core.pack_frames(value)
    except _NOT_PICKLABLE as error:
        raise unpicklable(value, error) from error


def loads_frames(frames: Sequence[BufferLike], *, allow: Allow | None = None) -> Any:
    """
    Load the result of `dumps_frames`.

    Parameters
    ----------
    frames : sequence of bytes-like
        Arrays in the value use these frames in place, read-only, and keep them alive.
    allow : collection of str or callable, optional
        The globals that may be loaded, as for `get`.

    Returns
    -------
    object

    Examples
    --------
    >>> frames = pyray_ser.dumps_frames(numpy.arange(3))
    >>> pyray_ser.loads_frames(frames)
    array([0, 1, 2])
    """
    return _core.unpack_frames(frames, allow)


# ---- seams of the compiled code ----------------------------------------------------------------------------------------

# Errors that picklers raise for objects that they refuse. Errors of the user's own __reduce__ pass unchanged.
_NOT_PICKLABLE = (TypeError, PicklingError, AttributeError, RecursionError)


def unpicklable(value: object, error: Exception) -> Exception:
    """Return the error that `put` raises in place of the pickler's error, with the path to the refused object."""
    if not isinstance(error, _NOT_PICKLABLE):
        return error
    from ..inspection import serialization_error

    return serialization_error(value, error)


def memoryview_call(stream: bytes, view: memoryview) -> tuple[bytes, memoryview] | None:
    """
    Return the stream and the buffer for a memoryview, or None if a pickler must write it.

    Parameters
    ----------
    stream : bytes
        The stream of a memoryview of plain bytes.
    view : memoryview

    Returns
    -------
    tuple of (bytes, memoryview)
        The stream that makes the view with ``memoryview(buffer).cast(format, shape)``, and the view's contiguous bytes.
    """
    if not view.c_contiguous:
        # cast() keeps format and shape; tobytes() returns the bytes in C order, the order that cast() expects.
        flat = memoryview(view.tobytes())
    elif view.nbytes == 0:
        flat = memoryview(b"")
    else:
        flat = view.cast("B")
    if view.format == "B" and view.ndim == 1:
        return stream, flat
    call = stream[2:-1]
    from .reducers.stdlib import castable

    if castable(view):
        # getattr(memoryview(buffer), "cast")(format, shape)
        arguments = _core.pickled((view.format, view.shape))[2:-1]
        head = b"\x80\x05\x8c\x08builtins\x8c\x07getattr\x93"
        return head + call + b"\x8c\x04cast\x86R" + arguments + b"R.", flat
    # Write the view as the memoryview of an array.
    import numpy

    from .. import _ndarray

    written = _ndarray.template_put(numpy.asarray(view))
    if written is None:
        return None
    stream, data = written
    return call[: -len(b"\x97\x85R")].join((b"\x80\x05", b"")) + stream[2:-1] + b"\x85R.", memoryview(data)
