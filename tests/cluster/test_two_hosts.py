"""Test values that Dask workers send from one host to another."""

import shutil
from importlib.util import find_spec

import hosts
import pytest
from dask_programs import run

# Importing distributed would change how the test process pickles exceptions.
pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")

_HEAD = """
        import signal
        from collections import Counter

        from hosts import Hosts, start_scheduler, start_workers

        def workers_of(client, count, *hosts):
            known = addresses(client, count)
            return [[one for one in known if one.split("//")[1].split(":")[0] == host.address] for host in hosts]

"""


@pytest.fixture(scope="module", autouse=True)
def namespaces():
    """Skip these tests where the kernel does not allow namespaces."""
    reason = hosts.missing()
    if reason:
        pytest.skip(reason)


def run_on_hosts(script: str) -> None:
    run(_HEAD + script, prefix=hosts.PREFIX, timeout=180)


def test_a_host_gets_a_value_once_for_all_its_workers():
    run_on_hosts("""
        def write(array):
            array[0] = 5
            return float(array.sum())

        # Otherwise, Dask may delete all replicas but the one that a task has changed.
        os.environ["DASK_DISTRIBUTED__SCHEDULER__ACTIVE_MEMORY_MANAGER__START"] = "False"
        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            for host in (left, right):
                start_workers(host, scheduler, 3, "--preload", "pyray_ser.distributed")
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, 6, left, right)
                value = client.submit(make, 4_000_000, workers=here[:1])
                small = client.submit(make, 40_000, workers=here[:1])
                wait([value, small])
                before = right.received()
                sums = [client.submit(lambda a, b: total(a) + total(b), value, small, workers=[one], pure=False)
                        for one in there]
                expected = float(np.arange(4_000_000.0).sum() + np.arange(40_000.0).sum())
                assert client.gather(sums) == [expected] * 3
                came = right.received() - before
                assert 32_000_000 < came < 45_000_000, came
                seen = client.run(stats)
                assert all(seen[one]["used"] < 36_000_000 for one in there), seen
                # The value goes back, and to the others of its first host.
                assert client.submit(total, value, workers=here[1:2], pure=False).result() == float(np.arange(4_000_000.0).sum())
                # A worker that writes changes only its own copy.
                assert client.submit(write, value, workers=there[:1]).result() == float(np.arange(4_000_000.0).sum()) + 5
                for one in (there[1], here[0]):
                    assert client.submit(total, value, workers=[one], pure=False).result() == float(np.arange(4_000_000.0).sum())
                # A value that the client scatters to all workers.
                before = right.received()
                spread = client.scatter(make(4_000_000), broadcast=True)
                came = right.received() - before
                assert 32_000_000 < came < 45_000_000, came
                sums = [client.submit(total, spread, workers=[one], pure=False) for one in here + there]
                assert client.gather(sums) == [float(np.arange(4_000_000.0).sum())] * 6
                assert all(one["used"] < 70_000_000 for one in client.run(stats).values()), client.run(stats)
                del value, small, sums, spread
                everything_freed(client)
                client.shutdown()
            until(lambda: not left.stores() and not right.stores())
    """)


def test_a_value_is_shared_before_its_worker_has_accounted_for_it():
    run_on_hosts("""
        def delay(hold_back_open, dask_worker):
            # The value is open, or arrives in the data of its worker, only after another worker has asked for it.
            import asyncio

            sharing = dask_worker.plugins["pyray_ser"].sharing
            owner, name = (sharing, "open") if hold_back_open else (dask_worker, "gather_dep")
            original = getattr(owner, name)
            dask_worker.asked = asyncio.Event()

            async def late(*args, **kwargs):
                found = await original(*args, **kwargs)
                await dask_worker.asked.wait()
                return found

            setattr(owner, name, late)

        def arrives(dask_worker):
            return pyray_ser.stats()["used"] > 32_000_000

        async def go_on(dask_worker):
            dask_worker.asked.set()

        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            for host, count in ((left, 1), (right, 3)):
                start_workers(host, scheduler, count, "--preload", "pyray_ser.distributed")
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, 4, left, right)
                expected = float(np.arange(4_000_000.0).sum())
                for first, other, hold_back_open in ((there[0], there[1], False), (there[1], there[2], True)):
                    value = client.submit(make, 4_000_000, workers=here, pure=False)
                    wait(value)
                    client.run(delay, hold_back_open, workers=[first])
                    before = right.received()
                    one = client.submit(total, value, workers=[first], pure=False)
                    until(lambda: client.run(arrives, workers=[first])[first])
                    another = client.submit(total, value, workers=[other], pure=False)
                    assert another.result() == expected
                    client.run(go_on, workers=[first])
                    assert one.result() == expected
                    came = right.received() - before
                    assert 32_000_000 < came < 45_000_000, came
                    del value, one, another
                    everything_freed(client)
    """)


def test_references_are_read_on_other_hosts():
    run_on_hosts("""
        def store(n):
            return pyray_ser.put({"array": np.arange(n, dtype="f8"), "name": "left"})

        def read(ref):
            return float(pyray_ser.get(ref)["array"].sum())

        def keep(ref):
            worker = get_worker()
            worker.kept = ref, pyray_ser.get(ref)
            return float(worker.kept[1]["array"].sum())

        def free(ref):
            pyray_ser.free(ref)

        def read_freed(ref):
            try:
                pyray_ser.get(ref)
            except pyray_ser.exceptions.ObjectFreedError as error:
                return str(error)

        def drop(dask_worker):
            del dask_worker.kept

        async def read_in_the_loop(ref):
            return float((await ref)["array"].sum())

        async def read_badly(ref):
            try:
                pyray_ser.get(ref)
            except RuntimeError as error:
                return str(error)

        from distributed import get_worker

        from pyray_ser.distributed import locations

        os.environ["DASK_PYRAY_SER__KEEP"] = "4s"
        # The scheduler runs on a third host, which has no store.
        with Hosts(3) as (left, right, third):
            scheduler = start_scheduler(third)
            for host in (left, right):
                start_workers(host, scheduler, 3, "--preload", "pyray_ser.distributed")
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, 6, left, right)
                expected = float(np.arange(4_000_000.0).sum())
                ref = client.submit(store, 4_000_000, workers=here[:1]).result()
                assert ref.state == "foreign"
                assert client.submit(read, ref, workers=here[1:2]).result() == expected
                before = right.received()
                # Between these tasks, no process of the host holds the reference.
                for one in there:
                    assert client.submit(read, ref, workers=[one], pure=False).result() == expected
                kept = [client.submit(keep, ref, workers=[one], pure=False) for one in there]
                assert client.gather(kept) == [expected] * 3
                for one in there:
                    assert client.submit(read, ref, workers=[one], pure=False).result() == expected
                    assert client.submit(read_in_the_loop, ref, workers=[one], pure=False).result() == expected
                came = right.received() - before
                assert 32_000_000 < came < 45_000_000, came
                assert all(one["used"] < 36_000_000 for one in client.run(stats, workers=there).values())
                del kept
                client.run(drop, workers=there)
                until(lambda: not any(one["objects"] for one in client.run(stats, workers=there).values()))
                other = client.submit(store, 40_000, workers=here[:1]).result()
                assert "await" in client.submit(read_badly, other, workers=there[:1]).result()
                assert client.submit(read, other, workers=there[1:2]).result() == float(np.arange(40_000.0).sum())
                client.submit(free, other, workers=here[1:2]).result()
                until(lambda: not locations(other))  # the other host keeps its copy a little longer
                assert "was freed" in client.submit(read_freed, other, workers=there[2:]).result()
    """)


def test_unused_copies_make_room_for_other_objects():
    run_on_hosts("""
        def store(n):
            return pyray_ser.put(np.arange(n, dtype="f8"))

        def read(ref):
            return float(pyray_ser.get(ref).sum())

        def fill(n):
            get_worker().kept = pyray_ser.put(np.ones(n))

        from distributed import get_worker

        from pyray_ser.distributed import locations

        os.environ["DASK_PYRAY_SER__CAPACITY"] = "160MB"
        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            for host in (left, right):
                start_workers(host, scheduler, 2, "--preload", "pyray_ser.distributed")
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, 4, left, right)
                small, large = client.gather([client.submit(store, n, workers=here[:1]) for n in (1_000_000, 4_000_000)])
                for ref, n in ((small, 1_000_000), (large, 4_000_000)):
                    assert client.submit(read, ref, workers=there[:1]).result() == float(np.arange(float(n)).sum())
                # A copy that takes more than an eighth of the store ends with its task.
                until(lambda: set(locations(large)) == set(here))
                assert set(locations(small)) == {*here, *there}
                # Now more than three quarters of the store are in use.
                client.submit(fill, 16_000_000, workers=there[1:]).result()
                until(lambda: set(locations(small)) == set(here))
    """)


def test_objects_are_located_prefetched_and_broadcast():
    run_on_hosts("""
        from distributed import get_worker
        from pyray_ser.distributed import broadcast, locations, prefetch

        def store(n):
            return pyray_ser.put(np.arange(n, dtype="f8"))

        def free(refs):
            for ref in refs:
                pyray_ser.free(ref)

        def read_after_prefetch(refs):
            prefetch([*refs, pyray_ser.put(1)])
            end = time.monotonic() + 60
            while any(ref.state != "sealed" for ref in refs):  # nothing here asks for the values
                assert time.monotonic() < end
                time.sleep(0.01)
            return [float(pyray_ser.get(ref, timeout=0).sum()) for ref in refs]

        def locate(ref):
            return locations(ref)

        # A tree of four hosts: the first one sends the object to two, and one of these to the last one.
        os.environ["DASK_PYRAY_SER__KEEP"] = "0s"
        with Hosts(4) as hosts:
            scheduler = start_scheduler(hosts[0])
            for host in hosts:
                start_workers(host, scheduler, 2, "--preload", "pyray_ser.distributed")
            with Client(scheduler, timeout=60) as client:
                groups = workers_of(client, 8, *hosts)
                refs = client.gather([client.submit(store, n, workers=groups[0][:1]) for n in (4_000_000, 40_000)])
                expected = [float(np.arange(n, dtype="f8").sum()) for n in (4_000_000, 40_000)]
                assert locations(refs[0]) == groups[0]
                assert client.submit(locate, refs[0], workers=groups[1][:1]).result() == groups[0]
                before = [host.received() for host in hosts]
                copies = broadcast(refs[0])
                assert len(copies) == 3
                client.gather(copies)
                came = [host.received() - bytes for host, bytes in zip(hosts, before)]
                assert all(32_000_000 < one < 45_000_000 for one in came[1:]), came
                sent = [int(next(line for line in host.run("cat", "/proc/self/net/dev").splitlines() if "eth0:" in line)
                            .partition(":")[2].split()[8]) for host in hosts]
                assert sum(one > 32_000_000 for one in sent) == 2 and 64_000_000 < sent[0] < 90_000_000, sent
                # Dask may delete replicas of a result, so there must be none on other hosts.
                where = client.who_has(copies)
                assert all(any(set(where[copy.key]) <= set(group) for group in groups) for copy in copies), (where, groups)
                client.amm.run_once()
                found = locations(refs[0])
                assert found[:2] == groups[0] and set(found) == {one for group in groups for one in group}, (found, groups)
                del copies
                until(lambda: locations(refs[0]) == groups[0])
                [one] = broadcast(refs[0], workers=groups[2][1:])
                assert one.result().address == groups[2][1]
                del one
                task = client.submit(read_after_prefetch, refs, workers=groups[3][:1])
                assert task.result() == expected
                client.submit(free, refs, workers=groups[0][:1]).result()
                del task
                until(lambda: not locations(refs[0]))
    """)


@pytest.mark.heavy
def test_a_killed_receiver_of_a_reference_does_not_stop_the_others():
    run_on_hosts("""
        def store(n):
            return pyray_ser.put(np.arange(n, dtype="f8"))

        def read(ref):
            return float(pyray_ser.get(ref).sum())

        def read_late(ref):
            time.sleep(0.3)
            return read(ref)

        os.environ["DASK_PYRAY_SER__KEEP"] = "0s"

        def objects_left():
            pyray_ser.init().look()  # for processes that were killed
            return pyray_ser.stats()["objects"]

        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            for host, count in ((left, 1), (right, 3)):
                start_workers(host, scheduler, count, "--preload", "pyray_ser.distributed")
            for host in (left, right):
                host.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "400mbit", "burst", "1mb", "latency", "50ms")
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, 4, left, right)
                pids = client.run(os.getpid, workers=there)
                ref = client.submit(store, 6_000_000, workers=here).result()
                sums = [client.submit(function, ref, workers=there[i:], pure=False)
                        for i, function in enumerate((read, read_late, read_late))]
                time.sleep(0.6)
                right.run("kill", "-KILL", str(pids[there[0]]))
                assert client.gather(sums) == [float(np.arange(6_000_000.0).sum())] * 3
                del sums
                until(lambda: client.run(objects_left, workers=there[1:2])[there[1]] == 0)
    """)


@pytest.mark.heavy
def test_copies_of_references_outlive_the_host_of_the_original():
    run_on_hosts("""
        def store(n):
            return pyray_ser.put(np.arange(n, dtype="f8"))

        def keep(ref):
            worker = get_worker()
            worker.kept = ref, pyray_ser.get(ref)
            return float(worker.kept[1].sum())

        def fails(ref):
            try:
                pyray_ser.get(ref)
            except pyray_ser.exceptions.ForeignStoreError as error:
                return str(error)

        from distributed import get_worker

        os.environ["DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT"] = "12s"
        with Hosts(3) as (left, right, third):
            scheduler = start_scheduler(third)
            for host in (left, right):
                start_workers(host, scheduler, 2, "--preload", "pyray_ser.distributed")
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, 4, left, right)
                refs = client.gather([client.submit(store, n, workers=here[:1]) for n in (4_000_000, 40_000)])
                expected = float(np.arange(4_000_000.0).sum())
                assert client.submit(keep, refs[0], workers=there[:1]).result() == expected
                left.end()
                assert client.submit(keep, refs[0], workers=there[1:], pure=False).result() == expected
                assert "host1" in client.submit(fails, refs[1], workers=there[:1]).result()
    """)


@pytest.mark.heavy
def test_a_killed_receiver_does_not_stop_the_others():
    run_on_hosts("""
        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            for host, count in ((left, 1), (right, 3)):
                start_workers(host, scheduler, count, "--preload", "pyray_ser.distributed")
            # A slow link, so that the transfer takes a second.
            right.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "400mbit", "burst", "1mb", "latency", "50ms")
            left.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "400mbit", "burst", "1mb", "latency", "50ms")
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, 4, left, right)
                pids = client.run(os.getpid, workers=there)
                value = client.submit(make, 6_000_000, workers=here)
                wait(value)
                sums = [client.submit(total, value, workers=there, pure=False) for one in there]
                time.sleep(0.5)
                right.run("kill", "-KILL", str(pids[there[0]]))
                assert client.gather(sums) == [float(np.arange(6_000_000.0).sum())] * 3
                del value, sums
                everything_freed(client)
    """)


@pytest.mark.heavy
def test_a_host_that_is_gone_does_not_stop_the_others():
    run_on_hosts("""
        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            for host in (left, right):
                start_workers(host, scheduler, 2, "--preload", "pyray_ser.distributed")
            with Client(scheduler, timeout=60) as client:
                here, there = workers_of(client, 4, left, right)
                value = client.submit(make, 4_000_000, workers=there, allow_other_workers=True)
                assert client.submit(total, value, workers=here[:1]).result() == float(np.arange(4_000_000.0).sum())
                other = client.submit(make, 4_000_000, 1, workers=there, allow_other_workers=True)
                wait(other)
                right.run("sh", "-c", "kill -KILL -1")
                assert client.submit(total, value, workers=here[1:]).result() == float(np.arange(4_000_000.0).sum())
                found = client.submit(total, other, workers=here[1:]).result()
                assert found == float(np.arange(1, 4_000_001, dtype="f8").sum())
    """)


@pytest.mark.heavy
def test_workers_without_the_plugin_get_plain_values():
    run_on_hosts("""
        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            start_workers(left, scheduler, 2, "--preload", "pyray_ser.distributed")
            start_workers(right, scheduler, 1)
            with Client(scheduler, timeout=60) as client:
                workers = addresses(client, 3)
                for maker in workers:
                    value = client.submit(make, 4_000_000, workers=[maker], pure=False)
                    sums = [client.submit(total, value, workers=[one], pure=False) for one in workers]
                    assert client.gather(sums) == [float(np.arange(4_000_000.0).sum())] * 3
    """)


def test_shared_memory_counts_once_in_the_limits_of_workers():
    run_on_hosts("""
        from distributed import get_worker

        def read_for_two_seconds(value):
            found = total(value)
            time.sleep(2)  # Dask looks at the memory each 100 ms
            with open("/proc/self/status") as status:
                resident = int(dict(line.split(":", 1) for line in status)["VmRSS"].split()[0]) << 10
            worker = get_worker()
            return found, worker.status.name, resident, worker.monitor.get_process_memory(), os.getpid()

        def fill_and_wait(n):
            mine = np.ones(n)
            time.sleep(60)

        # This part of the limit is for the sizes of values, which count in each worker.
        os.environ["DASK_DISTRIBUTED__WORKER__MEMORY__TARGET"] = "0.85"
        with Hosts(1) as (host,):
            scheduler = start_scheduler(host)
            words = ("--preload", "pyray_ser.distributed", "--preload-nanny", "pyray_ser.distributed")
            start_workers(host, scheduler, 1, *words)
            with Client(scheduler, timeout=60) as client:
                [maker] = addresses(client, 1)
                # Dask pauses a worker at 80 % of its limit, and restarts it at 95 %.
                start_workers(host, scheduler, 3, *words, "--memory-limit", "265MB")
                readers = [one for one in addresses(client, 4) if one != maker]
                pids = client.run(os.getpid, workers=readers)
                value = client.submit(make, 25_000_000, workers=[maker])
                tasks = [client.submit(read_for_two_seconds, value, workers=[one], pure=False) for one in readers]
                for one, (found, status, resident, counted, pid) in zip(readers, client.gather(tasks)):
                    assert found == float(np.arange(25_000_000.0).sum())
                    assert (status, pid) == ("running", pids[one])
                    assert resident > 0.95 * 265_000_000 and counted < 0.8 * 265_000_000, (resident, counted)
                # Private memory counts as before.
                task = client.submit(fill_and_wait, 40_000_000, workers=readers[:1])
                until(lambda: pids[readers[0]] not in client.run(os.getpid, on_error="ignore").values())
    """)


def test_arguments_that_are_on_other_hosts_than_the_program():
    run_on_hosts("""
        import pyray_ser

        class Keeper:
            def __init__(self, value=None):
                self.value = value

            def total(self, value):
                return total(value)

            def own(self):
                return total(self.value)

        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            for host in (left, right):
                start_workers(host, scheduler, 1)
            with Client(scheduler, timeout=60) as client:
                (here,), (there,) = workers_of(client, 2, left, right)
                pyray_ser.init(address=client)
                expected = float(np.arange(100_000.0).sum())
                # A result of a task, of an actor, and of an object that a task of Dask has made.
                keepers = [pyray_ser.remote(Keeper).remote() for _ in range(2)]
                refs = [pyray_ser.remote(make).remote(100_000)]
                refs += [client.submit(lambda: pyray_ser.put(make(100_000)), workers=[one]).result() for one in (here, there)]
                pyray_ser.get(pyray_ser.remote(total).remote(refs[0]))
                for ref in refs:
                    assert pyray_ser.get([one.total.remote(ref) for one in keepers] * 2) == [expected] * 4
                    assert pyray_ser.get([pyray_ser.remote(total).remote(ref) for _ in range(4)]) == [expected] * 4
                    made = [pyray_ser.remote(Keeper).remote(ref) for _ in range(2)]
                    assert pyray_ser.get([one.own.remote() for one in made]) == [expected] * 2
                    assert total(pyray_ser.get(ref)) == expected
                pyray_ser.shutdown()
                client.shutdown()
    """)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_between_hosts():
    run_on_hosts("""
        import subprocess
        import pyray_ser
        from distributed.security import Security

        class Keeper:
            def total(self, value):
                return total(value)

        names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:10.77.0.1,IP:10.77.0.2"]
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem",
                        "-out", "cert.pem", *names], check=True, stderr=subprocess.DEVNULL)
        folder = os.getcwd()
        files = {f"tls_{role}_{kind}": f"{folder}/{kind}.pem" for role in ("scheduler", "worker", "client") for kind in ("key", "cert")}
        security = Security(tls_ca_file=f"{folder}/cert.pem", require_encryption=True, **files)
        words = ("--protocol", "tls", "--tls-ca-file", f"{folder}/cert.pem", "--tls-cert", f"{folder}/cert.pem",
                 "--tls-key", f"{folder}/key.pem")
        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left, *words).replace("tcp:", "tls:")
            for host in (left, right):
                start_workers(host, scheduler, 2, "--preload", "pyray_ser.distributed", *words)
            with Client(scheduler, timeout=60, security=security) as client:
                here, there = workers_of(client, 4, left, right)
                assert all(one.startswith("tls://") for one in here + there)
                # A dependency, and then a reference, come once to the other host.
                value = client.submit(make, 4_000_000, workers=here[:1])
                before = right.received()
                sums = [client.submit(total, value, workers=[one], pure=False) for one in there]
                assert client.gather(sums) == [float(np.arange(4_000_000.0).sum())] * 2
                came = right.received() - before
                assert 32_000_000 < came < 45_000_000, came
                stored = client.submit(lambda: pyray_ser.put(make(4_000_000, 1)), workers=here[:1]).result()
                before = right.received()
                sums = [client.submit(lambda ref: total(pyray_ser.get(ref)), stored, workers=[one], pure=False) for one in there]
                assert client.gather(sums) == [float(np.arange(1.0, 4_000_001.0).sum())] * 2
                came = right.received() - before
                assert 32_000_000 < came < 45_000_000, came
                # Tasks and actors; their results are read on the other host and in this program.
                pyray_ser.init(address=client)
                made = pyray_ser.remote(make).remote(100_000)
                keepers = [pyray_ser.remote(Keeper).remote() for _ in range(4)]
                expected = float(np.arange(100_000.0).sum())
                assert pyray_ser.get([one.total.remote(made) for one in keepers] * 3) == [expected] * 12
                assert total(pyray_ser.get(made)) == expected
                lines = pyray_ser.tasks.engine.current().direct._lines.values()
                until(lambda: any(line.done() and line.result() is not None for line in lines))
                assert pyray_ser.get([one.total.remote(made) for one in keepers]) == [expected] * 4
                pyray_ser.shutdown()
                client.shutdown()
    """)
