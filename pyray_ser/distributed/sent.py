"""What the client of a cluster knows about calls whose outcome has not arrived, and about results of the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _log

if TYPE_CHECKING:
    from ..tasks.actor import Grip
    from ..tasks.refs import Outcome, TaskRef

__all__ = ["Place", "Sent", "settle"]


def settle(ref: TaskRef, outcome: Outcome) -> None:
    """Settle a reference; log what a callback raises, so that the caller can settle other references."""
    try:
        ref.settle(outcome)
    except BaseException:
        _log.exception("a callback of %r failed", ref)


class Sent:
    """
    A call that has no outcome yet.

    Parameters
    ----------
    key : str
        The key of its results.
    name : str
    several : bool or int
        False for one result, True for a stream, otherwise the number of results.
    refs : list of TaskRef

    Attributes
    ----------
    keeps : list
        Objects of this process that the call reads.
    carried : list
        Actors of this program whose handles are in the call.
    future : distributed.Future or None
        The Dask task, if the call is one.
    address : str
        The worker with the actor, if the call is one of an actor and was sent, or the worker that runs the stream.
    right : list
        The thread that pops its item sends the call.
    """

    def __init__(self, key: str, name: str, several: bool | int, refs: list[TaskRef]) -> None:
        self.key = key
        self.name = name
        self.several = several
        self.refs = refs
        self.keeps: list[object] = []
        self.carried: list[Grip] = []
        self.future: Any = None
        self.address = ""
        self.right = [True]

    def result(self) -> Any:
        """Return the value of ``.remote(...)``."""
        return self.refs[0] if self.several is False else list(self.refs)

    def settle(self, outcomes: list[Outcome]) -> None:
        """
        Settle the references.

        Parameters
        ----------
        outcomes : list
            A call that failed may have fewer outcomes than references; the last one is the error.
        """
        for i, ref in enumerate(self.refs):
            settle(ref, outcomes[min(i, len(outcomes) - 1)])

    def fail(self, error: BaseException) -> None:
        """Settle the references with an error."""
        for ref in self.refs:
            ref.settle(error)


class Place:
    """
    Where the outcome of a reference is. It keeps the outcome alive.

    Parameters
    ----------
    future : distributed.Future
    index : int
        Which of the outcomes of the future.
    key : str
    """

    __slots__ = ("future", "index", "key")

    def __init__(self, future: Any, index: int, key: str) -> None:
        self.future = future
        self.index = index
        self.key = key
