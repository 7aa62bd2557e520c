"""Worker processes, which are started by `multiprocessing` and watched through a pidfd.

A pidfd becomes readable when the worker ends. A pipe would not show this, because it stays open while any process
that inherited its other end is alive. Each worker also watches its owner and ends when the owner ends, even while the
worker is running a task.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import _calls, _core
from .._calls import Descriptor
from .._descriptors import above_standard
from ..exceptions import WorkerDiedError

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

__all__ = [
    "Initializer",
    "Process",
    "context",
    "end_all",
    "end_with",
    "ignore_interrupts",
    "let_go_of_inherited",
    "new_address",
]

# A function that a worker calls before its first task, and the arguments of the function.
Initializer: TypeAlias = "tuple[Callable[..., object], tuple[Any, ...]]"

# Thread -> descriptors for the child that the thread is forking. The child closes its parent's other descriptors.
_passing: dict[int, tuple[int, ...]] = {}
# Processes that multiprocessing would join at exit, even after their last handle was released.
_running: set[BaseProcess] = set()


def context(method: str | None = None) -> BaseContext:
    """
    Return the multiprocessing context of a start method.

    Parameters
    ----------
    method : str, optional
        "fork", "spawn" or "forkserver"; the default is the method that multiprocessing uses.
    """
    import multiprocessing

    return multiprocessing.get_context(method)


def new_address() -> str:
    """Return an address for an actor in the abstract namespace; such an address has no file."""
    return f"\0pyray_ser-{os.getpid()}-{os.urandom(8).hex()}"


class Process:
    """
    A worker process and the pipe to it.

    Parameters
    ----------
    name : str
    method : str, optional
        Start method.
    settings : dict, optional
        Settings for the process, from `pyray_ser.tasks.settings`.
    listener : Descriptor, optional
        Listening socket of an actor, to which processes other than the owner connect.
    initializer : tuple, optional
        A function and its arguments, which the process calls first.

    Attributes
    ----------
    pipe : Descriptor
        The owner's end of the pipe, for a `Channel`.
    watch : Descriptor
        Readable once the process has ended.
    """

    def __init__(
        self,
        name: str,
        method: str | None = None,
        settings: dict[str, Any] | None = None,
        listener: Descriptor | None = None,
        initializer: Initializer | None = None,
    ) -> None:
        import socket

        made: Any = context(method)
        self.process: BaseProcess
        # Whether the worker has reported that it accepts calls, and whether this process has ended the worker.
        self.ready = self._ended_here = False
        # The children attach to this store, so it must exist first.
        if _core.default() is None:
            from ..store.discovery import open_default

            open_default()
        owner = (os.getpid(), _core.start_time(os.getpid()))
        from .worker import main

        self.pipe, theirs = _calls.pipe()
        ends = [theirs] if listener is None else [theirs, listener]
        # These objects exist only so that multiprocessing passes on the descriptors; `Descriptor` objects own the
        # descriptors.
        sockets = [socket.socket(fileno=end.fileno()) for end in ends]
        try:
            # Workers are not daemonic, because daemonic processes must not have children. multiprocessing joins
            # non-daemonic processes at exit, but workers end before that.
            self.process = made.Process(
                target=main,
                name=name,
                args=(sockets, owner, settings or {}, initializer),
                daemon=False,
            )
            _end_before_joining()
            with _passed(ends), _interrupts_held_back(made.get_start_method()), _children_allowed():
                self.process.start()
        finally:
            for end in sockets:
                end.detach()
            theirs.close()
        for child in list(_running):
            if child.exitcode is not None:
                _running.discard(child)
        _running.add(self.process)
        assert self.process.pid is not None
        self.pid = self.process.pid
        try:
            self.watch = Descriptor(os.pidfd_open(self.pid))
        except (AttributeError, ProcessLookupError, NotImplementedError):
            # This kernel has no pidfd, or the process was reaped already.
            self.watch = Descriptor(os.dup(self.process.sentinel))

    def second_watch(self) -> Descriptor:
        """Return another descriptor that is readable once the process has ended."""
        return Descriptor(os.dup(self.watch.fileno()))

    def kill(self) -> None:
        """End the process immediately."""
        self._ended_here = True
        kill(self.process)

    def died(self, task: str | None) -> WorkerDiedError:
        """Return the error for a call that the process has not answered."""
        join(self.process, 1.0)
        reason = "was ended by shutdown() or cancel(force=True) of this program" if self._ended_here else None
        return WorkerDiedError(pid=self.pid, exitcode=self.process.exitcode, task=task, reason=reason, began=self.ready)

    def reap(self) -> None:
        """Reap the process after its end."""
        join(self.process, 1.0)
        self.watch.close()


_registered = False


def _end_before_joining() -> None:
    """
    Register `tasks.end` to run before multiprocessing joins the children of this process.

    Child processes of multiprocessing, executors, joblib and loky join their own children before threading's exit
    functions run. Workers end only when their pipe is closed, so such a child would wait for them indefinitely.
    """
    global _registered
    if _registered:
        return
    from multiprocessing.util import Finalize

    # multiprocessing runs finalizers of priority 0 and higher before it joins child processes.
    Finalize(None, _end, exitpriority=1000)
    _registered = True


def _end() -> None:
    from . import end

    # Programs may run the finalizers of multiprocessing and then continue.
    end(accepts=True)


@contextmanager
def _passed(ends: list[Descriptor]) -> Iterator[None]:
    """Keep these descriptors open in a child that this thread forks inside the block."""
    thread = get_ident()
    before = _passing.get(thread, ())
    _passing[thread] = (*before, *(end.fileno() for end in ends))
    try:
        yield
    finally:
        if before:
            _passing[thread] = before
        else:
            _passing.pop(thread, None)


@contextmanager
def _children_allowed() -> Iterator[None]:
    """
    Let a daemonic process (a worker of `multiprocessing.Pool`) start a worker.

    multiprocessing does not allow this, because a daemonic process that is terminated leaves its children behind.
    Workers, however, always end when their owner ends.
    """
    from multiprocessing import current_process

    config: dict[str, Any] = getattr(current_process(), "_config", {})
    daemon = config.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            config["daemon"] = daemon


@contextmanager
def _interrupts_held_back(method: str) -> Iterator[None]:
    """
    Start a child with SIGINT blocked until `ignore_interrupts` runs in the child.

    An interrupt immediately after the fork would be raised inside Python's fork hooks in the child, which print and
    discard the exception.
    """
    if method == "forkserver":
        # Do not block SIGINT here: the fork server ignores interrupts itself, and all children would inherit the mask.
        yield
        return
    if method == "spawn":
        # Start the resource tracker first, because its start unblocks signals.
        from multiprocessing.resource_tracker import ensure_running

        ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def join(child: BaseProcess, patience: float) -> None:
    """Wait for the end of a process. Several threads may wait; one reaps the process, and the others check again."""
    until = time.monotonic() + patience
    while child.exitcode is None:
        left = until - time.monotonic()
        child.join(max(0.0, left))
        if child.exitcode is None:
            if left <= 0:
                return
            time.sleep(0.001)
    # multiprocessing forgets a child, and closes its pipes, only in join().
    child.join(0)


def kill(child: BaseProcess) -> None:
    """End a process, if it has not ended."""
    if child.exitcode is None:
        try:
            child.kill()
        except ProcessLookupError:
            return  # another thread has just reaped it


def end_all(patience: float = 2.0) -> None:
    """End all workers of this process. Idle workers end when their pipe is closed; the others are killed."""
    until = time.monotonic() + patience
    children = list(_running)
    for child in children:
        join(child, max(0.0, until - time.monotonic()))
    for child in children:
        kill(child)
    for child in children:
        join(child, 5)
    _running.clear()


def _after_fork_in_child() -> None:
    # If these inherited pipes stayed open, the parent's workers would not notice the end of the parent.
    global _running, _registered
    _calls.close_inherited(_passing.get(get_ident(), ()))
    _passing.clear()
    _running = set()
    _registered = False


os.register_at_fork(after_in_child=_after_fork_in_child)


# ---- in the worker ------------------------------------------------------------------------------------------------------


def end_with(owner: tuple[int, int]) -> None:
    """End this process when its owner ends, even while it is running a task."""
    import threading

    pid, start = owner
    try:
        watch = above_standard(os.pidfd_open(pid))
    except (AttributeError, OSError):
        watch = None
    if watch is not None and _core.start_time(pid) != start:
        # The pid may belong to another process by now, or /proc may hide the owner, so the start time cannot be
        # confirmed.
        os.close(watch)
        watch = None
    if watch is None:
        # An idle worker still ends when its pipe is closed.
        return

    def follow() -> None:
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        while not poller.poll():
            pass
        # No process is left to receive results or errors, and finalizers could wait for the owner indefinitely.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, name="pyray_ser-owner", daemon=True).start()


def let_go_of_inherited() -> None:
    """Release the references that the owner had at the fork, because they would hold their objects until the end."""
    if not _core.fork_count():
        return
    from ..store.discovery import renew

    for store in _core.open_stores():
        renew(store)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C, which the terminal sends to every process of the group; the owner handles it."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        # The current thread is not the main thread. This happens if another package provides the start method.
        print("pyray_ser: a worker was started outside of its main thread", file=sys.stderr)
    # SIGINT has been blocked since before the fork; interrupts that came meanwhile are ignored, too.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
