"""Test actors that run on the workers of a Dask cluster, after ``init(address=...)``."""

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

        @pyray_ser.remote
        class Counter:
            def __init__(self, start=0):
                self.seen = [start]

            def add(self, n, seconds=0):
                time.sleep(seconds)
                self.seen.append(n)
                return len(self.seen)

            def all(self):
                return self.seen

            def pid(self):
                return os.getpid()

            def where(self):
                from pyray_ser.tasks import settings

                return settings._settings["set_up"][1][0]  # the address of the agent

            def array(self, n):
                return np.arange(float(n))

            def two(self):
                return np.arange(50_000.0), 2

            def fail(self):
                raise KeyError("no")

            def die(self):
                os._exit(3)

        made = pyray_ser.remote(make)
        summed = pyray_ser.remote(total)

        def actors_of(dask_worker):
            agent = dask_worker.plugins["pyray_ser-tasks"].agent
            return len(agent.actors)

        def alive(pid):
            # A zombie does not count.
            try:
                return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
            except OSError:
                return False

"""


def run_actors(script: str, timeout: float = 150) -> None:
    run(_HEAD + script, timeout=timeout)


def test_actors_have_the_semantics_of_one_node():
    run_actors("""
        @pyray_ser.remote
        class Waits:
            def __init__(self):
                import asyncio
                self.event = asyncio.Event()

            async def wait(self):
                await self.event.wait()
                return "waited"

            async def set(self):
                self.event.set()

        @pyray_ser.remote
        class Broken:
            def __init__(self):
                raise ValueError("never")

            def method(self):
                return 1

        with local(2) as cluster, Client(cluster) as client:
            addresses(client, 2)
            pyray_ser.init(address=cluster.scheduler_address)
            counter = Counter.remote(5)
            # Order, also behind a call whose argument is not ready.
            first = counter.add.remote(made.remote(3))
            rest = [counter.add.remote(i) for i in range(50)]
            assert get([first, *rest]) == list(range(2, 53))
            seen = get(counter.all.remote())
            assert seen[0] == 5 and list(seen[1]) == [0, 1, 2] and seen[2:] == list(range(50))
            pids = {get(counter.pid.remote()) for _ in range(3)}
            assert len(pids) == 1 and not pids & {os.getpid(), *client.run(os.getpid).values()}
            # Large results stay where they are, and are arguments of tasks and calls.
            array = counter.array.remote(100_000)
            assert get(summed.remote(array)) == float(np.arange(100_000.0).sum())
            assert get(counter.add.remote(array)) == 53
            assert get(counter.add.remote(np.arange(60_000.0))) == 54
            assert get(counter.add.remote(pyray_ser.put(np.arange(60_000.0)))) == 55
            assert (get(array) == np.arange(100_000)).all()
            assert list(counter.add.map(range(3), chunksize=2)) == [56, 57, 58]
            one, two = counter.two.options(num_returns=2).remote()
            assert get(two) == 2 and get(summed.remote(one)) == float(np.arange(50_000.0).sum())
            # References are arguments of the constructor, too: of tasks, of calls that are pending, and of objects.
            others = [
                Counter.remote(arg)
                for arg in (made.remote(60_000), counter.add.remote(1, 0.5), counter.array.remote(60_000), pyray_ser.put(np.ones(9)))
            ]
            firsts = [get(other.all.remote())[0] for other in others]
            assert firsts[1] == 59 and [len(one) for one in (firsts[0], firsts[2], firsts[3])] == [60_000, 60_000, 9]
            del others, firsts
            # Errors
            assert isinstance(raises(KeyError, get, counter.fail.remote()), exceptions.TaskError)
            assert raises(KeyError, get, counter.add.remote(counter.fail.remote()))
            assert raises(TypeError, counter.add.remote)
            assert raises(AttributeError, getattr, counter, "other")
            broken = Broken.remote()
            assert raises(ValueError, get, broken.method.remote())
            # Calls of coroutines run at the same time.
            waits = Waits.remote()
            waiting = waits.wait.remote()
            get(waits.set.remote())
            assert get(waiting, timeout=60) == "waited"
            # A call that has not begun can be cancelled.
            # If a call cannot be sent when its arguments are ready, its reference is settled.
            runs = pyray_ser.tasks.engine.current()
            def refuse(*_): raise RuntimeError("not sent")
            runs._submit = refuse
            unsent = made.remote(counter.add.remote(0, 0.5))
            assert "not sent" in str(raises(RuntimeError, get, unsent, timeout=30))
            assert "not sent" in str(raises(RuntimeError, made.remote, 3))
            del runs._submit
            slow, late = counter.add.remote(0, 2), counter.add.remote("late")
            time.sleep(0.5)
            pyray_ser.cancel(late)
            assert raises(ValueError, pyray_ser.cancel, slow, force=True)
            assert raises(exceptions.TaskCancelledError, get, late) and get(slow) == 61
            assert "late" not in [one for one in get(counter.all.remote()) if isinstance(one, str)]
            # An actor ends with its last handle, after its calls; results outlive it.
            [pid] = pids
            last = counter.array.remote(70_000)
            del counter, seen
            assert get(last).shape == (70_000,)
            until(lambda: not alive(pid))
            assert get(summed.remote(last)) == float(np.arange(70_000.0).sum())
            del waits, broken
            until(lambda: not any(client.run(actors_of).values()))
            running = Counter.remote()
            pid = get(running.pid.remote())
            pending = running.add.remote(1, 1000)
            pyray_ser.shutdown()
            assert raises(exceptions.WorkerDiedError, get, pending)
            until(lambda: not alive(pid))
            everything_freed(client)
    """)


def test_the_death_of_an_actor():
    run_actors("""
        with local(2) as cluster, Client(cluster) as client:
            addresses(client, 2)
            pyray_ser.init(address=client)
            counter = Counter.remote()
            assert get(counter.add.remote(1)) == 2
            dies, later = counter.die.remote(), counter.add.remote(1)
            error = raises(exceptions.WorkerDiedError, get, dies)
            assert error.exitcode == 3 and raises(exceptions.WorkerDiedError, get, later)
            assert raises(exceptions.WorkerDiedError, get, counter.add.remote(1))
            # With a restart, later calls run in the new process.
            counter = Counter.options(max_restarts=1).remote()
            assert get(counter.add.remote(1)) == 2
            dies, later = counter.die.remote(), counter.add.remote(1)
            assert raises(exceptions.WorkerDiedError, get, dies) and get(later) == 2
            assert raises(exceptions.WorkerDiedError, get, counter.die.remote())
            # kill() is final.
            counter = Counter.options(max_restarts=-1).remote()
            pid = get(counter.pid.remote())
            running = counter.add.remote(1, 1000)
            pyray_ser.kill(counter)
            assert raises(exceptions.WorkerDiedError, get, running)
            assert "kill()" in str(raises(exceptions.WorkerDiedError, get, counter.add.remote(1)))
            until(lambda: not alive(pid))
            pyray_ser.shutdown()
            everything_freed(client)
    """)


def test_the_death_of_the_worker_of_an_actor():
    run_actors(
        """
        with local(2) as cluster, Client(cluster) as client:
            addresses(client, 2)
            pyray_ser.init(address=cluster.scheduler_address)

            def kill_worker_of(actor):
                address, pid = get([actor.where.remote(), actor.pid.remote()])
                running = actor.add.remote(1, 1000)
                time.sleep(0.3)
                os.kill(client.run(os.getpid)[address], signal.SIGKILL)
                error = raises(exceptions.WorkerDiedError, get, running, timeout=60)
                assert address in str(error), error
                until(lambda: not alive(pid))

            once = Counter.remote()
            kill_worker_of(once)
            assert raises(exceptions.WorkerDiedError, get, once.add.remote(1), timeout=60)
            addresses(client, 2)
            again = Counter.options(max_restarts=1).remote("start")
            get(again.add.remote(1))
            kill_worker_of(again)
            assert get(again.all.remote(), timeout=60) == ["start"]
            addresses(client, 2)
            kill_worker_of(again)
            assert raises(exceptions.WorkerDiedError, get, again.all.remote(), timeout=60)
            pyray_ser.shutdown()
            addresses(client, 2)
            everything_freed(client, 60)
    """,
        timeout=240,
    )


def test_actors_of_a_killed_driver_end():
    run_actors("""
        import subprocess, textwrap

        program = textwrap.dedent('''
            import os, sys, time
            import numpy as np
            import pyray_ser

            class Actor:
                def pid(self):
                    return os.getpid()

                def array(self):
                    return np.ones(50_000)

            pyray_ser.init(address=sys.argv[1])
            actor = pyray_ser.remote(Actor).remote()
            kept = [actor.array.remote() for _ in range(3)]
            pyray_ser.wait(kept, num_returns=3)
            print(pyray_ser.get(actor.pid.remote()), flush=True)
            time.sleep(1000)
        ''')
        with local(1) as cluster, Client(cluster) as client:
            words = [sys.executable, "-P", "-c", program, cluster.scheduler_address]
            driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            try:
                pid = int(driver.stdout.readline())
                assert alive(pid) and list(client.run(stats).values())[0]["objects"] >= 3
            finally:
                driver.kill()
                driver.wait()
            until(lambda: not alive(pid), 60)
            everything_freed(client, 60)
    """)


def test_actors_run_where_their_resources_are():
    reason = hosts.missing()
    if reason:
        pytest.skip(reason)
    script = """
        from hosts import Hosts, start_scheduler, start_workers

        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            start_workers(left, scheduler, 1)
            start_workers(right, scheduler, 1, "--resources", "right=1")
            with Client(scheduler, timeout=60) as client:
                there = [one for one in addresses(client, 2) if right.address in one]
                pyray_ser.init(address=scheduler)
                counter = Counter.options(resources={"right": 1}).remote()
                assert [get(counter.where.remote())] == there
                before = left.received()
                array = counter.array.remote(2_000_000)
                assert get(summed.remote(array)) == float(np.arange(2_000_000.0).sum())
                assert left.received() - before < 1_000_000
                # What this process has passed or put, on a host without workers.
                assert get(counter.add.remote(pyray_ser.put(np.ones(100_000)))) == 2
                assert get(counter.add.remote(np.ones(100_000))) == 3
                assert get(array).shape == (2_000_000,)
                pyray_ser.shutdown()
                everything_freed(client)
    """
    run(_HEAD + script, prefix=hosts.PREFIX, timeout=180)
