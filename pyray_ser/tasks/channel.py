"""The caller's end of a worker: calls out, answers in.

A thread that waits for an answer reads the pipe itself, which saves a wake-up.
Where nobody waits, or several do, or a callback is to run, one thread per process (`collector`) reads until the channel is idle.
At most one thread reads a channel: it holds the `Turn` of its `Calls`.

No lock is held here. Each change of state is one step of `Calls`, and what follows a step can be repeated.
So a signal handler or finalizer that interrupts the reading thread reads on in its place, and the thread below it finds that done.
docs/internals/waits.md lists who ends each wait.
"""

from __future__ import annotations

import os
import time
from _thread import get_ident
from collections.abc import Callable
from itertools import count
from sys import is_finalizing
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .. import _calls
from .._calls import Calls, Job
from .._frames import pack
from .._store import ObjectRef, fork_count
from ..exceptions import TaskCancelledError
from . import protocol
from .collector import collector
from .errors import Failure

if TYPE_CHECKING:
    from collections import deque

    from .._calls import Descriptor
    from ..exceptions import WorkerDiedError
    from .call import Call
    from .collector import Collector
    from .refs import TaskRef

__all__ = ["Channel", "Job", "Peer", "end_all", "fail", "number"]

# Milliseconds that a reader sleeps at most.
SLICE = 500

_numbers = count(1)
# What the reference of a stream is settled with.
_NOTHING = pack(None)
# Every channel that is open. Strongly: when the last handle is collected in a cycle, Python runs the destructors of all that
# hangs on it, and among them would be that of the pipe, on which answers may still come.
_channels: set[Channel] = set()


class Peer(Protocol):
    """The process at the other end of a channel, as the channel sees it."""

    # Readable once the process has ended.
    watch: Descriptor
    # It has said that it takes calls.
    ready: bool

    def kill(self) -> None:
        """End the process."""

    def died(self, task: str | None) -> WorkerDiedError:
        """Return the error for what was running in it."""

    def reap(self) -> None:
        """Take note that it has ended."""


OnDeath: TypeAlias = "Callable[[Channel], object]"


class Channel:
    """
    Calls to one worker process, answered in any order.

    Parameters
    ----------
    process : Peer
    pipe : Descriptor, optional
        To the process. Without one, calls wait until `revive`.
    on_death : callable, optional
        Gets the channel once the process is gone, and calls `revive` or `give_up`; default is `give_up`.
    """

    def __init__(self, process: Peer, pipe: Descriptor | None, on_death: OnDeath | None = None) -> None:
        self.process = process
        self.calls = Calls(pipe)
        self._on_death = on_death
        # Makes the error of a call that is refused.
        self._error: Callable[[str], BaseException] = lambda task: self.process.died(task)
        self._followed = False  # somebody else waits as well: the reader hands over to the collector
        self._collected: Collector | None = None  # the collector reads
        self._closing = False
        self._burying = 0  # the thread that deals with the death
        self._forks = fork_count()
        _channels.add(self)

    @property
    def dead(self) -> bool:
        """bool : Whether no calls are taken any more."""
        return self.calls.closed

    # ---- sending

    def submit(self, job: Job) -> None:
        """Send a call, or queue it behind those before it."""
        calls = self.calls
        busy = calls.busy
        if not calls.submit(job):
            self._fail_rest()
            fail([job], self._error)
        elif busy or calls.blocked:
            self.collect_later()

    def send(self, frame: bytes) -> None:
        """Send a frame that needs no answer."""
        self.calls.send(frame)
        if self.calls.blocked:
            self.collect_later()

    # ---- receiving

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """Read until `ref` is settled or time is over; False if another thread reads, and the caller is to sleep."""
        calls, thread = self.calls, get_ident()
        while (turn := calls.turn(thread)) is None and calls.reader != thread:
            # Its reader looks at this after it has ended its turn.
            self._followed = True
            if calls.reader:
                return False
        try:
            return self._read_until(ref, deadline)
        finally:
            if turn is not None:
                turn.end()
                self._after_reading()

    def _read_until(self, ref: TaskRef, deadline: float | None) -> bool:
        calls = self.calls
        while ref._outcome is None:
            if calls.pending:
                self.serve()
                continue
            if calls.dead:
                self._see_to_death()
                # It may go on in another process, and be answered later.
                return ref._outcome is not None
            # In slices: it may also be settled by a cancel() elsewhere, which does not come through the pipe.
            patience = SLICE
            if deadline is not None:
                patience = min(SLICE, int((deadline - time.monotonic()) * 1000) + 1)
                if patience <= 0:
                    return True
            state = calls.wait(self.process.watch.fileno(), patience)
            if state:
                self.pump(state)
        return True

    def _after_reading(self) -> None:
        if self._followed or self.calls.pending:
            self._followed = False
            self.collect_later()
        if self._closing:
            self.close_if_idle()

    def reads_here(self) -> bool:
        """Tell whether this very thread is the reader: it was interrupted, and its caller must read in its place."""
        return self.calls.reader == get_ident()

    def collect_later(self) -> None:
        """Let the answers come in although nobody waits for them."""
        calls = self.calls
        while calls.busy or calls.blocked or calls.pending:
            if calls.dead and not calls.pending:
                return  # no pipe to read; whoever makes the next one asks again
            reader = collector()
            turn = calls.turn(reader.thread)
            if turn is not None:
                self._collected = reader
                try:
                    reader.add(self, turn)
                except BaseException:
                    turn.end()
                    self._collected = None
                    raise
                return
            self._followed = True
            if calls.reader == reader.thread:
                if not reader.has(self):
                    # This interrupts the thread that is just about to do it.
                    reader.register(self)
                elif calls.blocked:
                    reader.resume(self)
            if calls.reader:
                return

    def pump(self, state: int) -> None:
        """Read what is there, or notice the end. Only for the reader."""
        calls = self.calls
        if calls.receive():
            self.serve()
        elif calls.at_end or state & _calls.ENDED:
            self._see_to_death()

    def serve(self) -> None:
        """Deal with the frames that have come, in order. Only for the reader, and whoever interrupts it."""
        calls = self.calls
        while (found := calls.frame()) is not None:
            arrival, frame = found
            kind, number, payload = protocol.read(frame)
            if kind == protocol.READY:
                self.process.ready = True
            kind, outcome = _decode(kind, payload)
            job = calls.sent.get(number)
            reply = protocol.write(protocol.ACK, number) if type(outcome) is ObjectRef else None
            if kind == protocol.ITEM:
                calls.took(arrival, job, outcome, reply)
            else:
                # First the outcome, then the bookkeeping: who interrupts this must find the one or be able to do both.
                if job is not None:
                    job.ref.settle(_NOTHING if outcome is None else outcome)
                calls.finish(arrival, job, outcome if kind == protocol.FAILURE else None, reply)
            if job is not None and job.stream is not None:
                job.stream.notice()

    # ---- the end

    def _see_to_death(self) -> None:
        calls, thread = self.calls, get_ident()
        if calls.closed:
            self._fail_rest()
            return
        if self._burying == thread:
            raise RuntimeError(
                "this signal handler or finalizer waits for a worker process that the code it interrupted is starting again; "
                "hint: call .remote() there, and get() the result elsewhere"
            )
        if self._burying:
            return
        self._burying = thread
        try:
            if self._collected is not None:
                # Before its descriptors are closed: right after, their numbers may be another channel's.
                self._collected.remove(self)
            calls.lose()
            if self._on_death is not None:
                self._on_death(self)
            else:
                self.give_up()
        finally:
            self._burying = 0

    def revive(self, process: Peer, pipe: Descriptor, again: list[Job]) -> bool:
        """
        Go on with another process.

        Parameters
        ----------
        process : Peer
        pipe : Descriptor
        again : list of Job
            What it is sent before the calls that are queued.

        Returns
        -------
        bool
            False if no calls are taken any more.
        """
        self.process = process
        if not self.calls.attach(pipe, again):
            return False
        self._followed = True
        if self.calls.reader == 0:
            self._after_reading()
        return True

    def give_up(self, error: Callable[[str], BaseException] | None = None) -> None:
        """Take no more calls, and fail those that are not answered with what ``error(task)`` gives."""
        if error is not None:
            self._error = error
        self.calls.refuse()
        _channels.discard(self)
        self._fail_rest()

    def fail_sent(self) -> None:
        """Fail the calls that were sent to a process that has died; the others go on with `revive`."""
        for job in list(self.calls.sent.values()):
            failure = _failure(job, self.process.died)
            job.ref.settle(failure)
            self.calls.forget(job, failure)
            if job.stream is not None:
                job.stream.notice()

    def notice_end(self) -> None:
        """See to the death of a process, also if nobody waits for an answer of it."""
        turn = self.calls.turn(get_ident())
        if turn is None:
            return  # its reader notices
        try:
            while self.calls.receive():
                self.serve()
            self._see_to_death()
        finally:
            turn.end()
            self._after_reading()

    def submit_first(self, waiting: deque[Any], call: Call) -> bool:
        """Take a call from the front of a deque and send it, in one step; False if it was not there any more."""
        taken = self.calls.submit_first(waiting, call, call.job)
        if taken is None:
            return False
        if not taken:
            fail([call.job], self._error)
        return True

    def abandon(self) -> None:
        """Take no more calls; what becomes of those that are not answered is for others to decide."""
        self.calls.refuse()
        self.calls.drop()
        _channels.discard(self)

    def _fail_rest(self) -> None:
        while (job := self.calls.oldest()) is not None:
            failure = _failure(job, self._error)
            job.ref.settle(failure)
            self.calls.forget(job, failure)
            if job.stream is not None:
                job.stream.notice()

    def outstanding(self) -> int:
        """Return how many calls are not answered yet."""
        return len(self.calls.sent) + len(self.calls.queued)

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Take back a call that was not started; see `pyray_ser.cancel`."""
        if force:
            raise ValueError("force=True ends a worker of the pool; an actor is ended by kill(actor)")
        job = ref.job
        if job is None or ref.outcome is not None:
            return False
        job.ref.cancelled = True
        if self.calls.withdraw(job, protocol.write(protocol.CANCEL, job.number)):
            fail([job], lambda task: TaskCancelledError(task=task))
            return True
        # The worker decides whether it came in time.
        return False

    def close(self) -> None:
        """Take no more calls; the process is let go once the present ones are answered."""
        self._closing = True
        self.close_if_idle()

    def end(self) -> None:
        """Let the process go if it is idle, else end it: calls that are not answered fail."""
        # Nothing is started again.
        self._on_death = None
        self._closing = True
        if self.calls.busy:
            self.process.kill()
            if self.calls.dead:
                self.give_up()
            self.collect_later()
        else:
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close if that was asked for. Never waits: finalizers call it."""
        # In a forked child a handle of the parent's may be collected before any of our hooks has run there, and the
        # collector's epoll is shared with the parent.
        if not self._closing or self._forks != fork_count() or is_finalizing():
            return
        calls = self.calls
        if calls.busy:
            self.collect_later()
        elif calls.reader == 0 and calls.close_if_idle():
            # Have the process reaped when it has ended.
            _channels.discard(self)
            collector().bury(self.process)


def _decode(kind: int, payload: memoryview) -> tuple[int, Any]:
    """Return the kind and outcome of an answer. One that cannot be loaded becomes a failure."""
    try:
        return kind, _load(kind, payload)
    except Exception as error:
        try:
            outcome = _load(kind, payload)
        except Exception:
            return protocol.FAILURE, error
        # It came from a signal handler, then, and is the program's.
        del outcome
        raise


def _load(kind: int, payload: memoryview) -> Any:
    if kind == protocol.RESULT or kind == protocol.ITEM:
        return protocol.outcome(payload)
    if kind == protocol.FAILURE:
        return Failure(*protocol.load(payload))
    return None


def end_all() -> None:
    """Close the channels that are idle, and end the processes of the others, whose calls then fail."""
    for channel in list(_channels):
        channel.end()


def _failure(job: Job, error: Callable[[str], BaseException]) -> BaseException:
    if job.ref.cancelled:
        return TaskCancelledError(task=job.ref.name)
    return error(job.ref.name)


def fail(jobs: list[Job], error: Callable[[str], BaseException]) -> None:
    """Settle jobs with what ``error(task)`` gives."""
    for job in jobs:
        stop(job, _failure(job, error))


def stop(job: Job, outcome: Any) -> None:
    """Settle a job that no channel has, and that will not run."""
    job.ref.settle(outcome)
    if job.items is not None and not job.ended:
        job.items.append(outcome)
    job.ended = True
    if job.stream is not None:
        job.stream.notice()


def number() -> int:
    """Return a new number for a call."""
    return next(_numbers)


def _after_fork_in_child() -> None:
    for channel in list(_channels):
        # The parent's; what a child still has of them must not wait for an answer.
        channel.calls.refuse()
        channel._closing = False
    _channels.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
