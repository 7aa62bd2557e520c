"""Functions for other parts of the package: they find the path of a failure, and show how `put` stored a value."""

import re
from typing import Any

from .. import _core
from ..exceptions import SerializationError
from .failure import FailureTuple
from .sizes import Sizes, sizes_of
from .tracing import trace

__all__ = ["Explanation", "explain", "explain_failure", "explain_put", "serialization_error"]

Explanation = Sizes

# In put mode, the error messages of the compiled pickler end with the path.
_RAW_PATH = re.compile(r"(.*?) \(at (.*)\)", re.DOTALL)


def _split(error: BaseException) -> tuple[str, str]:
    """Return the pickler's message, and the path that it contains, if any."""
    text = str(error) or type(error).__name__
    match = _RAW_PATH.fullmatch(text)
    return (match[1], match[2]) if match else (text, "")


def explain(obj: Any, name: str | None = None, *, threshold: int = 1024) -> Explanation:
    """Show by path which bytes `put` stores zero-copy, which are copied, and which stay in-band."""
    return sizes_of(trace(obj, name, threshold=threshold))


def explain_put(value: Any, store: Any) -> Explanation:
    """Show how `put` has just stored a value, as `explain` does, and which bytes were already in the store."""

    def refers(address: int, size: int) -> bool:
        return _core.refers(store, address, size)

    return sizes_of(trace(value, refers=refers))


def find_failure(obj: Any, error: BaseException, *, put: bool = True) -> tuple[FailureTuple | None, list[FailureTuple]]:
    """Return the object that caused an error, and all objects that cannot be pickled."""
    try:
        failures = trace(obj, put=put).failures
    except Exception:
        # A failure to describe an error must not replace the error. User code may raise a different exception when it
        # runs again.
        return None, []
    said, _ = _split(error)
    for failure in failures:
        if failure.error_type == type(error).__name__ and failure.error == said:
            return failure, failures
    return (failures[0] if failures else None), failures


def explain_failure(obj: Any, exc: BaseException, *, put: bool = True) -> str:
    """Return the path to the object that made the pickler raise: ``.model.cache['k'][1]``.

    Parameters
    ----------
    obj : object
        The object that was being pickled.
    exc : BaseException
        The error of the pickler.
    put : bool, optional
        Whether the pickler followed the rules of `put` or those of `dumps`.

    Returns
    -------
    str
        The path. It is empty if the object itself cannot be pickled, or if nothing fails on the
        second attempt.
    """
    failure, _ = find_failure(obj, exc, put=put)
    return "" if failure is None or failure.parent is None else failure.path


def serialization_error(obj: Any, exc: BaseException) -> SerializationError:
    """Return the error that `put` and `remote` raise, to be raised ``from exc``.

    ``cannot pickle '_thread.lock' object (at .model.cache['k'][1])``, with all
    failures in `.failures` and a hint for the first in a note.
    """
    failure, failures = find_failure(obj, exc)
    text, raw = _split(exc)
    path = raw if failure is None else failure.path if failure.parent is not None else ""
    error = SerializationError(f"{text} (at {path})" if path else text, path=path or None, failures=tuple(failures))
    if failure is not None and failure.hint:
        error.add_note(f"hint: {failure.hint}")
    others = [other for other in failures if other is not failure]
    if others:
        shown = ", ".join(other.path or other.name for other in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        error.add_note(f"cannot be pickled either: {shown}{more}")
    return error
