"""Test actors: call order, state, restarts, handles in other processes, coroutines, and cleanup at their end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import threading
import time

import numpy as np
import pytest
from hygiene import descendants
from isolated import run

import pyray_ser as ray
from pyray_ser._core import pack
from pyray_ser.exceptions import TaskCancelledError, TaskError, WorkerDiedError
from pyray_ser.tasks.channel import collector
from pyray_ser.tasks.refs import TaskRef


@pytest.fixture(autouse=True, scope="module")
def pool():
    ray.init(num_workers=2)
    yield
    ray.shutdown()


@ray.remote
class Counter:
    """Count calls."""

    def __init__(self, start=0):
        self.count = start

    def add(self, by=1):
        self.count += by
        return self.count

    def sleep(self, seconds):
        time.sleep(seconds)
        return self.count

    def hold(self, path):
        path.with_suffix(".runs").touch()
        while not path.exists():
            time.sleep(0.005)
        return self.count

    def pid(self):
        return os.getpid()

    def fail(self):
        raise ValueError(f"at {self.count}")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)

    def numbers(self, n):
        for i in range(n):
            yield i + self.count

    def keep(self, value):
        self.kept = value
        return type(value).__name__

    def ask(self, method, *args):
        return ray.get(getattr(self.kept, method).remote(*args))


def gone(pid: int, patience: float = 60.0) -> bool:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if pid not in descendants(os.getpid()):
            return True
        time.sleep(0.02)
    return False


def test_calls_run_in_order_and_state_is_kept():
    counter = Counter.remote(10)
    assert ray.get([counter.add.remote() for _ in range(500)]) == list(range(11, 511))
    assert ray.get(counter.pid.remote()) != os.getpid()
    other = Counter.remote()
    assert ray.get(other.add.remote()) == 1 and ray.get(counter.add.remote()) == 511
    assert ray.get(other.pid.remote()) != ray.get(counter.pid.remote())


def test_a_call_that_waits_for_its_argument_keeps_its_place():
    @ray.remote
    def slowly(value):
        time.sleep(0.3)
        return value

    counter = Counter.remote()
    first = counter.add.remote(slowly.remote(100))
    second = counter.add.remote(1)
    assert ray.get([second, first]) == [101, 100]


@ray.remote
def same(value):
    return value


def in_thread(wait):
    """Call `wait` in a new thread; return a future of its result."""
    from concurrent.futures import Future

    result = Future()

    def work():
        try:
            result.set_result(wait())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result


def poll(look):
    end = time.monotonic() + 240
    while not look():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


async def awaited(ref):
    return await ref


@pytest.mark.parametrize("how", ["get", "await", "future", "wait", "stream", "argument", "wait 0", "get 0", "done"])
def test_a_call_that_waited_for_its_argument_is_answered_however_one_waits_for_it(how):
    counter, argument = Counter.remote(), TaskRef("argument")
    assert ray.get(counter.add.remote(0)) == 0
    if how == "stream":
        stream = counter.numbers.remote(argument)
        result = in_thread(lambda: ray.get(stream.next(timeout=60)))
    else:
        ref = counter.add.remote(argument)
        started = {
            "get": lambda: in_thread(lambda: ray.get(ref, timeout=60)),
            "await": lambda: in_thread(lambda: asyncio.run(awaited(ref))),
            "future": ref.future,
            "wait": lambda: in_thread(lambda: ray.wait([ref], timeout=60)),
            "argument": lambda: same.remote(ref).future(),
        }
        result = started[how]() if how in started else None
    # Give the threads time to block; without this pause, some of them would not wait yet.
    time.sleep(0.2)
    argument.settle(pack(7))
    if how == "wait 0":
        poll(lambda: ray.wait([ref], timeout=0)[0])
    elif how == "get 0":
        poll(lambda: got(ref))
    elif how == "done":
        poll(ref.done)
    else:
        expected = {"stream": 0, "wait": ([ref], []) if how == "wait" else None}.get(how, 7)
        assert result.result(timeout=240) == expected


def got(ref):
    try:
        return ray.get(ref, timeout=0)
    except TimeoutError:
        return None


def test_a_call_that_nobody_else_follows_is_found_by_polling():
    counter = Counter.remote()
    for ask in (lambda ref: ray.wait([ref], timeout=0)[0], TaskRef.done, got):
        ref = counter.add.remote()
        poll(lambda ask=ask, ref=ref: ask(ref))


class Ouch(BaseException):
    pass


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, Ouch])
def test_a_callback_that_fails_is_logged_and_stops_nothing(error, caplog):
    def fails(_):
        raise error("of the callback")

    counter, others = Counter.remote(), []
    argument = TaskRef("argument")
    ref = counter.add.remote(argument)
    for callback in (others.append, fails, others.append, fails, others.append):
        ref.add_done_callback(callback)
    after = [counter.add.remote().future() for _ in range(3)]
    with caplog.at_level(logging.ERROR, "pyray_ser"):
        argument.settle(pack(5))
        assert [future.result(timeout=240) for future in after] == [6, 7, 8]
    assert others == [ref] * 3
    records = [record for record in caplog.records if record.name == "pyray_ser"]
    assert len(records) == 2 and all(record.exc_info[0] is error for record in records)
    assert "Counter.add" in caplog.text and "of the callback" in caplog.text
    assert counter.add.remote().future().result(timeout=240) == 9


def test_a_callback_on_a_settled_reference_may_fail_too(caplog):
    ref = Counter.remote().add.remote()
    assert ray.get(ref) == 1
    ref.add_done_callback(lambda _: 1 / 0)
    assert "ZeroDivisionError" in caplog.text
    # Ctrl-C reaches the program after all callbacks have run.
    others, other = [], TaskRef("other")

    def interrupt(_):
        raise KeyboardInterrupt

    for callback in (others.append, interrupt, others.append):
        other.add_done_callback(callback)
    with pytest.raises(KeyboardInterrupt):
        other.settle(pack(1))
    assert others == [other, other]


def test_a_chore_that_fails_is_logged_and_does_not_end_the_collector(caplog):
    done = threading.Event()

    def fails():
        raise SystemExit("a chore")

    collector().repeat(fails)
    collector().repeat(done.set)
    assert done.wait(240) and "a chore" in caplog.text
    future = Counter.remote().add.remote().future()
    assert future.result(timeout=240) == 1


def test_an_error_in_a_stream_does_not_end_the_collector(caplog):
    counter = Counter.remote()
    argument = TaskRef("argument")
    stream = counter.numbers.remote(argument)
    ref = stream.ref

    class Fails:
        def notice(self):
            raise ValueError("taken badly")

    ref.job.stream = Fails()
    future, after = ref.future(), counter.add.remote().future()
    argument.settle(pack(2))
    assert after.result(timeout=240) == 1 and future.result(timeout=240) is None
    assert "taken badly" in caplog.text


class Holds(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


@pytest.mark.parametrize("cancels", [False, True])
def test_a_call_from_elsewhere_that_comes_before_the_actor_is_made_waits(cancels, tmp_path):
    @ray.remote
    def gate(path):
        while not path.exists():
            time.sleep(0.005)
        return 5

    @ray.remote
    def use(handle, path):
        refs = [handle.add.remote() for _ in range(3)]
        if cancels:
            taken = refs.pop(1)
            ray.cancel(taken)  # the request may arrive too late, so the test does not check the result
            with pytest.raises(TaskCancelledError):
                ray.get(taken)
        else:
            time.sleep(0.3)  # so that the references wait before the actor exists
        path.touch()
        return ray.get(refs)

    counter = Counter.remote(gate.remote(tmp_path / "go"))
    assert ray.get(use.remote(counter, tmp_path / "go"), timeout=60) == ([6, 7] if cancels else [6, 7, 8])
    assert ray.get(counter.add.remote(), timeout=60) == 8 + (not cancels)


@pytest.mark.parametrize("reason", ["raised", "cancelled", "unpicklable"])
def test_an_argument_of_an_actor_that_fails_is_the_error_of_every_call(reason, tmp_path):
    @ray.remote
    def bad(path):
        while not path.exists():
            time.sleep(0.005)
        raise RuntimeError("the argument of it")

    @ray.remote
    def use(handle):
        return ray.get(handle.add.remote())

    kind = {"raised": RuntimeError, "cancelled": TaskCancelledError, "unpicklable": TaskError}[reason]
    argument = TaskRef("argument") if reason == "unpicklable" else bad.remote(tmp_path / "go")
    counter = Counter.remote(argument)
    before = [counter.add.remote(), counter.add.remote()]
    if reason == "raised":
        (tmp_path / "go").touch()
    elif reason == "cancelled":
        assert ray.cancel(argument, force=True) or argument.done()
    else:
        argument.settle(Holds("the argument of it"))
    match = "cancelled" if reason == "cancelled" else "the argument of it"
    for ref in before:
        with pytest.raises(kind, match=match):
            ray.get(ref, timeout=60)
    # Later calls fail in the same way, also from another process.
    for ref in (counter.add.remote(), use.remote(counter)):
        with pytest.raises(kind, match=match):
            ray.get(ref, timeout=60)


def test_the_cup():
    # The actor runs three calls in order, although one argument takes 2 s to load; the caller continues meanwhile.
    script = """
    import time, pyray_ser as ray
    class Stone:
        def __init__(self, heavy): self.heavy = heavy
        def __reduce__(self): return (lift if self.heavy else put_down), (self.heavy,)
    def lift(heavy):
        time.sleep(2)
        return Stone(heavy)
    def put_down(heavy): return Stone(heavy)
    @ray.remote
    class Cup:
        def __init__(self): self.stones = []
        def drop(self, stone): self.stones.append(stone)
        def full(self): return len(self.stones) >= 3
        def count(self): return len(self.stones)
    if __name__ == "__main__":
        cup = Cup.remote()
        ray.get(cup.full.remote())
        began = time.monotonic()
        stone = Stone(True)
        refs = [cup.drop.remote(stone) for _ in range(3)]
        assert not refs[2].done(), "the calls did not return at once"
        assert ray.get(cup.count.remote()) == 3
        assert time.monotonic() - began > 5.9, time.monotonic() - began
        cup, began, states = Cup.remote(), time.monotonic(), []
        for _ in range(3):
            cup.drop.remote(stone)
            states.append(cup.full.remote())
        assert ray.get(states) == [False, False, True]
        assert time.monotonic() - began > 5.9
        cup, began = Cup.remote(), time.monotonic()
        six = [cup.drop.remote(stone) for _ in range(6)]
        ray.get(six)
        assert time.monotonic() - began > 11.9
        cup, began = Cup.remote(), time.monotonic()
        light = Stone(False)
        ray.get([cup.drop.remote(light) for _ in range(6)])
        assert light.heavy is False
        print(ray.get(cup.count.remote()))
    """
    assert run(script, timeout=60) == "6"


def test_errors_leave_the_actor_as_it_is():
    counter = Counter.remote(3)
    with pytest.raises(ValueError, match="at 3") as caught:
        ray.get(counter.fail.remote())
    assert isinstance(caught.value, TaskError) and caught.value.task == "Counter.fail"
    assert ray.get(counter.add.remote()) == 4
    with pytest.raises(AttributeError, match="no method 'nothing'"):
        counter.nothing
    with pytest.raises(AttributeError):
        counter.count = 3
    with pytest.raises(TypeError, match=r"\.add\.remote"):
        counter.add()
    with pytest.raises(TypeError, match=r"Counter\.remote"):
        Counter()
    with pytest.raises(TypeError):
        ray.get(counter.add.remote(1, 2, 3))


def test_an_init_that_fails_is_the_error_of_every_call():
    @ray.remote
    class Broken:
        def __init__(self):
            raise RuntimeError("no such device")

        def use(self):
            return 1

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such device") as caught:
            ray.get(broken.use.remote())
        assert "__init__" in str(caught.value)


def test_an_actor_holds_what_cannot_be_pickled():
    @ray.remote
    class Database:
        def __init__(self, path):
            self.lock = threading.Lock()
            self.connection = sqlite3.connect(path)
            self.connection.execute("create table t (n int)")

        def insert(self, n):
            with self.lock:
                self.connection.execute("insert into t values (?)", (n,))

        def total(self):
            return self.connection.execute("select sum(n) from t").fetchone()[0]

        def connection_(self):
            return self.connection

    database = Database.remote(":memory:")
    for n in range(10):
        database.insert.remote(n)
    assert ray.get(database.total.remote()) == 45
    with pytest.raises(TypeError, match="result cannot be returned"):
        ray.get(database.connection_.remote())


def test_large_values_pass_without_a_copy():
    counter = Counter.remote()
    array = np.arange(1_000_000)
    ref = ray.put(array)
    assert ray.get(counter.keep.remote(ref)) == "ndarray"
    assert ray.get(counter.keep.remote([ref])) == "list"


def test_it_ends_with_its_last_handle():
    counter = Counter.remote()
    pid = ray.get(counter.pid.remote())
    assert pid in descendants(os.getpid())
    last = counter.sleep.remote(0.3)
    del counter
    assert ray.get(last) == 0
    assert gone(pid)


def test_calls_without_anybody_waiting_are_done(tmp_path):
    @ray.remote
    class Writer:
        def write(self, path, size):
            with open(path, "a") as file:
                file.write("x")
            return "y" * size

    writer = Writer.remote()
    path = tmp_path / "file"
    for _ in range(300):
        writer.write.remote(str(path), 20_000)
    end = time.monotonic() + 240
    while (not path.exists() or path.stat().st_size < 300) and time.monotonic() < end:
        time.sleep(0.02)
    assert path.stat().st_size == 300


def test_kill():
    counter = Counter.options(max_restarts=5).remote()
    pid = ray.get(counter.pid.remote())
    running = counter.sleep.remote(1000)
    queued = counter.add.remote()
    time.sleep(0.1)
    ray.kill(counter)
    for ref in (running, queued):
        with pytest.raises(WorkerDiedError, match="kill"):
            ray.get(ref, timeout=240)
    assert gone(pid)
    with pytest.raises(WorkerDiedError):
        ray.get(counter.add.remote(), timeout=240)
    with pytest.raises(TypeError):
        ray.kill(3)


def test_death_without_restarts():
    counter = Counter.remote()
    ray.get(counter.add.remote())
    refs = [counter.die.remote(), counter.add.remote()]
    for ref in refs:
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            ray.get(ref, timeout=240)
    with pytest.raises(WorkerDiedError):
        ray.get(counter.add.remote(), timeout=240)


def test_error_of_a_call_after_the_end_says_that_it_did_not_run():
    counter = Counter.remote()
    pid = ray.get(counter.pid.remote())
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while not counter._client.is_over and time.monotonic() < end:
        time.sleep(0.02)
    for _ in range(2):
        with pytest.raises(WorkerDiedError) as caught:
            ray.get(counter.add.remote(), timeout=240)
        text = str(caught.value)
        assert "Counter.add did not run, because actor Counter has ended and is not restarted" in text
        assert f"worker process {pid} was killed by SIGKILL" in text and "before it finished" not in text
        assert (caught.value.pid, caught.value.signal) == (pid, signal.SIGKILL)


def test_errors_at_the_end_tell_the_calls_that_may_have_run_from_the_others():
    @ray.remote
    class Async(Counter._class):
        async def wait(self):
            await asyncio.sleep(100)

    @ray.remote
    class Broken:
        def __init__(self):
            os._exit(3)

        def add(self):
            pass

    counter, asynchronous, broken = Counter.remote(), Async.remote(), Broken.remote()
    ray.get([counter.add.remote(), asynchronous.add.remote()])
    for actor, others in ((counter, "did not run"), (asynchronous, "before it finished")):
        refs = [actor.die.remote(), actor.add.remote(), actor.add.remote()]
        texts = []
        for ref in refs:
            with pytest.raises(WorkerDiedError) as caught:
                ray.get(ref, timeout=240)
            texts.append(str(caught.value))
        assert "before it finished" in texts[0] and ".die" in texts[0]
        assert all(others in text and ".add" in text for text in texts[1:]), texts
    with pytest.raises(WorkerDiedError, match=r"Broken\.add did not run.*exited with status 3"):
        ray.get(broken.add.remote(), timeout=240)


def test_max_restarts():
    counter = Counter.options(max_restarts=2).remote(5)
    assert ray.get(counter.add.remote()) == 6
    for _ in range(2):
        refs = [counter.die.remote(), counter.add.remote(), counter.add.remote()]
        with pytest.raises(WorkerDiedError):
            ray.get(refs[0], timeout=240)
        # The actor restarts with the same arguments and then runs the waiting calls.
        assert ray.get(refs[1:], timeout=240) == [6, 7]
    with pytest.raises(WorkerDiedError):
        ray.get(counter.die.remote(), timeout=240)
    with pytest.raises(WorkerDiedError):
        ray.get(counter.add.remote(), timeout=240)


def test_cancel_of_queued_calls(tmp_path):
    counter = Counter.remote()
    ray.get(counter.add.remote())
    running = counter.hold.remote(tmp_path / "go")
    queued = counter.add.remote()
    after = counter.add.remote()
    ray.cancel(queued)
    (tmp_path / "go").touch()
    with pytest.raises(TaskCancelledError):
        ray.get(queued, timeout=240)
    assert ray.get([running, after]) == [1, 2]
    with pytest.raises(ValueError, match="kill"):
        ray.cancel(counter.sleep.remote(0.1), force=True)


def test_cancelling_a_call_that_waits_lets_those_behind_it_go():
    counter, never = Counter.remote(), TaskRef("never")
    first = counter.add.remote(never)
    several = counter.numbers.options(num_returns=2).remote(never)
    behind = counter.add.remote(3)
    stream = counter.numbers.remote(2)
    assert ray.cancel(first) and ray.cancel(several[1])
    assert ray.get(behind, timeout=240) == 3
    assert ray.get(stream.next(timeout=240)) == 3
    for ref in (first, *several):
        with pytest.raises(TaskCancelledError):
            ray.get(ref, timeout=240)
    assert not ray.cancel(first) and ray.get(counter.add.remote(), timeout=240) == 4
    # The actor also ends if its stream was not read to the end.
    pid, waits = ray.get(counter.pid.remote()), counter.add.remote(never)
    del counter
    assert ray.cancel(waits) and gone(pid, 30)


@pytest.mark.parametrize("how", ["kill", "kill elsewhere", "die"])
def test_the_end_of_an_actor_is_that_of_the_calls_that_wait(how):
    counter, never = Counter.remote(), TaskRef("never")
    ray.get(counter.add.remote())
    last = counter.die.remote() if how == "die" else None
    refs = [counter.add.remote(never), counter.add.remote(), *counter.numbers.options(num_returns=2).remote(2)]
    futures = [ref.future() for ref in refs]
    if how == "kill":
        ray.kill(counter)
    elif how == "kill elsewhere":
        # Use a handle like the one that a process receives in a message.
        from pyray_ser import _core
        from pyray_ser.tasks import actor, remote_handles

        client = counter._client
        visitor = remote_handles.Visitor("counter", client.address, client.pid, _core.start_time(client.pid))
        counter = actor.ActorHandle(actor.Grip(visitor), "counter", counter._methods)
        own, futures = futures, [counter.add.remote(never).future(), counter.add.remote().future()]
        ray.kill(counter)
    else:
        with pytest.raises(WorkerDiedError):
            ray.get(last, timeout=240)
    for future in futures:
        with pytest.raises(WorkerDiedError):
            future.result(timeout=240)
    with pytest.raises(WorkerDiedError):
        ray.get(counter.add.remote(never), timeout=240)
    if how == "kill elsewhere":
        # The owner notices the end of the actor at its next call.
        never.settle(pack(1))
        for future in own:
            with pytest.raises(WorkerDiedError):
                future.result(timeout=240)


def test_an_actor_that_dies_while_its_argument_is_awaited_is_made_once():
    argument = TaskRef("argument")
    counter = Counter.options(max_restarts=1).remote(argument)
    ref = counter.add.remote()
    result = in_thread(lambda: ray.get(ref, timeout=60))
    # Wait until the collector thread reads the pipe of the actor, so that this thread notices the death.
    poll(lambda: counter._client.channel.calls.reader)
    pid = counter._client.pid
    os.kill(pid, signal.SIGKILL)
    poll(lambda: counter._client.pid != pid)
    argument.settle(pack(20))
    assert result.result(timeout=240) == 21
    assert ray.get(counter.add.remote(), timeout=240) == 22


def test_an_actor_that_cannot_be_started_again_has_ended(monkeypatch, caplog):
    counter = Counter.options(max_restarts=1).remote()
    ray.get(counter.add.remote())

    def refuse():
        raise OSError("no more processes")

    monkeypatch.setattr(counter._client, "_start", refuse)
    futures = [counter.die.remote().future(), counter.add.remote().future()]
    for future in futures:
        with pytest.raises(WorkerDiedError):
            future.result(timeout=240)
    assert "no more processes" in caplog.text
    assert Counter.remote(4).add.remote().future().result(timeout=240) == 5


def test_a_forked_child_has_no_use_of_an_inherited_handle():
    script = """
    import os, pyray_ser as ray
    from pyray_ser.exceptions import ObjectLostError
    @ray.remote
    class Actor:
        def one(self, *args): return 1
        def many(self): yield 1
    def told(act):
        try:
            act()
        except ObjectLostError as error:
            return "as an argument instead" in str(error)
        return False
    if __name__ == "__main__":
        actor = Actor.remote()
        ray.get(actor.one.remote())
        never = ray.tasks.TaskRef("never")
        waits, stream = actor.one.remote(never), actor.many.remote()
        pid = os.fork()
        if pid == 0:
            acts = [
                lambda: actor.one.remote(), lambda: ray.kill(actor), lambda: ray.cancel(waits),
                lambda: ray.get(waits), lambda: next(stream),
            ]
            seen = [told(act) for act in acts]
            print(seen, flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert ray.cancel(waits)
        print(ray.get(actor.one.remote(), timeout=240))
    """
    assert run(script) == f"{[True] * 5}\n1"


def test_handles_travel():
    counter, holder = Counter.remote(), Counter.remote()
    assert ray.get(holder.keep.remote(counter)) == "ActorHandle"
    assert ray.get(holder.ask.remote("add", 5)) == 5
    assert ray.get(counter.add.remote(1)) == 6

    @ray.remote
    def use(handle, times):
        return ray.get([handle.add.remote() for _ in range(times)])[-1]

    assert ray.get(use.remote(counter, 10)) == 16
    pid = ray.get(counter.pid.remote())
    del counter
    # Now only the actor `holder` has a handle.
    time.sleep(0.3)
    assert ray.get(holder.ask.remote("add", 1), timeout=240) == 17
    del holder
    assert gone(pid)


def test_a_busy_actor_can_be_handed_on(tmp_path):
    counter, holder = Counter.remote(), Counter.remote()
    ray.get([counter.add.remote(), holder.add.remote()])
    slow = counter.hold.remote(tmp_path / "go")
    assert ray.get(holder.keep.remote(counter)) == "ActorHandle"
    assert not slow.done()
    (tmp_path / "go").touch()
    assert ray.get(holder.ask.remote("add", 1)) == 2 and ray.get(slow) == 1


def test_threads_call_at_the_same_time():
    counter = Counter.remote()
    seen = []

    def work():
        for _ in range(100):
            seen.append(ray.get(counter.add.remote()))  # noqa: PERF401

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen) == list(range(1, 401))


def test_streams():
    counter = Counter.remote(10)
    assert [ray.get(ref) for ref in counter.numbers.remote(5)] == [10, 11, 12, 13, 14]
    assert ray.get(counter.numbers.options(num_returns=2).remote(2)) == [10, 11]


@ray.remote
class Async:
    def __init__(self):
        self.event = asyncio.Event()
        self.started = []

    async def wait(self, n):
        self.started.append(n)
        await self.event.wait()
        return n

    async def open(self):
        self.event.set()

    def order(self):
        return self.started

    async def stream(self, n):
        for i in range(n):
            await asyncio.sleep(0.01)
            yield i

    async def fail(self):
        raise KeyError("async")


def test_coroutines_run_at_the_same_time():
    actor = Async.remote()
    waiting = [actor.wait.remote(i) for i in range(20)]
    assert ray.get(actor.order.remote(), timeout=240) == list(range(20))
    assert ray.wait(waiting, timeout=0.05)[0] == []
    ray.cancel(waiting[3])
    with pytest.raises(TaskCancelledError):
        ray.get(waiting[3], timeout=240)
    ray.get(actor.open.remote())
    assert ray.get(waiting[:3] + waiting[4:], timeout=240) == [0, 1, 2, *range(4, 20)]
    assert [ray.get(ref) for ref in actor.stream.remote(3)] == [0, 1, 2]
    # Request more items than the generator may compute ahead of the reader; other calls run meanwhile.
    stream = actor.stream.remote(40)
    assert ray.get(next(stream)) == 0
    end = time.monotonic() + 240
    while "16 so far" not in repr(stream) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    assert "16 so far" in repr(stream) and ray.get(actor.order.remote(), timeout=240)
    assert [ray.get(ref) for ref in stream] == list(range(1, 40))
    with pytest.raises(KeyError, match="async"):
        ray.get(actor.fail.remote())

    async def main():
        return await asyncio.gather(*(actor.wait.remote(i) for i in range(5)))

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]
    holder = Counter.remote()
    ray.get(holder.keep.remote(actor))
    assert ray.get(holder.ask.remote("order"))[:3] == [0, 1, 2]


def test_progress():
    script = """
    import io, sys, pyray_ser as ray
    @ray.remote
    def one(i): return i
    if __name__ == "__main__":
        refs = [one.remote(i) for i in range(5)] + [ray.put(5)]
        file = io.StringIO()
        assert ray.get(ray.progress(refs, description="tasks", file=file)) == [0, 1, 2, 3, 4, 5]
        assert "tasks" in file.getvalue() and "6/6" in file.getvalue()
        sys.modules["tqdm.auto"] = None
        file = io.StringIO()
        ray.progress(refs, description="again", file=file)
        print(file.getvalue().rpartition(chr(13))[2][:12])
    """
    assert run(script) == "again: 6/6 ["


def test_what_lives_until_the_end_of_the_interpreter_ends_silently():
    # These destructors run after the interpreter has cleared the globals of our modules.
    script = """
    import os, threading, pyray_ser as ray
    from pyray_ser.tasks import actor, channel, remote_handles, process, streams
    from pyray_ser import _core
    @ray.remote
    class Counter:
        def count(self): return 1
    @ray.remote
    def numbers(n): yield from range(n)
    if __name__ == "__main__":
        stream = numbers.remote(100)  # has not ended: it is not read to its end
        ray.get(next(stream))
        for module in (os, threading, actor, channel, remote_handles, process, streams):
            counter = Counter.remote()
            ray.get(counter.count.remote())
            client = counter._client
            visitor = remote_handles.Visitor("counter", client.address, client.pid, _core.start_time(client.pid))
            module.kept = [counter, stream, actor.Grip(visitor), client.channel.process, visitor.channel.process]
        print("done")
    """
    assert run(script) == "done"


def test_without_new_threads_an_actor_restarts_and_a_handle_elsewhere_gives_up():
    """Since Python 3.12 no thread can start while the interpreter ends."""
    script = """
    import multiprocessing, os, signal
    import pyray_ser as ray
    from pyray_ser.exceptions import WorkerDiedError
    from pyray_ser.tasks import actor

    def refuse(*arguments): raise RuntimeError("can't start new thread")

    @ray.remote
    class Counter:
        def pid(self): return os.getpid()

    def elsewhere(message, end):
        actor.start_new_thread = refuse
        try:
            ray.get(ray.loads(message).pid.remote(), timeout=60)
        except WorkerDiedError as error:
            end.send(str(error))

    if __name__ == "__main__":
        counter = Counter.options(max_restarts=1).remote()
        pid = ray.get(counter.pid.remote())
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=elsewhere, args=(ray.dumps(counter), theirs))
        process.start()
        print(ours.recv())
        process.join()
        actor.start_new_thread = refuse
        os.kill(pid, signal.SIGKILL)
        while True:
            try:
                if ray.get(counter.pid.remote(), timeout=60) != pid:
                    break
            except WorkerDiedError:
                continue  # the call had been sent to the process that died
        print("restarted")
    """
    first, second = run(script, timeout=120).splitlines()
    assert "cannot start a thread" in first and second == "restarted"
