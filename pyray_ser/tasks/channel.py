"""The caller's end of the connection to a worker: it sends calls and receives answers.

A thread that waits for an answer reads the pipe itself, so no other thread has to be woken. If no thread or several
threads wait, or if a callback must run, one thread per process (`collector`) reads until the channel is idle. At most
one thread reads a channel: it holds the `Turn` of its `Calls`.

No lock is held here. Each change of state is one atomic step of `Calls`, and the code after a step can be repeated
safely. So a signal handler or finalizer that interrupts the reading thread can do the reading, and the interrupted code
then finds that it is done. docs/internals/waits.md lists what ends each wait.
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
from .._core import ObjectRef, fork_count, pack
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

__all__ = ["Channel", "Job", "Peer", "end_all", "fail", "number", "waits_for_itself"]

# The maximum time that a reader sleeps, in milliseconds.
SLICE = 500

_numbers = count(1)
# The outcome that settles the reference to a whole stream.
_NOTHING = pack(None)
# All open channels. These references are strong. Without them, a garbage collection that frees the last handle as part
# of a cycle would also finalize the pipe, although answers may still arrive through it.
_channels: set[Channel] = set()


class Peer(Protocol):
    """The interface through which a channel uses the process at its other end."""

    # Readable once the process has ended.
    watch: Descriptor
    # Whether the process has reported that it accepts calls.
    ready: bool

    def kill(self) -> None:
        """End the process."""

    def second_watch(self) -> Descriptor:
        """Return another descriptor that is readable once the process has ended."""

    def died(self, task: str | None) -> WorkerDiedError:
        """Return the error for a call that the process has not answered."""

    def reap(self) -> None:
        """Reap the process after its end."""


OnDeath: TypeAlias = "Callable[[Channel], object]"


class Channel:
    """
    Calls to one worker process, which may answer them in any order.

    Parameters
    ----------
    process : Peer
    pipe : Descriptor, optional
        The pipe to the process. Without a pipe, calls wait until `revive` is called.
    on_death : callable, optional
        Called with the channel after the process has ended; it must call `give_up`, or start a thread that calls
        `revive` or `give_up`. The default is `give_up`. It may be called repeatedly for one process.
    """

    def __init__(self, process: Peer, pipe: Descriptor | None, on_death: OnDeath | None = None) -> None:
        self.process = process
        self.calls = Calls(pipe)
        self._on_death = on_death
        # Makes the error for a refused call.
        self._error: Callable[[str], BaseException] = lambda task: self.process.died(task)
        self._followed = False  # another thread also waits, so the reading thread lets the collector read
        self._collected: Collector | None = None  # the collector reads
        self._closing = False
        self._burying = 0  # the thread that marks this channel as dead
        self._forks = fork_count()
        _channels.add(self)

    @property
    def dead(self) -> bool:
        """bool : Whether the channel accepts no more calls."""
        return self.calls.closed

    # ---- sending

    def submit(self, job: Job) -> None:
        """Send a call, or queue it after earlier ones."""
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
        """Read until `ref` is settled or the deadline passes; return False if another thread reads, so the caller
        sleeps."""
        calls, thread = self.calls, get_ident()
        while (turn := calls.turn(thread)) is None and calls.reader != thread:
            # The reader checks this flag after its turn.
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
                # The call may continue in another process and be answered later.
                return ref._outcome is not None
            # Wait for a limited time, because `cancel()` in another thread may settle the call, and then nothing
            # arrives through the pipe.
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
        """Return whether this code has interrupted the reader in the same thread, and so must read instead."""
        return self.calls.reader == get_ident()

    def collect_later(self) -> None:
        """Have the collector read the answers if no thread waits for them."""
        calls = self.calls
        while calls.busy or calls.blocked or calls.pending:
            if calls.dead and not calls.pending:
                return  # no pipe to read; `revive` calls this again
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
                    # This code runs in a handler, and the thread that it interrupted is about to do the same.
                    reader.register(self)
                elif calls.blocked:
                    reader.resume(self)
            if calls.reader:
                return

    def pump(self, state: int) -> None:
        """Read the available frames, or handle the end of the process. Only for the reader."""
        calls = self.calls
        if calls.receive():
            self.serve()
        elif calls.at_end or state & _calls.ENDED:
            self._see_to_death()

    def serve(self) -> None:
        """Handle the received frames in order. Only for the reader and for code that interrupts it."""
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
                # Set the outcome first, then update the bookkeeping. Code that interrupts this method then either finds
                # the outcome or can do both steps itself.
                if job is not None:
                    job.ref.settle(_NOTHING if outcome is None else outcome)
                calls.finish(arrival, job, outcome if kind == protocol.FAILURE else None, reply)
            if job is not None and job.stream is not None:
                job.stream.notice()

    # ---- the end

    def _see_to_death(self) -> None:
        """Close the pipe of a process that has ended, and tell `on_death`. Only for the reader."""
        calls, thread = self.calls, get_ident()
        if calls.closed:
            self._fail_rest()
            return
        if self._burying == thread:
            raise waits_for_itself()
        if self._burying:
            return
        try:
            self._burying = thread
            # Another thread may replace the process of a channel that is marked as dead already.
            if not calls.dead:
                if self._collected is not None:
                    # Do this before the descriptors are closed, because a new channel may reuse their numbers afterwards.
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
        Continue with another process.

        Parameters
        ----------
        process : Peer
        pipe : Descriptor
        again : list of Job
            Calls to send to the new process before the queued ones.

        Returns
        -------
        bool
            False if the channel accepts no more calls.
        """
        self.process = process
        if not self.calls.attach(pipe, again):
            return False
        self._followed = True
        if self.calls.reader == 0:
            self._after_reading()
        return True

    def give_up(self, error: Callable[[str], BaseException] | None = None) -> None:
        """Refuse further calls, and fail the unanswered ones with ``error(task)``."""
        if error is not None:
            self._error = error
        self._refuse()
        self._fail_rest()

    def _refuse(self) -> None:
        self.calls.refuse()
        self._let_go()
        reader = self._collected
        if reader is not None:
            # The collector does not see the end of a pipe that another thread has closed.
            reader.look_at(self)

    def _let_go(self) -> None:
        _channels.discard(self)
        # This may be a method of the actor's owner, which refers to this channel. The cycle would keep the arguments of the
        # actor's constructor alive until the next garbage collection.
        self._on_death = None

    def fail_sent(self) -> None:
        """Fail the calls that were sent to a dead process; the others continue after `revive`."""
        for job in list(self.calls.sent.values()):
            failure = _failure(job, self.process.died)
            job.ref.settle(failure)
            self.calls.forget(job, failure)
            if job.stream is not None:
                job.stream.notice()

    def notice_end(self) -> None:
        """Handle the death of a process, even if no thread waits for an answer from it."""
        turn = self.calls.turn(get_ident())
        if turn is None:
            return  # the reading thread handles the end, unless an exception of the program interrupts it
        try:
            while self.calls.receive():
                self.serve()
            self._see_to_death()
        finally:
            turn.end()
            self._after_reading()

    def submit_first(self, waiting: deque[Any], call: Call) -> bool:
        """Pop a call from the front of a deque and send it in one atomic step; return False if it was not there."""
        taken = self.calls.submit_first(waiting, call, call.job)
        if taken is None:
            return False
        if not taken:
            fail([call.job], self._error)
        return True

    def abandon(self) -> None:
        """Refuse further calls; other code handles the unanswered ones."""
        self._refuse()
        self.calls.drop()

    def _fail_rest(self) -> None:
        while (job := self.calls.oldest()) is not None:
            failure = _failure(job, self._error)
            job.ref.settle(failure)
            self.calls.forget(job, failure)
            if job.stream is not None:
                job.stream.notice()

    def outstanding(self) -> int:
        """Return the number of unanswered calls."""
        return len(self.calls.sent) + len(self.calls.queued)

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Cancel a call that was not started; see `pyray_ser.cancel`."""
        if force:
            raise ValueError("force=True ends a worker of the pool; an actor is ended by kill(actor)")
        job = ref.job
        if job is None or ref.outcome is not None:
            return False
        job.ref.cancelled = True
        if self.calls.withdraw(job, protocol.write(protocol.CANCEL, job.number)):
            fail([job], lambda task: TaskCancelledError(task=task))
            return True
        # The worker decides whether the request to cancel arrived in time.
        return False

    def close(self) -> None:
        """Refuse further calls, and release the process after the current ones have been answered."""
        self._closing = True
        self.close_if_idle()

    def end(self) -> None:
        """Release the process if it is idle; otherwise end it, so that unanswered calls fail."""
        # From here on, no call may be restarted.
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
        """Close the channel if `close` was requested. This method never blocks, because finalizers call it."""
        # In a forked child, a handle of the parent may be collected before the fork hooks of this package have run. At
        # that time, the child still shares the collector's epoll with the parent.
        if not self._closing or self._forks != fork_count() or is_finalizing():
            return
        calls = self.calls
        if calls.busy:
            self.collect_later()
        elif calls.reader == 0 and calls.close_if_idle():
            # Let the collector reap the process after its end.
            self._let_go()
            collector().bury(self.process)


def _decode(kind: int, payload: memoryview) -> tuple[int, Any]:
    """Return the kind and outcome of an answer. An answer that cannot be loaded becomes a failure."""
    try:
        return kind, _load(kind, payload)
    except Exception as error:
        try:
            outcome = _load(kind, payload)
        except Exception:
            return protocol.FAILURE, error
        # A signal handler raised the exception, so the program must receive it.
        del outcome
        raise


def _load(kind: int, payload: memoryview) -> Any:
    if kind == protocol.RESULT or kind == protocol.ITEM:
        return protocol.outcome(payload)
    if kind == protocol.FAILURE:
        return Failure(*protocol.load(payload))
    return None


def end_all() -> None:
    """Close the idle channels, and end the processes of the others, whose calls then fail."""
    for channel in list(_channels):
        channel.end()


def waits_for_itself() -> RuntimeError:
    """Return the error for code that has interrupted the handling of the death for which it waits."""
    return RuntimeError(
        "this signal handler or finalizer waits for a worker process that the code it interrupted is starting again; "
        "hint: call .remote() there, and get() the result elsewhere"
    )


def _failure(job: Job, error: Callable[[str], BaseException]) -> BaseException:
    if job.ref.cancelled:
        return TaskCancelledError(task=job.ref.name)
    return error(job.ref.name)


def fail(jobs: list[Job], error: Callable[[str], BaseException]) -> None:
    """Settle jobs with ``error(task)``."""
    for job in jobs:
        stop(job, _failure(job, error))


def stop(job: Job, outcome: Any) -> None:
    """Settle a job that was never passed to a channel and will not run."""
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
        # The channels belong to the parent, so references in the child must not wait for an answer.
        channel.calls.refuse()
        channel._closing = False
    _channels.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
