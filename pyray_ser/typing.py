"""Types for annotations: arguments and results of the package's functions, as protocols and aliases.

This module is not needed at run time, and it does not import any other module of the package.
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
    """A file that ``dump`` can write to."""

    def write(self, data: bytes, /) -> Any: ...


@runtime_checkable
class ReadableFile(Protocol):
    """A file that ``load`` can read from; ``readinto`` and ``peek`` are used if it has them."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


BufferCallback: TypeAlias = Callable[[PickleBuffer], Any]
"""Takes a large buffer out of the stream; a true result keeps it in-band (PEP 574)."""

Reduced: TypeAlias = str | tuple[Any, ...]
"""The result of ``__reduce_ex__``: the name of a global, or a tuple of two to six items."""

Reducer: TypeAlias = Callable[[Any], Reduced]
"""A function in ``copyreg.dispatch_table`` or in the entry point group ``pyray_ser.reducers``."""

Serializer: TypeAlias = Callable[[T], Any]
"""The serializer of ``register_serializer``: converts an instance to a value that can be pickled."""

Deserializer: TypeAlias = Callable[[Any], T]
"""The deserializer of ``register_serializer``: makes an instance from the result of the serializer."""

Allow: TypeAlias = Collection[str] | Callable[[str, str], bool]
"""Safe mode: names ``"module:qualname"``, or a predicate of both."""

MmapMode: TypeAlias = Literal["r", "c"]
"""How ``get`` maps an object: read-only, or copy-on-write."""

Frames: TypeAlias = Sequence[memoryview]
"""The result of ``dumps_frames`` and the argument of ``loads_frames``: header, stream, buffers."""
