"""The caller's end of a worker: calls out, answers in.

Answers are read by whoever waits for one: a thread that calls `get` reads the pipe itself, which saves a wake-up. Only where
nobody waits, or several do, or a callback is to be run, one thread per process (`_Collector`) reads instead, until the
channel has no call under way. That a channel has at most one reader is the invariant everything here keeps.

Calls under way are bounded in bytes and number, so that a write never blocks for longer than the other side takes to read:
the rest waits here, in order, and follows with each answer.
"""

from __future__ import annotations

import os
import select
import time
from _thread import RLock, allocate_lock
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from math import inf
from sys import is_finalizing
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .. import _log
from .._frames import pack
from .._store import ObjectRef, fork_count
from ..exceptions import TaskCancelledError
from . import protocol
from .errors import Failure
from .refs import TaskRef

if TYPE_CHECKING:
    from concurrent.futures import Future
    from multiprocessing.connection import Connection

    from ..exceptions import WorkerDiedError
    from .pool import Worker

__all__ = ["Channel", "Peer"]

# What a pipe takes without blocking, with a margin: the kernel counts some 800 bytes for each message.
WINDOW_BYTES = 64 * 1024
WINDOW_CALLS = 100
# Milliseconds that a reader sleeps at most.
SLICE = 500

_numbers = count(1)
# What the reference of a stream is settled with.
_NOTHING = pack(None)
# Every channel that is open. Strongly: when the last handle is collected in a cycle, Python runs the destructors of all that
# hangs on it, and among them would be that of the pipe, on which answers may still come.
_channels: set[Channel] = set()


class Job:
    """What a channel keeps about one call until it is answered."""

    __slots__ = ("before", "frame", "future", "held", "number", "ref", "stream", "worker")

    def __init__(self, ref: TaskRef, frame: bytes, number: int, held: object) -> None:
        self.ref = ref
        self.frame = frame
        # A frame that must come first.
        self.before = b""
        self.number = number
        # The objects with the arguments; the worker has its own hold once it has answered.
        self.held = held
        # Gets (kind, outcome) of each answer, for calls with several.
        self.stream: Callable[[int, Any], None] | None = None
        # For the pool: the standard library's future, and which worker runs it.
        self.future: Future[None] | None = None
        self.worker: Worker | None = None


class Peer(Protocol):
    """The process at the other end of a channel, as the channel sees it."""

    connection: Connection
    # Descriptors: of the pipe, and of what is readable once the process has ended.
    fd: int
    watch: int
    # It has said that it takes calls.
    ready: bool

    def poller(self) -> select.poll:
        """Return a poll object for both."""

    def kill(self) -> None:
        """End the process."""

    def died(self, task: str | None) -> WorkerDiedError:
        """Return the error for what was running in it."""

    def reap(self) -> None:
        """Take note that it has ended."""

    def close(self) -> None:
        """Close our end of the pipe."""


OnDeath: TypeAlias = "Callable[[Channel, list[Job]], object]"


class Channel:
    """
    Calls to one worker process, answered in any order.

    Parameters
    ----------
    process : Peer
    on_death : callable, optional
        Gets the channel and its unanswered jobs, oldest first, once the process is gone; default lets them fail.
    """

    def __init__(self, process: Peer, on_death: OnDeath | None = None) -> None:
        self.process = process
        self.dead = False
        self._on_death = on_death
        self._connection = process.connection
        self._poller = process.poller()
        self._look = select.poll()
        self._look.register(process.fd, select.POLLIN)
        # Guards all that follows; held for a few lines only, never while waiting for the other side to answer.
        self._lock = allocate_lock()
        self._sent: dict[int, Job] = {}
        self._sent_bytes = 0
        self._queued: deque[Job] = deque()
        self._reading = False  # a thread is reading for its own answer
        self._followed = False  # somebody else waits as well: the reader hands over to the collector
        self._collected: _Collector | None = None  # the collector reads
        self._closing = False
        self._forks = fork_count()
        self._torn = False  # an exception came out of the middle of a read or write
        _channels.add(self)

    # ---- sending

    def submit(self, job: Job) -> None:
        """Send a call, or queue it behind those before it."""
        with self._lock:
            if self.dead:
                gone = True
            else:
                gone = False
                busy = bool(self._sent or self._queued)
                self._queued.append(job)
                self._flush()
                if busy:
                    self._ask_collector()
        if gone:
            self._lost([job])

    def send(self, frame: bytes) -> None:
        """Send a frame that needs no answer."""
        with self._lock:
            if not self.dead:
                self._write(frame)

    def _flush(self) -> None:
        """Send what fits; the lock is held."""
        while self._queued and not self.dead:
            job = self._queued[0]
            if self._sent and (self._sent_bytes + len(job.frame) > WINDOW_BYTES or len(self._sent) >= WINDOW_CALLS):
                return
            self._queued.popleft()
            self._sent[job.number] = job
            self._sent_bytes += len(job.frame)
            if job.before:
                self._write(job.before)
            self._write(job.frame)

    def _write(self, frame: bytes) -> None:
        self._torn = True
        try:
            self._connection.send_bytes(frame)
        except OSError:
            # It is gone: the reader finds out, and knows what it had.
            pass
        self._torn = False

    # ---- receiving

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """Read until `ref` is settled or time is over; False if another thread reads, and the caller is to sleep."""
        with self._lock:
            if ref.outcome is not None:
                return True
            if self._collected:
                return False
            if self._reading:
                self._followed = True
                return False
            self._reading = True
        try:
            poll = self._poller.poll
            while ref.outcome is None and not self.dead:
                # In slices: it may also be settled by a cancel() elsewhere, which does not come through the pipe.
                patience: float = SLICE
                if deadline is not None:
                    patience = min(SLICE, (deadline - time.monotonic()) * 1000 + 1)
                    if patience <= 0:
                        return True
                events = poll(patience)
                if events:
                    self.pump(len(events) == 1 and events[0][0] == self.process.fd)
            # A call that outlives its worker is answered through another channel.
            return ref.outcome is not None
        finally:
            with self._lock:
                self._reading = False
                if self._torn:
                    self.process.kill()
                if self._followed:
                    self._followed = False
                    if not self.dead:
                        self._ask_collector()
            self.close_if_idle()

    def collect_later(self, ref: TaskRef | None = None) -> None:
        """Let the answers come in although nobody waits for them."""
        with self._lock:
            if not self.dead:
                self._ask_collector()

    def _ask_collector(self) -> None:
        if self._reading:
            self._followed = True
        elif self._collected is None and (self._sent or self._queued):
            with _collector_lock:
                self._collected = collector()
                self._collected.add(self)

    def pump(self, readable: bool = False) -> None:
        """Read one answer, or notice the end. Only for the one reader."""
        try:
            if not readable and not self._look.poll(0):
                # Woken by the end of the process, with nothing left to read.
                self.death()
                return
            self._torn = True
            frame = self._connection.recv_bytes()
        except (EOFError, OSError, ValueError):
            self._torn = False
            self.death()
            return
        kind, number, payload = protocol.read(frame)
        if kind == protocol.READY:
            self.process.ready = True
        outcome: Any
        try:
            if kind == protocol.RESULT or kind == protocol.ITEM:
                outcome = protocol.outcome(payload)
            elif kind == protocol.FAILURE:
                outcome = Failure(*protocol.load(payload))
            else:
                outcome = None
        except Exception as error:
            kind, outcome = protocol.FAILURE, error
        with self._lock:
            job = self._sent.get(number)
            if job is not None and kind != protocol.ITEM:
                del self._sent[number]
                self._sent_bytes -= len(job.frame)
            if type(outcome) is ObjectRef:
                self._write(protocol.write(protocol.ACK, number))
            if self._queued:
                self._flush()
            self._torn = False
        if job is None:
            return
        try:
            if job.stream is not None:
                job.stream(kind, outcome)
        finally:
            if kind != protocol.ITEM:
                job.ref.settle(outcome if outcome is not None else _NOTHING)

    # ---- the end

    def death(self) -> None:
        """Settle what will not be answered. Only for the one reader."""
        with self._lock:
            if self.dead:
                return
            self.dead = True
            jobs = [*self._sent.values(), *self._queued]
            self._sent.clear()
            self._queued.clear()
            if self._collected is not None:
                # Before its descriptors are closed: right after, their numbers may be another channel's.
                self._collected.remove(self)
        self.process.close()
        _channels.discard(self)
        self._lost(jobs)

    def _lost(self, jobs: list[Job]) -> None:
        if self._on_death is not None:
            self._on_death(self, jobs)
            return
        fail(jobs, self.process.died)

    def outstanding(self) -> int:
        """Return how many calls are not answered yet."""
        return len(self._sent) + len(self._queued)

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Take back a call that was not started; see `pyray_ser.cancel`."""
        if force:
            raise ValueError("force=True ends a worker of the pool; an actor is ended by kill(actor)")
        with self._lock:
            job = ref.job
            if job is None or ref.outcome is not None:
                return False
            if job in self._queued:
                self._queued.remove(job)
                taken = True
            else:
                taken = False
                ref.cancelled = True
                self._write(protocol.write(protocol.CANCEL, job.number))
        if taken:
            ref.settle(TaskCancelledError(task=ref.name))
            return True
        # The worker decides whether it came in time.
        return False

    def close(self) -> None:
        """Take no more calls; the process is let go once the present ones are answered."""
        self._closing = True
        self.close_if_idle()

    def end(self) -> None:
        """Let the process go if it is idle, else end it: calls that are not answered fail."""
        with self._lock:
            if self.dead:
                return
            # Nothing is started again.
            self._on_death = None
            if self._sent or self._queued:
                self.process.kill()
                self._ask_collector()
                return
            if self._reading or self._collected:
                self._closing = True
                return
            self.dead = True
            self._let_go()

    def close_if_idle(self) -> None:
        """Close if that was asked for. Never waits: finalizers call it."""
        # In a forked child a handle of the parent's may be collected before any of our hooks has run there, and the
        # collector's epoll is shared with the parent.
        if not self._closing or self._forks != fork_count() or is_finalizing():
            return
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self.dead or self._reading:
                return
            if self._sent or self._queued:
                self._ask_collector()
                return
            if self._collected:
                # Just now it reads the last answer, and comes here after.
                return
            self.dead = True
            self._let_go()
        finally:
            self._lock.release()

    def _let_go(self) -> None:
        """Close the pipe, and have the process reaped when it has ended."""
        self.process.close()
        _channels.discard(self)
        with _collector_lock:
            collector().bury(self.process)


def end_all() -> None:
    """Close the channels that are idle, and end the processes of the others, whose calls then fail."""
    for channel in list(_channels):
        channel.end()


def fail(jobs: list[Job], error: Callable[[str], BaseException]) -> None:
    """Settle jobs with what ``error(task)`` gives."""
    for job in jobs:
        failure: BaseException = error(job.ref.name)
        if job.ref.cancelled:
            failure = TaskCancelledError(task=job.ref.name)
        if job.stream is not None:
            job.stream(protocol.FAILURE, failure)
        job.ref.settle(failure)


# ---- the collector -----------------------------------------------------------------------------------------------------


class _Collector:
    """The thread that reads where nobody else does, and sees off processes that were let go."""

    def __init__(self) -> None:
        import threading

        self._epoll = select.epoll()
        self._bell = os.eventfd(0)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._ending = False
        # The thread is over. Decided under the lock, as what is added: nothing can be added in between and be forgotten.
        self._over = False
        # Descriptor -> whose it is.
        self._channels: dict[int, Channel] = {}
        self._leaving: dict[int, Peer] = {}
        # Called four times a second, for as long as they return True.
        self._chores: list[Callable[[], bool]] = []
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="pyray_ser-collector", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            # From 3.12 on an interpreter that ends starts no more threads: `end` does its work then. At any other time
            # nobody would.
            if not _ending:
                self._epoll.close()
                os.close(self._bell)
                raise
            self._thread = None

    def add(self, channel: Channel) -> None:
        """Read for a channel, whose lock is held, until it has no call under way."""
        for fd in (channel.process.fd, channel.process.watch):
            self._channels[fd] = channel
            self._epoll.register(fd, select.EPOLLIN)

    def bury(self, process: Peer) -> None:
        """Reap a process when it has ended."""
        self._leaving[process.watch] = process
        self._epoll.register(process.watch, select.EPOLLIN)

    def repeat(self, chore: Callable[[], bool]) -> None:
        """Call ``chore()`` four times a second, as long as it returns True."""
        with _collector_lock:
            if self._over:
                collector().repeat(chore)
                return
            self._chores.append(chore)
            os.eventfd_write(self._bell, 1)

    def end(self) -> None:
        """End the thread, once every process that it watches has ended."""
        with _collector_lock:
            if not self._over:
                self._ending = True
                os.eventfd_write(self._bell, 1)
        if self._thread is not None:
            self._thread.join(5)
        else:
            self._run(5)

    def _run(self, seconds: float = inf) -> None:
        limit = time.monotonic() + seconds
        while not self._is_over() and time.monotonic() < limit:
            # Others append meanwhile.
            for chore in list(self._chores):
                if not self._guarded(chore):
                    self._chores.remove(chore)
            looks = bool(self._chores) or limit < inf
            self._handle([fd for fd, _ in self._epoll.poll(0.25 if looks else -1)])

    def _guarded(self, act: Callable[..., Any], *arguments: object) -> Any:
        """Call something; what it raises is logged and does not end the thread, which everybody relies on."""
        try:
            return act(*arguments)
        except BaseException:
            if self._thread is None:
                raise  # this is the thread of somebody who wants to hear of Ctrl-C
            _log.exception("the thread that reads the answers of workers goes on after an error in %r", act)
            return None

    def _is_over(self) -> bool:
        global _collector
        with _collector_lock:
            self._over = self._ending and not self._channels and not self._leaving
            if self._over:
                if _collector is self:
                    _collector = None
                self._epoll.close()
                os.close(self._bell)
            return self._over

    def _handle(self, readable: list[int]) -> None:
        # Whose they are is looked up for all of them first: a channel that dies of the first has closed the second by then,
        # whose number may be a new channel's.
        for fd, channel, process in [(fd, self._channels.get(fd), self._leaving.get(fd)) for fd in readable]:
            if fd == self._bell:
                os.eventfd_read(fd)
            elif process is not None:
                self._epoll.unregister(fd)
                del self._leaving[fd]
                self._guarded(process.reap)
            elif channel is not None and self._channels.get(fd) is channel:
                self._guarded(self._read, channel, fd)

    def _read(self, channel: Channel, fd: int) -> None:
        try:
            channel.pump(fd == channel.process.fd)
        finally:
            with channel._lock:
                if channel._torn and not channel.dead:
                    # What was read in part cannot be read on: its end is noticed here next.
                    channel.process.kill()
                if channel.dead or not (channel._sent or channel._queued):
                    self.remove(channel)
            channel.close_if_idle()

    def remove(self, channel: Channel) -> None:
        """Read for a channel no more. Only in the thread of the collector, before the descriptors are closed."""
        channel._collected = None
        for fd in (channel.process.fd, channel.process.watch):
            # Of one that has died they are gone already.
            if self._channels.get(fd) is channel:
                del self._channels[fd]
                try:
                    self._epoll.unregister(fd)
                except OSError:
                    pass  # closed by somebody else, who closes all there are; the kernel forgot it then


_collector: _Collector | None = None
# Inside `ending`.
_ending = False
# Finalizers may ask for the collector while it is being made.
_collector_lock = RLock()


def collector() -> _Collector:
    """Return this process's collector."""
    global _collector
    with _collector_lock:
        if _collector is None:
            _collector = _Collector()
        return _collector


@contextmanager
def ending() -> Iterator[None]:
    """Inside, the collector may be without a thread: `end_collector`, which must be called there, does its work."""
    global _ending
    _ending = True
    try:
        yield
    finally:
        _ending = False


def end_collector() -> None:
    """End the thread that reads, after everything that it reads from."""
    with _collector_lock:
        last = _collector
    if last is not None:
        last.end()


def number() -> int:
    """Return a new number for a call."""
    return next(_numbers)


def _after_fork_in_child() -> None:
    global _collector, _collector_lock, _ending
    _collector = None
    _ending = False
    _collector_lock = RLock()
    for channel in list(_channels):
        # The parent's; what a child still has of them must not wait for an answer.
        channel.dead = True
        channel._closing = False
    _channels.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
