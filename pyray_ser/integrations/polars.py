"""polars: frames and series as Arrow data, whose buffers are used in place on the other side.

Needs pyarrow. Without it, and for what Arrow has no type for (`Object` columns), polars' own reduction applies,
which writes everything into one bytes object.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import polars

from .. import rebuild

__all__ = ["install", "reduce_frame", "reduce_series"]


def reduce_frame(frame: Any) -> Any:
    """Reduce a frame to an Arrow table and a schema."""
    if not all(map(_travels, frame.schema.values())):
        return NotImplemented
    return rebuild.polars_frame, (frame.to_arrow(compat_level=polars.CompatLevel.newest()), frame.schema)


def reduce_series(series: Any) -> Any:
    """Reduce a series to an Arrow array, a name and a dtype."""
    if not _travels(series.dtype):
        return NotImplemented
    return rebuild.polars_series, (
        series.to_arrow(compat_level=polars.CompatLevel.newest()),
        series.name,
        series.dtype,
    )


def _travels(dtype: Any) -> bool:
    """Whether Arrow has the type, with everything inside it."""
    if dtype == polars.Object or dtype == polars.Unknown:
        return False
    if isinstance(dtype, polars.Struct):
        return all(_travels(field.dtype) for field in dtype.fields)
    inner = getattr(dtype, "inner", None)
    return inner is None or _travels(inner)


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module, if pyarrow is there."""
    if "pyarrow" in sys.modules or find_spec("pyarrow") is not None:
        reducers[polars.DataFrame] = reduce_frame
        reducers[polars.Series] = reduce_series
