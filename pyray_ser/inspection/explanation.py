"""What other parts of the library ask: the path of a failure, and what became of a value in the store."""

import re
from typing import Any

from .. import _store
from ..exceptions import SerializationError
from .failure import FailureTuple
from .sizes import Sizes, sizes_of
from .tracing import trace

__all__ = ["Explanation", "explain", "explain_failure", "explain_put", "serialization_error"]

Explanation = Sizes

# The compiled pickler ends its messages in put mode with the path.
_RAW_PATH = re.compile(r"(.*?) \(at (.*)\)", re.DOTALL)


def _split(error: BaseException) -> tuple[str, str]:
    """Return what the pickler said, and the path it said it at, if it did."""
    text = str(error) or type(error).__name__
    match = _RAW_PATH.fullmatch(text)
    return (match[1], match[2]) if match else (text, "")


def explain(obj: Any, name: str | None = None, *, threshold: int = 1024) -> Explanation:
    """Tell by path what `put` takes zero-copy, what is copied, and what stays in-band."""
    return sizes_of(trace(obj, name, threshold=threshold))


def explain_put(value: Any, store: Any) -> Explanation:
    """Tell what `put` has just done with a value: as `explain`, and what was in the store already."""

    def refers(address: int, size: int) -> bool:
        return _store.refers(store, address, size)

    return sizes_of(trace(value, refers=refers))


def find_failure(obj: Any, error: BaseException, *, put: bool = True) -> tuple[FailureTuple | None, list[FailureTuple]]:
    """Return the offender that caused an error, and all that there are."""
    try:
        failures = trace(obj, put=put).failures
    except Exception:
        # Reporting an error must not replace it: foreign code behaves as it likes when it is run again.
        return None, []
    said, _ = _split(error)
    for failure in failures:
        if failure.error_type == type(error).__name__ and failure.error == said:
            return failure, failures
    return (failures[0] if failures else None), failures


def explain_failure(obj: Any, exc: BaseException, *, put: bool = True) -> str:
    """Return the path to what made the pickler raise: ``.model.cache['k'][1]``.

    Parameters
    ----------
    obj : object
        What was being pickled.
    exc : BaseException
        What the pickler raised.
    put : bool, optional
        Whether it went by the rules of `put` or those of `dumps`.

    Returns
    -------
    str
        Empty if the object itself is to blame, or if nothing fails when it is tried again.
    """
    failure, _ = find_failure(obj, exc, put=put)
    return "" if failure is None or failure.parent is None else failure.path


def serialization_error(obj: Any, exc: BaseException) -> SerializationError:
    """Return the error that `put` and `remote` raise, to be raised ``from exc``.

    ``cannot pickle '_thread.lock' object (at .model.cache['k'][1])``, with all
    offenders in `.failures` and what to do about the first in a note.
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
