"""`Executor`: the interface of `concurrent.futures` to a pool of workers.

An executor has its own `Pool`. Each call is a task that gets the function and its arguments as they are, so the worker
does not replace references by their values. The pool settles the reference of the task, and a callback then settles the
future. There is no other thread, and no lock besides those of the futures.
"""

from __future__ import annotations

import os
import weakref
from _thread import get_ident
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor as _Executor
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from functools import cache
from sys import is_finalizing
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from .._core import fork_count, unpack
from ..exceptions import SerializationError, TaskCancelledError, WorkerDiedError
from . import _end_at_exit, _import_all, in_order, settings
from .call import argument_error, make
from .errors import INITIALIZER, Failure, task_error
from .function import Function
from .pool import Pool
from .process import join

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from .call import Call
    from .process import Initializer
    from .refs import TaskRef

__all__ = ["Executor", "finish_all"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Executor(_Executor):
    """
    A `concurrent.futures.Executor` whose workers read large arguments and results in shared memory.

    It replaces `concurrent.futures.ProcessPoolExecutor` in existing programs. Large arrays and bytes are not copied for
    each call; arrays arrive read-only. Functions and classes that have no importable name, such as lambdas, are pickled
    by value.

    Parameters
    ----------
    max_workers : int, optional
        Maximum number of worker processes, which are started as they are needed. The default is the ``num_workers`` of
        `init`, or the number of CPUs.
    mp_context : multiprocessing context, optional
        Selects the start method: ``multiprocessing.get_context("spawn")``.
    initializer : callable, optional
        A function that each worker calls first. If it raises an error, the executor is broken.
    initargs : tuple
        The arguments of `initializer`. They are passed on like the arguments of a `multiprocessing.Process`, so locks
        and queues of multiprocessing are allowed.

    See Also
    --------
    pyray_ser.remote : tasks whose arguments can be references to results that are not ready yet

    Notes
    -----
    If a worker dies while it runs a call, all futures without a result fail with
    `concurrent.futures.process.BrokenProcessPool`, and so does `submit` from then on. The `WorkerDiedError` that says why is
    the cause of this error.

    Examples
    --------
    >>> with pyray_ser.Executor(2) as executor:
    ...     print(executor.submit(pow, 2, 10).result())
    ...     print(list(executor.map(lambda x: x * x, range(4))))
    1024
    [0, 1, 4, 9]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is None:
            max_workers = settings.num_workers()
        elif max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers}")
        if mp_context is not None and not hasattr(mp_context, "get_start_method"):
            raise TypeError(
                f"mp_context must be a context, such as multiprocessing.get_context('spawn'), not {mp_context!r}"
            )
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {initializer!r}")
        _import_all()
        _end_at_exit()
        # Other libraries read this attribute of an executor.
        self._max_workers = max_workers
        self._workers = _Workers(
            max_workers,
            None if mp_context is None else mp_context.get_start_method(),
            None if initializer is None else (initializer, tuple(initargs)),
        )
        _executors.add(self._workers)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """
        Run ``fn(*args, **kwargs)`` in a worker.

        Returns
        -------
        concurrent.futures.Future
            If the arguments cannot be pickled, the future has the error.

        Raises
        ------
        RuntimeError
            After `shutdown`, or in a child that was forked after the executor was made.
        concurrent.futures.process.BrokenProcessPool
            After a worker has died.
        """
        return self._workers.start(fn, args, kwargs, _call())

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_T]:
        """
        Run a function for each item, and return an iterator over the results in order.

        Parameters
        ----------
        fn : callable
        *iterables : iterable
            One for each argument of `fn`.
        timeout : float, optional
            Seconds from the call of `map` after which the iterator raises TimeoutError.
        chunksize : int
            The number of items that are sent to a worker together. Larger values are faster for short calls.
        buffersize : int, optional
            Maximum number of chunks that were submitted and whose results were not taken. By default, all are submitted
            immediately.

        Returns
        -------
        iterator
            If it is dropped, calls that have not started are cancelled.

        Examples
        --------
        >>> with pyray_ser.Executor(2) as executor:
        ...     print(list(executor.map(pow, [2, 3], [10, 2])))
        [1024, 9]
        """
        in_order.check_count("chunksize", chunksize)
        if buffersize is not None:
            in_order.check_count("buffersize", buffersize)
        workers = self._workers
        return in_order.results(
            lambda chunk: workers.start(fn, chunk, {}, _call_each()),
            in_order.chunks(iterables, chunksize),
            buffersize,
            lambda future, left: future.result(left),
            Future.cancel,
            timeout,
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """
        Accept no more calls, and let the workers end after those that were submitted.

        Parameters
        ----------
        wait : bool
            Return after all calls and workers have ended. Otherwise, and in a callback of a future, return immediately;
            the program does not end before the calls.
        cancel_futures : bool
            Cancel the calls that have not started.
        """
        self._workers.close(wait, cancel_futures)

    def __del__(self, is_finalizing: Callable[[], bool] = is_finalizing) -> None:
        # Get the function from a default argument: at shutdown, the interpreter may have cleared the module's globals.
        workers = self.__dict__.get("_workers")
        if workers is not None and not is_finalizing():
            workers.close(False, False)

    @property
    def _broken(self) -> BaseException | None:
        """BaseException or None : The reason why the executor is broken."""
        return self._workers.broken

    def __repr__(self) -> str:
        workers = self._workers
        state = "broken" if workers.broken is not None else "shut down" if workers.closed else "running"
        return f"<Executor, at most {self._max_workers} workers, {state}, {len(workers.futures)} calls>"


class _Workers(Pool):
    """The pool of one executor. It holds no reference to the executor, which may be dropped while calls are running."""

    def __init__(self, size: int, method: str | None, initializer: Initializer | None) -> None:
        super().__init__(size, method, initializer)
        # Number of each call without a result -> its future.
        self.futures: dict[int, Future[Any]] = {}
        self.closed = False
        self.broken: BaseException | None = None
        self._forks = fork_count()

    def start(self, fn: Callable[..., Any], args: object, kwargs: dict[str, Any], how: Function) -> Future[Any]:
        """Submit a call; `how` is the function of the worker that gets `fn` and its arguments."""
        self._check()
        future: Future[Any] = Future()
        name = getattr(fn, "__qualname__", None) or repr(fn)
        try:
            call = make(name, how.number, (fn, args, kwargs), {}, False, self)
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(_pickling_error(error, name, fn, args, kwargs))
            return future
        job = call.job
        self.futures[job.number] = future
        # This is not `add_done_callback`, which would start another thread to read the answer if the caller is a callback in
        # a thread of the pool. Here the thread that runs the call reads the answer.
        job.ref._callbacks[future] = lambda ref: self._settle(job.number, ref)
        self.submit(how, call, 0)
        if self.closed and self._take_back(job):
            # `close` was called in another thread, or by code that interrupted this method.
            self._check()
        return future

    def _check(self) -> None:
        if self.broken is not None:
            raise _broken_pool(self.broken)
        if self._forks != fork_count():
            raise RuntimeError(
                "this Executor belongs to the parent of this process, which was forked since; hint: make an Executor here"
            )
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def close(self, waits: bool, cancels: bool) -> None:
        """Accept no more calls; see `Executor.shutdown`."""
        self.closed = True
        if self._forks != fork_count():
            return
        if cancels:
            for entry in list(self._waiting.values()):
                for _, call, _ in list(entry):
                    self._take_back(call.job)
        self.finish()
        # A callback of a future runs in a thread of the pool, which cannot wait for its own end.
        if waits and get_ident() not in self._serving:
            wait(list(self.futures.values()))
            self.join()
            for worker in list(self._all):
                join(worker.process.process, 30)

    # ---- in a thread of the pool

    def _run(self, function: Function, call: Call, max_retries: int) -> None:
        future = self.futures.get(call.job.number)
        if future is not None and not future.set_running_or_notify_cancel():
            self.futures.pop(call.job.number, None)
            call.job.ref.settle(TaskCancelledError(task=call.job.ref.name))
            self._waiting.pop(call.job.number, None)
            return
        super()._run(function, call, max_retries)

    def _settle(self, number: int, ref: TaskRef) -> None:
        """Settle the future of a call."""
        outcome = ref.outcome
        if isinstance(outcome, WorkerDiedError):
            self._break(outcome)
        elif isinstance(outcome, Failure) and outcome.task == INITIALIZER:
            self._break(_original(outcome))
        future = self.futures.pop(number, None)
        if future is None:
            return
        if isinstance(outcome, TaskCancelledError) and self.broken is None:
            future.cancel()
        if not future.running() and not future.set_running_or_notify_cancel():
            return
        try:
            if self.broken is not None and isinstance(outcome, (WorkerDiedError, TaskCancelledError)):
                raise _broken_pool(self.broken)
            if isinstance(outcome, Failure):
                raise _broken_pool(self.broken) if outcome.task == INITIALIZER else _original(outcome)
            value = ref.value()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    def _break(self, reason: BaseException) -> None:
        if self.broken is None:
            self.broken = reason
            self.closed = True
            self.end()


def _broken_pool(reason: BaseException | None) -> BrokenProcessPool:
    what = "its initializer failed: " if not isinstance(reason, WorkerDiedError) else ""
    error = BrokenProcessPool(f"the executor cannot be used any more: {what}{reason}")
    error.__cause__ = reason
    return error


def _original(failure: Failure) -> BaseException:
    """Return the exception of a task itself; its cause is the traceback in the worker."""
    if not failure.pickled:
        return task_error(None, failure)
    error: BaseException = unpack(failure.pickled)
    error.__cause__ = cast("Any", _RemoteTraceback)(f'\n"""\n{failure.traceback}"""')
    return error


def _pickling_error(error: Exception, name: str, fn: object, args: Any, kwargs: dict[str, Any]) -> BaseException:
    """Return the error for a call that cannot be pickled: the original one, as the standard library raises it."""
    cause = error.__cause__
    if not isinstance(error, SerializationError) or cause is None:
        return error
    # `make` got the function and its arguments as three arguments.
    found = argument_error(name, tuple(args), kwargs, error)
    cause.add_note(f"the function {name} cannot be pickled" if found is error else str(found))
    return cause


# ---- in the worker ------------------------------------------------------------------------------------------------------


def _run_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


def _run_each(fn: Callable[..., Any], calls: list[tuple[Any, ...]], kwargs: dict[str, Any]) -> list[Any]:
    return [fn(*args) for args in calls]


@cache
def _call() -> Function:
    return Function.of(_run_call)


@cache
def _call_each() -> Function:
    return Function.of(_run_each)


# ---- the end of the program ---------------------------------------------------------------------------------------------

_executors: weakref.WeakSet[_Workers] = weakref.WeakSet()
_exiting = False


def finish_all(accepts: bool) -> None:
    """Close all executors after their calls; see `pyray_ser.tasks.end`."""
    global _exiting
    if not accepts:
        _exiting = True
    for workers in list(_executors):
        workers.close(True, False)


def end_all() -> None:
    """End all workers; futures without a result fail."""
    for workers in list(_executors):
        workers.closed = True
        workers.shutdown()


def _after_fork_in_child() -> None:
    global _exiting
    _exiting = False
    _executors.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
