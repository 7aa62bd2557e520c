"""``pyray-ser bench``: measure the effect of the library on this machine."""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
from statistics import median
from typing import Any

from . import CommandError
from .output import table, write_json
from .processes import memory_sizes

__all__ = ["add_arguments", "memory_of", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "what", nargs="?", choices=["lines", "pool"], default="lines",
        help="lines (default): the lines of Ray's microbenchmark, and others; pool: the README's multiprocessing.Pool, "
        "before and after",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--mb",
        type=int,
        metavar="N",
        help="megabytes of a large array (100; 10 if --quick) or of the pool's table (320)",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="how often each is timed (5; 3 for the pool or if --quick)"
    )
    lines = parser.add_argument_group("lines")
    lines.add_argument(
        "--quick",
        action="store_true",
        help="short rounds and small arrays: rough figures, in seconds instead of minutes",
    )
    lines.add_argument(
        "--only", metavar="PATTERN", help="only lines whose name contains PATTERN, or matches its wildcards"
    )
    lines.add_argument("--compare", metavar="FILE", help="show the ratio to the figures that an earlier --json wrote")
    lines.add_argument("--ray", metavar="PYTHON", help="also measure Ray, in this interpreter, and show both")
    pool = parser.add_argument_group("pool")
    pool.add_argument("--workers", type=int, default=4, metavar="N", help="processes of the pool (4)")


# ---- memory -------------------------------------------------------------------------------------------------------------


def _tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue  # the process has ended
    return found


def memory_of(pid: int) -> int:
    """
    Return the bytes that a process and its descendants use.

    This is the sum of their proportional set sizes. Files in shared memory are counted once and completely, because
    their pages use memory even while no process has them mapped.
    """
    total = 0
    files: dict[tuple[int, int], int] = {}
    for one in _tree(pid):
        try:
            sizes = memory_sizes(one)
            total += sizes["pss"] - sizes["pss_shmem"] if sizes is not None else 0
            for fd in os.listdir(f"/proc/{one}/fd"):
                path = f"/proc/{one}/fd/{fd}"
                if os.readlink(path).startswith(("/memfd:", "/dev/shm/")):
                    status = os.stat(path)
                    files[status.st_dev, status.st_ino] = status.st_blocks * 512
        except OSError:
            continue  # the process has ended, or closed a file
    return total + sum(files.values())


# ---- the two programs ----------------------------------------------------------------------------------------------------


class _Program:
    def __init__(self, which: str, arguments: argparse.Namespace) -> None:
        numbers = map(str, (arguments.mb, arguments.workers))
        command = [sys.executable, "-m", "pyray_ser.cli.bench_pool", which, *numbers]
        environment = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise CommandError(f"the measured program ended with status {self.process.wait()}")
        return line

    def start(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def seconds(self) -> float:
        self.start()
        return float(self._read())

    def memory(self) -> int:
        """Run once more to measure memory; this run is not timed, because measuring memory also takes time."""
        self.start()
        largest = 0
        while True:
            # Measure at least once, even if the program ends quickly.
            largest = max(largest, memory_of(self.process.pid))
            if select.select([self.process.stdout], [], [], 0.03)[0]:
                break
        self._read()
        return largest

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of the pool."""
    programs: dict[str, _Program] = {}
    try:
        for which in ("before", "after"):
            programs[which] = _Program(which, arguments)
        times: dict[str, list[float]] = {which: [] for which in programs}
        for _ in range(arguments.rounds):
            for which, program in programs.items():
                times[which].append(program.seconds())
        memory = {which: program.memory() for which, program in programs.items()}
    finally:
        for program in programs.values():
            program.end()
    pairs = zip(times["before"], times["after"], strict=True)
    return {
        "mb": arguments.mb, "workers": arguments.workers, "cpus": len(os.sched_getaffinity(0)),
        "seconds": {which: median(found) for which, found in times.items()},
        "memory": memory,
        "times_faster": median(before / after for before, after in pairs),
        "share_of_memory": memory["after"] / memory["before"],
    }  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print; return 1 if a line failed."""
    for name in ("mb", "workers", "rounds"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise CommandError(f"--{name} must be 1 or more")
    if arguments.what == "lines":
        from .bench_lines import run_lines

        return run_lines(arguments)
    arguments.mb, arguments.rounds = arguments.mb or 320, arguments.rounds or 3
    figures = measure(arguments)
    if arguments.json:
        write_json(figures)
        return 0
    print(
        f"the mean of 8 columns of a table of {figures['mb']} MB, by a multiprocessing.Pool({figures['workers']}); "
        f"{figures['cpus']} CPUs\n"
    )
    rows = [
        (name, f"{figures['seconds'][which]:.2f} s", f"{figures['memory'][which] / 1e9:.2f} GB")
        for which, name in (("before", "before"), ("after", "after"))
    ]
    print(table(("", "TIME", "MEMORY"), rows, "lrr"))
    print(f"\n{figures['times_faster']:.1f} times as fast, {figures['share_of_memory']:.0%} of the memory")
    return 0
