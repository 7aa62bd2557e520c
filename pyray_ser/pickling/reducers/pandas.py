"""pandas: columns of Arrow data, whose own reduction copies them into one chunk first.

Everything else in pandas consists of arrays that the pickler writes without a reducer.
"""

from collections.abc import Callable
from typing import Any

from pandas.arrays import ArrowExtensionArray

from ... import reconstruct

__all__ = ["install", "reduce_arrow_column"]


def reduce_arrow_column(column: Any) -> Any:
    """Reduce a column to its chunks, without merging them."""
    state = column.__dict__
    if "_pa_array" not in state:
        return NotImplemented  # a pandas with other names
    return reconstruct.pandas_arrow_column, (type(column), dict(state))


def _all_subclasses(cls: type) -> set[type]:
    return {cls}.union(*(_all_subclasses(below) for below in cls.__subclasses__()))


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module for the classes of columns in pandas."""
    for cls in _all_subclasses(ArrowExtensionArray):
        if cls.__module__.partition(".")[0] == "pandas":
            reducers[cls] = reduce_arrow_column
