"""Describe paths through numpy's object arrays and pandas frames by columns and positions.

pandas pickles a frame as managers, blocks, and arrays of several columns each. Users do not know these internals, so
the steps from a frame to an item of a column become ``['column'][3]``, and those from an object array to an item become
``[3, 1]``.
"""

import sys
from typing import Any

from .._walk import instance_dict
from .part import Part
from .text import key_text

__all__ = ["columns", "describe"]

# (object, kind of step, key, child), as in `path`.
Step = tuple[Any, str, Any, Any]
Found = tuple[list[Part], int]


def describe(obj: Any, steps: list[Step]) -> Found | None:
    """
    Describe the steps that start at an array, a frame, a series or an index.

    Parameters
    ----------
    obj : object
        The object that the first step starts from.
    steps : list of tuple
        The steps from this object on, at most as many as `path` describes in one call.

    Returns
    -------
    tuple of (list of Part, int) or None
        The parts and the number of steps that they describe; None if the object has another type.
    """
    try:
        if _is_array(obj):
            return _in_array(obj, steps)
        pandas = sys.modules.get("pandas")
        if pandas is None:
            return None
        if issubclass(type(obj), (pandas.DataFrame, pandas.Series)):
            return _in_frame(obj, steps)
        if issubclass(type(obj), pandas.Index):
            return _in_index(obj, steps)
    except Exception:
        # This version of pandas, or a subclass, has other attributes. Use the path with pandas' internals; this
        # path is also correct.
        return None
    return None


def columns(steps: list[Step]) -> list[str] | None:
    """Return the labels of those columns that share the array at the end of `steps`, or None."""
    try:
        pandas = sys.modules.get("pandas")
        if pandas is None:
            return None
        for i, (obj, _, _, _) in enumerate(steps):
            if issubclass(type(obj), pandas.DataFrame):
                block, length = _block(obj, steps[i:])
                if block is None or length != len(steps) - i or block.values.ndim != 2:
                    return None
                return [_column(obj, at).text for at in block.mgr_locs.as_array]
    except Exception:
        return None
    return None


def _is_array(obj: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and issubclass(type(obj), numpy.ndarray)


def _position(array: Any, flat: int) -> tuple[int, ...]:
    """Return the index of an item of the list that an object array is pickled as; the list is always in C order."""
    found = []
    for length in reversed(array.shape):
        flat, at = divmod(flat, length)
        found.append(at)
    return tuple(reversed(found))


def _in_array(array: Any, steps: list[Step]) -> Found | None:
    """Describe the steps in an array of objects, whose state is ``(version, shape, dtype, fortran, items)``."""
    if not array.dtype.hasobject or steps[0][1] != "state" or type(steps[0][3]) is not tuple:
        return None
    if len(steps) > 1 and steps[1][1:3] != ("item", 4):
        return None
    if len(steps) < 3:
        return [], len(steps)
    at = _position(array, steps[2][2])
    text = f"[{', '.join(map(str, at))}]"
    return [Part(text, text[1:-1], array)], 3


def _block(frame: Any, steps: list[Step]) -> tuple[Any, int]:
    """Return the first block whose data a step leads to, and the number of steps to it; (None, 0) if there is none."""
    blocks = frame._mgr.blocks
    for i, (_, _, _, child) in enumerate(steps):
        for block in blocks:
            if block.values is child:
                return block, i + 1
    return None, 0


def _in_frame(frame: Any, steps: list[Step]) -> Found | None:
    if not any(key == "_mgr" for _, _, key, _ in steps[:2]):
        return ([], 1) if len(steps) == 1 and steps[0][1] == "state" else None
    axes = frame._mgr.axes
    names = ("columns", "index") if len(axes) == 2 else ("index",)
    for i, (_, _, _, child) in enumerate(steps):
        for axis, name in zip(axes, names, strict=True):
            if axis is child:
                return [Part(f".{name}", name, frame)], i + 1
    block, used = _block(frame, steps)
    if block is None:
        return [], len(steps)  # the steps have not reached a block yet
    values = block.values
    inside = _in_array(values, steps[used:]) if _is_array(values) and len(steps) > used else None
    if len(axes) == 1:
        return (inside[0], used + inside[1]) if inside is not None else ([], used)
    places = block.mgr_locs.as_array
    if not _is_array(values) or len(places) == 1:
        parts = [_column(frame, places[0])]
        if inside is None or not inside[0]:
            return parts, used + (inside[1] if inside is not None else 0)
        row = _position(values, steps[used + 2][2])[-1]
        return [*parts, Part(f"[{row}]", str(row), frame)], used + 3
    if inside is None or not inside[0]:
        return [], used + (inside[1] if inside is not None else 0)  # the steps so far lead to several columns
    at, row = _position(values, steps[used + 2][2])
    return [_column(frame, places[at]), Part(f"[{row}]", str(row), frame)], used + 3


def _column(frame: Any, place: int) -> Part:
    label = frame.columns[place]
    if hasattr(label, "dtype"):  # a numpy scalar, which users would write as a plain number
        label = label.item()
    text = key_text(label)
    return Part(f"[{text}]", label if type(label) is str else text, frame)


def _in_index(index: Any, steps: list[Step]) -> Found | None:
    attributes = instance_dict(index)
    data = attributes.get("_data") if attributes is not None else None
    if data is None or not _is_array(data):
        return None
    for i, (_, _, _, child) in enumerate(steps):
        if child is data:
            return [], i + 1
    return ([], len(steps)) if len(steps) < 3 else None
