"""Test `Executor`, the interface of concurrent.futures to a pool of workers."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from isolated import run

import pyray_ser as ray
from pyray_ser.exceptions import TaskError, WorkerDiedError


@pytest.fixture(autouse=True, scope="module")
def store():
    ray.init(num_workers=2)
    yield
    ray.shutdown()


@pytest.fixture
def executor():
    with ray.Executor(2) as made:
        yield made


def mul(x, y):
    return x * y


def capture(*args, **kwargs):
    return args, kwargs


def hold(path):
    """Create a file to report that the call has started, and return when the file `path` appears."""
    path.with_suffix(".runs").touch()
    while not path.exists():
        time.sleep(0.005)
    return os.getpid()


def wait_for(condition):
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def runs(path):
    wait_for(path.with_suffix(".runs").exists)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def describe_array(array):
    return type(array).__name__, array.flags.writeable, float(array.sum())


def test_it_is_an_executor(executor):
    assert isinstance(executor, futures.Executor)
    assert executor.submit(mul, 21, y=2).result() == 42
    assert executor.submit(os.getpid).result() != os.getpid()
    assert executor.submit(capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
    assert executor.submit(lambda: 5).result() == 5


def test_references_arrive_as_references(executor):
    ref = ray.put(3)
    assert executor.submit(type, ref).result() is ray.ObjectRef
    assert executor.submit(lambda found: ray.get(found), ref).result() == 3


def test_large_arrays_are_read_in_shared_memory(executor):
    array = np.ones(1_000_000)
    assert executor.submit(describe_array, array).result() == ("ndarray", False, 1e6)
    result = executor.submit(np.zeros, 1_000_000).result()
    assert not result.flags.writeable and result.shape == (1_000_000,)
    assert executor.submit(describe_array, np.ones(3)).result() == ("ndarray", False, 3.0)


def test_the_default_number_of_workers_is_that_of_init():
    with ray.Executor() as executor:
        assert executor._max_workers == 2


@pytest.mark.parametrize("number", [0, -1])
def test_max_workers_must_be_positive(number):
    with pytest.raises(TypeError, match="mp_context must be a context"):
        ray.Executor(mp_context="spawn")
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        ray.Executor(number)


@pytest.mark.parametrize("chunksize", [1, 3, 50])
@pytest.mark.parametrize("buffersize", [None, 1, 4])
def test_map_returns_results_in_order(executor, chunksize, buffersize):
    found = executor.map(pow, range(40), range(40), chunksize=chunksize, buffersize=buffersize)
    assert next(found) == 1
    assert list(found) == [n**n for n in range(1, 40)]


def test_map_checks_its_options(executor):
    for options in ({"chunksize": 0}, {"chunksize": -1}, {"buffersize": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            executor.map(pow, [1], [1], **options)
    with pytest.raises(TypeError, match="chunksize must be an int"):
        executor.map(pow, [1], [1], chunksize=1.5)


def test_map_raises_the_error_of_a_call(executor):
    found = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(found) == (0, 1) and next(found) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_map_with_a_buffersize_reads_its_iterable_as_results_are_taken(executor):
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    found = executor.map(abs, items(), buffersize=3)
    assert len(taken) == 3
    assert [next(found) for _ in range(5)] == list(range(5))
    assert len(taken) == 8


def test_map_has_a_timeout(executor, tmp_path):
    found = executor.map(hold, [tmp_path / "a"], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(found)
    (tmp_path / "a").touch()


def test_calls_of_a_dropped_map_are_cancelled(tmp_path):
    with ray.Executor(1) as executor:
        blocked = executor.submit(hold, tmp_path / "go")
        runs(tmp_path / "go")
        found = executor.map(lambda path: path.touch(), [tmp_path / f"{i}" for i in range(5)])
        with pytest.raises(TimeoutError):
            next(executor.map(abs, [1], timeout=0))
        iterator = iter(found)
        threading.Timer(0.1, (tmp_path / "go").touch).start()
        next(iterator)
        blocked.result()
    assert (tmp_path / "0").exists()


def test_states_of_a_future(tmp_path):
    with ray.Executor(1) as executor:
        running = executor.submit(hold, tmp_path / "go")
        pending = executor.submit(mul, 1, 2)
        cancelled = executor.submit(mul, 1, 2)
        runs(tmp_path / "go")
        assert running.running() and not running.cancel() and not running.done()
        assert not pending.running() and not pending.done()
        assert cancelled.cancel() and cancelled.cancelled()
        (tmp_path / "go").touch()
        assert pending.result() == 2
        assert set(futures.wait([running, pending, cancelled]).done) == {running, pending, cancelled}
        with pytest.raises(futures.CancelledError):
            cancelled.result()


def test_errors_are_the_original_exception_with_the_traceback_of_the_worker(executor):
    future = executor.submit(divmod, 1, 0)
    error = future.exception()
    assert type(error) is ZeroDivisionError
    text = "".join(traceback.format_exception(error))
    assert "Traceback (most recent call last)" in text and "ZeroDivisionError" in str(error.__cause__)
    assert type(executor.submit(exit_with, 3).exception()) is SystemExit
    assert executor.submit(mul, 1, 2).result() == 2


def exit_with(status):
    raise SystemExit(status)


class Unpicklable(Exception):
    def __init__(self, lock):
        super().__init__("not to be pickled")
        self.lock = lock


def raise_unpicklable():
    raise Unpicklable(threading.Lock())


def test_an_error_that_cannot_be_pickled_arrives_as_text(executor):
    with pytest.raises(TaskError, match=r"(?s)not to be pickled.*raise_unpicklable"):
        executor.submit(raise_unpicklable).result()


def test_arguments_that_cannot_be_pickled_are_an_error_of_the_future(executor):
    error = executor.submit(mul, 2, [threading.Lock()]).exception()
    assert type(error) is TypeError and "cannot pickle '_thread.lock' object" in str(error)
    assert error.__notes__[-1].startswith("argument 1 of mul: cannot pickle") and "[0]" in error.__notes__[-1]
    lock = threading.Lock()
    error = executor.submit(lambda: lock).exception()
    assert "cannot be pickled" in error.__notes__[-1] and "<lambda>" in error.__notes__[-1]


class RefusesToBePickled:
    def __reduce__(self):
        raise pickle.PicklingError("no")


def test_results_that_cannot_be_pickled_are_an_error_of_the_future(executor):
    with pytest.raises(TypeError, match="result cannot be returned"):
        executor.submit(threading.Lock).result()
    assert executor.submit(mul, 1, 2).result() == 2


def test_a_dead_worker_breaks_the_executor(tmp_path):
    with ray.Executor(2) as executor:
        running = executor.submit(hold, tmp_path / "never")
        runs(tmp_path / "never")
        dying = executor.submit(die)
        pending = [executor.submit(mul, 1, 2) for _ in range(5)]
        error = dying.exception()
        assert type(error) is BrokenProcessPool and isinstance(error, futures.BrokenExecutor)
        assert type(error.__cause__) is WorkerDiedError and "SIGKILL" in str(error)
        assert type(running.exception()) is BrokenProcessPool
        assert {type(future.exception()) for future in pending} <= {BrokenProcessPool, type(None)}
        with pytest.raises(BrokenProcessPool, match="cannot be used any more"):
            executor.submit(mul, 1, 2)
        assert "broken" in repr(executor)


STATUS = "not initialized"


def set_status(value):
    global STATUS
    STATUS = value


def status():
    return STATUS


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_each_worker_calls_the_initializer_first(method):
    context = multiprocessing.get_context(method)
    with ray.Executor(2, mp_context=context, initializer=set_status, initargs=("initialized",)) as executor:
        assert {future.result() for future in [executor.submit(status) for _ in range(4)]} == {"initialized"}


def put(queue, value):
    queue.put(value)


def test_the_initializer_takes_queues_and_locks():
    queue = multiprocessing.Queue()
    with ray.Executor(1, initializer=put, initargs=(queue, "hello")) as executor:
        executor.submit(int).result()
        assert queue.get(timeout=60) == "hello"
    queue.close()
    queue.join_thread()


def test_an_initializer_that_fails_breaks_the_executor():
    with ray.Executor(1, initializer=divmod, initargs=(1, 0)) as executor:
        with pytest.raises(BrokenProcessPool, match="initializer failed") as caught:
            executor.submit(mul, 1, 2).result()
        assert type(caught.value.__cause__) is ZeroDivisionError
        with pytest.raises(futures.BrokenExecutor):
            executor.submit(mul, 1, 2)


def test_shutdown_waits_for_all_calls_and_workers():
    executor = ray.Executor(2)
    found = [executor.submit(time.sleep, 0.02) for _ in range(10)]
    pids = {executor.submit(os.getpid).result()}
    executor.shutdown()
    assert all(future.done() for future in found)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(mul, 1, 2)
    executor.shutdown()


def test_shutdown_without_waiting_lets_the_calls_finish(tmp_path):
    executor = ray.Executor(1)
    found = [executor.submit(hold, tmp_path / "go") for _ in range(2)]
    executor.shutdown(wait=False)
    assert not found[1].done()
    (tmp_path / "go").touch()
    assert len({future.result() for future in found}) == 1


def test_shutdown_cancels_futures_that_did_not_start(tmp_path):
    executor = ray.Executor(1)
    running = executor.submit(hold, tmp_path / "go")
    runs(tmp_path / "go")
    pending = [executor.submit(mul, 1, 2) for _ in range(5)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in pending)
    assert futures.wait(pending, timeout=60).done == set(pending)
    (tmp_path / "go").touch()
    assert running.result()


def test_a_dropped_executor_finishes_its_calls_and_ends_its_workers():
    executor = ray.Executor(1)
    found = executor.submit(os.getpid)
    pid = found.result()
    last = executor.submit(mul, 6, 7)
    del executor
    gc.collect()
    assert last.result() == 42
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))


def test_arguments_are_released_when_they_were_sent(executor):
    class Local:
        def method(self):
            return None

    thing = Local()
    gone = weakref.ref(thing)
    executor.submit(thing.method).result()
    del thing
    wait_for(lambda: gone() is None)


def test_asyncio_runs_calls_in_it(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, mul, i, 2) for i in range(5)))

    assert asyncio.run(main()) == [0, 2, 4, 6, 8]


def test_callbacks_may_submit_and_shut_down():
    executor = ray.Executor(1)
    found, ended = [], threading.Event()

    def again(future):
        found.append(future.result())
        if len(found) < 5:
            executor.submit(os.getpid).add_done_callback(again)
        else:
            last = executor.submit(mul, 6, 7)
            executor.shutdown(wait=True)
            last.add_done_callback(lambda future: ended.set())

    executor.submit(os.getpid).add_done_callback(again)
    assert ended.wait(60)
    assert len(found) == 5 and len(set(found)) == 1


def nested(n):
    with ray.Executor(1) as inner:
        return inner.submit(mul, n, 2).result()


def test_a_call_may_use_an_executor(executor):
    assert list(executor.map(nested, range(2))) == [0, 2]


def test_several_executors_and_tasks_at_the_same_time(executor):
    with ray.Executor(1) as other:
        mine = [executor.submit(mul, i, 1) for i in range(20)]
        others = [other.submit(mul, i, 2) for i in range(20)]
        tasks = [ray.remote(mul).remote(i, 3) for i in range(20)]
        assert [future.result() for future in mine] == list(range(20))
        assert [future.result() for future in others] == [2 * i for i in range(20)]
        assert ray.get(tasks) == [3 * i for i in range(20)]


def test_many_threads_submit(executor):
    with futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: executor.submit(mul, i, 2).result(), range(200)))
    assert found == [2 * i for i in range(200)]


def test_a_forked_child_needs_its_own_executor(executor):
    executor.submit(int).result()
    ours, theirs = multiprocessing.Pipe()

    def child():
        try:
            executor.submit(int)
        except RuntimeError as error:
            theirs.send(str(error))
        executor.shutdown()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert "make an Executor here" in ours.recv()
    process.join()
    assert process.exitcode == 0


@pytest.mark.skipif((3, 12) <= sys.version_info < (3, 12, 2), reason="does not fork while the interpreter ends")
def test_the_interpreter_ends_after_all_calls():
    assert (
        run("""
        import time
        import pyray_ser

        def slow():
            time.sleep(0.5)
            print("done", flush=True)

        executor = pyray_ser.Executor(1)
        executor.submit(slow)
        executor.submit(slow)
        """)
        == "done\ndone"
    )


def test_no_call_is_accepted_when_the_interpreter_has_ended_its_threads():
    assert (
        run("""
        import atexit
        import pyray_ser

        @atexit.register
        def last():
            try:
                executor.submit(int)
            except RuntimeError as error:
                print(error)

        executor = pyray_ser.Executor(1)
        executor.submit(int).result()
        """)
        == "cannot schedule new futures after interpreter shutdown"
    )


def test_a_child_of_multiprocessing_ends_after_all_calls():
    assert (
        run("""
        import multiprocessing, time
        import pyray_ser

        def slow():
            time.sleep(0.3)
            print("done", flush=True)

        def child():
            global executor
            executor = pyray_ser.Executor(1)
            executor.submit(slow)

        if __name__ == "__main__":
            process = multiprocessing.Process(target=child)
            process.start()
            process.join()
            print(process.exitcode)
        """)
        == "done\n0"
    )


def test_shutdown_of_the_package_ends_executors():
    assert run("""
        import time
        import pyray_ser

        executor = pyray_ser.Executor(1)
        running = executor.submit(time.sleep, 1000)
        pending = executor.submit(int)
        while not running.running():
            time.sleep(0.01)
        pyray_ser.shutdown()
        print(type(running.exception()).__name__, pending.cancelled() or type(pending.exception()).__name__)
        """) in ("BrokenProcessPool True", "BrokenProcessPool BrokenProcessPool")
