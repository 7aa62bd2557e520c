"""References to pending results.

A `TaskRef` exists before its value. The process that called `.remote` owns it. The worker's answer arrives in that
process and settles the reference: with a small value in serialized form, with a reference to a large value in the
store, or with an error. `get`, `wait`, `await` and `future` accept a `TaskRef` like an `ObjectRef`; their code for
ordinary references does not change.

Settling acquires no lock: it first writes the outcome and then removes and runs the callbacks one by one. Code that
adds a callback checks afterwards whether the reference was settled meanwhile. If so, that code removes and runs the
callback itself. In either case, each callback runs once.
"""

from __future__ import annotations

import time
from _thread import TIMEOUT_MAX, allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .. import _core, _log
from .._core import ObjectRef, fork_count, unpack, unpack_private
from ..exceptions import GetTimeoutError, ObjectFreedError, ObjectLostError, TaskCancelledError
from .errors import Failure, raise_failure

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import GenericAlias

    from .._calls import Job
    from ..typing import MmapMode

__all__ = ["SLICE", "Outcome", "Repeatable", "Source", "TaskRef", "get", "patience", "wait"]

# The outcome is one of these, in this order: a small value in serialized form, a reference to a large value in the
# store, an error that the task raised, or an error of the transfer.
Outcome: TypeAlias = "bytes | ObjectRef[Any] | Failure | BaseException"


class Source(Protocol):
    """
    The object that receives the answer to a call.

    Attributes
    ----------
    spans_hosts : bool
        If true, calls run on other hosts, which cannot wait for promises in the store of this process.
    """

    spans_hosts: bool

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """Wait for the answer, at most until `deadline`; return False if the caller must sleep instead."""

    def collect_later(self, ref: TaskRef) -> bool:
        """
        Have the answer read even if no thread waits for it.

        Return True if no other thread can read the answer, because the caller interrupts the reading thread. The caller
        must then call `collect`.
        """

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Cancel the call; see `pyray_ser.cancel`."""

    def tell(self, ref: TaskRef, payload: bytes) -> None:
        """Tell the worker which results of a stream were taken."""


class Repeatable:
    """
    The key for registering a callback that may be called several times.

    The callback is removed only after it has run. So if a signal handler interrupts the callback and waits for its
    effect, the handler can run the callback again.
    """

    __slots__ = ()


class TaskRef:
    """
    Reference to the result of a task or of an actor's method. Made by ``.remote(...)``.

    A reference is awaitable and hashable. It can be passed to other tasks, stored, and sent to other processes.

    Examples
    --------
    >>> @pyray_ser.remote
    ... def double(x):
    ...     return 2 * x
    >>> ref = double.remote(double.remote(5))
    >>> pyray_ser.get(ref)
    20
    >>> ref.done()
    True
    """

    __slots__ = ("__weakref__", "_callbacks", "_forks", "_outcome", "cancelled", "job", "name", "source")

    def __init__(self, name: str, source: Source | None = None) -> None:
        self.name = name
        self.source = source
        # Data about this call that only the source uses.
        self.job: Job | None = None
        self.cancelled = False
        self._outcome: Outcome | None = None
        # The keys are used only to remove callbacks.
        self._callbacks: dict[object, Callable[[TaskRef], object]] = {}
        self._forks = fork_count()

    # ---- settling, by the source

    def settle(self, outcome: Outcome) -> None:
        """Set the outcome: bytes, an ObjectRef, a Failure or an exception. Later calls do not change the outcome."""
        if self._outcome is None:
            self._outcome = outcome
            self.source = None
            self.job = None
        # Run the callbacks even if the reference was settled before: this call may have interrupted the code that
        # settled it.
        if self._callbacks:
            self._run_callbacks()

    def _run_callbacks(self) -> None:
        # A callback may settle the next reference in a long chain of references, and the stack must not get deeper with
        # each of them.
        thread = get_ident()
        depth = _depths.get(thread, 0)
        if depth >= _DEEP:
            _later.setdefault(thread, deque()).append(self)
            return
        _depths[thread] = depth + 1
        try:
            self._run_some()
            if depth == 0:
                while waiting := _later.get(thread):
                    waiting.popleft()._run_some()
        finally:
            if depth:
                _depths[thread] = depth
            else:
                _depths.pop(thread, None)
                for ref in _later.pop(thread, ()):
                    ref._run_some()

    def _run_some(self) -> None:
        callbacks = self._callbacks
        while callbacks:
            try:
                key = next(reversed(callbacks))
            except (StopIteration, RuntimeError):
                continue  # another thread is removing callbacks, too
            repeats = type(key) is Repeatable
            callback = callbacks.get(key) if repeats else callbacks.pop(key, None)
            if callback is None:
                continue
            try:
                try:
                    callback(self)
                finally:
                    if repeats:
                        callbacks.pop(key, None)
            except BaseException as error:
                if _is_for_the_program(error):
                    # An exception must not prevent the other callbacks from running.
                    self._run_some()
                    raise
                _log.exception("a callback of %r failed", self)

    # ---- reading

    @property
    def outcome(self) -> Outcome | None:
        """Return the outcome, or None if the reference is not settled yet."""
        return self._outcome

    def done(self) -> bool:
        """Return whether `get` would return or raise immediately."""
        if self._outcome is None and self.source is not None and self._forks == fork_count():
            # A caller that only polls does not read the pipe, so make sure that another thread reads the answer.
            self._ask()
        return self._outcome is not None

    def _ask(self) -> bool:
        source = self.source
        if source is None:
            return False
        self.check_process()
        return source.collect_later(self)

    def add_done_callback(self, callback: Callable[[TaskRef], object]) -> None:
        """
        Call ``callback(ref)`` in the thread that settles the reference, or immediately if the reference is already
        settled.

        Exceptions of the callback are logged.
        """
        self.notify(object(), callback)

    def notify(self, key: object, callback: Callable[[TaskRef], object]) -> None:
        self._callbacks[key] = callback
        if self._outcome is not None:
            self._run_callbacks()
            return
        self._ask()

    def _forget(self, key: object) -> None:
        """Remove a callback, because callbacks of repeated waits would accumulate."""
        self._callbacks.pop(key, None)

    def check_process(self) -> None:
        """Raise if the reference was pending in the parent when this process was forked."""
        if self._forks != fork_count():
            raise ObjectLostError(
                ref=repr(self),
                reason="it was not ready when this process was forked, and its answer goes to the parent: send the "
                "reference as an argument instead",
            )

    def join(self, deadline: float | None) -> bool:
        """Wait until the reference is settled; return False if `deadline` (on the monotonic clock) passed before."""
        while self._outcome is None:
            self.check_process()
            source = self.source
            if source is not None and source.collect(self, deadline):
                break
            if self._outcome is None and not self.sleep(deadline):
                break
        return self._outcome is not None

    def sleep(self, deadline: float | None) -> bool:
        """Sleep until the reference is settled or its state may have changed; return False after the deadline."""
        waiter = allocate_lock()
        waiter.acquire()
        self.notify(waiter, lambda _: waiter.release())
        try:
            # Wait for a limited time, because the reading thread may have stopped after an exception in the program.
            waiter.acquire(timeout=min(SLICE, patience(deadline)) if deadline is not None else SLICE)
        finally:
            self._forget(waiter)
        return deadline is None or time.monotonic() < deadline

    def value(self, mmap_mode: MmapMode = "r") -> Any:
        """Return the value of the outcome, or raise its error."""
        outcome = self._outcome
        if type(outcome) is bytes:
            if mmap_mode == "c":
                return unpack_writable(outcome)
            return unpack(outcome)
        if type(outcome) is ObjectRef:
            return _core.get(outcome, mmap_mode=mmap_mode)
        if type(outcome) is Failure:
            raise_failure(outcome)
        assert isinstance(outcome, BaseException)
        raise outcome

    # ---- like other references

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.wrap_future(self.future()).__await__()

    def future(self) -> Future[Any]:
        """
        Return a future that receives the value.

        Returns
        -------
        concurrent.futures.Future
            Cancelling it does not cancel the task.
        """
        from concurrent.futures import Future

        target: Future[Any] = Future()

        def resolve(ref: TaskRef) -> None:
            if not target.set_running_or_notify_cancel():
                return
            try:
                value = ref.value()
            except BaseException as error:
                target.set_exception(error)
            else:
                target.set_result(value)

        self.add_done_callback(resolve)
        return target

    @property
    def state(self) -> str:
        """str : "creating", "sealed", "freed", or "lost" if the task ended with an error."""
        outcome = self._outcome
        if outcome is None:
            return "creating"
        if type(outcome) is ObjectRef:
            return outcome.state
        if isinstance(outcome, ObjectFreedError):
            return "freed"
        return "sealed" if type(outcome) is bytes else "lost"

    def free(self) -> None:
        """Delete the result, either now or as soon as it arrives; see `pyray_ser.free`."""
        outcome = self._outcome
        if outcome is None:
            self.add_done_callback(TaskRef.free)
        elif type(outcome) is ObjectRef:
            _core.free(outcome)
        elif type(outcome) is bytes:
            self._outcome = ObjectFreedError(ref=repr(self))

    @classmethod
    def __class_getitem__(cls, item: Any) -> GenericAlias:
        from types import GenericAlias

        return GenericAlias(cls, item)

    def __copy__(self) -> TaskRef:
        return self

    def __deepcopy__(self, memo: Any) -> TaskRef:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        from .pending_refs import reduce

        return reduce(self)

    def __repr__(self) -> str:
        outcome = self._outcome
        return f"TaskRef({self.name}, {repr(outcome) if type(outcome) is ObjectRef else self._what()})"

    def _what(self) -> str:
        """Return the state of the call as text, without loading its result."""
        outcome = self._outcome
        if outcome is None:
            return "pending"
        if type(outcome) is bytes:
            return f"{len(outcome)} bytes"
        if type(outcome) is ObjectRef:
            return "ready"
        if isinstance(outcome, TaskCancelledError):
            return "cancelled"
        return f"failed: {outcome.type if isinstance(outcome, Failure) else type(outcome).__name__}"

    def _repr_html_(self) -> str:
        from ..store.references import rows_of, table

        outcome = self._outcome
        rows = [("task", self.name), ("result", self._what())]
        return table("TaskRef", rows + rows_of(outcome) if type(outcome) is ObjectRef else rows)


# Seconds that a thread sleeps before it checks whether another thread still reads.
SLICE = 0.5
# The maximum nesting depth of callbacks, and, for each thread, the callbacks that are postponed until the depth is
# lower.
_DEEP = 20
_depths: dict[int, int] = {}
_later: dict[int, deque[TaskRef]] = {}


def _is_for_the_program(error: BaseException) -> bool:
    """Return whether the exception is Ctrl-C or sys.exit() in the main thread; in another thread it would be lost."""
    from threading import main_thread

    return not isinstance(error, Exception) and get_ident() == main_thread().ident


def unpack_writable(form: bytes) -> Any:
    """Load a serialized form as `get(mmap_mode="c")` does: arrays are writable and private."""
    return unpack_private(form)


# ---- get ---------------------------------------------------------------------------------------------------------------


def get(refs: Any, timeout: float | None = None, mmap_mode: MmapMode = "r") -> Any:
    """Return the value of a TaskRef, or the values of a list of references that contains TaskRefs."""
    deadline = _deadline(timeout)
    if type(refs) is TaskRef:
        return _get_one(refs, deadline, timeout, mmap_mode, 1)
    values = []
    for i, ref in enumerate(refs):
        if type(ref) is TaskRef:
            values.append(_get_one(ref, deadline, timeout, mmap_mode, len(refs) - i))
            continue
        if type(ref) is not ObjectRef:
            raise TypeError(f"get() takes ObjectRefs, but the list holds {type(ref).__name__!r}: {ref!r:.80}")
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        values.append(_core.get(ref, timeout=left, mmap_mode=mmap_mode))
    return values


def _get_one(ref: TaskRef, deadline: float | None, timeout: float | None, mmap_mode: MmapMode, pending: int) -> Any:
    if ref._outcome is None and not ref.join(deadline):
        raise GetTimeoutError(ref=repr(ref), timeout=timeout, pending=pending)
    return ref.value(mmap_mode)


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout must be None or a number of seconds >= 0, not {timeout!r}")
    return time.monotonic() + timeout


def patience(deadline: float | None) -> float:
    """Return the timeout for a lock's ``acquire``, capped at its maximum."""
    if deadline is None:
        return -1
    return min(max(0.0, deadline - time.monotonic()), TIMEOUT_MAX)


# ---- wait --------------------------------------------------------------------------------------------------------------


def wait(refs: list[Any], num_returns: int, deadline: float | None) -> list[int]:
    """
    Wait for some of several references, at least one of which is a TaskRef.

    Parameters
    ----------
    refs : list of TaskRef and ObjectRef
    num_returns : int
    deadline : float or None
        On the monotonic clock.

    Returns
    -------
    list of int
        Indices of all references that are ready, at least `num_returns` unless the deadline has passed.
    """
    ready = _ready(refs)
    if len(ready) >= num_returns:
        return ready
    changed = allocate_lock()
    changed.acquire()

    def notice(_: TaskRef) -> None:
        # Several references may be settled before the waiting thread checks. The lock serves as a flag, so setting it
        # twice is allowed.
        if changed.locked():
            try:
                changed.release()
            except RuntimeError:
                pass  # another callback has already released the lock

    pending = [ref for ref in refs if type(ref) is TaskRef and ref._outcome is None]
    # Objects that another process seals cannot have callbacks.
    slice_ = 0.005 if any(type(ref) is ObjectRef for ref in refs) else SLICE
    try:
        for ref in pending:
            ref._callbacks[changed] = notice
        asks = True
        while True:
            if asks:
                # Check again after a limited time, because the reading thread may have stopped.
                for ref in [ref for ref in pending if ref._outcome is None and ref._ask()]:
                    slice_ = 0.005
                    ref.join(time.monotonic())
            # Include references that were settled before their callback was added.
            ready = _ready(refs)
            if len(ready) >= num_returns or (deadline is not None and deadline <= time.monotonic()):
                return ready
            asks = not changed.acquire(timeout=slice_ if deadline is None else min(slice_, patience(deadline)))
    finally:
        for ref in pending:
            ref._forget(changed)


def _ready(refs: list[Any]) -> list[int]:
    return [
        i for i, ref in enumerate(refs) if (ref._outcome is not None if type(ref) is TaskRef else _core.is_ready(ref))
    ]


_core.set_promises(TaskRef, get)
