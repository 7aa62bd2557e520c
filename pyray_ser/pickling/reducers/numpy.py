"""Reducers for numpy: arrays whose own reduction makes a copy, subclasses of arrays, and StringDType.

The pickler writes plain arrays of plain dtypes itself. `reduce_ndarray` handles the other arrays (records, and all
arrays in the pure-Python pickler) in the same way. It writes the elements in memory order, gathers them first if they
are not contiguous, and writes repeated elements of a broadcast array only once.
"""

from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

import numpy
from numpy import ma

from ... import reconstruct

__all__ = ["install", "reduce_masked", "reduce_ndarray", "reduce_subclass"]


def reduce_ndarray(array: Any) -> Any:
    """Reduce an exact ndarray to shape, dtype, bytes and strides."""
    dtype = array.dtype
    if type(dtype) is _StringDType:
        return _reduce_strings(array)
    if dtype.hasobject or not dtype.itemsize:
        return NotImplemented
    # An axis of stride 0 repeats the same elements.
    repeated = [stride == 0 and length > 1 for stride, length in zip(array.strides, array.shape, strict=True)]
    core = array[tuple(slice(0, 1) if again else slice(None) for again in repeated)] if any(repeated) else array
    if not (core.flags.c_contiguous or core.flags.f_contiguous):
        core = core.copy(order="K")
    if not (core.flags.c_contiguous or core.flags.f_contiguous):
        # The elements are dense, but the axes are in another order, which the strides define.
        order = numpy.argsort(core.strides, kind="stable")[::-1]
        flat = core.transpose(order).reshape(-1)
    else:
        flat = core.reshape(-1, order="C" if core.flags.c_contiguous else "F")
    strides: tuple[int, ...] | None = None
    if any(repeated):
        strides = tuple(0 if again else s for again, s in zip(repeated, core.strides, strict=True))
    elif not core.flags.c_contiguous:
        strides = core.strides
    if not array.size:
        return numpy.ndarray, (array.shape, dtype, b"", 0, None)
    buffer = PickleBuffer(flat.view(numpy.uint8) if dtype != numpy.uint8 else flat)
    return numpy.ndarray, (array.shape, dtype, buffer, 0, strides)


def reduce_subclass(array: Any) -> Any:
    """Reduce a recarray, matrix or memmap to its underlying plain array."""
    plain = array.view(numpy.ndarray)
    return NotImplemented if plain.dtype.hasobject else (reconstruct.view, (plain, type(array)))


def reduce_masked(array: Any) -> Any:
    """Reduce a masked array to data, mask and fill value."""
    data = array.data
    if type(data) is not numpy.ndarray or data.dtype.hasobject:
        return NotImplemented
    mask = None if array._mask is ma.nomask else numpy.asarray(array._mask)
    known = {"_fill_value", "_mask", "_hardmask", "_sharedmask", "_isfield", "_baseclass", "_optinfo", "_basedict"}
    attributes = {name: value for name, value in array.__dict__.items() if name not in known}
    if array._optinfo:
        attributes["_optinfo"] = array._optinfo
    return reconstruct.masked_array, (data, mask, array._fill_value, array._hardmask, attributes)


def _reduce_strings(array: Any) -> Any:
    from ..._ndarray import strings_out

    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    text, lengths, width, missing = strings_out(array, fortran)
    return reconstruct.strings, (
        array.shape,
        array.dtype,
        PickleBuffer(text),
        PickleBuffer(lengths),
        width,
        missing and PickleBuffer(missing),
        "F" if fortran else "C",
    )


class _Never:
    """Stands in for a dtype that this version of numpy does not have."""


_StringDType: type = getattr(getattr(numpy, "dtypes", None), "StringDType", _Never)


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module."""
    reducers[numpy.ndarray] = reduce_ndarray
    for cls in (numpy.recarray, numpy.matrix, numpy.memmap):
        reducers[cls] = reduce_subclass
    reducers[ma.MaskedArray] = reduce_masked
