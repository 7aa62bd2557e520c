"""Reducers for pyarrow: write the buffers of an array out-of-band; of a slice, write only the visible part.

Tables, batches and chunked arrays consist of arrays and need no reducer.
"""

from collections.abc import Callable
from typing import Any

import pyarrow

__all__ = ["install", "reduce_array"]

# A slice that covers at least this fraction of its parent's bytes is sent with all these bytes, because cutting out the
# slice requires a copy.
_WORTHWHILE = 0.9
_SMALL = 1024


def reduce_array(array: Any) -> Any:
    """Reduce an array; cut a slice out of its parent."""
    if not len(array):
        # No bytes of the parent's buffers are needed.
        if array.get_total_buffer_size() > _SMALL:
            return _restore(pyarrow.array([], array.type)) if _can_be_made(array.type) else NotImplemented
        return NotImplemented
    whole = array.get_total_buffer_size()
    if whole <= _SMALL or array.nbytes >= whole * _WORTHWHILE:
        return NotImplemented
    compact = _cut(array)
    return NotImplemented if compact is None else _restore(compact)


def _restore(array: Any) -> Any:
    return array.__reduce_ex__(5)


def _can_be_made(kind: Any) -> bool:
    return not (pyarrow.types.is_union(kind) or isinstance(kind, pyarrow.BaseExtensionType))


def _cut(array: Any) -> Any:
    """Return an equal array that holds only the visible bytes, or None if pyarrow cannot make it."""
    fixed = _cut_in_place(array)
    if fixed is not None:
        return fixed
    kind = array.type
    try:
        # This copies only the visible bytes. For view types, it would copy only the views, not their data.
        if kind in (pyarrow.string_view(), pyarrow.binary_view()):
            plain = pyarrow.large_string() if kind == pyarrow.string_view() else pyarrow.large_binary()
            compact = array.cast(plain).cast(kind)
        else:
            compact = pyarrow.concat_arrays([array])
    except pyarrow.ArrowNotImplementedError:
        return None
    return compact if compact.get_total_buffer_size() < array.get_total_buffer_size() else None


def _cut_in_place(array: Any) -> Any:
    """Cut a fixed-width array without copying, at a multiple of eight items, where a byte of validity bits begins."""
    kind = array.type
    if not pyarrow.types.is_primitive(kind) or kind.bit_width % 8:
        return None
    mask, data = array.buffers()
    width = kind.bit_width // 8
    start = array.offset // 8 * 8
    skip = array.offset - start
    stop = array.offset + len(array)
    if mask is not None:
        mask = mask.slice(start // 8, (stop + 7) // 8 - start // 8)
    data = data.slice(start * width, (stop - start) * width)
    return pyarrow.Array.from_buffers(kind, len(array), [mask, data], offset=skip)


def _all_subclasses(cls: type) -> set[type]:
    return {cls}.union(*(_all_subclasses(below) for below in cls.__subclasses__()))


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module for every class of arrays in pyarrow."""
    for cls in _all_subclasses(pyarrow.Array):
        if cls.__module__.partition(".")[0] == "pyarrow":
            reducers[cls] = reduce_array
