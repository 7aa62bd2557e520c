#!/usr/bin/env python3
"""Compare a Dask cluster whose workers share values with plain Dask, in alternating rounds of one run.

    python -P bench/cluster.py [ROW ...] [--quick] [--json FILE]

The row ``cluster`` runs both clusters on this host, with four workers of one thread each; ``hosts`` runs them on two
simulated hosts with four workers each, and needs root or user namespaces. Times run from the submission to the last
result of a task that looks at both ends of the value; they include Dask's own time for a task. A ratio above 1 is in favor of sharing. Memory is the increase during a
round: private pages and objects of the store, without the freed pages that the store keeps for the next objects.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import hosts as simulated
from cluster_tasks import bytes_in_store, look, make, nothing, private_bytes, read_all
from measuring.claim import Claim, measured
from measuring.program import main
from measuring.timing import median, median_ratio

HERE = Path(__file__).resolve().parent
READERS = 4


class Side:
    """One cluster and its client."""

    def __init__(self, sharing: bool) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(n_workers=READERS, threads_per_worker=1, dashboard_address=None, memory_limit="4GB")
        self.client = Client(self.cluster)
        if sharing:
            from pyray_ser.distributed import enable

            enable(self.client)
        self.workers = sorted(self.client.run(os.getpid))

    def memory(self) -> int:
        return sum(self.client.run(private_bytes).values()) + max(self.client.run(bytes_in_store).values())

    def timed(self, function, value, workers: list[str]) -> float:
        began = perf_counter()
        tasks = [self.client.submit(function, value, workers=[one], pure=False) for one in workers]
        self.client.gather(tasks)
        return perf_counter() - began

    def made(self, nbytes: int):
        from distributed import wait

        value = self.client.submit(make, nbytes, workers=self.workers[:1], pure=False)
        wait(value)
        return value

    def round(self) -> dict[str, float]:
        """Return one figure for each row."""
        found: dict[str, float] = {}
        sleep(1)  # Dask releases the values of the previous round after a while
        before = self.memory()
        value = self.made(200_000_000)
        found["200 MB to 4 readers, time"] = self.timed(look, value, self.workers)
        self.timed(read_all, value, self.workers)
        found["200 MB to 4 readers, memory"] = self.memory() - before
        del value
        value = self.made(100_000_000)
        found["100 MB, first reader"] = self.timed(look, value, self.workers[1:2])
        found["100 MB, second reader"] = self.timed(look, value, self.workers[2:3])
        del value
        for size, text in ((16_000_000, "16 MB"), (4_000_000, "4 MB"), (1_000_000, "1 MB"), (10_000, "10 kB")):
            values = [self.made(size) for _ in range(8)]
            found[f"{text}, first reader"] = median(self.timed(look, one, self.workers[1:2]) for one in values)
            found[f"{text}, second reader"] = median(self.timed(look, one, self.workers[2:3]) for one in values)
            del values
        began = perf_counter()
        self.client.gather(self.client.map(nothing, range(1000), pure=False))
        found["1,000 no-op tasks"] = perf_counter() - began
        return found

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


def cluster(quick: bool) -> list[Claim]:
    """Run both clusters in alternating rounds."""
    sides = {"plain": Side(sharing=False), "sharing": Side(sharing=True)}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    try:
        for number in range(2 if quick else 8):
            for name, side in sides.items():
                found = side.round()
                if number:  # the first round imports modules and opens connections
                    figures[name].append(found)
    finally:
        for side in sides.values():
            side.close()
    return _claims("cluster", figures["plain"], figures["sharing"])


def _claims(row: str, plain_rounds: list[dict[str, float]], our_rounds: list[dict[str, float]]) -> list[Claim]:
    claims = []
    # Only the first rounds have the row of the slow link.
    for what in dict.fromkeys(what for found in plain_rounds for what in found):
        unit, scale = ("MB", 1e-6) if what.endswith(("memory", "received")) else ("ms", 1e3)
        plain, ours = ([found[what] for found in rounds if what in found] for rounds in (plain_rounds, our_rounds))
        ratio = median_ratio(plain, ours) if min(*plain, *ours) > 0 else None
        note = f"medians {median(plain) * scale:.1f} and {median(ours) * scale:.1f} {unit}, "
        note += f"best {min(plain) * scale:.1f} and {min(ours) * scale:.1f} {unit}"
        claims.append(measured(row, f"{what}: plain over sharing", ratio, "x", note=note))
    return claims


def hosts(quick: bool) -> list[Claim]:
    """Run both clusters on two simulated hosts; see `cluster_hosts`."""
    if reason := simulated.missing():
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*simulated.PREFIX, sys.executable, "-P", str(HERE / "cluster_hosts.py"), "1" if quick else "5"],
            stdout=subprocess.PIPE,
            cwd=folder,
            check=True,
        )
    found = json.loads(done.stdout)
    claims = _claims("hosts", found["plain"], found["sharing"])
    *rounds, calls = found["alone"]
    for what in rounds[0]:
        figure = median(one[what] for one in rounds)
        unit, scale = ("bytes", 1) if what.endswith("bytes") else ("ms", 1e3)
        claims.append(measured("hosts", what, figure * scale, unit))
    references = [one["1 GB by reference"] for one in rounds]
    for memory in ("new", "used"):
        sockets = [one[f"1 GB over a bare socket into {memory} memory"] for one in rounds]
        what = f"1 GB by reference, share of the rate of a bare socket into {memory} memory"
        claims.append(measured("hosts", what, 100 * median(sockets) / median(references), "%"))
    for what in ("no-op by remote", "actor call"):
        note = f"{calls[what] * 1e3:.2f} and {calls['no-op by submit'] * 1e3:.2f} ms"
        claims.append(
            measured("hosts", f"{what} over Client.submit", calls[what] / calls["no-op by submit"], "x", note=note)
        )
    return claims


if __name__ == "__main__":
    rows = {"cluster": cluster, "hosts": hosts}
    sys.exit(main(__file__, __doc__, rows, packages=("dask", "distributed"), timeout=3600))
