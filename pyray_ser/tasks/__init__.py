"""Work on stored objects in other processes: remote functions, actors, and the pools that people already have.

::

    refs, pending_refs, errors   results that are still being made, and errors, on their way to the caller
    call, streams, protocol      one call: what is sent, what comes back
    backpressure                 how far a stream may run ahead of its reader
    process, channel, collector  worker processes, the caller's end of the pipe to one, and the thread that reads for all
    engine, pool                 the seam for another engine, and the one of this node
    function, actor, handles     remote functions, actors, actors' handles in other processes
    worker, worker_async         the worker's side
    listener, finalizing         letting in other callers of an actor, and the end of a worker
    install                      hooks of multiprocessing, concurrent.futures, loky and joblib

Nothing here is imported before it is used.
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
    Make a function or class remote. A decorator, with or without options.

    Parameters
    ----------
    function_or_class : callable or type
        A function becomes a `RemoteFunction`, whose calls run in worker processes; a class becomes an `ActorClass`, whose
        instances live in processes of their own.
    **options
        As for ``.options(...)``.

    Examples
    --------
    >>> @pyray_ser.remote
    ... def total(array):
    ...     return array.sum()
    >>> pyray_ser.get(total.remote(array))
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
    Cancel a task: `get` of its reference raises `TaskCancelledError`.

    Parameters
    ----------
    ref : TaskRef or ResultStream
    force : bool
        End the worker of a task that is running already. Not for actors, see `kill`.

    Returns
    -------
    bool
        True if it is cancelled; False if it runs or is done. A call that an actor has been sent is cancelled if the actor
        has not begun it; then, too, this is False, and `get` tells.
    """
    from .streams import ResultStream

    if isinstance(ref, ResultStream):
        return ref.cancel(force)
    if not isinstance(ref, TaskRef):
        raise TypeError(f"cancel() takes the reference of a task, not {type(ref).__name__!r}")
    source = ref.source
    return source is not None and source.cancel(ref, force)


def shutdown() -> None:
    """End all workers and actors that this process started. What has no result by then fails."""
    import sys

    if "pyray_ser.tasks.process" not in sys.modules:
        return
    from . import channel, collector, engine, process, settings

    with collector.ending():
        running = engine.use(None)
        if running is not None:
            running.shutdown()
        channel.end_all()
        process.end_all()
        collector.end_collector()
    settings.reset()


def _import_all() -> None:
    """
    Import what a call needs.

    A finalizer that makes a call may run in the middle of an import, and would find modules that are made in part.
    """
    import multiprocessing.connection
    import multiprocessing.popen_fork
    import multiprocessing.util  # noqa: F401

    from . import pool, remote_handles, worker  # noqa: F401


_registered = False


def _end_at_exit() -> None:
    """End the workers before the interpreter waits for the threads that wait for them."""
    global _registered
    if _registered:
        return
    _registered = True
    import atexit
    import threading

    # concurrent.futures joins its threads here, and atexit functions come after that: too late for a running task.
    register = getattr(threading, "_register_atexit", atexit.register)
    # Functions are called in the reverse order, so this one must come after the library's own.
    import concurrent.futures.thread  # noqa: F401

    register(shutdown)
