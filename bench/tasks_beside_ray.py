#!/usr/bin/env python3
"""Compare tasks and actors with Ray's, in separate environments and alternating rounds.

    python bench/tasks_beside_ray.py --ray PYTHON [--quick]

PYTHON is the interpreter of an environment with Ray from its wheel; `make bench-peers` creates one in build/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

SIDE = Path(__file__).resolve().parent / "tasks_side.py"
# Key of the figure, description, repetitions per round, minimum ratio of Ray's time to ours
ROWS = [
    ("task", "no-op task", 100, 1.0),
    ("actor", "no-op actor call", 100, 1.0),
    ("megabyte", "task with an argument of 1 MB", 30, 1.0),
]
COLD = 10.0


class Side:
    """A process that runs one library; `cold` is the time from the start of the interpreter to the first result."""

    def __init__(self, python: str, library: str) -> None:
        # Our package may be on PYTHONPATH; Ray's environment has its own packages.
        environment = {key: value for key, value in os.environ.items() if library != "ray" or key != "PYTHONPATH"}
        began = perf_counter()
        self.process = subprocess.Popen(
            [python, str(SIDE), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if self.process.stdout.readline() != "first\n":
            raise RuntimeError(f"{library} did not start")
        self.cold = perf_counter() - began

    def seconds(self, name: str, times: int) -> float:
        self.process.stdin.write(f"{name} {times}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ray", required=True, metavar="PYTHON")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds, starts = (3, 1) if arguments.quick else (7, 3)
    cold = []
    for last in range(starts):
        ours, theirs = Side(sys.executable, "ours"), Side(arguments.ray, "ray")
        cold.append((theirs.cold / ours.cold, ours.cold, theirs.cold))
        if last < starts - 1:
            ours.end(), theirs.end()
    kept = []

    def show(what: str, promise: float, pairs: list[tuple[float, float, float]]) -> None:
        ratio, a, b = (median(column) for column in zip(*pairs, strict=True))
        kept.append(ratio >= promise)
        mark = "kept" if kept[-1] else "NOT "
        print(
            f"{mark}  {what:38s}  >= {promise:4.0f}x  {ratio:8.1f}x   {a * 1e6:12.0f} us  {b * 1e6:12.0f} us",
            flush=True,
        )

    print(f"{'':4s}  {'':38s}  {'promised':>8s}  {'Ray/ours':>9s}   {'ours':>15s}  {'Ray':>15s}")
    show("first result from a cold interpreter", COLD, cold)
    try:
        for name, what, times, promise in ROWS:
            pairs = []
            for _ in range(rounds):
                a, b = ours.seconds(name, times), theirs.seconds(name, times)
                pairs.append((b / a, a, b))
            show(what, promise, pairs)
    finally:
        ours.end(), theirs.end()
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
