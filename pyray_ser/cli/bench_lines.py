"""The microbenchmarks of ``pyray-ser bench``: run the lines of `bench_side` in another process, and show the results."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from .._version import __version__
from . import CommandError
from .bench_side import LINES
from .output import printable, table, write_json
from .progress import Progress

__all__ = ["run_lines"]

# How many seconds a library may take to end its processes.
_PATIENCE = 20.0


# ---- one library -----------------------------------------------------------------------------------------------------------


class _Side:
    """The process that measures one library."""

    def __init__(self, library: str, command: list[str], folder: str) -> None:
        self.library = library
        path = os.path.join(folder, f"{library}.txt")
        self._errors = open(path, "w+", encoding="utf-8", errors="replace")  # noqa: SIM115  end() closes it
        environment = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
        try:
            # In its own session the process gets no signal from the terminal. It ends when its input is closed, and
            # then has time to end its workers.
            self._process = subprocess.Popen(
                [*command, library], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                text=True, env=environment, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            self._errors.close()
            raise

    def answers(self, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Start the process, and yield its answers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(settings) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended: its answers are missing
        for text in self._process.stdout:
            answer = json.loads(text)
            if "fatal" in answer:
                hint = " (hint: --ray needs the Python of an environment with `pip install ray`)"
                raise CommandError(
                    f"{self.library} cannot be measured: {printable(answer['fatal'])}"
                    + (hint if answer["missing"] and self.library == "ray" else "")
                )
            if "done" in answer:
                return
            yield answer
        raise CommandError(f"the process that measures {self.library} has ended: {self._last_error()}")

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return printable(lines[-1]) if lines else "it wrote no error"

    def end(self) -> None:
        """End the process and its descendants."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended
            self._wait_for_end()
        finally:
            # The process is not reaped yet, so its pid still names its process group: kill the rest of the group.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process.stdout.close()
            self._errors.close()

    def _wait_for_end(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.01)


@contextmanager
def _sides(ray: str | None) -> Iterator[Iterator[_Side]]:
    """Yield an iterator that starts one library after the other; end the last one."""
    with tempfile.TemporaryDirectory(prefix="pyray_ser-bench-") as folder:
        # Ray's workers import modules from the folder of the program, so it must not be the folder of this package.
        program = shutil.copy(os.path.join(os.path.dirname(__file__), "bench_side.py"), folder)
        commands = {"pyray_ser": [sys.executable, "-P", "-m", "pyray_ser.cli.bench_side"]}
        if ray is not None:
            commands["ray"] = [ray, program]

        def start() -> Generator[_Side]:
            for library, command in commands.items():
                try:
                    side = _Side(library, command, folder)
                except OSError as error:
                    raise CommandError(f"cannot run {command[0]}: {error.strerror}") from error
                try:
                    yield side
                finally:
                    side.end()

        running = start()
        try:
            yield running
        finally:
            running.close()


def _measure(arguments: argparse.Namespace, lines: list[int]) -> dict[str, Any]:
    """Run the lines, and return the figures of each library."""
    quick = arguments.quick
    rounds: int = arguments.rounds or (3 if quick else 5)
    settings = {
        "rounds": rounds, "seconds": 0.02 if quick else 0.5,
        "mb": arguments.mb or (10 if quick else 100), "batch": 100 if quick else 1000,
    }  # fmt: skip
    shared = [number for number in lines if not LINES[number][2]]
    total = (len(lines) + (len(shared) if arguments.ray else 0)) * rounds
    figures: dict[str, Any] = {}
    with Progress(total) as progress, _sides(arguments.ray) as sides:
        done = 0
        for side in sides:
            chosen = lines if side.library == "pyray_ser" else shared
            found: dict[str, Any] = {"lines": {}}
            for answer in side.answers({**settings, "lines": chosen}):
                if "name" not in answer:
                    found["version"], found["python"] = answer["version"], answer["python"]
                elif "round" in answer:
                    progress.show(done + answer["round"], f"{side.library}: {answer['name']}")
                else:
                    done += rounds
                    found["lines"][answer["name"]] = answer
            figures[side.library] = found
    return {"settings": settings, "libraries": figures}


# ---- results -----------------------------------------------------------------------------------------------------------------


def _chosen(pattern: str | None) -> list[int]:
    if pattern is None:
        return list(range(len(LINES)))
    wanted = pattern if any(letter in pattern for letter in "*?[") else f"*{pattern}*"
    found = [number for number, (name, *_) in enumerate(LINES) if fnmatch.fnmatch(name.lower(), wanted.lower())]
    if not found:
        raise CommandError(f"no line matches {pattern!r}; the lines are: " + "; ".join(name for name, *_ in LINES))
    return found


def _summary(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one line."""
    if "error" in answer:
        return {"error": answer["error"]}
    rates = answer["rounds"]
    middle = median(rates)
    return {
        "median": middle, "min": min(rates), "max": max(rates),
        "spread": (max(rates) - min(rates)) / middle, "rounds": rates,
    }  # fmt: skip


def _earlier(path: str) -> dict[str, float]:
    """Return the medians of an earlier run, from the file that ``--json`` wrote."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = json.load(file)["lines"]
        return {line["name"]: float(line["median"]) for line in lines if line.get("median")}
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is not a file that `pyray-ser bench --json` wrote") from error


def _result(measured: dict[str, Any], earlier: dict[str, float] | None) -> dict[str, Any]:
    libraries = measured["libraries"]
    theirs = libraries.get("ray")
    lines = []
    for name, answer in libraries["pyray_ser"]["lines"].items():
        line = {"name": name, "unit": answer["unit"], **_summary(answer)}
        if earlier is not None:
            line["earlier"] = earlier.get(name)
            line["ratio_to_earlier"] = _ratio(line.get("median"), line["earlier"])
        if theirs is not None:
            line["ray"] = _summary(theirs["lines"][name]) if name in theirs["lines"] else None
            line["ratio_to_ray"] = _ratio(line.get("median"), (line["ray"] or {}).get("median"))
        lines.append(line)
    result = {
        "version": __version__, "python": platform.python_version(), "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}", "cpus": len(os.sched_getaffinity(0)),
        "settings": measured["settings"], "lines": lines,
    }  # fmt: skip
    if theirs is not None:
        result["ray"] = {"version": theirs["version"], "python": theirs["python"]}
    return result


def _ratio(ours: float | None, other: float | None) -> float | None:
    return ours / other if ours and other else None


def _rate(figures: dict[str, Any] | None, unit: str) -> str:
    if figures is None:
        return "-"
    if "error" in figures:
        return "failed"
    rate: float = figures["median"]
    text = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return f"{text} {unit}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"


def _show(result: dict[str, Any]) -> None:
    ray = result.get("ray")
    heads, sides = ["LINE", "MEDIAN", "SPREAD"], "lrr"
    compared = any("earlier" in line for line in result["lines"])
    if compared:
        heads, sides = [*heads, "EARLIER", "RATIO"], sides + "rr"
    if ray:
        heads, sides = [*heads, f"RAY {printable(ray['version'])}".strip(), "RATIO"], sides + "rr"
    rows = []
    for line in result["lines"]:
        unit = line["unit"]
        row = [line["name"], _rate(line, unit), f"{line['spread']:.0%}" if "spread" in line else "-"]
        if compared:
            before = line["earlier"]
            row += [_rate(None if before is None else {"median": before}, unit), _times(line["ratio_to_earlier"])]
        if ray:
            row += [_rate(line["ray"], unit), _times(line["ratio_to_ray"])]
        rows.append(row)
    print(
        f"pyray_ser {result['version']}, Python {result['python']}, {result['cpus']} CPUs, {result['system']}; "
        f"median of {result['settings']['rounds']} rounds\n"
    )
    print(table(heads, rows, sides))
    for line in result["lines"]:
        for library, figures in (("pyray_ser", line), ("ray", line.get("ray") or {})):
            if "error" in figures:
                print(f"\n{line['name']}, {library}: {printable(figures['error'])}")


def run_lines(arguments: argparse.Namespace) -> int:
    """Measure the lines, and print; return 1 if one of our lines failed."""
    earlier = None if arguments.compare is None else _earlier(arguments.compare)
    result = _result(_measure(arguments, _chosen(arguments.only)), earlier)
    if arguments.json:
        write_json(result)
    else:
        _show(result)
    return int(any("error" in line for line in result["lines"]))
