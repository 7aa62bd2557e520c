"""`Results`, by which the workers and clients of a cluster name the outcomes of a call.

Dask stores and sends only the names of large values, which stay in the store of the host where they were made. The agent
on that host (`agent.Agent`) holds the objects as long as Dask keeps the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from .. import _core
from .._core import ObjectRef, load_ref, pack, unpack
from ..store.discovery import node_name
from ..tasks.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..tasks.refs import Outcome

__all__ = ["Part", "Results", "Stored", "part_of"]

# The kind of an outcome, its bytes, and the size of an object.
Part: TypeAlias = "tuple[str, bytes, int]"


def part_of(outcome: Outcome) -> Part:
    """Return the form in which an outcome is sent."""
    if type(outcome) is bytes:
        return "value", outcome, len(outcome)
    if type(outcome) is ObjectRef:
        # Without a token; the name of this host is for errors. The size of an object on another host is not known here.
        size = 0 if _core.is_foreign(outcome) else outcome.size or 0
        return "object", outcome.travel(0, node_name())[0], size
    if type(outcome) is Failure:
        return "failure", pack(tuple(outcome)), 0
    return "error", pack(outcome), 0


def _outcome_of(part: Part) -> Outcome:
    kind, data, _ = part
    try:
        if kind == "value":
            return data
        if kind == "object":
            return load_ref(data)
        if kind == "failure":
            return Failure(*unpack(data))
        error: BaseException = unpack(data)
        return error
    except Exception as error:
        # For example an exception whose type this process cannot import.
        return error


class Results:
    """
    The outcomes of a call.

    Its pickle names objects but does not keep them alive. A process that loads it holds the objects that are in its
    store.

    Parameters
    ----------
    parts : iterable of Part
    """

    __slots__ = ("_outcomes", "parts")

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = list(parts)
        self._outcomes = [_outcome_of(part) for part in self.parts]

    def outcome(self, index: int) -> Outcome:
        """Return one of the outcomes."""
        return self._outcomes[index]

    def objects(self) -> list[ObjectRef[Any]]:
        """Return the references among the outcomes."""
        return [one for one in self._outcomes if type(one) is ObjectRef]

    def __reduce__(self) -> tuple[Any, ...]:
        return Results, (self.parts,)

    def __sizeof__(self) -> int:
        # Dask places tasks where the most bytes of their arguments are.
        return object.__sizeof__(self) + sum(size for _, _, size in self.parts)

    def __repr__(self) -> str:
        return f"<results: {', '.join(kind for kind, _, _ in self.parts)}>"


class Stored:
    """
    The bytes of an object that a client sends to a worker of another store; see `pyray_ser.store.foreign.export`.

    Parameters
    ----------
    views : list of memoryview
    """

    __slots__ = ("views",)

    def __init__(self, views: list[Any]) -> None:
        self.views = [memoryview(view).cast("B") for view in views]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        from pickle import PickleBuffer

        if protocol < 5:
            return Stored, ([bytes(view) for view in self.views],)
        return Stored, ([PickleBuffer(view) for view in self.views],)

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + self.nbytes

    @property
    def nbytes(self) -> int:
        """int : Total number of bytes."""
        return sum(view.nbytes for view in self.views)

    def put(self) -> ObjectRef[Any]:
        """Make the object in the store of this process."""
        from ..store import foreign

        block = foreign.create_stored(self.nbytes)
        try:
            at = 0
            for view in self.views:
                block[at : at + view.nbytes] = view
                at += view.nbytes
            return _core.seal(block)
        except BaseException:
            _core.abort(block)
            raise
