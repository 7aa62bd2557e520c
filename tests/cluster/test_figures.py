"""Test the counters of pulls, and what shows the figures of a cluster: `ls`, `top`, the scheduler's page and Prometheus."""

import shutil
from importlib.util import find_spec

import hosts
import pytest
from dask_programs import run

# Importing distributed would change how the test process pickles exceptions.
pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")

_COMMAND = """
        import json, subprocess
        from urllib.request import urlopen

        def command(*words, status=0, prefix=(), **variables):
            done = subprocess.run(
                [*prefix, sys.executable, "-P", "-m", "pyray_ser", *words], text=True, capture_output=True,
                env={**os.environ, **variables},
            )
            assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
            return done.stderr if status else done.stdout

        def look(address, **options):
            return json.loads(command("ls", "--cluster", address, "--json", **options))

"""


def run_with_command(script: str, **options: object) -> None:
    run(_COMMAND + script, **options)


@pytest.mark.skipif(bool(hosts.missing()), reason=hosts.missing() or "-")
def test_pulls_are_counted_for_each_host_and_worker():
    run_with_command(
        """
        from hosts import Hosts, start_scheduler, start_workers

        def store(n):
            return pyray_ser.put(np.arange(n, dtype="f8"))

        def read(ref):
            return float(pyray_ser.get(ref).sum())

        def at(client, host, count):
            return until(lambda: len(found := [one for one in addresses(client) if host.address in one]) == count and found)

        size = 32_000_000
        expected = float(np.arange(4_000_000.0).sum())
        # By default, Dask drops the copies of a value that no task needs, two seconds later.
        os.environ["DASK_DISTRIBUTED__SCHEDULER__ACTIVE_MEMORY_MANAGER__START"] = "False"
        with Hosts(3) as (left, right, small):
            scheduler = start_scheduler(left)
            for host in (left, right):
                start_workers(host, scheduler, 2, "--preload", "pyray_ser.distributed")
            os.environ["DASK_PYRAY_SER__CAPACITY"] = "8M"
            start_workers(small, scheduler, 1, "--preload", "pyray_ser.distributed")
            with Client(scheduler, timeout=60) as client:
                here, there, [full] = at(client, left, 2), at(client, right, 2), at(client, small, 1)

                def figures(check):
                    def ask():
                        found = {one["host"]: one for one in look(scheduler, prefix=left.command())["hosts"]}
                        return len(found) == 3 and check(found) and found

                    return until(ask)

                def pulls(found):
                    return [(one["pulls"], one["failed_pulls"]) for one in
                            (found[host.address]["stats"] for host in (left, right, small))]

                value = client.submit(make, 4_000_000, workers=here[:1])
                sums = [client.submit(total, value, workers=[one], pure=False) for one in there]
                assert client.gather(sums) == [expected] * 2
                # One of the two workers has received the value, and the other one maps it.
                # The workers report at different times, and the newest report has the counters of the store.
                found = figures(lambda found: pulls(found) == [(0, 0), (1, 0), (0, 0)]
                                and sorted(worker["pulls"] for worker in found[right.address]["workers"]) == [0, 1]
                                and found[right.address]["stats"]["objects"] == 1)
                one = found[right.address]
                assert size <= one["stats"]["pulled_bytes"] < size + 100_000
                assert sum(worker["pulled_bytes"] for worker in one["workers"]) == one["stats"]["pulled_bytes"]
                assert [worker["address"] for worker in one["workers"]] == there
                # References are pulled, too.
                ref = client.submit(store, 4_000_000, workers=here[:1]).result()
                reads = [client.submit(read, ref, workers=[one], pure=False) for one in there]
                assert client.gather(reads) == [expected] * 2
                found = figures(lambda found: pulls(found) == [(0, 0), (2, 0), (0, 0)])
                assert 2 * size <= found[right.address]["stats"]["pulled_bytes"] < 2 * size + 100_000
                # A value that does not fit into the store comes by plain Dask.
                assert client.submit(total, value, workers=[full], pure=False).result() == expected
                found = figures(lambda found: pulls(found) == [(0, 0), (2, 0), (0, 1)])
                assert found[small.address]["workers"] == [
                    {"address": full, "pulls": 0, "pulled_bytes": 0, "failed_pulls": 1}
                ]
                # The counters of a host outlive the worker that has received the values.
                [receiver] = [worker["address"] for worker in found[right.address]["workers"] if worker["pulls"] > 0][:1]
                client.retire_workers([receiver], close_workers=True)
                found = figures(lambda found: len(found[right.address]["workers"]) == 1)
                assert found[right.address]["stats"]["pulls"] >= 2
                text = command("top", "--cluster", scheduler, "-n", "2", "-i", "0.1", prefix=left.command())
                assert text.count(right.address) == 2 and text.count("PULLED/S") == 1, text
        """,
        prefix=hosts.PREFIX,
        timeout=180,
    )


def test_commands_say_why_a_cluster_has_no_figures():
    run_with_command("""
        with local(2) as cluster, Client(cluster) as client:
            first, second = addresses(client, 2)
            address = cluster.scheduler_address
            error = command("ls", "--cluster", address, status=2)
            assert error.startswith(f"pyray-ser ls: no worker of {address} shares values (2 workers); hint: "), error
            assert error.count("\\n") == 1
            error = command("ls", "--cluster", first, status=2)
            assert error == f"pyray-ser ls: {first} is a Worker; hint: give the address of the scheduler\\n"
            error = command("top", "--cluster", address, "store", status=2)
            assert "omit the store" in error, error
            # Only one worker shares values.
            import asyncio

            async def begin(dask_worker):
                await pyray_ser.distributed.dask_setup(dask_worker)

            client.run(begin, workers=[second])
            found = look(address)
            assert found["silent"] == [first] and [one["address"] for one in found["hosts"][0]["workers"]] == [second]
            assert f"no figures from {first}" in command("ls", "--cluster", address)
        error = command("ls", "--cluster", address, status=2)
        # Dask reports that the connection was refused, or that the time is over, depending on which it meets last.
        assert error.startswith(f"pyray-ser ls: no scheduler answers at {address}: ") and error.count("\\n") == 1, error
        error = command("ls", "--cluster", "nowhere", status=2)
        assert error.startswith("pyray-ser ls: cannot connect to nowhere: missing port"), error
        with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
            error = command("top", "--cluster", cluster.scheduler_address, status=2)
            assert error == f"pyray-ser top: the cluster {cluster.scheduler_address} has no workers\\n", error
    """)


def test_web_servers_of_dask_show_the_figures():
    run_with_command("""
        dask.config.set({"distributed.scheduler.preload": ["pyray_ser.distributed"]})
        dask.config.set({"distributed.scheduler.http.routes": ["distributed.http.health"]})  # nothing needs bokeh

        def read(port, path):
            with urlopen(f"http://127.0.0.1:{port}/{path}") as page:
                return page.read().decode()

        with local(2) as cluster, Client(cluster) as client:
            first, second = addresses(client, 2)
            page = lambda: read(cluster.scheduler.http_server.port, "pyray-ser")
            until(lambda: f"pyray_ser.distributed: {first}, {second}" in page())
            pyray_ser.distributed.enable(client)
            value = client.submit(make, 1_000_000, workers=[first])
            assert client.submit(total, value, workers=[second]).result() == float(np.arange(1_000_000.0).sum())
            token = client.run(lambda: f"{pyray_ser.init().id:016x}")[first]
            cells = f"<td>127.0.0.1</td><td>{token}</td><td>2</td><td>1</td><td>"
            until(lambda: cells in page())
            assert "do not use" not in page() and "bokeh" not in sys.modules
            metrics = read(cluster.scheduler.workers[second].services["dashboard"], "metrics")
            if "dask_worker_tasks" in metrics:  # prometheus_client is installed
                lines = [line for line in metrics.splitlines() if f'store="{token}"' in line]
                values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
                assert values["pyray_ser_objects"] == 1, values
                assert values["pyray_ser_pulls_total"] == values["pyray_ser_failed_pulls_total"] == 0, values
                client.unregister_worker_plugin("pyray_ser")
                metrics = read(cluster.scheduler.workers[second].services["dashboard"], "metrics")
                assert "dask_worker_tasks" in metrics and "pyray_ser" not in metrics
                until(lambda: f"pyray_ser.distributed: {first}, {second}" in page())
    """)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_commands_use_the_tls_settings_of_dask():
    run_with_command("""
        from distributed.security import Security

        names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem",
                        "-out", "cert.pem", *names], check=True, stderr=subprocess.DEVNULL)
        here = os.getcwd()
        files = {f"tls_{role}_{kind}": f"{here}/{kind}.pem" for role in ("scheduler", "worker", "client") for kind in ("key", "cert")}
        security = Security(tls_ca_file=f"{here}/cert.pem", require_encryption=True, **files)
        settings = {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": f"{here}/cert.pem",
                    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": f"{here}/key.pem",
                    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": f"{here}/cert.pem"}
        with local(2, security=security, protocol="tls://") as cluster, Client(cluster, security=security) as client:
            pyray_ser.distributed.enable(client)
            address = cluster.scheduler_address
            assert address.startswith("tls://")
            workers = addresses(client, 2)
            until(lambda: [[one["address"] for one in host["workers"]] for host in look(address, **settings)["hosts"]] == [workers])
            error = command("ls", "--cluster", address, status=2)
            assert "TLS configuration" in error and error.count("\\n") == 1, error
    """)
