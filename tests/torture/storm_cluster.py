"""Stress-test a Dask cluster of two hosts: workers, nannies, a host and a link fail while random graphs run.

Usage: python -P storm_cluster.py KILLS SEED

The hosts are namespaces (see `tests/support/hosts.py`). Several threads compute random graphs whose values are large enough
for the store, and compare each result with the same graph computed in this process. Meanwhile, workers, their nannies
and a whole host are killed, workers are stopped for a while, and the link between the hosts is cut for a while.

Dask computes lost values again, so every result must be right. An object that a task has put is lost with its host;
`get` must then raise an error that says so. At the end, no host may have a file in `/dev/shm`.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import hosts

# Seconds within which a graph must be computed while workers fail, and between two failures.
PATIENCE, PAUSE = 300, 2.5
WORKERS = 2
THREADS = 3


# ---- values; each depends on its inputs in every element


def value_of(seed, inputs):
    """Return an array that depends on a seed and on all elements of the inputs."""
    import numpy as np

    rng = np.random.default_rng([seed, *(digest_of(array) for array in inputs)])
    # From a few bytes to 3 MB: below and above the limits for sharing and for pulling once.
    return rng.integers(0, 1 << 62, int(10 ** rng.uniform(0, 5.6)))


def digest_of(array):
    import hashlib

    return int.from_bytes(hashlib.blake2b(array.tobytes(), digest_size=7).digest(), "big")


def stored(seed, *inputs):
    """Put a value, and return its reference."""
    import pyray_ser

    return pyray_ser.put(value_of(seed, inputs))


def computed(seed, *inputs):
    return value_of(seed, inputs)


def checked(seed, ref):
    """Read the object that another task has put; return what is wrong, or an empty string."""
    import numpy as np

    import pyray_ser
    from pyray_ser import exceptions

    try:
        found = pyray_ser.get(ref, timeout=120)
    except (exceptions.ForeignStoreError, exceptions.ObjectLostError) as error:
        return f"lost: {type(error).__name__}"
    return "" if np.array_equal(found, value_of(seed, [])) else "wrong"


class Graph:
    """A random graph, and the same graph computed here."""

    def __init__(self, rng):
        self.rng = rng
        self.nodes = []
        for number in range(rng.randint(5, 40)):
            count = min(number, rng.choice((0, 1, 1, 2, 3)))
            self.nodes.append((rng.getrandbits(40), rng.sample(range(number), count)))

    def here(self):
        """Compute the graph in this process."""
        values = []
        for seed, inputs in self.nodes:
            values.append(value_of(seed, [values[i] for i in inputs]))
        return values

    def submit(self, client):
        """Submit the graph; return the future of each node."""
        futures = []
        for seed, inputs in self.nodes:
            futures.append(client.submit(computed, seed, *(futures[i] for i in inputs), pure=False, retries=1000))
        return futures


class Storm:
    """The cluster, the threads that use it, and what fails."""

    def __init__(self, kills, seed, left, right):
        self.kills = kills
        self.rng = random.Random(seed)
        self.hosts = [left, right]
        self.scheduler = hosts.start_scheduler(left)
        self.counts = Counter()
        self.faults = []
        self.over = threading.Event()
        self.nannies = {}
        for number in (0, 1):
            self.start(number)

    def start(self, number):
        self.nannies[number] = hosts.start_workers(
            self.hosts[number], self.scheduler, WORKERS, "--preload", "pyray_ser.distributed", "--death-timeout", "60"
        )

    # ---- what fails

    def fail(self):
        """Let something fail; return what."""
        for number, nannies in self.nannies.items():
            # `dask worker` ends if a worker is killed while it starts.
            if nannies.poll() is not None:
                self.start(number)
        number = self.rng.randrange(2)
        host = self.hosts[number]
        kind = self.rng.choices(("worker", "workers", "stop", "nanny", "link", "host"), (60, 12, 10, 8, 6, 4))[0]
        # The processes of the workers, in the numbering of the host.
        workers = host.run("sh", "-c", "pgrep -f [s]pawn_main || true").split()
        if not workers:
            return "nothing"
        if kind == "worker":
            host.run("sh", "-c", f"kill -KILL {self.rng.choice(workers)} || true")
        elif kind == "workers":
            host.run("sh", "-c", f"kill -KILL {' '.join(workers)} || true")
        elif kind == "stop":
            victim = self.rng.choice(workers)
            host.run("sh", "-c", f"kill -STOP {victim}; sleep {self.rng.uniform(0.5, 4)}; kill -CONT {victim} || true")
        elif kind == "nanny":
            # The process of `dask worker` with all its nannies, whose workers then end.
            host.run("sh", "-c", "pkill -KILL -f [d]ask_worker || true")
            self.nannies[number].wait()
            self.start(number)
        elif kind == "link":
            self.hosts[1].run("ip", "link", "set", "eth0", "down")
            time.sleep(self.rng.uniform(0.2, 2))
            self.hosts[1].run("ip", "link", "set", "eth0", "up")
        else:
            # The scheduler is on the left host.
            self.hosts[1].end()
            self.nannies[1].wait()
            time.sleep(0.5)
            self.hosts[1] = hosts.Host(2)
            self.start(1)
        return kind

    # ---- what runs

    def run_graphs(self, client, seed):
        rng = random.Random(seed)
        try:
            while not self.over.is_set():
                graph = Graph(rng)
                expected = graph.here()
                futures = graph.submit(client)
                roots = [rng.getrandbits(40) for _ in range(3)]
                refs = [client.submit(stored, root, pure=False, retries=1000) for root in roots]
                reads = [
                    client.submit(checked, root, ref, pure=False, retries=1000)
                    for root, ref in zip(roots, refs, strict=True)
                ]
                chosen = rng.sample(range(len(futures)), min(len(futures), 6)) + [len(futures) - 1]
                found = client.gather([futures[i] for i in chosen])
                for i, value in zip(chosen, found, strict=True):
                    if digest_of(value) != digest_of(expected[i]):
                        self.faults.append(f"node {i} of a graph of thread {seed} is wrong")
                for word in client.gather(reads):
                    self.counts[f"reads {word or 'right'}"] += 1
                    if word == "wrong":
                        self.faults.append("an object that a task has put is wrong")
                self.counts["graphs"] += 1
                del futures, refs, reads, found
        except BaseException as error:
            self.faults.append("".join(traceback.format_exception(error)))

    def run(self):
        import dask
        import distributed

        dask.config.set({"distributed.comm.retry.count": 3, "distributed.comm.timeouts.connect": "20s"})
        with distributed.Client(self.scheduler, timeout=60) as client:
            client.wait_for_workers(2 * WORKERS, timeout=60)
            threads = [threading.Thread(target=self.run_graphs, args=(client, i), daemon=True) for i in range(THREADS)]
            for thread in threads:
                thread.start()
            while (
                sum(self.counts[kind] for kind in ("worker", "workers", "nanny", "host")) < self.kills
                and not self.faults
            ):
                self.over.wait(self.rng.uniform(0, 2 * PAUSE))
                self.counts[self.fail()] += 1
            self.over.set()
            end = time.monotonic() + PATIENCE
            for thread in threads:
                thread.join(max(0, end - time.monotonic()))
                if thread.is_alive():
                    self.faults.append(f"a graph was not computed within {PATIENCE} s")
            lost = sum(count for what, count in self.counts.items() if what.startswith("reads lost"))
            if lost > self.counts["reads right"]:
                self.faults.append(f"{lost} objects are lost, and {self.counts['reads right']} were read")
            if self.faults:
                return
            client.wait_for_workers(2 * WORKERS, timeout=60)
            client.shutdown()
        end = time.monotonic() + 30
        while left := [host.stores() for host in self.hosts if host.stores()]:
            if time.monotonic() > end:
                self.faults.append(f"left in /dev/shm: {left}")
                return
            time.sleep(0.1)


def main():
    kills, seed = int(sys.argv[1]), int(sys.argv[2])
    if os.environ.get("STORM_INSIDE") != "1":
        os.environ["STORM_INSIDE"] = "1"
        os.execvp(hosts.PREFIX[0], [*hosts.PREFIX, sys.executable, "-P", os.path.abspath(__file__), *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="pyray_ser-storm-") as folder:
        os.chdir(folder)
        # A task may be on many workers that are killed.
        os.environ["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "1000"
        os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__)) + ":" + os.environ.get("PYTHONPATH", "")
        start = time.monotonic()
        # The log of Dask goes to a file.
        messages = os.dup(2)
        with open("log", "w") as log:
            os.dup2(log.fileno(), 2)
        with hosts.Hosts(2) as (left, right):
            storm = Storm(kills, seed, left, right)
            storm.run()
        if storm.faults:
            with open("log") as log, open(messages, "w") as out:
                print(*log.readlines()[-300:], *storm.faults, sep="", file=out)
        seconds = time.monotonic() - start
        print(
            f"{'FAULTS' if storm.faults else 'fine'} after {seconds:.0f} s with seed {seed}: {dict(storm.counts)}",
            flush=True,
        )
        os._exit(bool(storm.faults))


if __name__ == "__main__":
    main()
