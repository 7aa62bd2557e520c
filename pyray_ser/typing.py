"""Types for annotations: what our functions take and give, as protocols and aliases.

Nothing here is needed at run time, and nothing of ours is imported.
"""

from collections.abc import Callable, Collection, Sequence
from pickle import PickleBuffer
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

__all__ = [
    "Allow",
    "BufferCallback",
    "BufferLike",
    "Deserializer",
    "Frames",
    "MmapMode",
    "ReadableFile",
    "Reduced",
    "Reducer",
    "Serializer",
    "SupportsBuffer",
    "WritableFile",
]

T = TypeVar("T")


@runtime_checkable
class SupportsBuffer(Protocol):
    """An object that exports a buffer by a Python-level ``__buffer__`` (PEP 688, Python 3.12)."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


BufferLike: TypeAlias = bytes | bytearray | memoryview | PickleBuffer | SupportsBuffer
"""Anything whose bytes can be read in place."""


@runtime_checkable
class WritableFile(Protocol):
    """What ``dump`` writes to."""

    def write(self, data: bytes, /) -> Any: ...


@runtime_checkable
class ReadableFile(Protocol):
    """What ``load`` reads from; ``readinto`` and ``peek`` are used where there."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


BufferCallback: TypeAlias = Callable[[PickleBuffer], Any]
"""Takes a large buffer out of the stream; a true result keeps it in-band (PEP 574)."""

Reduced: TypeAlias = str | tuple[Any, ...]
"""What ``__reduce_ex__`` returns: a global's name, or a tuple of two to six items."""

Reducer: TypeAlias = Callable[[Any], Reduced]
"""A function in ``copyreg.dispatch_table`` or in the entry point group ``pyray_ser.reducers``."""

Serializer: TypeAlias = Callable[[T], Any]
"""First half of ``register_serializer``: an instance to something picklable."""

Deserializer: TypeAlias = Callable[[Any], T]
"""Second half of ``register_serializer``: what the serializer returned, back to an instance."""

Allow: TypeAlias = Collection[str] | Callable[[str, str], bool]
"""Safe mode: names ``"module:qualname"``, or a predicate of both."""

MmapMode: TypeAlias = Literal["r", "c"]
"""How ``get`` maps an object: read-only, or copy-on-write."""

Frames: TypeAlias = Sequence[memoryview]
"""What ``dumps_frames`` returns and ``loads_frames`` takes: header, stream, buffers."""
