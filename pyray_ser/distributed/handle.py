"""`Handle`, which workers of a host send each other instead of a large value."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .. import _core

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._core import ObjectRef

__all__ = ["Handle", "closed_handles", "is_copied_faithfully", "put_value", "watchable"]

# Streams up to this size are unpickled in the event loop, because passing them to another thread would take longer.
IN_LOOP = 64 << 10
# Packages whose values lose nothing when they are pickled, so that the view in the store can replace the original.
_FAITHFUL = {"numpy", "pandas", "pyarrow", "polars"}
_SCALARS = (int, float, complex, str, bytes, bool, type(None))

_keep_closed: ContextVar[bool] = ContextVar("pyray_ser_keep_closed", default=False)


@contextmanager
def closed_handles() -> Iterator[None]:
    """Make this task receive handles unopened. Outside of this block, their values replace received handles."""
    mark = _keep_closed.set(True)
    try:
        yield
    finally:
        _keep_closed.reset(mark)


class Handle:
    """
    A value in the store of this host.

    Its pickle names the object but does not keep it alive: the sender holds the handle until the receiver has answered.

    Parameters
    ----------
    ref : ObjectRef
    stream : int
        Number of bytes of the value that must be unpickled, without its buffers.
    layout : tuple of int, optional
        Start and end offset of each frame, if the object holds the frames of a value that another host sent.
    """

    __slots__ = ("layout", "ref", "stream")

    def __init__(self, ref: ObjectRef[Any] | None, stream: int, layout: tuple[int, ...] = ()) -> None:
        self.ref = ref
        self.stream = stream
        self.layout = layout

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self.binary(), self.stream, self.layout)

    def binary(self) -> bytes:
        """Return the identity of the object."""
        return self._held().binary()

    def lend(self) -> Handle:
        """Return a handle of the same object for one answer, which the caller ends with `release`."""
        return Handle(self._held(), self.stream, self.layout)

    def release(self) -> None:
        """Let go of the object. Code that still refers to the handle cannot use it."""
        self.ref = None

    def _held(self) -> ObjectRef[Any]:
        if self.ref is None:
            raise RuntimeError("the handle was released, because its answer has ended")
        return self.ref

    @property
    def is_quick(self) -> bool:
        """Return whether `open` is quick enough for the event loop."""
        return self.stream <= IN_LOOP

    def open(self) -> Any:
        """
        Return the value. Its arrays are copy-on-write mappings of the store.

        Dask makes received arrays writable, and programs write to them. A write copies the page for this process.
        """
        if not self.layout:
            return _core.get(self._held(), timeout=0, mmap_mode="c")
        from ..pickling.serialization import loads

        view = _core.get(self._held(), timeout=0, mmap_mode="c")
        bounds = self.layout
        frames = [view[bounds[i] : bounds[i + 1]] for i in range(0, len(bounds), 2)]
        return loads(frames[0], buffers=frames[1:])


class Unopened:
    """Stands in for a handle that could not be opened, with the error that prevented it."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


def _receive(binary: bytes, stream: int, layout: tuple[int, ...]) -> Any:
    """Load a pickled handle. An error must not break the connection on which a worker waits for the handle."""
    try:
        handle = Handle(_core.ObjectRef.from_binary(binary), stream, layout)
    except Exception as error:
        if not _keep_closed.get():
            raise
        return Unopened(error)
    return handle if _keep_closed.get() else handle.open()


def put_value(value: Any, share: int) -> Handle | None:
    """
    Copy a value into the store.

    Parameters
    ----------
    value : object
    share : int
        Smallest size of the buffers in bytes.

    Returns
    -------
    Handle or None
        None if most of the value is in the pickle stream, because each reader would copy the stream and share nothing.
    """
    ref = _core.put(value)
    buffers = _core.get_buffer(ref)
    if isinstance(buffers, memoryview):
        return Handle(ref, 0) if buffers.nbytes >= share else None
    sizes = [buffer.nbytes for buffer in buffers]
    return Handle(ref, sizes[0]) if sum(sizes[1:]) >= max(share, sizes[0]) else None


def watchable(value: Any, depth: int = 3) -> Any:
    """
    Return an object that is alive as long as the value and can be weakly referenced.

    Parameters
    ----------
    value : object
    depth : int
        Number of levels of lists, tuples and dictionaries to search.

    Returns
    -------
    object
        The value, or a part of it. None if there is no such object; the value then has no buffer to share.
    """
    if isinstance(value, _SCALARS):
        return None
    if type(value) in (list, tuple, dict):
        if not depth:
            return None
        parts = value.values() if type(value) is dict else value
        # Searching the first parts is enough, because a list that begins with many numbers has no arrays at its end.
        for _, part in zip(range(100), parts, strict=False):
            found = watchable(part, depth - 1)
            if found is not None:
                return found
        return None
    try:
        weakref.ref(value)
    except TypeError:
        return None
    return value


def is_copied_faithfully(value: Any, depth: int = 3) -> bool:
    """
    Return whether a copy of the value can take its place.

    A class may omit from its pickle state that only the original has, such as caches or open files. So values of
    unknown classes stay unchanged in the worker that made them.
    """
    if type(value) in (list, tuple, dict):
        parts = list(value.values()) if type(value) is dict else value
        return depth > 0 and len(parts) <= 1000 and all(is_copied_faithfully(part, depth - 1) for part in parts)
    return isinstance(value, _SCALARS) or type(value).__module__.partition(".")[0] in _FAITHFUL
