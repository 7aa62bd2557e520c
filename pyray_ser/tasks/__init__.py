"""Tasks: functions and objects that run in other processes, with arguments and results in the store.

::

    refs, pending_refs, errors   references to pending results, and errors that are sent to the caller
    call, streams, protocol      one call: the messages to the worker and back
    backpressure                 how far a stream may run ahead of its reader
    process, channel, collector  worker processes, the caller's end of a worker's pipe, the thread that reads all pipes
    engine, pool                 the interface for another engine, and the engine of this node
    executor, in_order           the interface of concurrent.futures, and results in order
    function, actor, signatures  remote functions, actors, and the check of their arguments
    remote_handles               actors' handles in other processes
    worker, worker_async         the worker's side
    listener, finalizing         other callers of an actor, and the end of a worker

The modules of this package are imported when they are first used. `pyray_ser.pool_hooks` has `install`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .refs import TaskRef

if TYPE_CHECKING:
    from .actor import ActorClass
    from .function import RemoteFunction
    from .streams import ResultStream

__all__ = ["TaskRef", "cancel", "remote", "shutdown"]


def remote(*args: Any, **options: Any) -> Any:
    """
    Make a function or class remote. It can be used as a decorator, with or without options.

    Parameters
    ----------
    function_or_class : callable or type
        A function becomes a `RemoteFunction`, whose calls run in worker processes; a class becomes an `ActorClass`, whose
        instances live in their own processes.
    **options
        As for ``.options(...)``.

    Examples
    --------
    >>> @pyray_ser.remote
    ... def total(array):
    ...     return float(array.sum())
    >>> pyray_ser.get(total.remote(numpy.ones(10)))
    10.0

    With options, and with a class:

    >>> @pyray_ser.remote(max_restarts=1)
    ... class Counter:
    ...     def __init__(self):
    ...         self.value = 0
    ...     def add(self, n):
    ...         self.value += n
    ...         return self.value
    >>> counter = Counter.remote()
    >>> pyray_ser.get(counter.add.remote(2))
    2
    """
    if args and (len(args) > 1 or options or not callable(args[0])):
        raise TypeError("remote is used as @remote, @remote(option=...), or remote(function_or_class)")
    if not args:
        if not options:
            raise TypeError("@remote() needs options; without any it is @remote")
        return lambda thing: _remote(thing, options)
    return _remote(args[0], {})


def _remote(thing: Callable[..., Any], options: dict[str, Any]) -> ActorClass | RemoteFunction:
    _import_all()
    _end_at_exit()
    if inspect.isclass(thing):
        from .actor import ActorClass

        return ActorClass(thing, options)
    if not callable(thing):
        raise TypeError(f"remote takes a function or a class, not {type(thing).__name__!r}")
    from .function import RemoteFunction

    return RemoteFunction(thing, options)


def cancel(ref: TaskRef | ResultStream, *, force: bool = False) -> bool:
    """
    Cancel a task, so that `get` of its reference raises `TaskCancelledError`.

    Parameters
    ----------
    ref : TaskRef or ResultStream
    force : bool
        End the worker of a task that is already running. This is not possible for actors; see `kill`.

    Returns
    -------
    bool
        True if the task is cancelled; False if it runs or has finished. For a call that was sent to an actor, the
        result is also False. Such a call is cancelled only if the actor has not begun it, and only `get` shows whether
        it was.

    Examples
    --------
    >>> import time
    >>> sleep = pyray_ser.remote(time.sleep)
    >>> ref = sleep.remote(3600)
    >>> pyray_ser.cancel(ref, force=True)
    True
    >>> pyray_ser.get(ref)
    Traceback (most recent call last):
        ...
    pyray_ser.exceptions.TaskCancelledError: ...
    """
    from .streams import ResultStream

    if isinstance(ref, ResultStream):
        return ref.cancel(force)
    if not isinstance(ref, TaskRef):
        raise TypeError(f"cancel() takes the reference of a task, not {type(ref).__name__!r}")
    source = ref.source
    return source is not None and source.cancel(ref, force)


def shutdown() -> None:
    """End all workers and actors that this process started. Calls without a result fail."""
    import sys

    if "pyray_ser.tasks.process" not in sys.modules:
        return
    from . import channel, collector, engine, process, settings

    executor, actor = (sys.modules.get(f"{__name__}.{name}") for name in ("executor", "actor"))
    with collector.ending():
        if executor is not None:
            executor.end_all()
        running = engine.use(None)
        if running is not None:
            running.shutdown()
        channel.end_all()
        if actor is not None:
            actor.join_restarts()
        process.end_all()
        collector.end_collector()
    settings.reset()


def end(accepts: bool = False) -> None:
    """
    Finish the calls of executors, as `concurrent.futures` does when the interpreter ends, and end all workers.

    Parameters
    ----------
    accepts : bool
        If true, executors that are made later accept calls.
    """
    import sys

    executor = sys.modules.get(f"{__name__}.executor")
    if executor is not None:
        from . import collector

        # Python 3.12.0 and 3.12.1 start no threads from here on. `shutdown` does the work of the collector then.
        with collector.ending():
            executor.finish_all(accepts)
    shutdown()


def _import_all() -> None:
    """
    Import the modules that a call needs.

    Otherwise, a finalizer that makes a call might run during an import and find incomplete modules.
    """
    import multiprocessing.connection
    import multiprocessing.popen_fork
    import multiprocessing.util  # noqa: F401

    from . import pool, remote_handles, worker  # noqa: F401


_registered = False


def _end_at_exit() -> None:
    """Register `end` to run before the interpreter joins the threads that wait for workers."""
    global _registered
    if _registered:
        return
    _registered = True
    import atexit
    import threading

    # At this point, concurrent.futures joins its threads. Functions registered with `atexit` run later, which is too
    # late for a running task.
    register = getattr(threading, "_register_atexit", atexit.register)
    # The registered functions run in reverse order, so register this one after those of concurrent.futures.
    import concurrent.futures.thread  # noqa: F401

    register(end)
