"""Test streams to the program from tasks and actors of a Dask cluster, after ``init(address=...)``."""

from importlib.util import find_spec

import hosts
import pytest
from dask_programs import run

# Importing distributed would change how the test process pickles exceptions.
pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")

_HEAD = """
        import signal
        import pyray_ser
        from pyray_ser import exceptions

        get = pyray_ser.get
        summed = pyray_ser.remote(total)

        def note(path, word):
            with open(path, "a") as file:
                file.write(f"{word} ")

        def notes(path):
            return open(path).read().split() if os.path.exists(path) else []

        def numbers(n, size=1, path="notes", pause=0, fails=False, waits=""):
            # Note each item, before it is yielded, and the end.
            note(path, "start")
            try:
                for i in range(n):
                    note(path, i)
                    yield np.full(size, float(i))
                    time.sleep(pause)
                    while waits and not os.path.exists(f"{waits}{i}"):
                        time.sleep(0.01)
                if fails:
                    raise KeyError("no more")
            finally:
                note(path, "closed")

        def dies(n, path="notes"):
            note(path, "start")
            for i in range(n):
                yield i
            time.sleep(1)
            os._exit(3)

        streamed, dying = pyray_ser.remote(numbers), pyray_ser.remote(dies)

        @pyray_ser.remote
        class Actor:
            numbers, dies = staticmethod(numbers), staticmethod(dies)

            def stream(self, *args, **kwargs):
                yield from numbers(*args, **kwargs)

            def die(self, *args):
                yield from dies(*args)

            def pid(self):
                return os.getpid()

            def sleep(self, seconds):
                time.sleep(seconds)

        @pyray_ser.remote
        class Concurrent:
            async def stream(self, *args, **kwargs):
                import asyncio

                for item in numbers(*args, **kwargs):
                    yield item
                    await asyncio.sleep(0)

            async def pid(self):
                return os.getpid()

        @pyray_ser.remote
        def sleep(seconds):
            time.sleep(seconds)

        def heads(refs):
            return [float(get(ref)[0]) for ref in refs]

        def state(dask_worker):
            agent = getattr(dask_worker.plugins.get("pyray_ser-tasks"), "agent", None)
            if agent is None:
                return 0, 0, 0  # no program has used the worker yet
            return len(agent.running), len(agent.streams), len(agent.unclaimed)

        def idle(client):
            return until(lambda: set(client.run(state).values()) == {(0, 0, 0)}, 60)

"""


def run_streams(script: str, timeout: float = 120) -> str:
    return run(_HEAD + script, timeout=timeout)


@pytest.mark.parametrize(
    "kind", ["streamed.remote", "Actor.remote().stream.remote", "Concurrent.remote().stream.remote"]
)
def test_a_stream_has_the_semantics_of_one_node(kind):
    run_streams(
        f"""
        def stream(*args, **kwargs):
            return {kind}(*args, **kwargs)
    """
        + """
        with local(2) as cluster, Client(cluster) as client:
            addresses(client, 2)
            pyray_ser.init(address=cluster.scheduler_address)
            # Items arrive while the generator waits for the program.
            items = stream(3, waits="goes-on")
            for i in range(3):
                assert heads([next(items)]) == [i]
                assert raises(exceptions.GetTimeoutError, items.next, timeout=0.3)
                open(f"goes-on{i}", "w").close()
            assert list(items) == []
            # Small and large items, in order.
            assert heads(stream(100)) == list(range(100))
            assert heads(stream(60, 10_000)) == list(range(60))
            # The generator waits for its reader: 16 items, or 64 MiB.
            for size, limit in ((1, 16), (10_000, 16), (2_500_000, 4)):
                items = stream(30, size, f"ahead{size}")
                until(lambda: len(notes(f"ahead{size}")) >= limit + 1)
                time.sleep(0.5)
                assert notes(f"ahead{size}")[1:] == [str(i) for i in range(limit + 1)][: len(notes(f"ahead{size}")) - 1]
                assert len(notes(f"ahead{size}")) <= limit + 2
                assert heads([next(items) for _ in range(20)]) == list(range(20))
                until(lambda: str(19 + limit // 2) in notes(f"ahead{size}"))
                assert heads(items) == list(range(20, 30))
            # With `ref`, it runs to its end.
            items = stream(40, path="runs")
            ended = items.ref
            assert get(ended, timeout=60) is None and len(notes("runs")) == 42
            assert heads(items) == list(range(40))
            # An error is the last item.
            *found, last = stream(20, 10_000, fails=True)
            assert heads(found) == list(range(20))
            assert raises(KeyError, get, last).args == ("no more",)
            del found, last
            # Items are arguments, also inside other values, and outlive their stream.
            small, large = list(stream(2)), list(stream(2, 10_000))
            assert get([summed.remote(ref) for ref in small + large]) == [0, 1, 0, 10_000]
            assert get(pyray_ser.remote(lambda refs: [float(get(ref)[0]) for ref in refs]).remote(large)) == [0, 1]
            assert pyray_ser.wait(large, num_returns=2)[0] == large
            # Event loops, and callbacks in the thread that settles references.
            import asyncio

            async def reads():
                return [float((await ref)[0]) async for ref in stream(40)]

            assert asyncio.run(reads()) == list(range(40))
            seen, items = [], stream(40)
            sleep.remote(0).add_done_callback(lambda _: seen.extend(heads(items)))
            until(lambda: seen == list(range(40)))
            del small, large, items, ended
            everything_freed(client)
            idle(client)
            pyray_ser.shutdown()
    """
    )


def test_other_ways_to_call():
    run_streams("""
        with local(1) as cluster, Client(cluster) as client:
            pyray_ser.init(address=cluster.scheduler_address)
            assert heads(pyray_ser.remote(make).options(stream=True).remote(0)) == []
            arrays = pyray_ser.remote(lambda *sizes: [np.ones(size) for size in sizes]).options(stream=True)
            assert get([summed.remote(ref) for ref in arrays.remote(1, 20_000, 3)]) == [1, 20_000, 3]
            # Arguments that are not ready, large ones, and one that fails.
            double = pyray_ser.remote(lambda array: (2 * row for row in array)).options(stream=True)
            pending = pyray_ser.remote(lambda: time.sleep(0.5) or np.ones((3, 10_000))).remote()
            assert [float(get(ref).sum()) for ref in double.remote(pending)] == [20_000] * 3
            assert [float(get(ref).sum()) for ref in double.remote(np.ones((2, 20_000)))] == [40_000] * 2
            failed = pyray_ser.remote(lambda: 1 / 0).remote()
            [ref] = double.remote(failed)
            assert raises(ZeroDivisionError, get, ref)
            # Many at the same time, more than Dask runs.
            streams = [streamed.remote(5) for _ in range(20)] + [Actor.remote().stream.remote(5) for _ in range(2)]
            assert [heads(stream) for stream in streams] == [list(range(5))] * 22
            # Calls of an actor that follow a stream wait for its end.
            actor = Actor.remote()
            stream, pid = actor.stream.remote(20), actor.pid.remote()
            assert not pyray_ser.wait([pid], timeout=0.5)[0]
            assert heads(stream) == list(range(20)) and get(pid)
            idle(client)
            # If the program closes its client, no reader waits forever.
            other = Client(cluster, set_as_default=False)
            pyray_ser.shutdown()
            pyray_ser.init(address=other)
            stream = streamed.remote(2, waits="never")
            assert heads([next(stream)]) == [0]
            other.close()
            assert raises(exceptions.ObjectLostError, lambda: [get(ref) for ref in stream])
            pyray_ser.shutdown()
            idle(client)
            everything_freed(client)
    """)


def test_a_generator_ends_with_its_reader():
    run_streams("""
        with local(2) as cluster, Client(cluster) as client:
            addresses(client, 2)
            pyray_ser.init(address=cluster.scheduler_address)
            actor = Actor.remote()
            for name, call in ("task", streamed.remote), ("actor", actor.stream.remote):
                for size in 1, 10_000:
                    path = f"{name}{size}"
                    stream = call(1000, size, path)
                    kept = next(stream)
                    del stream
                    until(lambda: notes(path)[-1:] == ["closed"])
                    assert len(notes(path)) < 30 and heads([kept]) == [0]
                    del kept
                    everything_freed(client)
                    idle(client)
            # A stream that was dropped before it began ends soon after it began, as on one node.
            busy = [sleep.remote(1) for _ in range(2)]
            streamed.remote(1000, path="early")
            until(lambda: notes("early")[-1:] == ["closed"])
            assert notes("early")[:2] == ["start", "0"] and len(notes("early")) < 30
            idle(client)
            # The reader is gone, but `ref` is used.
            ended = streamed.remote(100, 10_000, "ref").ref
            assert get(ended, timeout=60) is None and len(notes("ref")) == 102
            everything_freed(client)
            # shutdown() ends streams that run, that wait for their reader, and that have not begun.
            kept = [streamed.remote(100, 10_000, "waits"), streamed.remote(100, path="runs", pause=1000),
                    actor.stream.remote(1000, 10_000, "actor-waits"), streamed.remote(5, path="never")]
            first = [next(stream) for stream in kept[:3]]
            pyray_ser.shutdown()
            for stream in kept:
                *_, last = stream
                assert "shutdown()" in str(raises(exceptions.WorkerDiedError, get, last))
            idle(client)
            everything_freed(client)
            time.sleep(0.5)
            assert notes("never") == [] and len(notes("waits")) < 30 and notes("runs")[:2] == ["start", "0"]
    """)


def test_cancel():
    run_streams("""
        with local(1) as cluster, Client(cluster) as client:
            pyray_ser.init(address=cluster.scheduler_address)
            running, queued = streamed.remote(2, path="running", pause=1000), streamed.remote(2, path="queued")
            first = next(running)
            assert pyray_ser.cancel(queued)
            [last] = queued
            assert raises(exceptions.TaskCancelledError, get, last)
            assert not pyray_ser.cancel(running)
            assert pyray_ser.cancel(running, force=True)
            [last] = running
            assert raises(exceptions.TaskCancelledError, get, last) and heads([first]) == [0]
            assert heads(streamed.remote(3)) == [0, 1, 2] and notes("queued") == []
            # A stream whose items wait for the reader.
            waiting = streamed.remote(100, 10_000, "waiting")
            until(lambda: len(notes("waiting")) > 10)
            assert pyray_ser.cancel(waiting, force=True)
            *found, last = waiting
            assert raises(exceptions.TaskCancelledError, get, last) and heads(found) == list(range(len(found)))
            actor = Actor.remote()
            busy, queued, later = actor.sleep.remote(1), actor.stream.remote(3, path="behind"), actor.pid.remote()
            assert "kill" in str(raises(ValueError, pyray_ser.cancel, queued, force=True))
            pyray_ser.cancel(queued)
            [last] = queued
            assert raises(exceptions.TaskCancelledError, get, last) and get(later) and notes("behind") == []
            del found, last, first, waiting
            idle(client)
            everything_freed(client)
            pyray_ser.shutdown()
    """)


def test_the_death_of_the_process_ends_the_stream_after_its_items():
    run_streams("""
        with local(2) as cluster, Client(cluster) as client:
            addresses(client, 2)
            pyray_ser.init(address=cluster.scheduler_address)
            *found, last = dying.options(max_retries=3).remote(3)
            assert get(found) == [0, 1, 2]
            error = raises(exceptions.WorkerDiedError, get, last)
            assert error.exitcode == 3 and error.task == "dies", error
            # A stream does not run again, even if no item had arrived.
            [last] = dying.options(max_retries=3).remote(0, "none")
            assert raises(exceptions.WorkerDiedError, get, last)
            assert notes("notes") == notes("none") == ["start"]
            actor = Actor.options(max_restarts=1).remote()
            pid = get(actor.pid.remote())
            stream, behind = actor.die.remote(3, "actor"), actor.stream.remote(20)
            *found, last = stream
            assert get(found) == [0, 1, 2] and raises(exceptions.WorkerDiedError, get, last).exitcode == 3
            # The calls behind it run in the new process.
            assert heads(behind) == list(range(20)) and get(actor.pid.remote()) != pid
            assert notes("actor") == ["start"]
            # kill()
            stream = actor.stream.remote(100, pause=1000)
            assert heads([next(stream)]) == [0]
            pyray_ser.kill(actor)
            [last] = stream
            assert "kill()" in str(raises(exceptions.WorkerDiedError, get, last))
            del found, last, stream
            idle(client)
            pyray_ser.shutdown()
            everything_freed(client)
    """)


def test_the_death_of_the_dask_worker_ends_the_stream_after_its_items():
    run_streams(
        """
        def kills(stream, path):
            # Kill the Dask worker that runs a stream, and return the error.
            arrived = [next(stream) for _ in range(3)]
            [address] = [address for address, found in client.run(state).items() if found[1]]
            os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)
            *found, last = stream
            error = raises(exceptions.WorkerDiedError, get, last)
            assert address in str(error) and error.task, error
            # Items that arrived are those before the error, in order, each of them once.
            assert heads(arrived + found) == list(range(3 + len(found)))
            return error

        with local(3) as cluster, Client(cluster) as client:
            addresses(client, 3)
            pyray_ser.init(address=cluster.scheduler_address)
            assert "does not run again" in str(kills(streamed.options(max_retries=3).remote(100, path="task", pause=0.05), "task"))
            addresses(client, 3)
            actor = Actor.options(max_restarts=1).remote()
            kills(actor.stream.remote(100, path="actor", pause=0.05), "actor")
            assert get(actor.pid.remote(), timeout=60) and heads(actor.stream.remote(3)) == [0, 1, 2]
            # Dask does not run the task again.
            until(lambda: not any(client.processing().values()), 60)
            assert notes("task").count("start") == notes("actor").count("start") == 1
            assert heads(streamed.remote(20)) == list(range(20))
            idle(client)
            pyray_ser.shutdown()
            everything_freed(client, 60)
    """,
        timeout=200,
    )


_DRIVER = """
import os, signal, sys, time
import numpy as np
import pyray_ser

def numbers(pause):
    with open("pids", "a") as file:
        file.write(f"{os.getpid()} ")
    for i in range(1000):
        yield np.full(10_000, float(i))
        time.sleep(pause)

@pyray_ser.remote
class Actor:
    numbers = staticmethod(numbers)

    def stream(self, pause):
        yield from numbers(pause)

pyray_ser.init(address=sys.argv[1])
streamed = pyray_ser.remote(numbers)
actors = [Actor.remote() for _ in range(2)]
streams = [call.remote(pause) for call, pause in ((streamed, 0), (streamed, 1000), (actors[0].stream, 0), (actors[1].stream, 1000))]
first = [next(stream) for stream in streams]
later = streamed.remote(0)
print("ready", flush=True)
time.sleep(1000)
"""


def test_nothing_is_left_of_a_killed_driver():
    run_streams(
        f"        program = {_DRIVER!r}\n"
        + """
        import subprocess

        with local(3) as cluster, Client(cluster) as client:
            addresses(client, 3)
            words = [sys.executable, "-P", "-c", program, cluster.scheduler_address]
            driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            try:
                assert driver.stdout.readline() == "ready\\n"
            finally:
                driver.kill()
                driver.wait()
            everything_freed(client, 60)
            idle(client)
            until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in notes("pids")), 60)
            pyray_ser.init(address=cluster.scheduler_address)
            assert heads(streamed.remote(20)) == list(range(20))
            pyray_ser.shutdown()
            everything_freed(client, 60)
    """,
        timeout=200,
    )


def test_a_stream_starts_only_if_its_program_asks_for_items():
    program = """
import os, signal, sys, time
import pyray_ser

def numbers():
    open("started", "w").close()
    yield 1

pyray_ser.init(address=sys.argv[1])
busy = pyray_ser.remote(time.sleep).remote(3)
stream = pyray_ser.remote(numbers).remote()
time.sleep(0.5)
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    run_streams(
        f"        program = {program!r}\n"
        + """
        import subprocess

        with local(1) as cluster, Client(cluster) as client:
            words = [sys.executable, "-P", "-c", program, cluster.scheduler_address]
            driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            try:
                assert driver.stdout.readline() == "ready\\n"
                # The agent has announced the stream, and waits.
                until(lambda: [found[1] for found in client.run(state).values()] == [1])
                time.sleep(0.5)
            finally:
                driver.kill()
                driver.wait()
            idle(client)
            assert not os.path.exists("started")
            pyray_ser.init(address=cluster.scheduler_address)
            assert heads(streamed.remote(20)) == list(range(20))
            pyray_ser.shutdown()
    """
    )


@pytest.mark.parametrize("of_actor", [False, True])
def test_items_are_freed_if_their_client_ends_before_dask_keeps_them(of_actor):
    program = f"""
import os, signal, sys, time
import numpy as np
import pyray_ser

@pyray_ser.remote
class Actor:
    def numbers(self):
        for i in range(100):
            yield np.full(10_000, float(i))
            time.sleep(4)

pyray_ser.init(address=sys.argv[1])
actor = Actor.remote() if {of_actor} else None
call = actor.numbers if {of_actor} else pyray_ser.remote(Actor.local.numbers)
stream = call.remote() if {of_actor} else call.remote(None)
first = next(stream)
time.sleep(1)  # the client asks for the next item
os.kill(os.getpid(), signal.SIGSTOP)
"""
    run_streams(
        f"        program = {program!r}\n"
        + """
        import subprocess

        with local(1) as cluster, Client(cluster) as client:
            driver = subprocess.Popen([sys.executable, "-P", "-c", program, cluster.scheduler_address])
            try:
                # The agent has answered a request, but the client is stopped.
                until(lambda: [found[2] for found in client.run(state).values()] == [1], 60)
            finally:
                driver.kill()
                driver.wait()
            idle(client)
            everything_freed(client, 60)
    """
    )


def test_items_stay_on_their_host_until_they_are_asked_for():
    reason = hosts.missing()
    if reason:
        pytest.skip(reason)
    run(
        _HEAD
        + """
        from hosts import Hosts, start_scheduler, start_workers

        RIGHT = {"resources": {"right": 1}}

        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            start_workers(left, scheduler, 1)
            start_workers(right, scheduler, 1, "--resources", "right=1")
            with Client(scheduler, timeout=60) as client:
                there = [one for one in addresses(client, 2) if right.address in one]
                pyray_ser.init(address=scheduler)
                actor = Actor.options(**RIGHT).remote()
                get(actor.pid.remote())
                for call in streamed.options(**RIGHT).remote, actor.stream.remote:
                    before = left.received(), right.received(), stats()["objects"]
                    items = list(call(4, 1_000_000))
                    assert len(items) == 4
                    assert client.run(stats, workers=there)[there[0]]["objects"] == 4
                    assert stats()["objects"] == before[2] and {item.state for item in items} <= {"foreign", "sealed"}
                    # Tasks run where the items are.
                    assert get([summed.remote(item) for item in items]) == [1_000_000.0 * i for i in range(4)]
                    assert left.received() - before[0] < 1_000_000 and right.received() - before[1] < 1_000_000
                    # This process gets only those that it asks for.
                    assert get(items[2])[0] == 2
                    assert 7_000_000 < stats()["used"] < 15_000_000
                    del items
                    everything_freed(client)
                # If a host fails, the reader learns it after the items that arrived.
                stream = streamed.options(**RIGHT).remote(100, pause=0.05)
                arrived = [next(stream) for _ in range(3)]
                right.end()
                *found, last = stream
                assert raises(exceptions.WorkerDiedError, get, last)
                assert heads(arrived + found) == list(range(3 + len(found)))
                pyray_ser.shutdown()
    """,
        prefix=hosts.PREFIX,
        timeout=180,
    )
