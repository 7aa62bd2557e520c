"""The report on one object that cannot be pickled."""

from collections.abc import Iterator
from typing import Any

from .text import brief, shorten

__all__ = ["FailureTuple"]


class FailureTuple:
    """An object that cannot be pickled.

    It can be unpacked as ``obj, name, parent``. Two failures are equal if they describe the same
    object, held under the same name by the same parent; the objects themselves are not compared.

    Attributes
    ----------
    obj : object
        The object itself.
    name : str
        The user's name for the object: a variable, attribute, key or index.
    parent : object
        The function, instance, class or container that holds it; None at top level.
    path : str
        The path to the object, such as ``task -> closure 'cfg' -> .model.cache['k'][1]``.
    hint : str
        Advice on how to fix the failure.
    error : str
        The message of the pickler.

    Examples
    --------
    >>> import io, threading
    >>> ok, failures = pyray_ser.util.inspect_serializability([threading.Lock()], print_file=io.StringIO())
    >>> for failure in failures:
    ...     obj, name, parent = failure
    ...     print(failure.path, "|", failure.error)
    [0] | cannot pickle '_thread.lock' object
    """

    __slots__ = ("error", "error_type", "hint", "name", "obj", "parent", "path")

    def __init__(
        self,
        obj: Any,
        name: str,
        parent: Any,
        path: str = "",
        hint: str = "",
        error: str = "",
        error_type: str = "TypeError",
    ) -> None:
        self.obj = obj
        self.name = name
        self.parent = parent
        self.path = path
        self.hint = hint
        self.error = error
        self.error_type = error_type

    def __iter__(self) -> Iterator[Any]:
        return iter((self.obj, self.name, self.parent))

    def __eq__(self, other: object) -> bool:
        if type(other) is not FailureTuple:
            return NotImplemented
        return self.obj is other.obj and self.parent is other.parent and self.name == other.name

    def __hash__(self) -> int:
        return hash((id(self.obj), id(self.parent), self.name))

    def __repr__(self) -> str:
        return f"FailTuple({shorten(self.name)} [obj={brief(self.obj)}, parent={brief(self.parent)}])"

    def as_dict(self) -> dict[str, str | None]:
        """Return the fields as text, for JSON."""
        return {
            "name": self.name,
            "path": self.path,
            "object": brief(self.obj),
            "parent": None if self.parent is None else brief(self.parent),
            "error": self.error,
            "error_type": self.error_type,
            "hint": self.hint,
        }
