#!/usr/bin/env python3
"""Measure a Dask cluster on two simulated hosts, with and without shared values, in alternating rounds.

`cluster.py` runs this program under `hosts.PREFIX`, that is in namespaces of its own, and reads the figures from stdout:
one JSON object {"plain" | "sharing" | "alone": [{figure: number}, ...]}. Times are in seconds, sizes in bytes. While one
cluster is measured, the processes of the other one are stopped, because even idle workers take a part of the processor.
The two take turns in being first. Sockets are measured after both clusters have ended.

    python cluster_hosts.py ROUNDS
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import numpy
from cluster_tasks import (
    PORTS,
    bytes_in_store,
    look,
    make,
    nothing,
    private_bytes,
    read_all,
    release,
    stored,
    timed_get,
)
from hosts import Hosts
from measuring.timing import median

HERE = Path(__file__).resolve().parent
SUPPORT = HERE.parent / "tests" / "support"
READERS = 4
REPEATS = 3
MB = 1_000_000
MARK = "CLUSTER_OF_BENCHMARK"
LINK = ("tbf", "rate", "1gbit", "burst", "1mb", "latency", "100ms")


class Side:
    """One cluster on both hosts, and its client."""

    def __init__(self, name: str, hosts: list) -> None:
        from distributed import Client

        self.hosts = hosts
        self.sharing = name == "sharing"
        # All processes of this cluster inherit the variable, so that they can be found.
        self.mark = f"{MARK}={name}".encode()
        os.environ[MARK] = name
        port = str(PORTS[name])
        scheduler = f"tcp://{hosts[0].address}:{port}"
        dask = (sys.executable, "-P", "-m", "distributed.cli.")
        hosts[0].start(*dask[:3], dask[3] + "dask_scheduler", "--port", port, "--no-dashboard")
        for host in hosts:
            host.start(
                *dask[:3], dask[3] + "dask_worker", scheduler, "--nworkers", str(READERS), "--nthreads", "1",
                "--no-dashboard", "--memory-limit", "4GB", "--host", host.address, "--local-directory", os.getcwd(),
                *(("--preload", "pyray_ser.distributed") if self.sharing else ()),
            )  # fmt: skip
        del os.environ[MARK]
        self.client = Client(scheduler, timeout=120)
        self.client.wait_for_workers(2 * READERS, timeout=120)
        known = sorted(self.client.run(os.getpid))
        self.near, self.far = ([one for one in known if f"//{host.address}:" in one] for host in hosts)

    def signal(self, number: int) -> None:
        """Send a signal to all processes of this cluster."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), number)
            except (FileNotFoundError, ProcessLookupError):
                pass  # the process has ended

    @contextmanager
    def running(self):
        """Let this cluster run; otherwise it is stopped."""
        self.signal(signal.SIGCONT)
        sleep(1)  # for messages about the time in which it was stopped
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def made(self, nbytes: int):
        from distributed import wait

        value = self.client.submit(make, nbytes, workers=self.near[:1], pure=False)
        wait(value)
        return value

    def timed(self, function, value, workers: list[str]) -> float:
        began = perf_counter()
        self.client.gather([self.client.submit(function, value, workers=[one], pure=False) for one in workers])
        return perf_counter() - began

    def memory(self, workers: list[str]) -> int:
        private = self.client.run(private_bytes, workers=workers)
        shared = self.client.run(bytes_in_store, workers=workers)
        return sum(private.values()) + max(shared.values())

    def spread(self, found: dict[str, float], workers: list[str], where: str) -> None:
        sleep(1)  # Dask releases the values of the previous round after a while
        value = self.made(200 * MB)
        before, received = self.memory(workers), self.hosts[1].received()
        found[f"200 MB to 4 workers of the {where} host, time of the first after a pause"] = self.timed(
            look, value, workers
        )
        # Now they read all of it, so that each page is in memory; the time for this is the same on both sides.
        self.timed(read_all, value, workers)
        if where == "other":
            found["200 MB to 4 workers of the other host, bytes received"] = self.hosts[1].received() - received
        # The writer's own copy is counted, too, if it is in the memory of this host.
        own = 200 * MB if where == "same" else 0
        found[f"200 MB to 4 workers of the {where} host, memory"] = self.memory(workers) - before + own
        times = []
        for _ in range(REPEATS):
            del value
            sleep(0.5)
            value = self.made(200 * MB)
            times.append(self.timed(look, value, workers))
        found[f"200 MB to 4 workers of the {where} host, time"] = median(times)

    def over_link(self, found: dict[str, float]) -> None:
        value = self.made(200 * MB)
        subprocess.run(("tc", "qdisc", "add", "dev", "host2", "root", *LINK), check=True)
        try:
            found["200 MB to 4 workers over 1 Gbit/s, time"] = self.timed(look, value, self.far)
        finally:
            subprocess.run(("tc", "qdisc", "del", "dev", "host2", "root"), check=True)

    def arrays(self, found: dict[str, float]) -> None:
        import dask.array

        array = dask.array.random.random((4000, 4000), chunks=(500, 4000))
        for what, result in (
            ("rechunk by tasks", array.rechunk((4000, 500), method="tasks").sum()),
            ("(a + a.T).std()", (array + array.T).std()),
            ("q.dot(q)", array[:2000, :2000].rechunk((500, 500)).dot(array[:2000, :2000].rechunk((500, 500))).sum()),
        ):
            found[what] = self.computed(result)

    def frames(self, found: dict[str, float]) -> None:
        import dask.dataframe
        import pandas

        rows = 400_000
        table = pandas.DataFrame({"key": numpy.arange(rows) % 997, "x": numpy.arange(rows, dtype="f8"), "y": 1.0})
        frame = dask.dataframe.from_pandas(table, npartitions=8)
        for what, result in (("groupby", frame.groupby("key").x.mean()), ("shuffle", frame.shuffle("key").y.sum())):
            found[what] = self.computed(result)

    def computed(self, result) -> float:
        times = []
        for _ in range(REPEATS):
            began = perf_counter()
            self.client.compute(result).result()
            times.append(perf_counter() - began)
        return median(times)

    def round(self, number: int) -> dict[str, float]:
        found: dict[str, float] = {}
        self.spread(found, self.near, "same")
        self.spread(found, self.far, "other")
        if number < 4:
            self.over_link(found)
        value = self.made(100 * MB)
        found["100 MB to one worker of the other host"] = self.timed(look, value, self.far[:1])
        found["100 MB used by 60 tasks"] = self.timed(look, self.made(100 * MB), (self.near + self.far) * 7 + self.near)
        for size, text in ((16 * MB, "16 MB"), (4 * MB, "4 MB"), (MB, "1 MB"), (10_000, "10 kB")):
            values = [self.made(size) for _ in range(8)]
            times = sorted(self.timed(look, one, self.far[:1]) for one in values)
            found[f"{text} between hosts"] = times[len(times) // 2]
        began = perf_counter()
        self.client.gather(self.client.map(nothing, range(1000), pure=False))
        found["1,000 no-op tasks"] = perf_counter() - began
        self.arrays(found)
        self.frames(found)
        return found


def references(side: Side) -> dict[str, float]:
    """Measure references to objects of the other host; only a cluster that shares values has them."""
    ref = side.client.submit(stored, 100 * MB, workers=side.near[:1], pure=False).result()
    found = {"reference, pickled bytes": float(len(pickle.dumps(ref)))}
    first, again = side.client.submit(timed_get, ref, workers=side.far[:1], pure=False).result()
    found["reference to 100 MB of the other host, first get"] = first
    found["the same, again in that worker"] = again
    first, _ = side.client.submit(timed_get, ref, workers=side.far[1:2], pure=False).result()
    found["the same, in another worker of the host"] = first
    side.client.submit(release, ref, workers=side.near[:1], pure=False).result()
    big = side.client.submit(stored, 1000 * MB, workers=side.near[:1], pure=False).result()
    found["1 GB by reference"] = side.client.submit(timed_get, big, workers=side.far[:1], pure=False).result()[0]
    side.client.submit(release, big, workers=side.near[:1], pure=False).result()
    return found


def bare_socket(hosts: list, nbytes: int, memory: str) -> float:
    """Return the seconds in which a socket carries bytes from one host into "new" or "used" memory of the other one."""
    server = hosts[0].start(
        sys.executable, "-P", str(HERE / "cluster_tasks.py"), "serve", hosts[0].address, str(nbytes)
    )
    command = (sys.executable, "-P", str(HERE / "cluster_tasks.py"), "receive", hosts[0].address, str(nbytes), memory)
    taken = float(hosts[1].run(*command))
    server.wait()
    return taken


def calls(scheduler: str) -> dict[str, float]:
    """Measure tasks and actors of `remote` on the cluster beside `Client.submit`, in a separate process."""
    done = subprocess.run(
        (sys.executable, "-P", str(HERE / "cluster_tasks.py"), "calls", scheduler), stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    rounds = int(sys.argv[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    figures: dict[str, list[dict[str, float]]] = {"plain": [], "sharing": [], "alone": []}
    with Hosts(2) as hosts:
        sides = {}
        for name in ("plain", "sharing"):
            sides[name] = Side(name, hosts)
            sides[name].signal(signal.SIGSTOP)
        for number in range(rounds + 1):
            for name in ("plain", "sharing") if number % 2 else ("sharing", "plain"):
                side = sides[name]
                print(f"round {number} of {rounds}: {name}", file=sys.stderr, flush=True)
                with side.running():
                    found = side.round(number)
                if number:  # the first round imports modules and opens connections
                    figures[name].append(found)
            with sides["sharing"].running():
                alone = references(sides["sharing"])
            if number:
                figures["alone"].append(alone)
        with sides["sharing"].running():
            figures["alone"].append(calls(f"tcp://{hosts[0].address}:{PORTS['sharing']}"))
        for side in sides.values():
            side.signal(signal.SIGKILL)
        for alone in figures["alone"][:-1]:
            for memory in ("new", "used"):
                alone[f"1 GB over a bare socket into {memory} memory"] = bare_socket(hosts, 1000 * MB, memory)
        json.dump(figures, sys.stdout)
        sys.stdout.flush()
        os._exit(0)  # the kernel ends both clusters


if __name__ == "__main__":
    main()
