"""Decide which states of dtypes and arrays the unpickler passes to NumPy.

NumPy trusts the state that a pickle sets on a dtype or an array. A forged state can make NumPy read past a buffer, use
bytes as addresses, or free memory that is in use. The unpickler (``csrc/unpickle/safe_mode.c``) calls the two functions
here before it passes such a state to NumPy. Without safe mode, the functions refuse states that would crash NumPy; in
safe mode, they refuse states that NumPy does not write itself.
"""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import numpy

__all__ = ["check_array", "check_dtype"]

# Bits of dtype.flags about the handling of elements: 1 and 2 mean that they hold references, 8 that they must be
# initialized.
_REFERENCES = 0x03
_HANDLING = 0x6F
_UNITS = frozenset({b"Y", b"M", b"W", b"D", b"h", b"m", b"s", b"ms", b"us", b"ns", b"ps", b"fs", b"as", b"generic"})
_MOST_BYTES = 2**31 - 1
_MOST_DIMENSIONS = 64


def _refuse(what: str) -> None:
    raise UnpicklingError(f"the state of a NumPy {what}")


def _is_int(value: Any, low: int, high: int = _MOST_BYTES) -> bool:
    return type(value) is int and low <= value <= high


def check_dtype(dtype: Any, state: Any, in_use: bool, strict: bool) -> None:
    """
    Raise `UnpicklingError` unless a state is valid for a dtype.

    Parameters
    ----------
    dtype : numpy.dtype
    state : object
        The argument of ``__setstate__``.
    in_use : bool
        Whether any object refers to the dtype, such as an array, apart from the unpickler's stack and memo.
    strict : bool
        Whether safe mode is on.
    """
    if type(state) is not tuple or len(state) not in (8, 9):
        if strict or (type(state) is tuple and len(state) in (5, 6, 7)):
            _refuse("dtype must be a tuple of 8 or 9, as NumPy has written it since 1.1")
        return  # NumPy raises
    version, order, base, names, fields, itemsize, alignment, flags = state[:8]
    if in_use and (
        strict or base is not None or names is not None or fields is not None or itemsize not in (-1, dtype.itemsize)
    ):
        _refuse("dtype that is in use already cannot be set")
    if strict and not (_is_int(version, 3, 4) and type(order) is str and len(order) == 1 and order in "<>|="):
        _refuse("dtype has no known version or byte order")
    if not (_is_int(itemsize, -1) and _is_int(alignment, -1) and _is_int(flags, -(2**63), 2**64)):
        if strict:
            _refuse("dtype has a size, an alignment or flags that NumPy does not know")
        return
    if base is None and names is None and fields is None:
        _check_plain(dtype, itemsize, alignment, flags, strict)
    else:
        _check_composed(dtype, state, strict)
    _check_metadata(dtype, state[8] if len(state) == 9 else None, strict)


def _check_plain(dtype: Any, itemsize: int, alignment: int, flags: int, strict: bool) -> None:
    own = numpy.dtype(dtype.type)
    extended = dtype.kind in "SUV"  # and types that other packages have registered
    if (flags & _REFERENCES) != (own.flags & _REFERENCES):
        _refuse("dtype says that it holds references, or that it does not, and the opposite is true")
    if extended and (itemsize < 0 or (dtype.kind == "U" and itemsize % 4)):
        _refuse("dtype has a size that its kind cannot have")
    if not strict:
        return
    if not extended and (itemsize, alignment) not in ((-1, -1), (dtype.itemsize, own.alignment)):
        _refuse("dtype has another size or alignment than its kind")
    if extended and alignment != own.alignment:
        _refuse("dtype has another alignment than its kind")
    if (flags & _HANDLING) != (own.flags & _HANDLING):
        _refuse("dtype has other flags than its kind")


def _check_composed(dtype: Any, state: tuple[Any, ...], strict: bool) -> None:
    """Check fields and sub-arrays: make the same dtype with NumPy's public functions, and compare the states."""
    _, _, base, names, fields, itemsize, alignment, flags = state[:8]
    if (names is None) != (fields is None) or (base is not None and names is not None):
        _refuse("dtype has fields without names, names without fields, or a base besides them")
    try:
        if not strict:
            names, fields = _decoded(names, fields)
        made = _sub_array(base) if names is None else _record(names, fields, dtype, itemsize, alignment, flags, strict)
    except UnpicklingError:
        raise
    except Exception as error:
        raise UnpicklingError("the state of a NumPy dtype is of one that NumPy cannot make") from error
    if (flags & _REFERENCES) != (made.flags & _REFERENCES):
        _refuse("dtype says that it holds references, or that it does not, and the opposite is true")
    size = itemsize if dtype.kind == "V" else dtype.itemsize
    if dtype.kind != "V" and (made.hasobject or base is not None):
        _refuse("dtype of a number or string cannot hold objects or be a sub-array")
    if dtype.kind in "SU" or made.itemsize > size or (made.itemsize != size and names is None):
        _refuse("dtype has parts outside its size")
    if strict and names is not None and dtype.kind == "V" and alignment != made.alignment:
        _refuse("dtype has another alignment than its fields")
    if strict and (flags & _HANDLING) not in (
        made.flags & _HANDLING,
        0 if not made.hasobject and dtype.kind != "V" else -1,
    ):
        _refuse("dtype has other flags than its parts")


def _sub_array(base: Any) -> Any:
    if type(base) is not tuple or len(base) != 2 or not isinstance(base[0], numpy.dtype):
        _refuse("dtype has a base that is no pair of dtype and shape")
    shape = base[1] if type(base[1]) is tuple else (base[1],)
    if not all(_is_int(length, 0) for length in shape) or len(shape) > _MOST_DIMENSIONS:
        _refuse("dtype has a base whose shape is no tuple of int")
    return numpy.dtype((base[0], shape))


def _decoded(names: Any, fields: Any) -> tuple[Any, Any]:
    """Return names and fields as NumPy decodes them from a Python 2 pickle that is loaded with ``encoding="bytes"``."""
    if (
        type(names) is not tuple
        or type(fields) is not dict
        or not names
        or any(type(name) is not bytes for name in names)
    ):
        return names, fields
    # NumPy drops every entry whose key is not a field name, so titles remain only inside their fields.
    return tuple(name.decode("ascii") for name in names), {name.decode("ascii"): fields[name] for name in names}


def _record(names: Any, fields: Any, dtype: Any, itemsize: int, alignment: int, flags: int, strict: bool) -> Any:
    if type(names) is not tuple or type(fields) is not dict or len(set(map(id, names))) != len(names):
        _refuse("dtype has names or fields of another type than NumPy gives them")
    parts: dict[str, list[Any]] = {"names": [], "formats": [], "offsets": [], "titles": []}
    known = 0
    for name in names:
        field: Any = fields.get(name) if type(name) is str else None
        if type(field) is not tuple or len(field) not in (2, 3):
            _refuse("dtype has a name without a field")
        kind, offset, title = (*field, None)[:3]
        if not isinstance(kind, numpy.dtype) or not _is_int(offset, 0):
            _refuse("dtype has a field that is no dtype at an offset")
        if strict and title is not None and type(title) not in (str, bytes):
            _refuse("dtype has a title that is neither str nor bytes")
        # A title that is a str is also a key of its field, except after NumPy has decoded names of Python 2.
        leads = isinstance(title, str) and (strict or title in fields)
        if leads and fields.get(title) != field:
            _refuse("dtype has a title that is no name of its field")
        known += 1 + leads
        for key, value in zip(parts, (name, kind, offset, title), strict=True):
            parts[key].append(value)
    if known != len(fields):
        _refuse("dtype has fields without a name")
    description: dict[str, Any] = {**parts, "itemsize": itemsize if dtype.kind == "V" else dtype.itemsize}
    if not any(parts["titles"]):
        del description["titles"]
    make: Any = numpy.dtype
    return make(description, align=bool(flags & 0x80) and alignment > 1)


def _check_metadata(dtype: Any, metadata: Any, strict: bool) -> None:
    if dtype.kind not in "mM":
        if metadata is not None and type(metadata) is not dict:
            _refuse("dtype has metadata that is no dict")
        return
    if not strict:
        return  # NumPy checks it
    if metadata is None:
        return
    if type(metadata) is not tuple or len(metadata) != 2 or (metadata[0] is not None and type(metadata[0]) is not dict):
        _refuse("dtype has a unit of time that NumPy does not write")
    unit = metadata[1]
    if type(unit) is not tuple or len(unit) != 4 or not all(_is_int(value, 1) for value in unit[1:]):
        _refuse("dtype has a unit of time that NumPy does not write")
    name = unit[0].encode("ascii", "replace") if type(unit[0]) is str else unit[0]
    if type(name) is not bytes or name not in _UNITS:
        _refuse("dtype has a unit of time that NumPy does not know")


def check_array(array: Any, state: Any, in_use: bool, strict: bool) -> None:
    """
    Raise `UnpicklingError` unless a state is valid for an array.

    Parameters
    ----------
    array : numpy.ndarray
    state : object
        The argument of ``__setstate__``.
    in_use : bool
        Whether any object refers to the array, such as another array over its memory, apart from the unpickler's stack
        and memo.
    strict : bool
        Whether safe mode is on.
    """
    if in_use and array.nbytes:
        _refuse("array that is in use already cannot be set")
    if type(array).__setstate__ is not numpy.ndarray.__setstate__:
        return  # a subclass with its own state
    if type(state) is not tuple or len(state) not in (4, 5):
        return  # NumPy raises
    shape, dtype, _, data = state[-4:]
    if not isinstance(dtype, numpy.dtype):
        return
    # NumPy checks the shape, and reads only as many objects of a list as the shape has elements.
    exact = type(shape) is tuple and all(_is_int(length, 0, 2**63 - 1) for length in shape)
    if strict and (not exact or len(shape) > _MOST_DIMENSIONS or type(data) not in (bytes, list, str)):
        _refuse("array has a shape or data that NumPy does not write")
    if type(data) is list:
        total = 1
        for length in shape if exact else ():
            total *= length
        if not exact or total != len(data):
            _refuse("array has another number of objects than its shape")
    elif dtype.hasobject:
        _refuse("array has bytes where its objects should be")
