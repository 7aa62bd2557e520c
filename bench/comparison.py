"""Compare libraries that do the same work, each in its own process, in alternating rounds.

The script checks the output of each library before it times anything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

from libraries import OWN, PEERS
from measuring.machine import describe
from measuring.memory import pss
from measuring.timing import interleaved, median, median_ratio

__all__ = ["OURS", "Comparison", "compare", "environment", "installed"]

OURS = "pyray_ser"
HERE = Path(__file__).resolve().parent
OPERATIONS = ("put", "get")


class WorkerError(Exception):
    """A worker died or reported an error."""


class _Worker:
    """A process that runs worker.py, with the pipe to it."""

    def __init__(self, title: str, python: str, log: Path):
        self.title = title
        with open(log, "w") as file:
            self._process = subprocess.Popen(
                [python, "-P", str(HERE / "worker.py"), {**OWN, **PEERS}[title]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self._log = log

    def ask(self, do: str, **arguments: object) -> dict:
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.title}: the worker died, see {self._log}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.title}: {answer['error']}")
        return answer

    def round(self, value: str, operation: str) -> float:
        return self.ask("round", name=value, operation=operation)["seconds"]

    def memory(self) -> int:
        """Return the memory of the worker and its descendants, in bytes."""
        return sum(_pss(pid) for pid in _tree(self._process.pid))

    def close(self) -> None:
        try:
            self.ask("stop")
        except WorkerError as error:
            print(f"while stopping: {error}", file=sys.stderr)
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue  # the process has ended meanwhile
        children.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def _pss(pid: int) -> int:
    try:
        return pss(pid)
    except OSError:
        return 0  # the process has ended meanwhile


def environment(title: str, folder: Path, python: str) -> str:
    """Return the interpreter of a library's own environment; create the environment with pip if it is missing."""
    adapter = import_module(f"libraries.{PEERS[title]}")
    home = folder / PEERS[title]
    stamp = home / "packages.json"
    wanted = json.dumps(adapter.PACKAGES)
    interpreter = str(home / "bin" / "python")
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"environment for {title}: {', '.join(adapter.PACKAGES)}", file=sys.stderr, flush=True)
        subprocess.run([python, "-m", "venv", "--clear", str(home)], check=True)
        install = [interpreter, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--only-binary=:all:"]
        subprocess.run([*install, *adapter.PACKAGES], check=True)
        stamp.write_text(wanted)
    return interpreter


def installed() -> dict[str, str]:
    """Return the libraries that can be measured in this environment, with the path of its interpreter."""
    found = {}
    for title, module in OWN.items():
        distributions = import_module(f"libraries.{module}").DISTRIBUTIONS
        try:
            for name in distributions:
                import_module(name)
        except ImportError:
            print(f"{title}: not installed here", file=sys.stderr)
            continue
        found[title] = sys.executable
    return found


@dataclass
class Comparison:
    """The measurements: seconds per operation in each round, by library, value and operation."""

    seconds: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    cold: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    versions: dict[str, dict] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    machine: dict = field(default_factory=describe)

    def libraries(self) -> list[str]:
        return list(self.cold)

    def time(self, library: str, value: str, operation: str) -> float | None:
        """Return the median time of one operation, in seconds."""
        rounds = self.seconds.get(library, {}).get(value, {}).get(operation)
        return median(rounds) if rounds else None

    def ratio(self, library: str, value: str, operation: str) -> float | None:
        """Return the ratio of a library's time to ours: the median of the ratios of the rounds."""
        theirs = self.seconds.get(library, {}).get(value, {}).get(operation)
        ours = self.seconds.get(OURS, {}).get(value, {}).get(operation)
        return median_ratio(theirs, ours) if theirs and ours else None

    def cold_ratio(self, library: str) -> float | None:
        if not self.cold.get(library) or not self.cold.get(OURS):
            return None
        return median(self.cold[library]) / median(self.cold[OURS])

    def as_dict(self) -> dict:
        return {
            "machine": self.machine,
            "versions": self.versions,
            "cold_start_seconds": self.cold,
            "memory_bytes": self.memory,
            "seconds": self.seconds,
            "skipped": self.skipped,
        }

    @classmethod
    def from_dict(cls, data: Mapping) -> Comparison:
        return cls(
            data["seconds"],
            data["cold_start_seconds"],
            data["memory_bytes"],
            data["versions"],
            data["skipped"],
            data["machine"],
        )

    def table(self) -> str:
        """Return a text table of the times, with the ratios to our times in parentheses."""
        rows = [("", *self.libraries())]
        values = dict.fromkeys(value for measured in self.seconds.values() for value in measured)
        for value in values:
            for operation in OPERATIONS:
                cells = [
                    _cell(self.time(name, value, operation), self.ratio(name, value, operation))
                    for name in self.libraries()
                ]
                rows.append((f"{operation} {value}", *cells))
        rows.append(
            ("first start, put and get", *(_cell(median(self.cold[n]), self.cold_ratio(n)) for n in self.libraries()))
        )
        rows.append(("memory of all processes", *(f"{self.memory[n] / 2**20:.0f} MiB" for n in self.libraries())))
        rows.append(("version", *(_version(self.versions[n]) for n in self.libraries())))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("  ".join(cells).rstrip())
        lines.insert(1, "  ".join("-" * width for width in widths))
        for library, reasons in self.skipped.items():
            lines += [f"{library}, {value}: {reason}" for value, reason in reasons.items()]
        return "\n".join(lines)


def _version(versions: Mapping) -> str:
    names = [name for name in versions if name not in ("python", "numpy", "cloudpickle")]
    return str(versions[names[0]]) if names else f"Python {versions['python']}"


def duration(seconds: float) -> str:
    """Return a time with three digits and a suitable unit."""
    for unit, factor in (("us", 1e6), ("ms", 1e3), ("s", 1)):
        number = seconds * factor
        if number < 1000 or unit == "s":
            return (
                f"{number:.2f} {unit}"
                if number < 10
                else f"{number:.1f} {unit}"
                if number < 100
                else f"{number:.0f} {unit}"
            )
    raise AssertionError


def _cell(seconds: float | None, ratio: float | None) -> str:
    if seconds is None:
        return "-"
    return duration(seconds) + (f" ({ratio:.0f}x)" if ratio and ratio >= 10 else f" ({ratio:.1f}x)" if ratio else "")


@contextmanager
def _workers(interpreters: Mapping[str, str], logs: Path) -> Iterator[dict[str, _Worker]]:
    with ExitStack() as stack:
        workers = {}
        for title, python in interpreters.items():
            workers[title] = worker = _Worker(title, python, logs / f"{ {**OWN, **PEERS}[title] }.log")
            stack.callback(worker.close)
        yield workers


def _cold(title: str, python: str) -> float:
    command = [python, "-P", str(HERE / "worker.py"), {**OWN, **PEERS}[title], "--cold"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise WorkerError(f"{title}: cold start failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout)["seconds"]


def compare(
    interpreters: Mapping[str, str], values: list[str], rounds: int, cold_rounds: int, logs: Path
) -> Comparison:
    """
    Measure all libraries, interleaved.

    Parameters
    ----------
    interpreters : mapping
        Titles of libraries -> the Python interpreter in which each runs.
    values : list of str
        Names from `measuring.data.VALUES`.
    rounds, cold_rounds : int
        How many times each operation and each cold start is measured.
    logs : Path
        Folder for the output that the libraries print.
    """
    result = Comparison()
    result.cold = interleaved(
        cold_rounds,
        {title: partial(_cold, title, python) for title, python in interpreters.items()},
        warm_up=0,
    )
    with _workers(interpreters, logs) as workers:
        for title, worker in workers.items():
            result.versions[title] = worker.ask("start")["versions"]
            result.memory[title] = worker.memory()
            result.seconds[title] = {}
        for value in values:
            able = {}
            for title, worker in workers.items():
                answer = worker.ask("prepare", name=value)
                if "skipped" in answer:
                    result.skipped.setdefault(title, {})[value] = answer["skipped"]
                else:
                    able[title] = worker
            for operation in OPERATIONS:
                contenders = {title: partial(worker.round, value, operation) for title, worker in able.items()}
                for title, measured in interleaved(rounds, contenders).items():
                    result.seconds[title].setdefault(value, {})[operation] = measured
            for worker in able.values():
                worker.ask("forget", name=value)
            print(f"  {value}", file=sys.stderr, flush=True)
    return result
