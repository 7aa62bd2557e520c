"""Worker processes: started by `multiprocessing`, watched through a descriptor of the kernel's.

The end of a worker is noticed by a pidfd, because a pipe stays open as long as anybody has inherited its other end. The other
way round each worker watches its owner, and ends with it, whatever it is doing then.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from _thread import get_ident
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import _calls, _store
from .._calls import Descriptor
from ..exceptions import WorkerDiedError

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

__all__ = ["Process", "context", "end_all", "end_with", "ignore_interrupts", "let_go_of_inherited", "new_address"]

# Thread -> descriptors that it passes to a process it is forking. The child closes all others of its parent's.
_passing: dict[int, tuple[int, ...]] = {}
# What multiprocessing would wait for at exit, also after the last handle is gone.
_running: set[BaseProcess] = set()


def context(method: str | None = None) -> BaseContext:
    """
    Return the multiprocessing context of a start method.

    Parameters
    ----------
    method : str, optional
        "fork", "spawn" or "forkserver"; default is what multiprocessing uses.
    """
    import multiprocessing

    return multiprocessing.get_context(method)


def new_address() -> str:
    """Return an address for an actor; abstract, so that no file is left."""
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
        What the process is to know, as `pyray_ser.tasks.settings` has it.
    listener : Descriptor, optional
        Listening socket, where an actor is called on by others than its owner.

    Attributes
    ----------
    pipe : Descriptor
        Our end, for a `Channel`.
    watch : Descriptor
        Readable once the process has ended.
    """

    def __init__(
        self,
        name: str,
        method: str | None = None,
        settings: dict[str, Any] | None = None,
        listener: Descriptor | None = None,
    ) -> None:
        import socket

        made: Any = context(method)
        self.process: BaseProcess
        # It has said that it takes calls; this process has ended it.
        self.ready = self._ended_here = False
        # The children attach to this store: it must be there before they look.
        if _store.default() is None:
            from ..store.discovery import open_default

            open_default()
        owner = (os.getpid(), _store.start_time(os.getpid()))
        from .worker import main

        self.pipe, theirs = _calls.pipe()
        ends = [theirs] if listener is None else [theirs, listener]
        # Only so that multiprocessing can pass them on: the numbers belong to the descriptors.
        sockets = [socket.socket(fileno=end.fileno()) for end in ends]
        try:
            # multiprocessing joins at exit what is not a daemon; ours end before that, and daemons could have no children.
            self.process = made.Process(
                target=main,
                name=name,
                args=(sockets, owner, settings or {}),
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
            # No pidfd on this kernel, or the process has ended already and was reaped.
            self.watch = Descriptor(os.dup(self.process.sentinel))

    def second_watch(self) -> Descriptor:
        """Return another descriptor that is readable once the process has ended."""
        return Descriptor(os.dup(self.watch.fileno()))

    def kill(self) -> None:
        """End it now."""
        self._ended_here = True
        kill(self.process)

    def died(self, task: str | None) -> WorkerDiedError:
        """Return the error for what was running in it."""
        join(self.process, 1.0)
        reason = "was ended by shutdown() or cancel(force=True) of this program" if self._ended_here else None
        return WorkerDiedError(pid=self.pid, exitcode=self.process.exitcode, task=task, reason=reason, began=self.ready)

    def reap(self) -> None:
        """Take note that it has ended."""
        join(self.process, 1.0)
        self.watch.close()


_registered = False


def _end_before_joining() -> None:
    """
    Have `tasks.shutdown` called before multiprocessing joins the children of this process.

    Children of multiprocessing, executors, joblib and loky join their own children before threading's exit functions run.
    Our workers end only when their pipe is closed, so such a child would wait for them without end.
    """
    global _registered
    if _registered:
        return
    from multiprocessing.util import Finalize

    # multiprocessing runs finalizers with a priority of at least 0 before it joins.
    Finalize(None, _shutdown, exitpriority=1000)
    _registered = True


def _shutdown() -> None:
    from . import shutdown

    shutdown()


@contextmanager
def _passed(ends: list[Descriptor]) -> Iterator[None]:
    """Let a child that this thread forks inside keep these descriptors."""
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

    multiprocessing refuses because a daemonic process that is terminated leaves its children behind.
    Ours end with their owner, however it ends.
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
    Let a child be born with Ctrl-C blocked, until `ignore_interrupts` runs there.

    An interrupt right after the fork would be raised inside the hooks that Python runs in the child, which print and drop it.
    """
    if method == "forkserver":
        # Its server ignores them itself, and would hand this mask on to everybody's children.
        yield
        return
    if method == "spawn":
        # Starting the tracker unblocks what it had blocked: it runs before.
        from multiprocessing.resource_tracker import ensure_running

        ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def join(child: BaseProcess, patience: float) -> None:
    """Wait for the end of a process. Several threads may: whoever comes second to the kernel looks again."""
    until = time.monotonic() + patience
    while child.exitcode is None:
        left = until - time.monotonic()
        child.join(max(0.0, left))
        if child.exitcode is None:
            if left <= 0:
                return
            time.sleep(0.001)
    # multiprocessing forgets a child, and closes its pipes, in join() alone.
    child.join(0)


def kill(child: BaseProcess) -> None:
    """End a process, if it has not ended."""
    if child.exitcode is None:
        try:
            child.kill()
        except ProcessLookupError:
            return  # another thread has just taken note of its end


def end_all(patience: float = 2.0) -> None:
    """End all workers of this process: those that are idle go by themselves when their pipe is closed, others are killed."""
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
    # The parent's pipes would keep the parent's workers waiting after it is gone.
    global _running, _registered
    _calls.close_inherited(_passing.get(get_ident(), ()))
    _passing.clear()
    _running = set()
    _registered = False


os.register_at_fork(after_in_child=_after_fork_in_child)


# ---- in the worker ------------------------------------------------------------------------------------------------------


def end_with(owner: tuple[int, int]) -> None:
    """Let this process end when its owner does, whatever it is doing then."""
    import threading

    pid, start = owner
    try:
        watch = os.pidfd_open(pid)
    except (AttributeError, OSError):
        watch = None
    if watch is not None and _store.start_time(pid) != start:
        # Another process has the pid by now, or /proc does not show the owner as it shows itself: nothing is proven.
        os.close(watch)
        watch = None
    if watch is None:
        # The pipe's end still ends an idle one.
        return

    def follow() -> None:
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        while not poller.poll():
            pass
        # Nobody is left to take results or errors, and finalizers could wait for the owner for ever.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, name="pyray_ser-owner", daemon=True).start()


def let_go_of_inherited() -> None:
    """Hold nothing of what the owner held when this process was forked: it would be held for as long as this one lives."""
    if not _store.fork_count():
        return
    from ..store.discovery import renew

    for store in _store.open_stores():
        renew(store)


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the owner: the terminal sends it to every process of the group."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        # Not in the main thread; only a start method of somebody else's does that.
        print("pyray_ser: a worker was started outside of its main thread", file=sys.stderr)
    # Blocked since before the fork; what has come meanwhile is ignored with it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
