"""Run tasks on this node in threads, each with one worker process.

Each thread forwards its calls to its process. If a process dies, one task fails, and the next task gets a new process.
No lock is needed: a thread removes a job from `Pool._waiting` in one atomic step, and then runs this job.
"""

from __future__ import annotations

import time
from _thread import get_ident, start_new_thread
from collections import deque
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .._calls import Job
from ..exceptions import TaskCancelledError
from . import protocol, settings
from .call import Call, after, make, stop
from .channel import Channel, fail
from .process import Initializer, Process
from .refs import TaskRef

if TYPE_CHECKING:
    from .function import Function, RemoteFunction

__all__ = ["Pool"]


class Worker:
    """A worker process that is idle or runs one task."""

    def __init__(self, number: int, share: int, method: str | None, initializer: Initializer | None) -> None:
        self.process = Process(f"pyray_ser-worker-{number}", method, settings.passed_on(share), initializer=initializer)
        # A call may be repeated after its worker has died, but the thread of the worker decides about that.
        self.channel = Channel(self.process, self.process.pipe, Channel.abandon)
        # Identifiers of the functions that the worker has loaded.
        self.known: set[int] = set()

    def lives(self) -> bool:
        """Return whether the worker is alive. An idle worker sends nothing, so its pipe is not ready while it lives."""
        calls = self.channel.calls
        return not calls.closed and not calls.wait(self.process.watch.fileno(), 0)

    def end(self) -> None:
        """Kill the worker process."""
        self.process.kill()


class Pool:
    """
    Runs tasks in processes that are started as they are needed.

    Parameters
    ----------
    size : int, optional
        Maximum number of processes; default is `settings.num_workers()`.
    method : str, optional
        Start method; default is `settings.start_method()`.
    initializer : tuple, optional
        A function and its arguments, which each worker calls first.
    """

    spans_hosts = False

    def __init__(
        self, size: int | None = None, method: str | None = None, initializer: Initializer | None = None
    ) -> None:
        self._size = size or settings.num_workers()
        self._method = method or settings.start_method()
        self._initializer = initializer
        # Calls that no thread has started yet, by call number, in order.
        # Each call is in a separate list, and the thread that pops the call from its list runs the call. The list stays
        # until the call has ended, because code that interrupts `submit` may complete the call before `submit`
        # continues.
        self._waiting: dict[int, list[tuple[Function, Call, int]]] = {}
        self._order: deque[int] = deque()
        # One entry for each submitted call; None ends a thread. The queue is implemented in C, so finalizers can use it
        # safely.
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._threads: set[int] = set()
        self._idle: set[int] = set()
        # The thread idents of the threads that serve the pool.
        self._serving: set[int] = set()
        self._numbers = count(1)
        self._resting: list[Worker] = []
        self._all: set[Worker] = set()
        # Whether the threads end when all calls have been run, and whether the workers are killed.
        self._finishing = False
        self._ended = False

    def call(self, function: RemoteFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function when its arguments are ready; see `Engine`."""
        function.check_options_of_node()
        pickled = function.pickled()
        call = make(function.name, pickled.number, args, kwargs, function.several, self)
        result = call.hand_over()
        max_retries = function.max_retries
        if call.pending:
            after(list(call.pending), lambda: self.submit(pickled, call, max_retries))
        else:
            self.submit(pickled, call, max_retries)
        return result

    def submit(self, function: Function, call: Call, max_retries: int) -> None:
        """Run a call once when its arguments are ready, even if this method is called repeatedly for the same call."""
        job = call.job
        if job.ref.outcome is not None:
            return
        job.function = function
        self._waiting.setdefault(job.number, [(function, call, max_retries)])
        self._order.append(job.number)
        self._tokens.put(True)
        if len(self._order) > len(self._idle) and len(self._threads) < self._size:
            self._start_thread()
        if self._ended:
            self._take_back(job)

    def _start_thread(self) -> None:
        # This is not a `threading.Thread`, because starting one acquires locks that code interrupted by a signal
        # handler may hold.
        number = next(self._numbers)
        self._threads.add(number)
        try:
            start_new_thread(self._serve, (number,))
        except BaseException:
            self._threads.discard(number)
            raise

    def _take_back(self, job: Job) -> bool:
        """Cancel a call that no thread has started; return whether this succeeded."""
        try:
            self._waiting[job.number].pop()
        except (KeyError, IndexError):
            return False
        self._waiting.pop(job.number, None)
        stop(job, TaskCancelledError(task=job.ref.name))
        return True

    # ---- in a thread of the pool

    def _serve(self, number: int) -> None:
        self._serving.add(get_ident())
        try:
            while True:
                goes_on = False
                if not self._finishing:
                    self._idle.add(number)
                    # `submit`, `finish` and `end` wake this thread.
                    goes_on = self._tokens.get()
                    self._idle.discard(number)
                # Run all queued calls, because `submit` may be interrupted after it has queued a call and before it
                # adds the token.
                while (found := self._next()) is not None:
                    if self._order and self._tokens.empty():
                        # The token for the next call was not added yet, but this call must not wait until the current
                        # one has ended.
                        self._tokens.put(True)
                    self._run(*found)
                    del found
                if not goes_on:
                    return
        finally:
            self._serving.discard(get_ident())
            self._idle.discard(number)
            try:
                if self._finishing:
                    self._let_go()
            finally:
                self._threads.discard(number)

    def _next(self) -> tuple[Function, Call, int] | None:
        while True:
            try:
                number = self._order.popleft()
            except IndexError:
                return None
            try:
                return self._waiting[number].pop()
            except (KeyError, IndexError):
                continue  # the call was cancelled, or another thread took it

    def _run(self, function: Function, call: Call, max_retries: int) -> None:
        job = call.job
        try:
            if job.ref.outcome is not None:
                return
            if job.ref.cancelled:
                stop(job, TaskCancelledError(task=job.ref.name))
                return
            if not call.ready():
                return
            for _ in range(max_retries + 1):
                worker = self._take()
                self._run_in(worker, function, job)
                if not worker.channel.dead:
                    self._resting.append(worker)
                    if self._ended:
                        self._let_go()
                    return
                self._all.discard(worker)
                worker.process.reap()
                if job.ref.cancelled or self._ended:
                    break
                # The results of a stream that have arrived must not be sent a second time.
                if job.items is not None:
                    break
            fail([job], worker.process.died)
        except BaseException as error:
            stop(job, error)
        finally:
            self._waiting.pop(job.number, None)

    def _run_in(self, worker: Worker, function: Function, job: Job) -> None:
        job.worker = worker
        if job.ref.cancelled:
            # If `cancel()` was called between the caller's check and the assignment above, it did not find the worker.
            worker.end()
        channel = worker.channel
        if function.number not in worker.known:
            worker.known.add(function.number)
            channel.send(function.frame)
        if channel.calls.submit(job):
            while job.ref.outcome is None and not channel.dead:
                if not channel.collect(job.ref, None):
                    # The collector reads the answers, because it also has frames to write.
                    job.ref.sleep(None)
        job.worker = None

    def _take(self) -> Worker:
        while True:
            try:
                worker = self._resting.pop()
            except IndexError:
                break
            if worker.lives():
                return worker
            worker.channel.abandon()
            worker.process.reap()
            self._all.discard(worker)
        # The tasks that this worker starts share the machine with those of other workers, so the worker may start only
        # some of the processes.
        share = max(1, self._size // (len(self._all) + 1))
        worker = Worker(next(self._numbers), share, self._method, self._initializer)
        self._all.add(worker)
        if self._ended:
            worker.end()
        return worker

    # ---- the source of its references

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """Let the thread that runs the task do the reading, unless the caller has interrupted that thread."""
        if self.collect_later(ref):
            job = ref.job
            worker = None if job is None else job.worker
            if worker is not None:
                return bool(worker.channel.collect(ref, deadline))
        return False

    def collect_later(self, ref: TaskRef) -> bool:
        """Return whether the caller must read because it has interrupted the thread that runs the task."""
        job = ref.job
        if job is None or get_ident() not in self._serving:
            return False
        # The caller is a finalizer that runs in a thread of the pool.
        worker = job.worker
        if worker is not None:
            return bool(worker.channel.reads_here())
        if not self._idle:
            # No other thread may be free to run the task that this thread waits for, so start another thread.
            self._start_thread()
        self._tokens.put(True)
        return False

    def tell(self, ref: TaskRef, payload: bytes) -> None:
        """Report to the worker which results of a stream were taken."""
        job = ref.job
        worker = None if job is None else job.worker
        if job is not None and worker is not None:
            worker.channel.send(protocol.write(protocol.TAKEN, job.number, payload))

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Cancel a task; see `Engine`."""
        job = ref.job
        if job is None or ref.outcome is not None:
            return False
        if self._take_back(job):
            return True
        if job.function is None:
            # The call is waiting for its arguments.
            job.ref.cancelled = True
            stop(job, TaskCancelledError(task=job.ref.name))
            return True
        if not force:
            return False
        job.ref.cancelled = True
        worker = job.worker
        if worker is not None:
            worker.end()
        return True

    def finish(self) -> None:
        """Let the workers end after all calls. This method never blocks, because a finalizer calls it."""
        self._finishing = True
        for _ in list(self._threads):
            self._tokens.put(False)
        if not self._threads:
            self._let_go()

    def shutdown(self) -> None:
        """End all workers; calls without a result fail."""
        self.end()
        # The call of each thread has ended with its worker, so the thread ends when it receives its token.
        self.join()

    def join(self) -> None:
        """Wait for the end of the threads, after `finish` or `end` and after all calls; at most 30 s."""
        until = time.monotonic() + 30
        me = get_ident()
        while self._threads and self._serving != {me} and time.monotonic() < until:
            time.sleep(0.001)

    def end(self) -> None:
        """End all workers without waiting for them; calls without a result fail."""
        self._ended = self._finishing = True
        for entry in list(self._waiting.values()):
            for _, call, _ in list(entry):
                self._take_back(call.job)
        resting = self._let_go()
        for worker in list(self._all):
            if worker not in resting:
                worker.end()
        for _ in list(self._threads):
            self._tokens.put(False)

    def _let_go(self) -> list[Worker]:
        """Close the pipes of idle workers, which then end."""
        gone: list[Worker] = []
        while True:
            try:
                worker = self._resting.pop()
            except IndexError:
                return gone
            worker.channel.close()
            gone.append(worker)
