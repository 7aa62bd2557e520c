"""Walk through an object by the rules of the pickler, and record the failures and the bytes by path."""

from collections.abc import Callable
from typing import Any

from .. import _walk, reconstruct
from .._core import ObjectRef, load_ref
from ..pickling.reducer_order import Reduction, find_global
from .failure import FailureTuple
from .hints import hint, is_resource
from .path import HALF, Step, describe_long, path_text, root_name, root_text
from .text import shorten

__all__ = ["Trace", "trace", "way_to_failure"]

# Kinds of steps inside a reduction. The object at which such a step starts has been reduced.
_IN_REDUCTION = frozenset(
    {"callable", "args", "kwargs", "state", "setter", "listitem", "dictkey", "dictvalue", "attribute"}
)


def _end(steps: list[Step]) -> int:
    """Return the number of steps to the object to report, which may be a resource that contains the failed object."""
    for i, (holder, kind, _, _) in enumerate(steps):
        if kind in _IN_REDUCTION and is_resource(holder):
            return i
    return len(steps)


def way_to_failure(steps: list[Step], skipped: int = 0) -> str:
    """Return the inspector's path to the object that a pickler could not write; empty for the root.

    Parameters
    ----------
    steps : list of (object, str, key, child)
        The steps in the form that `_walk.Walker` passes, outermost first.
    skipped : int, optional
        See `describe_long`.
    """
    steps = steps[: _end(steps)]
    if not steps:
        return ""
    return path_text(describe_long(steps, skipped), root_text(steps[0][0]))


class Trace:
    """The result of a pass.

    Attributes
    ----------
    root : object
        The object that was traced.
    name : str or None
        The user's name for it.
    failures : list of FailureTuple
        One entry for each object that cannot be pickled, in the order in which a pickler reaches
        them.
    total_failures : int
        Total number of failures, including those that are not listed.
    tree : Node
        Bytes, see `_walk`.
    visited : int
        Containers and reduced objects that were visited.
    root_global : (str, str) or None
        Module and qualified name, if the root is pickled by its name. The pass then visits nothing inside the root.
    """

    def __init__(self, root: Any, name: str | None) -> None:
        self.root = root
        self.name = name or root_name(root)
        self.path_name = name or root_text(root)
        self.failures: list[FailureTuple] = []
        self.total_failures = 0
        self.tree: Any = None
        self.visited = 0
        self.root_global: tuple[str, str] | None = None
        self._seen: set[int] = set()

    def add(self, steps: list[Step], skipped: int, obj: Any, error: Exception) -> None:
        """Record a failure. The walk passes both ends of its stack, and the number of skipped steps between them."""
        end = _end(steps)
        if end < len(steps):
            obj, steps = steps[end][0], steps[:end]
        if id(obj) in self._seen:
            return
        self._seen.add(id(obj))
        parts = describe_long(steps, skipped)
        if parts:
            name, parent = parts[-1].name, parts[-1].parent
        else:
            name, parent = self.name or shorten(type(obj).__name__), None
        self.failures.append(
            FailureTuple(
                obj, name, parent, path_text(parts, self.path_name), hint(obj), _message(error), type(error).__name__
            )
        )


def _message(error: BaseException) -> str:
    # The `str()` of an exception from user code may raise.
    try:
        return shorten(str(error), 300) or type(error).__name__
    except Exception:
        return f"{type(error).__name__} (its text could not be had)"


def trace(
    obj: Any,
    name: str | None = None,
    *,
    put: bool = True,
    threshold: int = 1024,
    keep: int = 1024,
    max_failures: int = 1000,
    refers: Callable[[int, int], bool] | None = None,
) -> Trace:
    """Visit all objects that a pickler would visit.

    Parameters
    ----------
    obj : object
        Anything.
    name : str, optional
        The user's name for it.
    put : bool, optional
        Follow the rules of `put` instead of those of `dumps`: buffers of at least `threshold` bytes
        are stored outside of the stream, and the reducers of `pickling.reducers` apply.
    threshold, keep, max_failures : int
        See `_walk.Walker`.
    refers : callable, optional
        Takes an address and a size, and returns whether these bytes are in the store already.

    Returns
    -------
    Trace
    """
    reduction = Reduction(buffers=put)
    result = Trace(obj, name)

    def reduce(obj: Any) -> tuple[Any, Any]:
        if type(obj) is ObjectRef:
            # The reduction of a reference would make the store hold the object for a message that is never sent.
            return (load_ref, (obj.binary(),)), None
        _, value = reduction(obj)
        if type(value) is str:
            found = find_global(obj, value)
            if obj is result.root:
                result.root_global = found
            return value, found
        return value, None

    def classify(cls: type) -> int:
        return _walk.PLAIN if reduction.is_plain(cls) else _walk.ASK

    walker = _walk.Walker(reduce, classify, result.add, threshold if put else -1, keep, max_failures,
                            reconstruct.COPYING if put else frozenset(), refers, HALF)  # fmt: skip
    result.tree = walker.walk(obj)
    result.total_failures = walker.failures
    result.visited = walker.visited
    return result
