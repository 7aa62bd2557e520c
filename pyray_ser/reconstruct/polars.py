"""Functions that reconstruct categories of polars. Streams of `put` refer to them, so they are part of the format.

Each process numbers the categories of categorical columns in the order of their first occurrence. So `put` stores a
column as its codes and the strings that belong to these codes in the writer. The reader uses the codes in place, and
adds the strings to its own categories. If the strings get the same numbers, as in a process without other
categories and in children of the writer, the codes are valid. Otherwise the reader translates the codes, which requires
a copy. The categories of an enum belong to its dtype, and so are the same everywhere.
"""

from collections.abc import Callable, Iterator
from typing import Any

import polars

__all__ = ["can_map", "converted", "frame", "has_codes", "leaves", "pool_key", "series"]


def has_codes(dtype: Any) -> bool:
    """Return whether values of a dtype are or contain codes of categories."""
    if isinstance(dtype, (polars.Categorical, polars.Enum)):
        return True
    if isinstance(dtype, polars.Struct):
        return any(has_codes(field.dtype) for field in dtype.fields)
    return isinstance(dtype, (polars.List, polars.Array)) and has_codes(dtype.inner)


def can_map(dtype: Any) -> bool:
    """Return whether this version of polars has the expressions that `converted` needs for a dtype."""
    if isinstance(dtype, polars.Struct):
        # polars expressions interpret such names as patterns.
        return all(can_map(field.dtype) and field.name[:1] not in ("^", "*") for field in dtype.fields)
    if isinstance(dtype, polars.Array):
        return hasattr(type(polars.col("x").arr), "eval") and can_map(dtype.inner)
    if isinstance(dtype, polars.List):
        return can_map(dtype.inner)
    return not has_codes(dtype) or (hasattr(type(polars.col("x").cat), "to") and hasattr(polars, "Categories"))


def converted(values: Any, dtype: Any, leaf: Callable[[Any, Any], Any]) -> Any:
    """Apply `leaf` to the codes or categories in a series that has, or will get, `dtype`; copy nothing else."""
    # A polars expression could interpret the name as a pattern.
    changed = values.alias("x").to_frame().select(_mapped(polars.col("x"), dtype, leaf))
    return changed.to_series().alias(values.name)


def _mapped(expr: Any, dtype: Any, leaf: Callable[[Any, Any], Any]) -> Any:
    if isinstance(dtype, polars.List):
        return expr.list.eval(_mapped(polars.element(), dtype.inner, leaf))
    if isinstance(dtype, polars.Array):
        return expr.arr.eval(_mapped(polars.element(), dtype.inner, leaf))
    if isinstance(dtype, polars.Struct):
        fields = [field for field in dtype.fields if has_codes(field.dtype)]
        return expr.struct.with_fields(*(_mapped(polars.field(f.name), f.dtype, leaf).alias(f.name) for f in fields))
    return leaf(expr, dtype)


def leaves(values: Any, dtype: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each series of categories that a series contains, with its dtype."""
    if isinstance(dtype, (polars.List, polars.Array)):
        yield from leaves(values.alias("x").explode(), dtype.inner)
    elif isinstance(dtype, polars.Struct):
        for field in dtype.fields:
            if has_codes(field.dtype):
                yield from leaves(values.alias("x").struct.field(field.name), field.dtype)
    else:
        yield values.alias("x"), dtype


def pool_key(dtype: Any) -> tuple[str, str, str]:
    """Return a key that is equal for dtypes with the same categories."""
    categories = dtype.categories
    return categories.name(), categories.namespace(), str(categories.physical())


def _decoder(pools: Any) -> tuple[Callable[[Any, Any], Any], list[Any]]:
    """Return a function that makes categories from codes, and the objects that must stay alive until it has run."""
    renumber, kept = {}, []
    for dtype, codes, strings in pools:
        # polars keeps the string of a code only while a value of that dtype exists.
        kept.append(polars.Series(strings).cast(dtype))
        mine = kept[-1].to_physical()
        theirs = polars.Series(codes, dtype=mine.dtype)
        renumber[pool_key(dtype)] = None if mine.equals(theirs) else _renumbering(theirs, mine)

    def leaf(expr: Any, dtype: Any) -> Any:
        if isinstance(dtype, polars.Categorical):
            change = renumber[pool_key(dtype)]
            expr = expr if change is None else change(expr)
        return expr.cat.to(dtype)

    return leaf, kept


def _renumbering(theirs: Any, mine: Any) -> Callable[[Any], Any]:
    size = (theirs.max() or 0) + 1
    if size > 65_536 + 16 * len(theirs):
        return lambda expr: expr.replace_strict(theirs, mine, return_dtype=mine.dtype)
    # A lookup table is several times faster than other methods. A code without a string becomes null.
    table = polars.Series([None], dtype=mine.dtype).new_from_index(0, size).scatter(theirs, mine)
    return lambda expr: polars.lit(table).gather(expr)


def frame(table: Any, schema: Any, pools: Any) -> Any:
    """Make a frame over an Arrow table that has codes where `schema` has categories."""
    made: Any = polars.DataFrame(polars.from_arrow(table))
    leaf, kept = _decoder(pools)
    made = made.with_columns(
        converted(made.get_column(name), dtype, leaf) for name, dtype in schema.items() if has_codes(dtype)
    )
    del kept
    return made if made.schema == schema else made.cast(schema)


def series(array: Any, name: str, dtype: Any, pools: Any) -> Any:
    """Make a series over an Arrow array that has codes where `dtype` has categories."""
    leaf, kept = _decoder(pools)
    made = converted(polars.Series(name, array), dtype, leaf)
    del kept
    return made if made.dtype == dtype else made.cast(dtype)
