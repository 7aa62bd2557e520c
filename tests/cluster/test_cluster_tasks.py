"""Test tasks of `remote` that run on the workers of a Dask cluster, after ``init(address=...)``."""

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

        made = pyray_ser.remote(make)
        summed = pyray_ser.remote(total)

        @pyray_ser.remote
        def same(value):
            return value

        @pyray_ser.remote
        def pid():
            return os.getpid()

        @pyray_ser.remote
        def sleep(seconds, path=None):
            if path:
                with open(path, "a") as file:
                    file.write("x")
            time.sleep(seconds)
            return seconds

        def sum_of(n, start=0):
            return float(np.arange(start, start + n, dtype="f8").sum())

        def starts(path):
            return len(open(path).read()) if os.path.exists(path) else 0

"""

_HOSTS = """
        from hosts import Hosts, start_scheduler, start_workers

        def workers_of(client, count, *hosts):
            known = addresses(client, count)
            return [[one for one in known if one.split("//")[1].split(":")[0] == host.address] for host in hosts]

"""


def run_tasks(script: str, timeout: float = 120) -> str:
    return run(_HEAD + script, timeout=timeout)


def run_on_hosts(script: str) -> None:
    reason = hosts.missing()
    if reason:
        pytest.skip(reason)
    run(_HEAD + _HOSTS + script, prefix=hosts.PREFIX, timeout=180)


def test_tasks_have_the_semantics_of_one_node():
    run_tasks("""
        @pyray_ser.remote
        def fail(text):
            raise KeyError(text)

        @pyray_ser.remote(num_returns=2)
        def two(n):
            yield n
            if n < 0:
                raise ValueError("negative")
            yield np.arange(float(n))

        @pyray_ser.remote
        def write(array):
            array[0] = 1

        @pyray_ser.remote
        def nested(n):
            return pyray_ser.get([same.remote(i) for i in range(n)])

        @pyray_ser.remote
        def total_of(refs, *, scale):
            return scale * sum(float(pyray_ser.get(ref).sum()) for ref in refs)

        with local(2) as cluster, Client(cluster) as client:
            addresses(client, 2)
            pyray_ser.init(address=cluster.scheduler_address)
            get = pyray_ser.get
            assert get(same.remote(5)) == 5
            assert get([same.remote(i) for i in range(50)]) == list(range(50))
            assert get(pid.remote()) not in (os.getpid(), *client.run(os.getpid).values())
            # References are arguments: of results, pending or not, of objects of this process, and inside other values.
            ref = made.remote(100_000)
            assert get(summed.remote(ref)) == get(summed.remote(value=ref)) == sum_of(100_000)
            assert get(summed.remote(same.remote(same.remote(made.remote(50_000))))) == sum_of(50_000)
            put = pyray_ser.put(np.arange(60_000.0))
            assert get(summed.remote(put)) == sum_of(60_000)
            assert get(total_of.remote([put, ref], scale=2)) == 2 * (sum_of(60_000) + sum_of(100_000))
            assert "ready" in str(raises(ValueError, same.remote, [sleep.remote(1)]))
            # Large arguments, and functions with large data.
            assert get(summed.remote(np.arange(200_000.0))) == sum_of(200_000)
            table = np.arange(70_000.0)
            assert get(pyray_ser.remote(lambda: float(table.sum())).remote()) == sum_of(70_000)
            # The value is read-only, as on one node.
            assert not get(ref).flags.writeable
            assert "read-only" in str(raises(exceptions.TaskError, get, write.remote(ref)))
            # Errors are of both types, also those of arguments.
            failed = fail.remote("key")
            error = raises(KeyError, get, failed)
            assert isinstance(error, exceptions.TaskError) and "in fail" in error.remote_traceback
            assert raises(KeyError, get, summed.remote(failed)).args == ("key",)
            assert raises(TypeError, summed.remote)
            one, array = two.remote(1000)
            assert get(one) == 1000 and get(summed.remote(array)) == sum_of(1000)
            one, array = two.remote(-1)
            assert raises(ValueError, get, one) and raises(ValueError, get, array)
            assert get(nested.remote(4)) == [0, 1, 2, 3]
            assert list(same.map(range(20), chunksize=3)) == list(range(20))
            # wait, futures, callbacks
            slow, quick = sleep.remote(3), same.remote(1)
            assert pyray_ser.wait([slow, quick], timeout=60) == ([quick], [slow])
            assert raises(exceptions.GetTimeoutError, get, slow, timeout=0.05)
            assert quick.done() and not slow.done()
            seen = []
            follower = same.remote(7)
            # A callback may wait for another result.
            follower.add_done_callback(lambda ref: seen.append(get(same.remote(get(ref) + 1))))
            until(lambda: seen == [8])
            same.remote(9).add_done_callback(lambda ref: seen.append(pyray_ser.wait([same.remote(get(ref))], timeout=60)[0]))
            until(lambda: len(seen) == 2 and get(seen[1]) == [9])
            assert same.remote(3).future().result(60) == 3

            async def waits():
                return await same.remote(4)

            import asyncio
            assert asyncio.run(waits()) == 4
            assert get(slow) == 3
            # Nothing is left, although references still exist.
            pyray_ser.shutdown()
            assert raises(exceptions.StoreClosedError, get, ref)
            everything_freed(client)
            # Without a cluster, tasks run on this node again.
            assert pyray_ser.get(same.remote(9)) == 9
            error = raises(ValueError, pyray_ser.init, address=cluster.scheduler_address)
            assert "shutdown() first" in str(error)
            pyray_ser.shutdown()
    """)


def test_a_result_is_freed_with_its_last_reference():
    run_tasks("""
        with local(2) as cluster, Client(cluster) as client:
            pyray_ser.init(address=client)
            refs = [made.remote(100_000, i) for i in range(6)]
            pyray_ser.wait(refs, num_returns=6)
            assert client.run(stats)[addresses(client)[0]]["objects"] == 6
            sums = [summed.remote(ref) for ref in refs]
            del refs
            assert pyray_ser.get(sums) == [sum_of(100_000, i) for i in range(6)]
            everything_freed(client)
            # A task runs even if its reference is dropped.
            sleep.remote(0, "ran")
            until(lambda: starts("ran") == 1)
            # References that are still there, a running task and queued ones.
            kept = [made.remote(100_000), summed.remote(made.remote(50_000))]
            pyray_ser.wait(kept, num_returns=2)
            kept += [sleep.remote(1000) for _ in range(4)]
            pyray_ser.shutdown()
            assert "shutdown()" in str(raises(exceptions.WorkerDiedError, pyray_ser.get, kept[2]))
            everything_freed(client)
            # The client is the program's and goes on.
            assert client.submit(total, np.ones(3)).result() == 3
            # If the program closes it, no call waits forever.
            other = Client(cluster, set_as_default=False)
            pyray_ser.init(address=other)
            running = sleep.remote(100)
            other.close()
            assert raises(exceptions.ObjectLostError, pyray_ser.get, running, timeout=60)
            pyray_ser.shutdown()
            everything_freed(client)
    """)


def test_the_death_of_a_process_ends_one_task():
    run_tasks("""
        @pyray_ser.remote
        def die(path, times):
            with open(path, "a") as file:
                file.write("x")
            if starts(path) <= times:
                os._exit(3)
            return "alive"

        with local(2) as cluster, Client(cluster) as client:
            pyray_ser.init(address=cluster.scheduler_address)
            before = client.run(os.getpid)
            kept = made.remote(100_000)
            error = raises(exceptions.WorkerDiedError, pyray_ser.get, die.remote("one", 9))
            assert error.exitcode == 3 and error.task == "die", error
            assert starts("one") == 1
            assert raises(exceptions.WorkerDiedError, pyray_ser.get, die.options(max_retries=2).remote("two", 9))
            assert starts("two") == 3
            assert pyray_ser.get(die.options(max_retries=2).remote("three", 2)) == "alive"
            # The workers of Dask and their results live on.
            assert client.run(os.getpid) == before and pyray_ser.get(summed.remote(kept)) == sum_of(100_000)
            pyray_ser.shutdown()
            everything_freed(client)
    """)


def test_cancel():
    run_tasks("""
        with local(1) as cluster, Client(cluster) as client:
            pyray_ser.init(address=cluster.scheduler_address)
            running = sleep.remote(100, "running")
            queued = [sleep.remote(0, f"queued{i}") for i in range(3)]
            until(lambda: starts("running"))
            assert pyray_ser.cancel(queued[1])
            assert raises(exceptions.TaskCancelledError, pyray_ser.get, queued[1])
            assert not pyray_ser.cancel(running)
            assert pyray_ser.cancel(running, force=True)
            assert raises(exceptions.TaskCancelledError, pyray_ser.get, running)
            assert pyray_ser.get([queued[0], queued[2]]) == [0, 0]
            assert not pyray_ser.cancel(queued[0])
            assert starts("queued0") == starts("queued2") == 1 and not starts("queued1")
            # A task that needs the result of a cancelled one fails.
            first = sleep.remote(100)
            second = same.remote(first)
            assert pyray_ser.cancel(second) and pyray_ser.cancel(first, force=True)
            assert raises(exceptions.TaskCancelledError, pyray_ser.get, second)
            assert pyray_ser.get(same.remote(1)) == 1
    """)


def test_resources_place_tasks():
    run_tasks("""
        from distributed import SpecCluster, Scheduler, Nanny

        error = raises(ValueError, same.options(resources={"GPU": 1}).remote, 1)
        assert "init(address=" in str(error)
        assert "resources must be" in str(raises(ValueError, same.options, resources={"GPU": "one"}))
        workers = {i: {"cls": Nanny, "options": {"nthreads": 1, "resources": {"GPU": 1} if i else {}}} for i in range(3)}
        scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": ":0"}}
        pyray_ser.shutdown()

        @pyray_ser.remote(resources={"GPU": 1})
        def where():
            from pyray_ser.tasks import settings

            return settings._settings["set_up"][1][0]  # the address of the agent

        with SpecCluster(workers=workers, scheduler=scheduler) as cluster, Client(cluster) as client:
            addresses(client, 3)
            pyray_ser.init(address=cluster.scheduler_address)
            amounts = client.run(lambda dask_worker: dask_worker.state.total_resources)
            seen = pyray_ser.get([where.remote() for _ in range(20)])
            assert set(seen) == {address for address, given in amounts.items() if given} and len(set(seen)) == 2, seen
            assert not pyray_ser.wait([where.options(resources={"TPU": 1}).remote()], timeout=0.5)[0]
    """)


@pytest.mark.parametrize("shares", [False, True])
def test_results_stay_on_their_host_until_they_are_asked_for(shares):
    run_on_hosts(
        f"""
        shares = {shares}
    """
        + """
        @pyray_ser.remote
        def sums_of(refs):
            return [float(pyray_ser.get(ref).sum()) for ref in refs]

        @pyray_ser.remote
        def put(n):
            return pyray_ser.put(np.arange(float(n)))

        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            start_workers(left, scheduler, 2)
            start_workers(right, scheduler, 1, "--resources", "right=1")
            count = 3
            if shares:
                # This process is on the host of a worker.
                import subprocess
                words = [sys.executable, "-P", "-m", "distributed.cli.dask_worker", scheduler, "--nthreads", "1", "--no-dashboard",
                         "--host", "10.77.0.254", "--resources", "here=1"]
                mine = subprocess.Popen(words)
                count = 4
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, count, left, right)
                pyray_ser.init(address=scheduler)
                get = pyray_ser.get
                on_right = made.options(resources={"right": 1})
                before = left.received(), right.received(), stats()["objects"]
                ref = on_right.remote(4_000_000)
                assert pyray_ser.wait([ref], timeout=60)[0]
                assert client.run(stats, workers=there)[there[0]]["objects"] == 1
                assert stats()["objects"] == before[2] and ref.state in ("foreign", "sealed"), ref
                # A task runs where its argument is.
                assert get([summed.remote(ref) for _ in range(4)]) == [sum_of(4_000_000)] * 4
                assert left.received() - before[0] < 1_000_000 and right.received() - before[1] < 1_000_000
                # This process gets it once.
                assert get(ref).sum() == sum_of(4_000_000) and get(ref)[1] == 1
                assert stats()["used"] < 36_000_000
                # The other host gets it once, for all its workers.
                at = left.received()
                other = made.remote(6_000_000)
                pyray_ser.wait([other])
                refs = [on_right.remote(4_000_000, i) for i in range(2)]
                holder = put.options(resources={"right": 1}).remote(1_000_000)
                assert get(sums_of.remote([get(holder)])) == [sum_of(1_000_000)]
                assert get(pyray_ser.remote(lambda a, b, c: a.sum() + b.sum() + c.sum()).remote(other, *refs)) == (
                    sum_of(6_000_000) + sum_of(4_000_000) + sum_of(4_000_000, 1))
                # What this process has put or passes by value.
                mine_too = pyray_ser.put(np.arange(1_000_000.0))
                at = right.received()
                assert get([summed.options(resources={"right": 1}).remote(mine_too) for _ in range(3)]) == [sum_of(1_000_000)] * 3
                assert 8_000_000 < right.received() - at < 12_000_000, right.received() - at
                assert get(summed.options(resources={"right": 1}).remote(np.arange(500_000.0))) == sum_of(500_000)
                if shares:
                    assert get(sums_of.options(resources={"right": 1}).remote([mine_too, ref])) == [sum_of(1_000_000), sum_of(4_000_000)]
                else:
                    # No worker can reach the store of this process, and the object is not a separate argument.
                    assert raises(exceptions.ObjectLostError, get, sums_of.options(resources={"right": 1}).remote([mine_too]))
                    assert get(sums_of.remote([ref])) == [sum_of(4_000_000)]
                pyray_ser.shutdown()
                del ref, other, refs, mine_too
                everything_freed(client)
                client.shutdown()
            if shares:
                mine.wait(60)
            until(lambda: not left.stores() and not right.stores())
    """
    )


@pytest.mark.parametrize("leaving", ["host", "worker", "worker of the only host"])
def test_results_outlive_what_dask_retires(leaving):
    run_on_hosts(
        f"""
        leaving = {leaving!r}
        """
        """
        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            alone = leaving == "worker of the only host"
            if not alone:
                start_workers(left, scheduler, 1)
            start_workers(right, scheduler, 1)
            start_workers(right, scheduler, 1, "--resources", "right=1")
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, 2 if alone else 3, left, right)
                pyray_ser.init(address=scheduler)

                @pyray_ser.remote(resources={"right": 1}, max_retries=0)
                def once(n, path):
                    assert not os.path.exists(path), "the call runs again"
                    open(path, "w").close()
                    return np.arange(float(n))

                def spill(dask_worker):
                    while dask_worker.data.fast:
                        dask_worker.data.evict()

                refs = [once.remote(1_000_000 + i, os.path.abspath(f"once{i}")) for i in range(4)]
                assert len(pyray_ser.wait(refs, num_returns=4, timeout=60)[0]) == 4
                for one in here:
                    assert client.run(stats, workers=here)[one]["objects"] == 0
                [source] = [one for one, info in client.scheduler_info(-1)["workers"].items() if info["resources"]]
                assert {source} == {one for places in client.who_has().values() for one in places}
                client.retire_workers(there if leaving == "host" else [source], close_workers=True)
                if leaving == "host":
                    until(lambda: not right.stores())
                    assert client.run(stats, workers=here)[here[0]]["objects"] >= 4
                # The values of Dask name the objects but do not hold them.
                client.run(spill)
                pyray_ser.distributed.enable(client)
                assert pyray_ser.get(summed.remote(refs[0])) == sum_of(1_000_000)
                assert [float(one.sum()) for one in pyray_ser.get(refs)] == [sum_of(1_000_000 + i) for i in range(4)]
                pyray_ser.shutdown()
                del refs
                everything_freed(client)
                client.shutdown()
            until(lambda: not left.stores())
        """
    )


def test_results_are_computed_again_after_a_worker_was_killed():
    run_tasks(
        """
        @pyray_ser.remote
        def slow_sum(array):
            time.sleep(0.3)
            return float(array.sum())

        with local(3) as cluster, Client(cluster) as client:
            addresses(client, 3)
            pyray_ser.init(address=cluster.scheduler_address)
            refs = [made.remote(50_000, i) for i in range(9)]
            pyray_ser.wait(refs, num_returns=9)
            sums = [slow_sum.remote(ref) for ref in refs]
            pids = client.run(os.getpid)
            time.sleep(0.3)
            os.kill(pids[addresses(client)[0]], signal.SIGKILL)
            assert pyray_ser.get(sums, timeout=100) == [sum_of(50_000, i) for i in range(9)]
            # The results that were lost are needed again.
            again = [slow_sum.remote(ref) for ref in refs]
            assert pyray_ser.get(again, timeout=100) == [sum_of(50_000, i) for i in range(9)]
            pyray_ser.shutdown()
            everything_freed(client, 60)
    """,
        timeout=200,
    )


_DRIVER = """
import sys, time
import numpy as np
import pyray_ser

pyray_ser.init(address=sys.argv[1])
refs = [pyray_ser.remote(np.arange).remote(100_000.0) for _ in range(4)]
pyray_ser.wait(refs, num_returns=4)
kept = pyray_ser.put(np.ones(50_000))
print(pyray_ser.get(pyray_ser.remote(np.sum).remote(kept)), flush=True)
more = [pyray_ser.remote(time.sleep).remote(1000) for _ in range(4)]
time.sleep(1000)
"""


def test_nothing_is_left_of_a_killed_driver():
    run_tasks(
        f"        program = {_DRIVER!r}\n"
        + """
        import subprocess

        def running(dask_worker):
            return len(dask_worker.plugins["pyray_ser-tasks"].agent.running)

        with local(2) as cluster, Client(cluster) as client:
            addresses(client, 2)
            words = [sys.executable, "-P", "-c", program, cluster.scheduler_address]
            driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            try:
                assert driver.stdout.readline() == "50000.0\\n"
                until(lambda: list(client.run(running).values()) == [1, 1])
            finally:
                driver.kill()
                driver.wait()
            # Its objects are freed, and the tasks that were running are ended.
            everything_freed(client, 60)
            until(lambda: list(client.run(running).values()) == [0, 0])
            pyray_ser.init(address=cluster.scheduler_address)
            assert pyray_ser.get([same.remote(i) for i in range(4)]) == [0, 1, 2, 3]
            pyray_ser.shutdown()
    """,
        timeout=200,
    )


def test_a_call_that_dask_gives_up_because_its_workers_end():
    run_tasks("""
        dask.config.set({"distributed.scheduler.allowed-failures": 0})
        with local(1) as cluster, Client(cluster) as client:
            [there] = addresses(client, 1)
            pyray_ser.init(address=cluster.scheduler_address)
            running = sleep.remote(1000, "started")
            until(lambda: starts("started"))
            os.kill(client.run(os.getpid)[there], signal.SIGKILL)
            error = raises(exceptions.WorkerDiedError, pyray_ser.get, running, timeout=60)
            assert str(error) == (
                f"sleep has no result, because each Dask worker that ran it has ended (1 in all, the last one was {there}); "
                "hint: its log may have the cause"
            ), error
            pyray_ser.shutdown()
    """)
