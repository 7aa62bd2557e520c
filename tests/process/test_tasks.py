"""Test remote functions: results, references as arguments, errors, cancellation, and workers that die."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
from isolated import run

import pyray_ser as ray
from pyray_ser._core import pack
from pyray_ser.exceptions import (
    GetTimeoutError,
    ObjectFreedError,
    SerializationError,
    TaskCancelledError,
    TaskError,
    WorkerDiedError,
)
from pyray_ser.tasks.refs import TaskRef


@pytest.fixture(autouse=True, scope="module")
def pool():
    ray.init(num_workers=2)
    yield
    ray.shutdown()


@ray.remote
def add(a, b=0):
    return a + b


@ray.remote
def nap(seconds, value=None):
    time.sleep(seconds)
    return value


@ray.remote
def hold(path):
    """Create a file to report that the call has started, and return when the file `path` appears."""
    path.with_suffix(".runs").touch()
    while not path.exists():
        time.sleep(0.005)


def runs(path):
    end = time.monotonic() + 240
    while not path.with_suffix(".runs").exists():
        assert time.monotonic() < end, "it has not started"
        time.sleep(0.005)


@ray.remote
def write(array):
    array[0] = 1
    return array


@ray.remote
def fail(error):
    raise error


@ray.remote
def pid():
    return os.getpid()


@ray.remote
def kind(*values, **named):
    return [type(value).__name__ for value in values], {key: type(value).__name__ for key, value in named.items()}


def test_runs_in_another_process():
    assert ray.get(pid.remote()) != os.getpid()
    assert ray.get(add.remote(1, b=2)) == 3
    assert ray.get([add.remote(i, i) for i in range(50)]) == [2 * i for i in range(50)]


def test_large_arguments_and_results_go_through_the_store():
    array = np.arange(500_000)
    ref = add.remote(array, 1)
    result = ray.get(ref)
    assert (result == array + 1).all() and not result.flags.writeable
    assert type(ref.outcome) is ray.ObjectRef
    assert ray.get(ref) is not result and (ray.get(ref) == result).all()


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_array_arguments_are_read_only(size):
    with pytest.raises(ValueError, match="assignment destination is read-only"):
        ray.get(write.remote(np.zeros(size)))

    @ray.remote
    def write_copy(array):
        array = array.copy()
        array[0] = 1
        return array

    assert ray.get(write_copy.remote(np.zeros(size)))[0] == 1


def test_references_as_arguments():
    stored = ray.put(np.ones(100_000))
    pending = nap.remote(0.1, 5)
    assert ray.get(kind.remote(stored, pending, [stored, pending], key=stored, other=[pending])) == (
        ["ndarray", "int", "list"],
        {"key": "ndarray", "other": "list"},
    )

    @ray.remote
    def inner(refs):
        return [type(ref).__name__ for ref in refs], [ray.get(ref) for ref in refs]

    names, values = ray.get(inner.remote([stored, nap.remote(0.2, 7), add.remote(1, 2)]))
    assert names == ["ObjectRef", "TaskRef", "TaskRef"]
    assert values[0].shape == (100_000,) and values[1:] == [7, 3]


def test_a_chain_of_pending_references():
    ref = nap.remote(0.05, 0)
    for _ in range(20):
        ref = add.remote(ref, 1)
    assert ray.get(ref, timeout=240) == 20


def test_arguments_are_taken_at_the_call():
    values = [1]
    waits = nap.remote(0.2, 1)

    @ray.remote
    def first(values, _):
        return values[0]

    ref = first.remote(values, waits)
    values[0] = 2
    assert ray.get(ref) == 1


def test_get_of_mixed_lists_and_timeout(tmp_path):
    stored = ray.put(1)
    assert ray.get([stored, add.remote(1, 1), stored]) == [1, 2, 1]
    ref = hold.remote(tmp_path / "held")
    with pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0.1)
    with pytest.raises(GetTimeoutError):
        ray.get([stored, ref], timeout=0)
    (tmp_path / "held").touch()
    assert ray.get(ref) is None
    with pytest.raises(ValueError, match="timeout"):
        ray.get(ref, timeout=-1)
    with pytest.raises(TypeError, match="holds 'int'"):
        ray.get([ref, 3])
    writable = ray.get(write.remote(np.zeros(3)) if False else add.remote(np.zeros(3), 1), mmap_mode="c")
    writable[0] = 9
    assert writable[0] == 9


def test_wait():
    refs = [nap.remote(0.6, 1), nap.remote(0.05, 2), ray.put(3)]
    ready, rest = ray.wait(refs, num_returns=2, timeout=240)
    assert ready == refs[1:] and rest == refs[:1]
    ready, rest = ray.wait(refs, num_returns=3, timeout=0.01)
    assert len(ready) == 2
    assert ray.wait(refs, num_returns=3) == (refs, [])
    buffer = ray.create(8)
    threading.Timer(0.1, lambda: ray.seal(buffer)).start()
    slow = nap.remote(1)
    assert ray.wait([slow, buffer.obj.ref], timeout=240)[0] == [buffer.obj.ref]
    ray.get(slow)


@pytest.mark.parametrize("timeout", [float("inf"), 1e10])
def test_timeouts_that_never_come(timeout):
    for take in (
        lambda ref: ray.get(ref, timeout=timeout),
        lambda ref: ray.wait([ref, ray.put(1)], num_returns=2, timeout=timeout),
        lambda ref: ray.wait([ref], timeout=timeout),
    ):
        assert take(nap.remote(0.2, 3))
    stream = nap.options(stream=True).remote(0.2, [5])
    assert ray.get(stream.next(timeout=timeout)) == 5


def test_who_waits_again_and_again_leaves_nothing_behind():
    pending, ready = TaskRef("pending"), add.remote(1, 1)
    ray.get(ready)
    kept = threading.Event()
    pending.add_done_callback(lambda _: kept.set())
    for _ in range(3):
        assert ray.wait([pending, ready], num_returns=2, timeout=0.01) == ([ready], [pending])
        with pytest.raises(GetTimeoutError):
            ray.get(pending, timeout=0.01)
    assert len(pending._callbacks) == 1
    pending.settle(pack(1))
    assert kept.is_set() and ray.wait([pending, ready], num_returns=2)[1] == []


def test_await_and_future():
    async def main():
        values = await asyncio.gather(*(add.remote(i, 1) for i in range(5)))
        with pytest.raises(ZeroDivisionError):
            await fail.remote(ZeroDivisionError("x"))
        return values, await nap.remote(0.05, 4)

    assert asyncio.run(main()) == ([1, 2, 3, 4, 5], 4)
    assert add.remote(2, 2).future().result(timeout=240) == 4


class Custom(Exception):
    def __init__(self, code, *, hint):
        super().__init__(code, hint)
        self.code = code
        self.hint = hint

    def __reduce__(self):
        return _custom, (self.code, self.hint)


def _custom(code, hint):
    return Custom(code, hint=hint)


def test_errors_are_of_both_types():
    for error in (
        ValueError("wrong", 3),
        KeyError("k"),
        ZeroDivisionError(),
        Custom(7, hint="h"),
        AssertionError("no"),
    ):
        with pytest.raises(TaskError) as caught:
            ray.get(fail.remote(error))
        assert isinstance(caught.value, type(error)) and caught.value.args == error.args
        assert "in fail\n    raise error" in str(caught.value) and "fail" in caught.value.task
        assert type(caught.value.cause) is type(error) and caught.value.pid != os.getpid()
        assert "worker.py" not in caught.value.remote_traceback
        again = pickle.loads(pickle.dumps(caught.value))
        assert isinstance(again, TaskError) and isinstance(again, type(error)) and str(again) == str(caught.value)
    with pytest.raises(OSError) as caught:
        ray.get(fail.remote(FileNotFoundError(2, "gone", "name")))
    assert caught.value.errno == 2 and caught.value.filename == "name" and isinstance(caught.value, TaskError)
    with pytest.raises(UnicodeDecodeError) as caught:
        ray.get(fail.remote(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")))
    assert caught.value.start == 0 and caught.value.reason == "bad"
    with pytest.raises(Custom) as caught:
        ray.get(fail.remote(Custom(7, hint="h")))
    assert caught.value.code == 7 and caught.value.hint == "h"


class Peculiar(Exception):
    """An exception that cannot be created from its `args` alone, and whose `str` is empty."""

    def __new__(cls, code, hint):
        return super().__new__(cls, code)

    def __init__(self, code, hint):
        super().__init__(code)
        self.hint = hint

    def __reduce__(self):
        return Peculiar, (self.args[0], self.hint)

    def __str__(self):
        raise RuntimeError("no text")


@ray.remote
def fail_with_both():
    raise BaseExceptionGroup("both", [KeyboardInterrupt()])


def test_errors_whose_types_are_hard_to_mix_with_ours():
    with pytest.raises(MemoryError) as caught:
        ray.get(fail.remote(MemoryError("no room")))
    assert isinstance(caught.value, TaskError) and caught.value.args == ("no room",)
    assert "raise error" in caught.value.remote_traceback
    with pytest.raises(Peculiar) as caught:
        ray.get(fail.remote(Peculiar(7, "h")))
    assert isinstance(caught.value, TaskError) and caught.value.args == (7,) and caught.value.hint == "h"
    with pytest.raises(TaskError, match="whose __str__ fails"):
        ray.get(fail.remote(Peculiar(7, "h")))
    with pytest.raises(TaskError, match="both") as caught:
        ray.get(fail_with_both.remote())
    assert type(caught.value.cause) is BaseExceptionGroup


def test_errors_that_would_end_the_caller_only_report():
    for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
        with pytest.raises(TaskError) as caught:
            ray.get(fail.remote(error))
        assert type(caught.value) is TaskError and type(caught.value.cause) is type(error)


def test_an_error_that_cannot_be_pickled_brings_its_text():
    @ray.remote
    def bad():
        class Holds(Exception):
            def __init__(self):
                super().__init__("it holds a lock")
                self.lock = threading.Lock()

        raise Holds

    with pytest.raises(TaskError, match="it holds a lock") as caught:
        ray.get(bad.remote())
    assert caught.value.cause is None and "Holds" in str(caught.value) and "in bad" in caught.value.remote_traceback


def test_the_same_error_is_raised_by_each_get_and_passes_through_tasks():
    ref = fail.remote(ValueError("once"))
    for _ in range(2):
        with pytest.raises(ValueError, match="once") as caught:
            ray.get(ref)
        assert len(caught.value.__traceback__.tb_next.tb_frame.f_code.co_name) > 0
    with pytest.raises(ValueError, match="once"):
        ray.get(add.remote(ref, 1))

    @ray.remote
    def outer(refs):
        return ray.get(refs[0])

    with pytest.raises(ValueError, match="once") as caught:
        ray.get(outer.remote([ref]))
    assert isinstance(caught.value, TaskError) and "in fail" in str(caught.value)


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(SerializationError, match=r"argument 1 of .*add.*lock.*\['k'\]\[1\]"):
        add.remote(1, {"k": [0, threading.Lock()]})
    with pytest.raises(SerializationError, match="argument 'b' of add"):
        add.remote(1, b=threading.Lock())

    @ray.remote
    def returns():
        return {"model": [threading.Lock()]}

    with pytest.raises(TypeError, match=r"result cannot be returned.*\['model'\]\[0\]"):
        ray.get(returns.remote())
    lock = threading.Lock()

    @ray.remote
    def closes_over():
        return lock

    with pytest.raises(SerializationError, match=r"remote function .*closes_over.*lock"):
        closes_over.remote()


def test_cancel(tmp_path):
    paths = [tmp_path / "one", tmp_path / "other"]
    blockers = [hold.remote(path) for path in paths]
    for path in paths:
        runs(path)
    queued = add.remote(1, 1)
    waits = add.remote(blockers[0], 1)
    assert ray.cancel(queued) and ray.cancel(waits)
    for ref in (queued, waits):
        with pytest.raises(TaskCancelledError):
            ray.get(ref)
    assert not ray.cancel(queued)
    assert not ray.cancel(blockers[0])
    for path in paths:
        path.touch()
    ray.get(blockers)
    running = hold.remote(tmp_path / "never")
    runs(tmp_path / "never")
    assert not ray.cancel(running)
    assert ray.cancel(running, force=True)
    with pytest.raises(TaskCancelledError):
        ray.get(running, timeout=240)
    assert ray.get(add.remote(1, 1)) == 2


def test_a_killed_worker_is_named_and_the_pool_goes_on():
    @ray.remote
    def die(number):
        os.kill(os.getpid(), number)
        time.sleep(5)

    others = [nap.remote(0.3, i) for i in range(4)]
    with pytest.raises(WorkerDiedError, match=r"SIGKILL.*before it finished .*die") as caught:
        ray.get(die.remote(signal.SIGKILL), timeout=240)
    assert caught.value.signal == signal.SIGKILL and "memory" in str(caught.value)
    with pytest.raises(WorkerDiedError, match="SIGTERM"):
        ray.get(die.remote(signal.SIGTERM), timeout=240)
    assert ray.get(others) == [0, 1, 2, 3]

    @ray.remote
    def leave():
        os._exit(3)

    with pytest.raises(WorkerDiedError, match="status 3"):
        ray.get(leave.remote(), timeout=240)
    assert ray.get([add.remote(i) for i in range(10)]) == list(range(10))


def test_max_retries(tmp_path):
    @ray.remote(max_retries=2)
    def dies_twice(path):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.path.getsize(path)

    assert ray.get(dies_twice.remote(str(tmp_path / "count")), timeout=240) == 3
    with pytest.raises(WorkerDiedError):
        ray.get(dies_twice.options(max_retries=0).remote(str(tmp_path / "other")), timeout=240)


def test_nested_tasks():
    @ray.remote
    def fib(n):
        if n < 2:
            return n
        return sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert ray.get(fib.remote(4), timeout=60) == 3


def test_a_reference_returned_by_a_task():
    @ray.remote
    def hands_on():
        return [ray.put(np.arange(1000)), add.remote(2, 3)]

    stored, made = ray.get(hands_on.remote())
    assert ray.get(stored).sum() == 499500
    assert ray.get(made, timeout=240) == 5


def test_streams():
    @ray.remote
    def count(n):
        for i in range(n):
            time.sleep(0.01)
            yield np.full(10_000, i)

    # The generator has more items than it may compute ahead of the reader, so the generator still runs after the
    # first result.
    stream = count.remote(40)
    first = ray.get(next(stream))
    assert first[0] == 0 and repr(stream).startswith("ResultStream") and "ended" not in repr(stream)
    assert [ray.get(ref)[0] for ref in stream] == list(range(1, 40))
    assert list(stream) == []

    @ray.remote
    def breaks():
        yield 1
        raise ValueError("halfway")

    refs = list(breaks.remote())
    assert ray.get(refs[0]) == 1
    with pytest.raises(ValueError, match="halfway"):
        ray.get(refs[1])

    async def main():
        return [await ref async for ref in count.remote(3)]

    assert [array[0] for array in asyncio.run(main())] == [0, 1, 2]
    assert [ray.get(ref) for ref in add.options(stream=True).remote([1, 2], [3])] == [1, 2, 3]


@ray.remote
def numbers(path, count, size):
    for i in range(count):
        with open(path, "a") as file:
            file.write("x")
        yield np.full(size, i)


@pytest.mark.parametrize(("size", "ahead"), [(10, 16), (100_000, 16), (4_000_000, 3)])
def test_a_stream_is_only_so_far_ahead_of_its_reader(tmp_path, size, ahead):
    path = tmp_path / "made"
    stream = numbers.remote(str(path), 60, size)
    seen = []
    for i, ref in enumerate(stream):
        seen.append(int(ray.get(ref)[0]))
        if i in (0, 20):
            time.sleep(0.5)
            # The generator computes one item beyond its limit, and this item waits to be sent. The worker reports
            # small items in groups of eight.
            assert i < path.stat().st_size <= i + 1 + ahead + 8, path.stat().st_size
        del ref
    assert seen == list(range(60))
    if size >= 100_000:
        assert ray.stats()["used"] < 100 << 20


def test_a_stream_whose_end_is_waited_for_runs_to_its_end(tmp_path):
    stream = numbers.remote(str(tmp_path / "made"), 100, 1000)
    assert ray.get(stream.ref, timeout=60) is None
    assert len(list(stream)) == 100


@ray.remote
def endless(path):
    try:
        while True:
            yield 1
    finally:
        path.touch()


@pytest.mark.parametrize("taken", [0, 1, 20])
def test_a_dropped_stream_closes_its_generator(tmp_path, taken):
    streams = [endless.remote(tmp_path / str(i)) for i in range(4)]
    for stream in streams[:2]:
        for _ in range(taken):
            assert ray.get(next(stream)) == 1
    del stream, streams
    assert ray.get([pid.remote() for _ in range(4)], timeout=60)
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 4:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_free_and_contains(size):
    ref, later = add.remote(np.ones(size)), nap.remote(0.5, np.ones(size))
    assert not ray.contains(later)
    ray.get(ref)
    assert ray.contains(ref)
    kept = ray.put(np.ones(1000))
    ray.free([ref, kept, later])
    assert not ray.contains(ref) and not ray.contains(kept)
    for freed in (ref, kept):
        with pytest.raises(ObjectFreedError):
            ray.get(freed)
    ray.wait([later], timeout=240)
    with pytest.raises(ObjectFreedError):
        ray.get(later, timeout=240)
    with pytest.raises(TypeError, match="free"):
        ray.free([ref, 3])
    with pytest.raises(TypeError, match="contains"):
        ray.contains(3)


def test_num_returns():
    pair = add.options(num_returns=2).remote((1,), (2,))
    assert len(pair) == 2 and ray.get(pair) == [1, 2]
    with pytest.raises(ValueError, match="3 values"):
        ray.get(add.options(num_returns=3).remote((1,), (2,)))


def test_options_are_checked():
    for options in ({"num_cpus": 2}, {"max_retries": -1}, {"num_returns": 0}, {"name": 3}, {"stream": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            add.options(**options)
    with pytest.raises(TypeError, match=r"add\.remote"):
        add(1, 2)
    assert add.local(1, 2) == 3
    with pytest.raises(TypeError):
        ray.remote(3)
    with pytest.raises(ValueError, match="while the pool runs"):
        ray.init(num_workers=7)


def test_no_object_is_left():
    # The script runs in a new process, so its workers inherit no references of earlier tests.
    script = """
    import time, numpy as np, pyray_ser as ray
    @ray.remote
    def add(a, b): return a + b
    if __name__ == "__main__":
        ray.init(num_workers=2)
        ray.get([add.remote(1, 1) for _ in range(8)])
        before = ray.stats()["objects"]
        stored = ray.put(np.ones(100_000))
        refs = [add.remote(np.ones(50_000), i) for i in range(10)] + [add.remote(stored, [stored] and 1)]
        refs += [add.remote(ref, 1) for ref in refs] + [add.remote([1], [ref]) for ref in refs]
        ray.get(refs)
        del refs, stored
        end = time.monotonic() + 240
        while ray.stats()["objects"] > before and time.monotonic() < end:
            time.sleep(0.02)
        stats = ray.stats()
        print(stats["objects"] - before, stats["in_flight"], stats["edges"])
    """
    assert run(script) == "0 0 0"


def test_registered_serializers_are_local_to_each_process():
    script = """
    import threading, pyray_ser as ray
    class Holder:
        def __init__(self, number):
            self.number, self.lock = number, threading.Lock()
    @ray.remote
    def number(holder): return holder.number
    @ray.remote
    def make(): return Holder(1)
    if __name__ == "__main__":
        ray.init(start_method="spawn", num_workers=1)
        try:
            number.remote(Holder(1))
        except TypeError as error:
            assert "lock" in str(error)
        ray.util.register_serializer(Holder, serializer=lambda h: h.number, deserializer=lambda n: Holder(n))
        assert ray.get(number.remote(Holder(5))) == 5
        try:
            ray.get(make.remote())
        except TypeError as error:
            assert "lock" in str(error)
        else:
            raise SystemExit("the worker knows the driver's serializer")
        print("as documented")
    """
    assert run(script) == "as documented"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_start_methods(method):
    script = f"""
    import numpy as np, os, pyray_ser as ray
    @ray.remote
    def double(x): return x * 2
    @ray.remote
    class Counter:
        def __init__(self): self.n = 0
        def add(self, k): self.n += k; return self.n
    if __name__ == "__main__":
        ray.init(start_method="{method}", num_workers=2)
        assert ray.get(double.remote(np.ones(200_000)))[0] == 2
        counter = Counter.remote()
        print(ray.get([counter.add.remote(i) for i in range(5)])[-1])
    """
    assert run(script) == "10"


def test_without_new_threads_the_workers_end_all_the_same():
    """Since Python 3.12 no thread can start during exit, so the thread that reaps workers may be missing then."""
    script = """
    import os, threading, pyray_ser as ray
    from pyray_ser.tasks import collector
    def refuse(*arguments): raise RuntimeError("can't create new thread at interpreter shutdown")
    if __name__ == "__main__":
        ray.init(start_method="spawn", num_workers=1)
        pid = ray.get(ray.remote(os.getpid).remote())
        assert collector._collector is None
        collector.start_new_thread = refuse
        ray.shutdown()
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            print("gone", collector._collector)
        # At any other time nobody would do its work.
        before = len(os.listdir("/proc/self/fd"))
        try:
            collector.collector()
        except RuntimeError as error:
            print(error, len(os.listdir("/proc/self/fd")) - before, collector._collector)
    """
    assert run(script) == "gone None\ncan't create new thread at interpreter shutdown 0 None"
