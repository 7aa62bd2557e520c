"""Values to bytes and back, in the form that the store keeps them in; and which pickler does it.

`serialize` and `dumps_frames` write what `put` writes, self-contained: an array that lives in the store is copied into them.
"""

import pickle

from . import _frames

__all__ = ["deserialize", "dumps_frames", "loads_frames", "serialize"]


def serialize(value) -> bytes:
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
        If something inside cannot be pickled; the message tells where.
    """
    try:
        return _frames.pack(value)
    except _NOT_PICKLABLE as error:
        raise unpicklable(value, error) from error


def deserialize(blob):
    """
    Load what `serialize` made.

    Parameters
    ----------
    blob : bytes-like
        Arrays lie over it, read-only, and keep it alive.

    Returns
    -------
    object

    Raises
    ------
    CorruptObjectError
        If the bytes are not such a form.
    """
    return _frames.unpack(blob)


def dumps_frames(value) -> list[memoryview]:
    """
    Serialize a value into frames, for sockets and files that write several buffers at once.

    Parameters
    ----------
    value : object

    Returns
    -------
    list of memoryview
        Header and table, stream, and one frame per buffer. Buffers are not copied: the value must not change until the
        frames are sent.
    """
    try:
        return _frames.pack_frames(value)
    except _NOT_PICKLABLE as error:
        raise unpicklable(value, error) from error


def loads_frames(frames):
    """
    Load what `dumps_frames` made.

    Parameters
    ----------
    frames : sequence of bytes-like
        Arrays lie over them, read-only, and keep them alive.

    Returns
    -------
    object
    """
    return _frames.unpack_frames(frames)


# ---- seams of the compiled code ----------------------------------------------------------------------------------------

# What picklers raise for what they refuse. Errors of the user's own __reduce__ pass as they are.
_NOT_PICKLABLE = (TypeError, pickle.PicklingError, AttributeError, RecursionError)


def unpicklable(value, error: Exception) -> Exception:
    """Return what `put` raises for an error of the pickler: with the path to the culprit, where the pickler refused."""
    if not isinstance(error, _NOT_PICKLABLE):
        return error
    from .inspection import serialization_error

    return serialization_error(value, error)


class _WritableUnpickler(pickle.Unpickler):
    """For mode "c": small arrays that travelled inside the stream are writable as well."""

    def find_class(self, module, name):
        found = super().find_class(module, name)
        if name == "ndarray" and module == "numpy":
            return _writable_array
        return found


def _writable_array(shape, dtype=float, buffer=None, offset=0, strides=None, order=None):
    import numpy

    if isinstance(buffer, bytes):
        buffer = bytearray(buffer)
    return numpy.ndarray(shape, dtype, buffer, offset, strides, order)


def load_writable(stream, buffers):
    """Load a stream whose arrays are to be writable."""
    import io

    return _WritableUnpickler(io.BytesIO(stream), buffers=buffers).load()


def memoryview_call(stream: bytes, view: memoryview) -> tuple[bytes, memoryview]:
    """
    How a memoryview is written.

    Parameters
    ----------
    stream : bytes
        The stream of a memoryview of plain bytes.
    view : memoryview

    Returns
    -------
    tuple of (bytes, memoryview)
        The stream that makes it again, by ``memoryview(buffer).cast(format, shape)``, and the contiguous bytes that it asks
        for.
    """
    if not view.c_contiguous:
        # cast() keeps format and shape; tobytes() is C order, as cast() reads it.
        flat = memoryview(view.tobytes())
    elif view.nbytes == 0:
        flat = memoryview(b"")
    else:
        flat = view.cast("B")
    if view.format == "B" and view.ndim == 1:
        return stream, flat
    call = stream[2:-1]
    if view.nbytes and len(view.format.lstrip("@")) == 1 and view.ndim < 16:
        cast = pickle.dumps((view.format, view.shape), 5)
        # getattr(memoryview(buffer), "cast")(format, shape): frames and memo of the inner pickle are left out.
        arguments = cast[2:-1] if cast[2:3] != b"\x95" else cast[11:-1]
        head = b"\x80\x05\x8c\x08builtins\x8c\x07getattr\x93"
        return head + call + b"\x8c\x04cast\x86R" + arguments + b"R.", flat
    # Formats that cast() does not know, and empty ones: through an array, whose memoryview it is.
    import numpy

    from . import _ndarray

    written = _ndarray.template_put(numpy.asarray(view))
    if written is None:
        raise TypeError(f"cannot pickle 'memoryview' object of format {view.format!r}")
    stream, data = written
    return call[: -len(b"\x97\x85R")].join((b"\x80\x05", b"")) + stream[2:-1] + b"\x85R.", memoryview(data)
