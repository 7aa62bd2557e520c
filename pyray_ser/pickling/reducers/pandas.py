"""Reducers for pandas columns of Arrow data, because their own reduction first copies them into one chunk.

All other pandas objects consist of arrays, which the pickler writes without a reducer.
"""

from collections.abc import Callable
from typing import Any

from pandas.arrays import ArrowExtensionArray

from ... import reconstruct

__all__ = ["install", "reduce_arrow_column"]


def reduce_arrow_column(column: Any) -> Any:
    """Reduce a column to its chunks, without merging them."""
    data = column.__dict__.get("_pa_array")
    if data is None:
        return NotImplemented  # this version of pandas uses other names
    # Only pandas knows which other attributes belong to the state (caches do not). So call its `__getstate__` on a
    # column without rows, for which merging the chunks costs nothing.
    empty = object.__new__(type(column))
    empty.__dict__.update(column.__dict__, _pa_array=data.slice(0, 0))
    return reconstruct.pandas_arrow_column, (type(column), {**empty.__getstate__(), "_pa_array": data})


def _all_subclasses(cls: type) -> set[type]:
    return {cls}.union(*(_all_subclasses(below) for below in cls.__subclasses__()))


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module for the classes of columns in pandas."""
    for cls in _all_subclasses(ArrowExtensionArray):
        if cls.__module__.partition(".")[0] == "pandas":
            reducers[cls] = reduce_arrow_column
