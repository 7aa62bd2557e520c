"""Tasks on this node: a thread pool of the standard library, each of whose threads has a worker process at its side.

The queue, the order, the futures and their cancelling are `concurrent.futures.ThreadPoolExecutor`'s. What is added here is
that a thread passes what it runs on to a process, and that the death of one process fails one task: the next one finds a
new process.
"""

from __future__ import annotations

from _thread import allocate_lock
from concurrent.futures import ThreadPoolExecutor

from ..exceptions import TaskCancelledError
from . import protocol, settings
from .call import Call, stop
from .channel import Channel, Job, fail
from .function import Function
from .process import Process
from .refs import TaskRef

__all__ = ["Pool"]


class Worker:
    """A worker process at rest or running one task."""

    def __init__(self, number: int, share: int) -> None:
        self.process = Process(f"pyray_ser-worker-{number}", settings.start_method(), settings.passed_on(share))
        self.lost: list[Job] = []
        self.channel = Channel(self.process, lambda channel, jobs: self.lost.extend(jobs))
        # Numbers of the functions that it was told.
        self.known: set[int] = set()
        self._rest = self.process.poller()

    def lives(self) -> bool:
        """Tell whether it is there; one at rest has nothing to say."""
        return not self.channel.dead and not self._rest.poll(0)


class _Idle:
    """
    Counts the threads of an executor that have nothing to do.

    Stands in for its `threading.Semaphore`, whose lock is made of Python: Ctrl-C in the middle of `submit` could leave it locked,
    and the threads would wait for it for ever, and the end of the interpreter for them.
    """

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take one if there is one; an executor asks without waiting."""
        with self._lock:
            taken = self._count > 0
            self._count -= taken
            return taken

    def release(self) -> None:
        """Add one."""
        with self._lock:
            self._count += 1


class Pool:
    """Runs tasks in `settings.num_workers()` processes, started as they are needed."""

    def __init__(self) -> None:
        self._size = settings.num_workers()
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="pyray_ser-task")
        vars(self._threads)["_idle_semaphore"] = _Idle()
        self._lock = allocate_lock()
        # Jobs that no thread has begun, by number.
        self._waiting: dict[int, Job] = {}
        self._resting: list[Worker] = []
        self._all: set[Worker] = set()
        self._started = 0
        self._ended = False

    def submit(self, function: Function, call: Call, max_retries: int) -> None:
        """Run a call; see `Engine`."""
        job = call.job
        self._waiting[job.number] = job
        try:
            future = job.future = self._threads.submit(self._run, function, call, max_retries)
        except RuntimeError:
            # shut down
            self._take_back(job)
            return
        # No callback of the future's: it has a lock made of Python, which Ctrl-C at the wrong moment would leave locked.
        if self._ended and future.cancelled():
            self._take_back(job)
        if job.ref.outcome is not None:
            # It was over before its future was known here.
            job.future = None

    def _take_back(self, job: Job) -> None:
        self._waiting.pop(job.number, None)
        stop(job, TaskCancelledError(task=job.ref.name))

    # ---- in a thread of the pool

    def _run(self, function: Function, call: Call, max_retries: int) -> None:
        job = call.job
        self._waiting.pop(job.number, None)
        try:
            if job.ref.cancelled:
                stop(job, TaskCancelledError(task=job.ref.name))
                return
            if not call.ready():
                return
            for _ in range(max_retries + 1):
                worker = self._take()
                self._run_in(worker, function, job)
                if not worker.lost:
                    self._give_back(worker)
                    return
                # In a cycle with its channel: until it is collected, it would keep the arguments.
                worker.lost.clear()
                with self._lock:
                    self._all.discard(worker)
                if job.ref.cancelled or self._ended:
                    break
                # Several results that have come once must not come twice.
                if job.stream is not None:
                    break
            fail([job], worker.process.died)
        except BaseException as error:
            stop(job, error)
        finally:
            # The future knows the job: a cycle would keep the result until the next collection.
            job.future = None

    def _run_in(self, worker: Worker, function: Function, job: Job) -> None:
        worker.lost.clear()
        job.worker = worker
        if job.ref.cancelled:
            # Between the look above and this: cancel() did not see the worker.
            worker.process.kill()
        if function.number not in worker.known:
            worker.known.add(function.number)
            worker.channel.send(function.frame)
        worker.channel.submit(job)
        while job.ref.outcome is None and not worker.lost:
            worker.channel.collect(job.ref, None)
        job.worker = None

    def _take(self) -> Worker:
        while True:
            with self._lock:
                worker = self._resting.pop() if self._resting else None
            if worker is None:
                break
            if worker.lives():
                return worker
            worker.channel.death()
            with self._lock:
                self._all.discard(worker)
        with self._lock:
            self._started += 1
            number, busy = self._started, len(self._all) + 1
        # A worker's own tasks share the machine with those of the others.
        worker = Worker(number, max(1, self._size // busy))
        with self._lock:
            self._all.add(worker)
            ended = self._ended
        if ended:
            worker.process.kill()
        return worker

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            self._resting.append(worker)

    # ---- the source of its references

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """Leave the reading to the thread that runs the task."""
        return False

    def collect_later(self, ref: TaskRef) -> None:
        """Do nothing: the thread that runs the task reads."""

    def tell(self, ref: TaskRef, payload: bytes) -> None:
        """Tell the worker what of a stream was taken."""
        job = ref.job
        worker = None if job is None else job.worker
        if job is not None and worker is not None:
            worker.channel.send(protocol.write(protocol.TAKEN, job.number, payload))

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Cancel a task; see `Engine`."""
        job = ref.job
        if job is None or ref.outcome is not None:
            return False
        if job.future is None or job.future.cancel():
            # Waiting for its arguments, or for a thread.
            job.ref.cancelled = True
            self._take_back(job)
            return True
        if not force:
            return False
        job.ref.cancelled = True
        worker = job.worker
        if worker is not None:
            worker.process.kill()
        return True

    def shutdown(self) -> None:
        """End all workers; what has no result by then fails."""
        self._ended = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for job in list(self._waiting.values()):
            if job.future is not None and job.future.cancelled():
                self._take_back(job)
        with self._lock:
            workers = list(self._all)
            resting, self._resting = self._resting, []
        for worker in workers:
            if worker in resting:
                worker.process.close()
            else:
                worker.process.kill()
        self._threads.shutdown(wait=True)


def started() -> bool:
    """Tell whether there is a pool, or another engine, already."""
    from . import engine

    return engine.started()
