"""Test the connections over which a client calls actors without the scheduler."""

from importlib.util import find_spec

import hosts
import pytest
from dask_programs import run

# Importing distributed would change how the test process pickles exceptions.
pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")

_HEAD = """
        import signal
        import pyray_ser
        from hosts import Hosts, start_scheduler, start_workers
        from pyray_ser import exceptions

        get = pyray_ser.get

        @pyray_ser.remote
        class Counter:
            def __init__(self):
                self.count = 0

            def add(self, seconds=0):
                time.sleep(seconds)
                self.count += 1
                return self.count

            def fail(self):
                raise KeyError("no")

            def array(self):
                return np.arange(100_000.0)

        def connected():
            # How many workers the client calls directly.
            from pyray_ser.tasks import engine

            lines = engine.current().direct._lines.values()
            return sum(line.done() and line.result() is not None for line in lines)

"""


def run_direct(script: str, prefix: tuple[str, ...] = ()) -> None:
    run(_HEAD + script, prefix=prefix)


@pytest.fixture
def namespaces():
    """Skip a test where the kernel does not allow namespaces."""
    reason = hosts.missing()
    if reason:
        pytest.skip(reason)


def test_calls_do_not_need_the_scheduler(namespaces):
    run_direct("""
        def signal_scheduler(number):
            for folder in glob.glob("/proc/[0-9]*"):
                words = open(f"{folder}/cmdline", "rb").read().split(b"\\0")
                # `nsenter` has the same arguments. It stops when the scheduler stops, and must be continued, too.
                if b"distributed.cli.dask_scheduler" in words and (words[0] == sys.executable.encode() or number == signal.SIGCONT):
                    os.kill(int(folder.rpartition("/")[2]), number)

        with Hosts(2) as (left, right):
            scheduler = start_scheduler(left)
            start_workers(right, scheduler, 1)
            with Client(scheduler, timeout=60) as client:
                addresses(client, 1)
                pyray_ser.init(address=client)
                counter, other = Counter.remote(), Counter.remote()
                # Calls that are made before and after the connection exists keep their order.
                refs = []
                until(lambda: refs.append(counter.add.remote()) or connected())
                refs += [counter.add.remote() for _ in range(1000)]
                assert get(refs) == list(range(1, len(refs) + 1))
                assert get(other.add.remote()) == 1
                signal_scheduler(signal.SIGSTOP)
                try:
                    assert get([one.add.remote() for one in (counter, other)], timeout=patience(10)) == [len(refs) + 1, 2]
                    assert isinstance(raises(KeyError, get, counter.fail.remote(), timeout=patience(10)), KeyError)
                finally:
                    signal_scheduler(signal.SIGCONT)
                assert get(counter.array.remote())[-1] == 99_999
                pyray_ser.shutdown()
                client.shutdown()
    """, hosts.PREFIX)  # fmt: skip


def test_calls_to_workers_that_the_client_cannot_reach(namespaces):
    run_direct("""
        import subprocess

        with Hosts(3) as (first, refuses, silent):
            scheduler = start_scheduler(first)
            for host in (refuses, silent):
                start_workers(host, scheduler, 1, "--resources", f"{'slow' if host is silent else 'fast'}=1")
            # No packet reaches the worker of one host; an error is reported for the other one.
            for words in (f"route add unreachable {refuses.address}", f"neigh replace {silent.address} lladdr 02:00:00:00:00:99 dev switch"):
                subprocess.run(("ip", *words.split()), check=True)
            with Client(scheduler, timeout=60) as client:
                addresses(client, 2)
                pyray_ser.init(address=client)
                for kind in ("fast", "slow"):
                    counter = Counter.options(resources={kind: 1}).remote()
                    assert get(counter.add.remote()) == 1
                    began = time.monotonic()
                    assert get([counter.add.remote() for _ in range(20)]) == list(range(2, 22))
                    assert time.monotonic() - began < patience(3), "calls wait for the connection"
                    assert not connected()
                from pyray_ser.tasks import engine
                lines = engine.current().direct._lines
                until(lambda: len(lines) == 2 and all(line.done() for line in lines.values()))
                assert not connected() and get(counter.add.remote()) == 22
                pyray_ser.shutdown()
                client.shutdown()
    """, hosts.PREFIX)  # fmt: skip


def test_another_machine_with_the_address_of_a_worker():
    run_direct("""
        from pyray_ser.distributed import direct

        async def other_token(dask_worker=None):
            return "0" * 32

        with local(1) as cluster, Client(cluster) as client:
            addresses(client, 1)
            pyray_ser.init(address=client)
            direct.token_of = other_token
            counter = Counter.remote()
            assert get([counter.add.remote() for _ in range(10)]) == list(range(1, 11))
            from pyray_ser.tasks import engine
            [line] = engine.current().direct._lines.values()
            until(line.done)
            assert line.result() is None and get(counter.add.remote()) == 11
            pyray_ser.shutdown()
    """)


def test_a_worker_that_stops_or_dies_during_a_call():
    run_direct("""
        # Dask gives up a worker that is silent for this time.
        dask.config.set({"distributed.scheduler.worker-ttl": "4s", "distributed.worker.heartbeat.interval": "500ms"})
        with local(1) as cluster, Client(cluster) as client:
            for number in (signal.SIGSTOP, signal.SIGKILL):
                addresses(client, 1)
                pyray_ser.init(address=client)
                counter = Counter.remote()
                until(lambda: get(counter.add.remote()) and connected())
                [pid] = client.run(os.getpid).values()
                call = counter.add.remote(60)
                time.sleep(0.5)
                os.kill(pid, number)
                raises(exceptions.WorkerDiedError, get, call, timeout=patience(30))
                raises(exceptions.WorkerDiedError, get, counter.add.remote(), timeout=patience(30))
                # The nanny replaces the worker, also one that is stopped.
                until(lambda: pid not in client.run(os.getpid, on_error="ignore").values())
                until(lambda: client.run(os.getpid, on_error="ignore"))
                pyray_ser.shutdown()
    """)


def test_a_program_that_ends_without_shutdown_prints_nothing():
    run_direct("""
        import subprocess

        program = '''
        import pyray_ser
        from distributed import Client

        class Counter:
            def add(self):
                return 1

        if __name__ == "__main__":
            client = Client(ADDRESS)
            pyray_ser.init(address=client)
            counter = pyray_ser.remote(Counter).remote()
            for _ in range(20):
                pyray_ser.get(counter.add.remote())
            END
        '''
        import textwrap
        with local(1) as cluster:
            for end in ("client.close()", "pass", "client.close(); pyray_ser.shutdown()", "pyray_ser.shutdown(); client.close()"):
                text = textwrap.dedent(program).replace("ADDRESS", repr(cluster.scheduler_address)).replace("END", end)
                with open("program.py", "w") as file:
                    file.write(text)
                done = subprocess.run((sys.executable, "-P", "program.py"), capture_output=True, text=True, timeout=patience(60))
                assert done.returncode == 0 and not done.stdout and not done.stderr, (end, done)
    """)
