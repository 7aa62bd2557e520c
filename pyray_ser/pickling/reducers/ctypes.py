"""Reducers for ctypes data: write the bytes out-of-band, and describe array classes by element type and length."""

import ctypes
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

from ... import reconstruct
from ..reducer_order import find_in_mro

__all__ = ["family"]

# `_type_` codes of types that contain an address.
_POINTERS = frozenset("PzZOX")


def family(cls: Any) -> Callable[[Any], Any] | None:
    """Return the reducer for a class of ctypes data, or None to use its own reduction."""
    if _has_own_reduction(cls):
        return None
    if issubclass(cls, ctypes.Array):
        element, shape = _dimensions(cls)
        if not shape or _holds_addresses(element):
            return None

        def reduce_array(obj: Any) -> Any:
            parts = (element, shape, _buffer(obj))
            # `numpy.ctypeslib.as_ctypes` stores the array in an attribute of its result.
            return reconstruct.ctypes_array, (*parts, obj.__dict__) if obj.__dict__ else parts

        return reduce_array
    if _holds_addresses(cls):
        return None

    def reduce_data(obj: Any) -> Any:
        return reconstruct.ctypes_data, (cls, _buffer(obj), obj.__dict__)

    return reduce_data


def _has_own_reduction(cls: Any) -> bool:
    root: Any = ctypes.Array if issubclass(cls, ctypes.Array) else ctypes.Structure
    if issubclass(cls, ctypes.Union):
        root = ctypes.Union
    return (
        cls.__reduce__ is not root.__reduce__ or find_in_mro(cls, "__reduce_ex__") is not vars(object)["__reduce_ex__"]
    )


def _dimensions(cls: Any) -> tuple[Any, tuple[int, ...]]:
    """Return the element type and lengths of an array class; do not divide a class that has its own name."""
    shape: list[int] = []
    while issubclass(cls, ctypes.Array) and cls.__bases__ == (ctypes.Array,) and cls is cls._type_ * cls._length_:
        shape.append(cls._length_)
        cls = cls._type_
    return cls, tuple(shape)


def _holds_addresses(cls: Any) -> bool:
    """Return whether ctypes refuses to pickle a class, because it holds addresses."""
    if issubclass(cls, ctypes.Array):
        return _holds_addresses(cls._type_)
    if issubclass(cls, (ctypes.Structure, ctypes.Union)):
        fields = (field for base in cls.__mro__ for field in base.__dict__.get("_fields_", ()))
        return any(_holds_addresses(field[1]) for field in fields)
    code = getattr(cls, "_type_", None)
    return not isinstance(code, str) or code in _POINTERS


def _buffer(obj: Any) -> Any:
    size = ctypes.sizeof(obj)
    return PickleBuffer((ctypes.c_char * size).from_buffer(obj)) if size else b""
