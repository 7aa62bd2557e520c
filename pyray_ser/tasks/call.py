"""Make a job from the arguments of ``.remote(...)``; it is sent when all arguments are ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from .._core import ObjectRef
from ..exceptions import SerializationError
from . import protocol
from .channel import Job, number, stop
from .errors import Failure, describe
from .refs import Outcome, Repeatable, Source, TaskRef
from .streams import Items, Parts, ResultStream

__all__ = ["Call", "after", "encode", "forwarded", "make", "stop"]


class Call:
    """
    One call.

    Attributes
    ----------
    job : Job
        The job for a channel.
    pending : list of TaskRef
        Arguments that must be settled first.
    result : TaskRef, list of TaskRef or ResultStream
        The value that ``.remote`` returns.
    creates : bool
        Whether the call makes an actor.
    """

    __slots__ = ("creates", "job", "pending", "result")

    def __init__(self, job: Job, pending: list[TaskRef], result: Any, creates: bool = False) -> None:
        self.job = job
        self.pending = pending
        self.result = result
        self.creates = creates

    def hand_over(self) -> Any:
        """Return the result and drop the reference to it, so that the call does not keep its own stream alive."""
        result, self.result = self.result, None
        return result

    def ready(self) -> bool:
        """Encode the awaited arguments; return False if the call cannot run because one of them failed."""
        failure = self.prepare()
        if failure is None:
            return True
        stop(self.job, failure)
        return False

    def prepare(self) -> Outcome | None:
        """Encode the awaited arguments; if one of them failed, return the outcome with which to stop the call."""
        if not self.pending:
            return None
        # A call that creates an actor is sent even if an argument failed. Loading the argument then fails in the
        # actor's process, and the actor reports the reason to all its callers, including those in other processes.
        failed = None if self.creates else next((ref.outcome for ref in self.pending if _failed(ref)), None)
        if failed is not None:
            return failed
        try:
            payload, held = protocol.encode(self.pending)
        except Exception as error:
            if not self.creates:
                return error
            payload, held = protocol.encode([_portable(ref) for ref in self.pending])
        self.job.before = protocol.write(protocol.ARGUMENTS, self.job.number, payload)
        self.job.held = (self.job.held, held)
        self.pending = []
        return None


def _failed(ref: TaskRef) -> bool:
    return type(ref.outcome) is not bytes and type(ref.outcome) is not ObjectRef


def _portable(ref: TaskRef) -> TaskRef:
    """Return the reference; describe its error if the error cannot be pickled."""
    if not _failed(ref) or isinstance(ref.outcome, Failure):
        return ref
    assert isinstance(ref.outcome, BaseException)
    made = TaskRef(ref.name)
    made.settle(describe(ref.outcome, ref.name))
    return made


def make(
    name: str,
    which: int | str | type,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    several: bool | int,
    source: Source,
    kind: int = protocol.CALL,
    width: int = 0,
) -> Call:
    """
    Make a call. The caller may change the arguments afterwards.

    Parameters
    ----------
    name : str
        Name of the call, for errors.
    which : int, str or class
        Number of a function, name of a method, or the class of an actor.
    args, kwargs : tuple, dict
    several : bool or int
        False for one result, True for a stream of results, otherwise the number of results.
    source : object
        The object that receives the answers for the references.
    kind : int
        CALL, EACH or CREATE.
    width : int
        For EACH, the number of arguments that each of the calls takes.
    """
    pending: list[TaskRef] = []

    def written(arg: Any) -> Any:
        if type(arg) is TaskRef and arg.outcome is None:
            pending.append(arg)
            return protocol.Placeholder(len(pending) - 1)
        return arg

    if any(type(arg) is TaskRef for arg in args) or any(type(arg) is TaskRef for arg in kwargs.values()):
        args = tuple(written(arg) for arg in args)
        kwargs = {key: written(arg) for key, arg in kwargs.items()}
    payload, held = encode(name, which, args, kwargs, width if kind == protocol.EACH else several, kind)
    return forwarded(name, payload, held, pending, several, source, kind)


def encode(
    name: str, which: int | str | type, args: tuple[Any, ...], kwargs: dict[str, Any], several: bool | int, kind: int
) -> tuple[bytes, ObjectRef[Any] | None]:
    """Return the payload of a call and the object that it names; see `make` and `protocol.encode`."""
    call: tuple[Any, ...] = (which, args, kwargs) if kind == protocol.CREATE else (which, args, kwargs, several)
    try:
        return protocol.encode(call)
    except SerializationError as error:
        raise argument_error(name, args, kwargs, error) from error.__cause__


def forwarded(
    name: str,
    payload: bytes,
    held: object,
    pending: list[TaskRef],
    several: bool | int,
    source: Source,
    kind: int = protocol.CALL,
) -> Call:
    """
    Make a call from its payload, which another process may have encoded.

    Parameters
    ----------
    name : str
    payload : bytes
        See `encode`.
    held : object
        What must live until the worker has answered.
    pending : list of TaskRef
        The arguments for the placeholders in the payload.
    several : bool or int
    source : object
    kind : int
    """
    ref = TaskRef(name, source)
    n = number()
    job = Job(ref, protocol.write(kind, n, payload), n, held)
    ref.job = job
    result: object = ref
    if several is not False:
        job.items = deque()
    if several is True:
        items = job.stream = Items(ref, job)
        result = ResultStream(items)
    elif several is not False:
        parts = job.stream = Parts(ref, several, source, job)
        result = parts.refs
    return Call(job, pending, result, kind == protocol.CREATE)


def argument_error(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: SerializationError
) -> SerializationError:
    """Return an error that names the argument that cannot be pickled."""
    named = [(f"argument {i}", arg) for i, arg in enumerate(args)]
    named += [(f"argument {key!r}", arg) for key, arg in kwargs.items()]
    for which, arg in named:
        try:
            protocol.encode(arg)
        except SerializationError as found:
            made = SerializationError(f"{which} of {name}: {found}", path=found.path, failures=found.failures)
            for note in getattr(found, "__notes__", ()):
                made.add_note(note)
            return made
    return error


def after(refs: list[TaskRef], callback: Callable[[], object]) -> None:
    """
    Call ``callback()`` as soon as all of `refs` are settled, or immediately if they already are.

    The callback may be called several times, even in two threads at the same time, so it must be idempotent.
    """
    if not refs:
        callback()
        return

    def one(_: TaskRef) -> None:
        if all(ref.outcome is not None for ref in refs):
            callback()

    for ref in refs:
        ref.notify(Repeatable(), one)
