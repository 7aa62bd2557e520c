"""Test handles of a cluster's actors in tasks and in other actors, after ``init(address=...)``."""

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
            def __init__(self):
                self.seen = []

            def add(self, n):
                self.seen.append(n)
                return len(self.seen)

            def all(self):
                return self.seen

            def pid(self):
                return os.getpid()

            def array(self, n):
                return np.arange(float(n))

            def stream(self, n):
                try:
                    for i in range(n):
                        yield np.full(10_000, float(i))
                finally:
                    self.seen.append("closed")

            def sums(self, values):
                return [float(get(value).sum()) for value in values]

            def sleep(self, seconds):
                time.sleep(seconds)

            def fail(self):
                raise KeyError("no")

            def die(self):
                os._exit(3)

        @pyray_ser.remote
        class Holder:
            def __init__(self, counter):
                self.counter = counter

            def add(self, n):
                return get(self.counter.add.remote(n))

            def die(self):
                return get(self.counter.die.remote())

            def sleep(self, seconds):
                return get(self.counter.sleep.remote(seconds))

            def kill(self):
                pyray_ser.kill(self.counter)

            def counter_of(self):
                return self.counter

        made = pyray_ser.remote(make)

        @pyray_ser.remote
        def adds(counter, name, count):
            return get([counter.add.remote((name, i)) for i in range(count)])

        @pyray_ser.remote
        def uses(counters):
            [counter] = counters
            # Large results, large arguments, references and pending references inside arguments.
            found = [float(get(counter.array.remote(100_000)).sum())]
            found.append(get(counter.sums.remote([pyray_ser.put(np.ones(70_000)), made.remote(60_000)])))
            found.append(get(counter.add.remote(np.arange(100_000.0))))
            found.append(get(counter.add.remote(made.remote(50_000))))
            found.append([float(get(item)[0]) for item in counter.stream.remote(40)])
            dropped = counter.stream.remote(1000)
            next(dropped)
            del dropped
            found.append(list(counter.add.map(range(3))))
            late = [counter.sleep.remote(0.3), counter.add.remote("late")]
            pyray_ser.cancel(late[1])
            for ref in (late[1], counter.fail.remote()):
                try:
                    get(ref)
                except (exceptions.TaskCancelledError, KeyError) as error:
                    found.append(isinstance(error, KeyError))
            return found

        def check_uses(found, before):
            total, sums, one, two, items, mapped, *errors = found
            assert total == float(np.arange(100_000.0).sum())
            assert sums == [70_000.0, float(np.arange(60_000.0).sum())]
            assert (one, two) == (before + 1, before + 2)
            assert items == list(range(40))
            assert mapped == [before + 5, before + 6, before + 7], mapped  # behind the ends of two streams
            assert errors == [False, True]

        def check_order(seen, names, count):
            for name in names:
                assert [i for one, i in seen if one == name] == list(range(count))

        @pyray_ser.remote
        def calls_again(counter):
            # Call an actor until it has died and was made again.
            before = get(counter.pid.remote())
            while True:
                try:
                    pid = get(counter.pid.remote())
                except exceptions.WorkerDiedError:
                    continue
                if pid != before:
                    return pid
                time.sleep(0.01)

"""


def test_a_task_calls_an_actor_whose_handle_is_an_argument():
    run(
        _HEAD
        + """
        with local(2) as cluster, Client(cluster) as client:
            addresses(client, 2)
            pyray_ser.init(address=cluster.scheduler_address)
            # The handle is sent while the actor is still being made.
            counter = Counter.remote()
            get([adds.remote(counter, name, 100) for name in "abc"])
            seen = get(counter.all.remote())
            check_order(seen, "abc", 100)
            check_uses(get(uses.remote([counter])), 300)
            # A handle that comes back is the program's own.
            holder = Holder.remote(counter)
            back = get(holder.counter_of.remote())
            assert back == counter
            # An actor ends when the last handle in any process is gone.
            del counter, back
            counter = Counter.remote()
            holder = Holder.remote(counter)
            pid = get(counter.pid.remote())
            del counter
            time.sleep(3)
            assert get(holder.add.remote(1)) and os.path.exists(f"/proc/{pid}")
            del holder
            until(lambda: not os.path.exists(f"/proc/{pid}"))
            # ... and with its program, even if two actors hold each other.
            counter = Counter.remote()
            holder = Holder.remote(counter)
            get(counter.add.remote(holder))
            pid = get(counter.pid.remote())
            assert get(holder.add.remote(1)) == 2
            del counter, holder
            time.sleep(3)
            assert os.path.exists(f"/proc/{pid}")
            pyray_ser.shutdown()
            until(lambda: not os.path.exists(f"/proc/{pid}"))
            everything_freed(client)
    """
    )


def _on_two_hosts(script: str, timeout: float = 120) -> None:
    reason = hosts.missing()
    if reason:
        pytest.skip(reason)
    head = """
        from hosts import Hosts, start_scheduler, start_workers

        LEFT, RIGHT = {"resources": {"left": 1}}, {"resources": {"right": 1}}

        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            start_workers(left, scheduler, 1, "--resources", "left=1")
            start_workers(right, scheduler, 1, "--resources", "right=1")
            with Client(scheduler, timeout=60) as client:
                addresses(client, 2)
                pyray_ser.init(address=scheduler)
"""
    run(_HEAD + head + script, prefix=hosts.PREFIX, timeout=timeout)


def test_a_task_calls_an_actor_on_another_host():
    _on_two_hosts("""
                counter = Counter.options(**RIGHT).remote()
                get([adds.options(**LEFT).remote(counter, name, 100) for name in "abc"])
                check_order(get(counter.all.remote()), "abc", 100)
                check_uses(get(uses.options(**LEFT).remote([counter])), 300)
                assert sum(isinstance(one, str) for one in get(counter.all.remote())) == 2
                # The actor lives as long as the other host has a handle, and the handle can be sent on.
                holder = Holder.options(**LEFT).remote(counter)
                before = get(holder.add.remote(1))
                del counter
                time.sleep(3)
                assert get(holder.add.remote(1)) == before + 1
                second = Holder.options(**RIGHT).remote(holder)
                assert get(second.add.remote(1)) == before + 2
                # kill() in a task of another host is final.
                get(holder.kill.remote())
                error = raises(exceptions.WorkerDiedError, get, holder.add.remote(1))
                assert "kill()" in str(error)
                # An actor that a task has made can be called on its host only.
                @pyray_ser.remote
                def makes():
                    global kept
                    kept = Counter.remote()
                    get(kept.add.remote(1))
                    return kept

                there = makes.options(**RIGHT).remote()
                error = raises(exceptions.WorkerDiedError, get, adds.options(**LEFT).remote(there, "a", 1))
                assert "hint: make actors" in str(error), error
                del holder, second, there
                pyray_ser.shutdown()
                everything_freed(client)
    """)


def test_an_actor_is_made_again_while_its_callers_occupy_all_threads():
    _on_two_hosts("""
                # The left worker is busy, so the actor comes to the right one.
                busy = pyray_ser.remote(time.sleep).options(**LEFT).remote(2)
                counter = Counter.options(max_restarts=1).remote()
                get(counter.pid.remote())
                [[place]] = [places for key, places in client.who_has().items() if key.startswith("Counter")]
                assert right.address in place, place
                # Only the left worker remains, and its only thread runs a call that waits for the actor.
                calling = calls_again.options(**LEFT).remote(counter)
                get(busy)
                until(lambda: len(client.processing()) and any(any("calls_again" in key for key in keys)
                                                               for keys in client.processing().values()))
                time.sleep(1)
                right.end()
                assert get(calling, timeout=60) > 0
                # The thread is free again.
                assert get(made.options(**LEFT).remote(3), timeout=60).sum() == 3
                pyray_ser.shutdown()
    """)


def test_calls_wait_for_an_actor_whose_arguments_are_not_ready():
    run(
        _HEAD
        + """
        @pyray_ser.remote
        class Sum:
            def __init__(self, value):
                self.value = value

            def add(self, n):
                return float(self.value.sum()) + n

        @pyray_ser.remote
        def calls(one):
            return get(one.add.remote(1))

        with local(1) as cluster, Client(cluster) as client:
            addresses(client, 1)
            pyray_ser.init(address=cluster.scheduler_address)
            counter = Counter.remote()
            # The result of an actor's method is no Dask task, so Dask knows the second actor only when it is ready.
            busy = counter.sleep.remote(4)
            late = Sum.remote(counter.array.remote(10_000))
            holder = Holder.remote(late)
            refs = [calls.remote(late), holder.add.remote(2), counter.add.remote(late)]
            assert not busy.done()
            total = float(np.arange(10_000.0).sum())
            assert get(refs) == [total + 1, total + 2, 1]
            pyray_ser.shutdown()
    """
    )


def test_the_death_of_an_actor_that_other_hosts_call():
    _on_two_hosts("""
                counter = Counter.options(**RIGHT, max_restarts=2).remote()
                holders = [Holder.options(**LEFT).remote(counter) for _ in range(2)]
                assert get([holder.add.remote(1) for holder in holders]) in ([1, 2], [2, 1])
                error = raises(exceptions.WorkerDiedError, get, holders[0].die.remote())
                assert "Counter.die" in str(error)
                # Later calls run in the new process.
                until(lambda: get(holders[0].add.remote(1)) == 1)
                assert get(holders[1].add.remote(1)) == 2
                # If the Dask worker ends, the actor is made again, although the program calls no method.
                running = holders[0].sleep.remote(1000)
                time.sleep(0.5)
                [there] = [one for one in addresses(client, 2) if right.address in one]
                right.run("kill", "-9", str(client.run(os.getpid, workers=[there])[there]))
                assert there in str(raises(exceptions.WorkerDiedError, get, running, timeout=60))
                assert get(holders[1].add.remote(1), timeout=60) == 1
                assert get([holders[0].add.remote(1), counter.add.remote(1)], timeout=60)
                # If it is not made again, callers get an error.
                counter = Counter.options(**RIGHT).remote()
                holder = Holder.options(**LEFT).remote(counter)
                assert get(holder.add.remote(1)) == 1
                right.end()
                raises(exceptions.WorkerDiedError, get, holder.add.remote(1), timeout=60)
                raises(exceptions.WorkerDiedError, get, holder.add.remote(1), timeout=60)
                pyray_ser.shutdown()
    """)
