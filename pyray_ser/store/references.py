"""Format and pickle references.

A reference can leave a process in three ways, each of which holds the object differently:

- inside a value that is put into the same store: `_core` makes the new object hold the old one;
- by multiprocessing's own pickler (Queue, Pipe, Pool, arguments of a Process): such a pickle is loaded once, so a token
  in flight holds the object until the receiver holds it;
- by any other pickler: such a pickle may be loaded any number of times, so the object is held until `free` or the end
  of the `scope`.
"""

from __future__ import annotations

import sys
from html import escape

from .. import _load_ref
from .._core import ObjectRef, reduce_for_message
from .discovery import node_name
from .scopes import hold

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any
    from weakref import ref

__all__ = ["ObjectRef"]

STICKY = 2


# ---- pickling ---------------------------------------------------------------------------------------------------------

_registered = False
# The output of the pickler of multiprocessing that was running when `_register` was called, as a weak reference. A pickler
# copies the table of reducers when it is made, so this one does not have our reducer.
_early: ref[Any] | None = None


def _register() -> None:
    """Register a reducer with multiprocessing's pickler if multiprocessing is loaded; importing it would take too long."""
    global _registered, _early
    reduction = sys.modules.get("multiprocessing.reduction")
    pickler = getattr(reduction, "ForkingPickler", None)
    if reduction is None or pickler is None:
        return
    pickler.register(ObjectRef, reduce_for_message)
    _registered = True
    output = next(_outputs(), None)
    if output is not None:
        from weakref import ref

        try:
            _early = ref(output)
        except TypeError:
            pass  # a file of the program; the message then holds its objects until `free`, like any other pickle


def _outputs() -> Iterator[Any]:
    """Return the outputs to which picklers of multiprocessing are writing in this thread, the innermost first."""
    reduction: Any = sys.modules["multiprocessing.reduction"]
    codes = {reduction.ForkingPickler.dumps.__func__.__code__: "buf", reduction.dump.__code__: "file"}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = codes.get(frame.f_code)
        if name is not None:
            yield frame.f_locals.get(name)
        frame = frame.f_back


def reduce(ref: ObjectRef[Any]) -> tuple[Any, ...]:
    """Reduce a reference for an unknown pickler."""
    global _early
    if not _registered:
        _register()
    if _early is not None:
        output = _early()
        if output is None:
            _early = None
        elif any(running is output for running in _outputs()):
            return reduce_for_message(ref)
    return _load_ref, (hold(ref, STICKY, node_name()),)


# ---- text -------------------------------------------------------------------------------------------------------------


def _facts(ref: ObjectRef[Any]) -> tuple[str, str]:
    """Return the state and the size of an object as text. Never raise, because a repr must not."""
    size = ""
    try:
        state = ref.state
    except Exception:
        return "unknown", size
    if state == "sealed":
        try:
            number = ref.size
        except Exception:
            state, number = "lost", None
        size = "" if number is None else _bytes(number)
    return state, size


def _bytes(number: int) -> str:
    size = float(number)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{number} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def text(ref: ObjectRef[Any]) -> str:
    """Return the repr of a reference."""
    state, size = _facts(ref)
    return f"ObjectRef({ref.hex()}, {size or state})"


def html(ref: ObjectRef[Any]) -> str:
    """Return a reference as a small table for notebooks."""
    rows = [("object", str(ref.serial)), ("store", f"{ref.store_id:016x}"), *rows_of(ref)]
    return table("ObjectRef", rows)


def table(caption: str, rows: list[tuple[str, str]]) -> str:
    """
    Return a table for notebooks. It has no colours, so that it fits light and dark themes.

    Parameters
    ----------
    caption : str
    rows : list of (str, str)
        Heading and text of each row, which need not be escaped.
    """
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(key)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
        for key, value in rows
    )
    return f"<table><caption>{escape(caption)}</caption>{cells}</table>"


def rows_of(ref: ObjectRef[Any]) -> list[tuple[str, str]]:
    """Return the rows that describe a reference in the table of another object."""
    state, size = _facts(ref)
    rows = [("state", state), ("size", size), ("id", ref.hex())]
    return [row for row in rows if row[1]]


# ---- argument errors --------------------------------------------------------------------------------------------------


def not_refs(function: str, value: object) -> Exception:
    """Return the error for an argument that is neither a reference nor a list of them."""
    if isinstance(value, tuple | set | frozenset | dict):
        return ValueError(
            f"{function}() takes an ObjectRef or a list of ObjectRefs, not a {type(value).__name__}; "
            f"for several, call {function}(list(refs))"
        )
    hint = "; hint: iterate over it and get each reference" if hasattr(type(value), "__next__") else ""
    return ValueError(
        f"{function}() takes an ObjectRef or a list of ObjectRefs, not {type(value).__name__!r}: {value!r:.80}{hint}"
    )
