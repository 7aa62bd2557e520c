"""Send a TaskRef to other processes.

A settled TaskRef is pickled as its outcome. For a pending TaskRef, its owner makes an unsealed object in the store:
the promise. The receiver waits for the promise as for any other object, and the owner seals it when the
answer has arrived. If the owner dies before that, waiting processes get `ObjectLostError`.

The promise cannot keep its result alive: objects may refer only to older objects, so that no cycles can form, and the
promise is older than its result. Therefore the owner holds the result as long as the promise exists.
"""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any, cast

from .. import _core
from .._core import ObjectRef, load_ref, pack, unpack
from ..exceptions import GetTimeoutError, ObjectLostError, ObjectStoreFullError, PyraySerError
from .refs import Outcome, TaskRef

if TYPE_CHECKING:
    from concurrent.futures import Future

    Ref = ObjectRef[Any]

__all__ = ["reduce"]

# Size of a promise in bytes: enough for the reference to a result, or for a small result.
ROOM = 2048


def reduce(ref: TaskRef) -> tuple[Any, ...]:
    """Reduce a TaskRef."""
    source = ref.source
    if ref.outcome is None and isinstance(source, _Promised):
        return load_pending, (ref.name, source.promise)
    if ref.outcome is None:
        if source is not None and source.spans_hosts:
            raise ValueError(
                f"{ref!r} is not ready, and only a result that is ready can be inside another value on a cluster; hint: make "
                "it a separate argument, or wait() for it first"
            )
        return load_pending, (ref.name, _promises.get(ref))
    return load_settled, (ref.name, ref.outcome)


def load_settled(name: str, outcome: Outcome) -> TaskRef:
    """Make a settled TaskRef."""
    ref = TaskRef(name)
    ref.settle(outcome)
    return ref


def load_pending(name: str, promise: Ref) -> TaskRef:
    """Make a TaskRef that waits for its owner's promise."""
    return TaskRef(name, _Promised(promise))


class _Promised:
    """The source of a TaskRef that another process owns."""

    spans_hosts = False

    def __init__(self, promise: Ref) -> None:
        self.promise = promise
        self._watched = False

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        from time import monotonic

        left = None if deadline is None else max(0.0, deadline - monotonic())
        try:
            form = _core.get(self.promise, timeout=left)
        except GetTimeoutError:
            return True
        except PyraySerError as error:
            # Do not catch exceptions of signal handlers, because the program must receive them.
            ref.settle(error)
            return True
        ref.settle(_outcome(form))
        return True

    def collect_later(self, ref: TaskRef) -> bool:
        if not self._watched:
            self._watched = True
            self.promise.future().add_done_callback(lambda future: _settle(ref, future))
        return False

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        raise ValueError(f"{ref!r} belongs to another process: only the caller of remote() can cancel it")

    def tell(self, ref: TaskRef, payload: bytes) -> None:
        raise ValueError(f"{ref!r} belongs to another process: a stream does not travel")


def _settle(ref: TaskRef, future: Future[Any]) -> None:
    error = future.exception()
    ref.settle(error if error is not None else _outcome(future.result()))


def _outcome(form: memoryview) -> Outcome:
    """Return the outcome in a promise, or the error that reading it raised."""
    try:
        return cast("Outcome", _read(form))
    except Exception as error:
        return error


def _read(form: memoryview) -> Any:
    size = int.from_bytes(form[:4], "little")
    if size > len(form) - 4:
        from ..exceptions import CorruptObjectError

        raise CorruptObjectError(reason="a promise is longer than its object")
    kind, held = pickle.loads(form[4 : 4 + size])
    if kind == "value":
        return held
    if kind == "packed":
        return unpack(held)
    held = load_ref(held)
    return held if kind == "result" else _core.get(held).outcome


class _Promises:
    """The promises of this process."""

    def __init__(self) -> None:
        # There is no lock, because a finalizer may pickle a reference at any point in this code. Each change is one
        # atomic step of a dict.
        self._made: dict[TaskRef, Ref] = {}
        # Identity of a promise -> the result of the promise
        self._kept: dict[bytes, Ref] = {}
        self._sweeping = False

    def get(self, ref: TaskRef) -> Ref:
        """Return the promise for a TaskRef that was still pending when the caller checked it."""
        promise = self._made.get(ref)
        if promise is not None:
            return promise
        made: Any = _core.create(ROOM)
        fresh: Ref = made.ref
        promise = self._made.setdefault(ref, fresh)
        if promise is not fresh:
            _core.abort(made)
            return promise
        window = memoryview(made)
        del made
        ref.add_done_callback(lambda settled: self._keep(settled, window))
        return fresh

    def _keep(self, ref: TaskRef, window: memoryview) -> None:
        outcome = ref.outcome
        assert outcome is not None
        try:
            held, record = _record(outcome)
        except BaseException as error:
            # Waiting processes must receive the error, so catch errors of every type.
            held, record = _record(_reason(ref, error))
            self._write(ref, window, record, held)
            if not isinstance(error, Exception):
                raise
            return
        self._write(ref, window, record, held)

    def _write(self, ref: TaskRef, window: memoryview, record: tuple[str, bytes], held: Ref | None) -> None:
        text = pickle.dumps(record, 5)
        window[:4] = len(text).to_bytes(4, "little")
        window[4 : 4 + len(text)] = text
        promise = _core.seal(window)
        if held is not None:
            self._kept[promise.binary()] = held
        self._made.pop(ref, None)
        if self._kept and not self._sweeping:
            from .collector import collector

            self._sweeping = True
            collector().repeat(self._sweep)

    def _sweep(self) -> bool:
        """Release results whose promises no process holds; return whether any results remain."""
        for identity in list(self._kept):
            if load_ref(identity).state != "sealed":
                self._kept.pop(identity, None)
        self._sweeping = bool(self._kept)
        return self._sweeping


def _record(outcome: Outcome) -> tuple[Ref | None, tuple[str, bytes]]:
    """Return the content of a promise for an outcome, and the object to hold as long as the promise exists."""
    if type(outcome) is bytes and len(outcome) <= ROOM - 64:
        return None, ("value", outcome)
    if type(outcome) is ObjectRef:
        return outcome, ("result", outcome.travel(0, b"")[0])
    if not isinstance(outcome, bytes):
        small = pack(outcome)
        if len(small) <= ROOM - 64:
            return None, ("packed", small)
    held = _core.put(_Settled(outcome))
    return held, ("other", held.travel(0, b"")[0])


def _reason(ref: TaskRef, error: BaseException) -> BaseException:
    """Return the error for a promise that cannot be fulfilled, short enough to be stored in the promise."""
    kind = ObjectStoreFullError if isinstance(error, ObjectStoreFullError) else ObjectLostError
    text = f"the result of {ref.name} could not be passed on by its owner (process {os.getpid()}): {error}"
    made: BaseException = kind(f"{text:.1000}")
    return made


class _Settled:
    """An outcome that is too large to be stored in the promise: an error, or a large value."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


_promises = _Promises()


def _after_fork_in_child() -> None:
    # The promises belong to the parent process, which seals them.
    global _promises
    _promises = _Promises()


os.register_at_fork(after_in_child=_after_fork_in_child)
