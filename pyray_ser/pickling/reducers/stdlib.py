"""Reducers for memoryview, array.array and io.BytesIO, whose data they copy once, and for code objects.

The pickler writes ``bytes`` and ``bytearray`` itself.
"""

import sys
from collections.abc import Callable
from io import BytesIO
from pickle import PickleBuffer
from types import CodeType
from typing import Any

from ... import reconstruct

__all__ = ["castable", "install", "reduce_array", "reduce_bytes_io", "reduce_code", "reduce_memoryview"]


# Formats that memoryview.cast accepts in every version of Python.
_CAST_FORMATS = frozenset("cbB?hHiIlLqQnNfdP")


def castable(view: memoryview) -> bool:
    """Return whether ``cast(format, shape)`` can make this view from a view of plain bytes."""
    if view.nbytes == 0:
        return view.format == "B" and view.ndim == 1
    return view.format.removeprefix("@") in _CAST_FORMATS and 0 < view.ndim < 16


def reduce_memoryview(view: memoryview) -> tuple[Any, ...]:
    """Reduce a memoryview: its format and shape, and its bytes in C order."""
    if not castable(view):
        # cast() cannot make views of structures, of foreign byte orders, or without dimensions or elements.
        import numpy

        return reconstruct.memory_of_array, (numpy.asarray(view),)
    flat = b"" if view.nbytes == 0 else view.cast("B") if view.c_contiguous else view.tobytes()
    return reconstruct.memory, (PickleBuffer(flat), view.format, view.shape)


def reduce_array(array: Any) -> Any:
    """Reduce an `array.array`: its type code and its bytes."""
    if array.typecode == "u":
        return NotImplemented  # the item width differs between platforms; the array module converts the items
    return reconstruct.array_of_bytes, (array.typecode, PickleBuffer(memoryview(array).cast("B")) if array else b"")


def reduce_bytes_io(file: Any) -> Any:
    """Reduce a `BytesIO` to its bytes and its position, because loading its own state would make another copy."""
    data, position, attributes = file.__getstate__()
    return reconstruct.bytes_io, (data, position, attributes)


def reduce_code(code: CodeType) -> tuple[Any, ...]:
    """
    Reduce the code of a function that is pickled by value.

    This is cloudpickle's reduction with the file name, which newer versions of cloudpickle omit. Without the name, the
    traceback of an error in a worker shows no source lines.
    """
    return CodeType, (
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_nlocals,
        code.co_stacksize,
        code.co_flags,
        code.co_code,
        code.co_consts,
        code.co_names,
        code.co_varnames,
        code.co_filename,
        code.co_name,
        code.co_qualname,
        code.co_firstlineno,
        code.co_linetable,
        code.co_exceptiontable,
        code.co_freevars,
        code.co_cellvars,
    )


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module."""
    reducers[memoryview] = reduce_memoryview
    reducers[BytesIO] = reduce_bytes_io
    reducers[CodeType] = reduce_code
    module = sys.modules.get("array")
    if module is not None:
        reducers[module.array] = reduce_array
