"""Functions by which `get` reconstructs values of types whose own package has no public function for this.

Streams that `put` writes refer to these functions by name. They are part of the format, so the name and the arguments
of such a function must never change. Buffers in the store are read-only, and so are the values that use them. The
functions for torch and polars are in `reconstruct.torch` and `reconstruct.polars`.
"""

from typing import Any, Literal

__all__ = [
    "COPYING",
    "array_of_bytes",
    "bytes_io",
    "cached_function",
    "ctypes_array",
    "ctypes_data",
    "load_stream",
    "masked_array",
    "memory",
    "memory_of_array",
    "pandas_arrow_column",
    "polars_frame",
    "polars_series",
    "strings",
    "type_parameter",
    "view",
]


def load_stream(stream: Any, *buffers: Any) -> Any:
    """Load a pickle that the verbose pickler wrote."""
    from .._unpickle import loads

    return loads(stream, buffers=buffers)


def memory(buffer: Any, format: str, shape: tuple[int, ...]) -> Any:
    """Make a memoryview of a native format."""
    flat: Any = memoryview(buffer).cast("B")
    return flat if format == "B" and len(shape) == 1 else flat.cast(format, shape)


def memory_of_array(array: Any) -> memoryview:
    """Make a memoryview of a format that only numpy can express."""
    return memoryview(array)


def array_of_bytes(typecode: str, buffer: Any) -> Any:
    """Make an `array.array`."""
    from array import array

    made = array(typecode)
    made.frombytes(buffer)
    return made


def bytes_io(data: bytes, position: int, attributes: dict[str, Any] | None) -> Any:
    """Make an `io.BytesIO` that uses the given bytes without a copy until it is written to."""
    from io import BytesIO

    made = BytesIO(data)
    made.seek(position)
    if attributes:
        made.__dict__.update(attributes)
    return made


def ctypes_array(element: type, shape: tuple[int, ...], buffer: Any, attributes: dict[str, Any] | None = None) -> Any:
    """Make a ctypes array, and first its class, which cannot be imported."""
    cls: Any = element
    for length in reversed(shape):
        cls = cls * length
    made = cls.from_buffer_copy(buffer)
    if attributes:
        made.__dict__.update(attributes)
    return made


def ctypes_data(cls: Any, buffer: Any, attributes: dict[str, Any]) -> Any:
    """Make a ctypes structure or union."""
    made = cls.from_buffer_copy(buffer)
    made.__dict__.update(attributes)
    return made


def view(array: Any, cls: type) -> Any:
    """Make an array of a subclass: recarray, matrix, memmap."""
    return array.view(cls)


def masked_array(data: Any, mask: Any, fill_value: Any, hard_mask: bool, attributes: dict[str, Any]) -> Any:
    """Make a `numpy.ma.MaskedArray`; `mask` is None if the array has no mask."""
    from numpy import ma

    made: Any = ma.MaskedArray(data, ma.nomask if mask is None else mask, copy=False, hard_mask=hard_mask)
    if fill_value is not None:
        made._fill_value = fill_value
    made.__dict__.update(attributes)
    return made


def strings(
    shape: tuple[int, ...], dtype: Any, text: Any, lengths: Any, width: int, missing: Any, order: Literal["C", "F"]
) -> Any:
    """Make an array of numpy's StringDType: from the UTF-8 text of all its strings, and their lengths in bytes."""
    import numpy

    from .._ndarray import strings_in

    made = numpy.empty(shape, dtype, order)
    strings_in(made, text, lengths, width, missing)
    return made


def pandas_arrow_column(cls: Any, state: dict[str, Any]) -> Any:
    """Make a pandas extension array over Arrow data."""
    made = cls.__new__(cls)
    made.__dict__.update(state)
    return made


def polars_frame(table: Any, schema: Any) -> Any:
    """Make a polars frame over an Arrow table."""
    import polars

    frame = polars.DataFrame(polars.from_arrow(table))
    return frame if frame.schema == schema else frame.cast(schema)


def polars_series(array: Any, name: str, dtype: Any) -> Any:
    """Make a polars series over an Arrow array."""
    import polars

    series = polars.Series(name, array)
    return series if series.dtype == dtype else series.cast(dtype)


# Functions that copy their buffers; the inspector counts these bytes as copied.
COPYING = frozenset({array_of_bytes, ctypes_array, ctypes_data, strings})


def type_parameter(cls: type, name: str, module: str | None, options: dict[str, Any]) -> Any:
    """Make a `ParamSpec` or `TypeVarTuple`."""
    made: Any = cls(name, **options)
    made.__module__ = module
    return made


def cached_function(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Make a function under `functools.lru_cache`, with an empty cache."""
    from functools import lru_cache

    return lru_cache(maxsize, typed)(function)
