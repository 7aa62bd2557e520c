"""Reducers for polars: frames and series are written as Arrow data, whose buffers the reader uses in place.

This requires pyarrow. Without pyarrow, and for types that Arrow does not support (`Object` columns), polars' own
reduction writes all data into one bytes object.

Categories are sent as their codes, including nested ones (see `reconstruct.polars`). If they were sent as Arrow
dictionaries, polars would renumber them on both sides.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import polars

from ... import reconstruct
from ...reconstruct import polars as constructors

__all__ = ["install", "reduce_frame", "reduce_series"]


# If there are more categories than this, a value is sent with only those that it uses, unless the value has many more
# items than categories.
_POOL = 1024
_ITEMS = 16


def reduce_frame(frame: Any) -> Any:
    """Reduce a frame to an Arrow table and a schema."""
    schema = frame.schema
    if not all(map(_travels, schema.values())):
        return NotImplemented
    coded = {name: dtype for name, dtype in schema.items() if constructors.has_codes(dtype)}
    if not coded or not all(map(constructors.can_map, coded.values())):
        return reconstruct.polars_frame, (_arrow(frame), schema)
    plain = frame.with_columns(
        constructors.converted(frame.get_column(name), dtype, _code) for name, dtype in coded.items()
    )
    return constructors.frame, (_arrow(plain), schema, _pools([frame.get_column(name) for name in coded]))


def reduce_series(series: Any) -> Any:
    """Reduce a series to an Arrow array, a name and a dtype."""
    dtype = series.dtype
    if not _travels(dtype):
        return NotImplemented
    if not constructors.has_codes(dtype) or not constructors.can_map(dtype):
        return reconstruct.polars_series, (_arrow(series), series.name, dtype)
    plain = constructors.converted(series, dtype, _code)
    return constructors.series, (_arrow(plain), series.name, dtype, _pools([series]))


def _arrow(value: Any) -> Any:
    return value.to_arrow(compat_level=polars.CompatLevel.newest())


def _code(expr: Any, dtype: Any) -> Any:
    return expr.to_physical()


def _pools(values: list[Any]) -> list[tuple[Any, Any, Any]]:
    """Return the categories of some series: their dtype, their codes, and the strings (an Arrow array) of these codes."""
    found: dict[tuple[str, str, str], tuple[Any, list[Any]]] = {}
    for series in values:
        for leaf, dtype in constructors.leaves(series, series.dtype):
            if isinstance(dtype, polars.Categorical):
                found.setdefault(constructors.pool_key(dtype), (dtype, []))[1].append(leaf)
    pools = []
    for dtype, parts in found.values():
        strings = dtype.categories.to_series()
        items = sum(map(len, parts))
        if len(strings) > max(_POOL, items // _ITEMS):
            codes = polars.concat([part.to_physical().unique() for part in parts]).drop_nulls().unique().sort()
            strings = strings.gather(codes)
        else:
            # Another thread may have reserved a code that has no string yet. No value here uses such a code.
            codes = polars.Series(range(len(strings)), dtype=polars.UInt32).filter(strings.is_not_null())
            strings = strings.drop_nulls()
        pools.append((dtype, codes.to_numpy(), strings.to_arrow()))
    return pools


@lru_cache(maxsize=256)
def _known_to_arrow(dtype: Any) -> bool:
    """Return whether this version of pyarrow supports a type, by trying an empty series."""
    try:
        _arrow(polars.Series("", [], dtype=dtype))
    except Exception:  # raised by polars or pyarrow
        return False
    return True


def _travels(dtype: Any) -> bool:
    """Return whether Arrow supports a type and all types nested in it."""
    if dtype == polars.Object or dtype == polars.Unknown:
        return False
    if isinstance(dtype, polars.Struct):
        return all(_travels(field.dtype) for field in dtype.fields)
    inner = getattr(dtype, "inner", None)
    if inner is not None:
        return _travels(inner)
    return isinstance(dtype, (polars.Categorical, polars.Enum)) or _known_to_arrow(dtype)


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module, if pyarrow is installed."""
    if "pyarrow" in sys.modules or find_spec("pyarrow") is not None:
        reducers[polars.DataFrame] = reduce_frame
        reducers[polars.Series] = reduce_series
