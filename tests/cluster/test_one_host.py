"""Test that Dask workers on one host share large values, with Dask's own scheduler, nannies and workers."""

import shutil
from importlib.util import find_spec

import pytest
from dask_programs import run

# Importing distributed would change how the test process pickles exceptions.
pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")


def test_readers_of_a_value_share_one_copy():
    run("""
        def pages():
            with open("/proc/self/status") as status:
                found = dict(line.split(":", 1) for line in status)
            return int(found["RssAnon"].split()[0]) << 10

        with local(4) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            workers = addresses(client, 4)
            value = client.submit(make, 8_000_000, workers=workers[:1])
            wait(value)
            before = client.run(pages)
            sums = client.gather([client.submit(total, value, workers=[one], pure=False) for one in workers])
            assert sums == [float(np.arange(8_000_000, dtype="f8").sum())] * 4, sums
            after, seen = client.run(pages), client.run(stats)
            assert all(one["objects"] == 1 for one in seen.values()), seen
            assert 64_000_000 <= seen[workers[0]]["used"] < 70_000_000, seen
            for one in workers[1:]:
                assert after[one] - before[one] < 32_000_000, (before, after)
            # The worker that made the value has given up its private copy.
            assert before[workers[0]] - after[workers[0]] > 32_000_000, (before, after)
            assert (client.gather(value) == np.arange(8_000_000)).all()
            del value
            everything_freed(client)
        assert not glob.glob("/dev/shm/pyray_ser-*/dask-*") or "PYRAY_SER_STORE_DIR" in os.environ
    """)


def test_values_that_a_client_scatters_to_all_workers_are_stored_once():
    run("""
        with local(4) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            workers = addresses(client, 4)
            arrays = [make(200_000, i) for i in range(6)]
            for options in ({}, {"direct": True}):
                values = client.scatter(arrays, broadcast=True, hash=False, **options)
                small = client.scatter({"a": 1}, broadcast=True, **options)
                assert {one["objects"] for one in client.run(stats).values()} == {6}
                for one in workers:
                    sums = [client.submit(total, value, workers=[one], pure=False) for value in values]
                    assert client.gather(sums) == [float(array.sum()) for array in arrays]
                assert {one["objects"] for one in client.run(stats).values()} == {6}
                assert small["a"].result() == 1
                del values, sums
                everything_freed(client)
            client.unregister_worker_plugin("pyray_ser")
            value = client.scatter(arrays[0], broadcast=True)
            assert client.submit(total, value).result() == float(arrays[0].sum())
    """)


def test_workers_that_their_nanny_kills_while_they_end_leave_no_store():
    run("""
        def end_slowly():
            from multiprocessing import util
            util.Finalize(None, time.sleep, args=(3600,), exitpriority=1000)  # Dask's nanny kills its worker after 4 s

        with local(2) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            first, second = addresses(client, 2)
            value = client.submit(make, 100_000, workers=[first])
            assert client.submit(total, value, workers=[second]).result() == 4999950000.0
            folder = os.environ.get("PYRAY_SER_STORE_DIR", "/dev/shm/pyray_ser-*")
            assert glob.glob(f"{folder}/dask-*")
            client.run(end_slowly)
        assert not glob.glob(f"{folder}/dask-*")
    """)


@pytest.mark.heavy
def test_a_reader_that_writes_changes_only_its_copy():
    run("""
        def write(array):
            array[:] = -1
            return array.flags.writeable, float(array.sum())

        with local(3) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            workers = addresses(client, 3)
            value = client.submit(make, 100_000, workers=workers[:1])
            first = client.submit(total, value, workers=workers[2:], pure=False).result()
            assert client.submit(write, value, workers=workers[1:2]).result() == (True, -100_000.0)
            for one in (workers[0], workers[2]):
                assert client.submit(total, value, workers=[one], pure=False).result() == first == 4999950000.0
    """)


def test_values_of_all_kinds_arrive_as_plain_dask_sends_them():
    run("""
        import pandas as pd

        def collection():
            same = np.arange(50_000.0)
            return [same, same, {"small": 1}, "text"]

        values = {
            "frame": lambda: pd.DataFrame({"a": np.arange(50_000), "b": [f"row {i}" for i in range(50_000)]}),
            "objects": lambda: [str(i) * 1000 for i in range(200)],
            "bytes": lambda: bytes(1_000_000),
            "strided": lambda: np.arange(200_000.0)[::2],
            "fortran": lambda: np.asfortranarray(np.arange(90_000.0).reshape(300, 300)),
            "empty": lambda: np.empty(0),
            "texts": lambda: np.array([f"text {i}" for i in range(50_000)], dtype=object),
            "masked": lambda: np.ma.masked_array(np.arange(90_000.0), np.arange(90_000) % 2 == 0),
            "none": lambda: None,
            "dict": lambda: {"a": np.arange(60_000.0), "b": list(range(100))},
            "collection": collection,
        }

        def digest(value):
            import hashlib, pickle
            return type(value).__name__, hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()

        def same_object(value):
            return value[0] is value[1] and value[2:] == [{"small": 1}, "text"]

        def equal(value, other):
            if isinstance(value, pd.DataFrame):
                return value.equals(other)
            if isinstance(value, dict):
                return list(value) == list(other) and all(np.array_equal(value[key], other[key]) for key in value)
            return np.array_equal(value, other) and type(value) is type(other)

        with local(2) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            first, second = addresses(client, 2)
            made = {name: client.submit(make_one, workers=[first], key=name) for name, make_one in values.items()}
            for name, future in made.items():
                there = client.submit(lambda value: value, future, workers=[second], key=f"{name}-there")
                if name == "collection":
                    assert client.submit(same_object, future, workers=[second]).result()
                else:
                    assert equal(there.result(), values[name]()), name
                    assert equal(future.result(), values[name]()), name
            # All of them in one request.
            names = [name for name in values if name != "collection"]
            both = client.submit(lambda *all: len(all), *[made[name] for name in names], workers=[second])
            assert both.result() == len(names)
            del made, future, there, both
            everything_freed(client)
    """)


@pytest.mark.heavy
def test_requests_at_the_same_time_store_a_value_once():
    run("""
        with local(4) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            workers = addresses(client, 4)
            values = client.map(make, [30_000] * 20, range(20), workers=workers[:1])
            wait(values)
            tasks = [
                client.submit(total, value, workers=[one], pure=False) for value in values for one in workers[1:]
            ]
            expected = [float(np.arange(i, i + 30_000, dtype="f8").sum()) for i in range(20) for _ in workers[1:]]
            assert client.gather(tasks) == expected
            assert {one["objects"] for one in client.run(stats).values()} == {20}
            del values, tasks
            everything_freed(client)
    """)


@pytest.mark.heavy
def test_workers_that_come_later_share_and_restarted_ones_do_again():
    run("""
        with local(1) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            cluster.scale(3)
            workers = addresses(client, 3)
            client.restart_workers(workers[:1])
            workers = addresses(client, 3)
            value = client.submit(make, 100_000, workers=workers[:1])
            sums = client.gather([client.submit(total, value, workers=[one], pure=False) for one in workers])
            assert sums == [4999950000.0] * 3
            assert {one["objects"] for one in client.run(stats).values()} == {1}
    """)


def test_the_configuration_key_switches_it_on():
    run("""
        with dask.config.set({"distributed.worker.preload": ["pyray_ser.distributed"]}):
            with local(2) as cluster, Client(cluster) as client:
                first, second = addresses(client, 2)
                value = client.submit(make, 100_000, workers=[first])
                assert client.submit(total, value, workers=[second]).result() == 4999950000.0
                assert {one["objects"] for one in client.run(stats).values()} == {1}
                # Both ways to switch it on may be used together, and it can be switched off.
                pyray_ser.distributed.enable(client)
                assert client.submit(total, value, workers=[second], pure=False).result() == 4999950000.0
                client.unregister_worker_plugin("pyray_ser")
                other = client.submit(make, 100_000, 1, workers=[first])
                assert client.submit(total, other, workers=[second]).result() == 5000050000.0
                del value, other
                everything_freed(client)
    """)


def test_the_memory_of_a_worker_is_known_after_the_program_has_closed_the_store():
    run("""
        def measured(dask_worker):
            return dask_worker.monitor.get_process_memory()

        def close_and_measure(dask_worker):
            pyray_ser.shutdown()
            return measured(dask_worker)

        with local(1) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            [before] = client.run(measured).values()
            [after] = client.run(close_and_measure).values()
            assert 0.8 * before < after < 1.2 * before, (before, after)
            client.unregister_worker_plugin("pyray_ser")
            client.unregister_worker_plugin("pyray_ser-memory", nanny=True)
            assert client.run(lambda dask_worker: "get_process_memory" in vars(dask_worker.monitor)) == {
                one: False for one in addresses(client, 1)
            }
    """)


@pytest.mark.heavy
def test_a_full_store_leaves_the_value_to_plain_dask():
    out = run("""
        def warnings(dask_worker):
            return dask_worker.plugins["pyray_ser"].sharing._logged

        with dask.config.set({"pyray-ser.capacity": "2M"}):
            with local(2) as cluster, Client(cluster) as client:
                pyray_ser.distributed.enable(client)
                # Workers are other processes: they do not see the configuration of this one.
                client.run(lambda: dask.config.set({"pyray-ser.capacity": "2M"}))
                pyray_ser.distributed.enable(client)
                first, second = addresses(client, 2)
                for start in range(3):
                    value = client.submit(make, 1_000_000, start, workers=[first])
                    found = client.submit(total, value, workers=[second]).result()
                    assert found == float(np.arange(start, start + 1_000_000, dtype="f8").sum())
                print(client.run(stats)[first]["capacity"], client.run(warnings)[first])
                del value
                everything_freed(client)
    """)
    assert "copying a value into the store" in out, out


def test_an_unknown_version_gets_one_warning_and_plain_dask():
    run("""
        def pretend():
            import logging
            from pyray_ser.distributed import private_names

            private_names.SIGNATURES["distributed.worker:Worker.get_data"] = "self something else"
            seen = logging.seen = []

            class Keep(logging.Handler):
                def emit(self, record):
                    seen.append(record.getMessage())

            logging.getLogger("pyray_ser").addHandler(Keep())

        def read():
            import logging

            return logging.seen

        with local(2) as cluster, Client(cluster) as client:
            client.run(pretend)
            pyray_ser.distributed.enable(client)
            pyray_ser.distributed.enable(client)
            first, second = addresses(client, 2)
            value = client.submit(make, 100_000, workers=[first])
            assert client.submit(total, value, workers=[second]).result() == 4999950000.0
            assert set(client.run(stats).values()) == {None}
            for messages in client.run(read).values():
                assert len(messages) == 1 and "something else" in messages[0], messages
    """)


def test_results_are_right_after_workers_are_killed():
    run(
        """
        import random, signal

        def slow_total(value):
            time.sleep(0.02)
            return float(value.sum())

        with local(4) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            workers = addresses(client, 4)
            values = client.map(make, [50_000] * 40, range(40))
            # Each worker needs the values of all others.
            sums = [client.submit(slow_total, value, workers=[workers[i % 4]], allow_other_workers=True, pure=False)
                    for i, value in enumerate(values * 2)]
            pids = client.run(os.getpid)
            for one in random.Random(1).sample(workers, 2):
                time.sleep(0.3)
                os.kill(pids[one], signal.SIGKILL)
            expected = [float(np.arange(i, i + 50_000, dtype="f8").sum()) for i in range(40)] * 2
            assert client.gather(sums) == expected
            addresses(client, 4)
            del sums, values
            # A message that was in flight to a killed worker holds its object for a while.
            everything_freed(client, 120)
    """,
        timeout=240,
    )


def test_an_error_that_dask_keeps_does_not_keep_the_values_of_the_failed_answer():
    run("""
        def fail_once(dask_worker):
            import types
            from pyray_ser.distributed.plugin import NAME
            sharing = dask_worker.plugins[NAME].sharing
            plain = sharing._plain_get_data

            async def fail(self, comm, keys, who=None, serializers=None):
                message = {"data": [self.data[key] for key in keys]}  # as Dask's own handler
                sharing._plain_get_data = plain
                try:
                    raise OSError("the peer has died")
                except OSError as error:
                    dask_worker.kept = error  # as the log record that Dask keeps
                    raise

            sharing._plain_get_data = types.MethodType(fail, plain.__self__)

        with local(2) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            first, second = addresses(client, 2)
            value = client.submit(make, 100_000, workers=[first])
            wait(value)
            client.run(fail_once, workers=[first])
            assert client.submit(total, value, workers=[second]).result() == 4999950000.0
            kept = client.run(lambda dask_worker: repr(dask_worker.kept), workers=[first])
            assert "the peer has died" in kept[first]
            del value
            everything_freed(client)
    """)


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_clusters_share():
    run("""
        import subprocess
        from distributed.security import Security

        names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem",
                        "-out", "cert.pem", *names], check=True, stderr=subprocess.DEVNULL)
        here = os.getcwd()
        files = {f"tls_{role}_{kind}": f"{here}/{kind}.pem" for role in ("scheduler", "worker", "client") for kind in ("key", "cert")}
        security = Security(tls_ca_file=f"{here}/cert.pem", require_encryption=True, **files)
        with local(2, security=security, protocol="tls://") as cluster, Client(cluster, security=security) as client:
            pyray_ser.distributed.enable(client)
            first, second = addresses(client, 2)
            value = client.submit(make, 100_000, workers=[first])
            assert first.startswith("tls://")
            assert client.submit(total, value, workers=[second]).result() == 4999950000.0
            assert {one["objects"] for one in client.run(stats).values()} == {1}
            pyray_ser.init(address=client)
            made = pyray_ser.remote(make).remote(100_000)
            summed = pyray_ser.remote(total)
            assert pyray_ser.get([summed.remote(made) for _ in range(4)], timeout=60) == [4999950000.0] * 4
            keeper = pyray_ser.remote(list).remote((1, 2))
            assert pyray_ser.get(keeper.count.remote(2), timeout=60) == 1
            pyray_ser.shutdown()
    """)


@pytest.mark.heavy
def test_workers_in_threads_of_the_client_are_left_alone():
    run("""
        with LocalCluster(n_workers=2, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            value = client.submit(make, 100_000)
            assert client.submit(total, value).result() == 4999950000.0
            assert not pyray_ser.is_initialized()
    """)
