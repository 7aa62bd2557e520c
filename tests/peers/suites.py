"""Run test suites of other projects with and without `install`, and print only what differs.

    python tests/peers/suites.py [--timeout SECONDS] [SUITE ...]

Each suite runs in an interpreter whose ``sitecustomize`` installs, so that every process of the suite has it, and in one whose
``sitecustomize`` does nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec

# Name -> how it is started.
SUITES: dict[str, list[str]] = {
    **{f"cpython-{method}": ["unittest", "-v", f"peer_{method}"] for method in ("fork", "spawn", "forkserver")},
    "cpython-futures": ["unittest", "-v", "peer_futures"],
    "joblib": [
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rA",
        "-q",
        "--pyargs",
        "joblib.test.test_parallel",
        "joblib.test.test_memmapping",
    ],
    "loky": ["pytest", "-p", "no:cacheprovider", "-rA", "-q", "--pyargs", "loky.tests"],
}
# Modules that a suite needs; the others need CPython's own tests of multiprocessing.
NEEDS = {
    "cpython-futures": ["test.test_concurrent_futures"],
    "joblib": ["pytest", "joblib.test.test_parallel"],
    "loky": ["pytest", "loky.tests"],
}
# What the interpreter does first.
WAYS = {
    "without": "",
    "with": "import pyray_ser; pyray_ser.install()\n",
    "with min_bytes=64": "import pyray_ser; pyray_ser.install(min_bytes=64)\n",
}
_MULTIPROCESSING = """
import unittest
from test import _test_multiprocessing
_test_multiprocessing.install_tests_in_module_dict(globals(), {method!r})
"""
# One line of unittest's output, and of pytest's summary.
_UNITTEST = re.compile(r"^(\w+ \([\w.]+\)).* \.\.\. (.*)$")
_PYTEST = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (\S+)")


def write_modules(folder: str, first: str) -> None:
    """Write what the interpreter imports first, and the modules that unittest loads."""
    with open(os.path.join(folder, "sitecustomize.py"), "w") as file:
        file.write(first)
    for method in ("fork", "spawn", "forkserver"):
        with open(os.path.join(folder, f"peer_{method}.py"), "w") as file:
            file.write(_MULTIPROCESSING.format(method=method))
    futures = "test.test_concurrent_futures"
    lines = [f"from {futures} import *\n"]
    spec = find_spec(futures)
    if spec is not None and spec.submodule_search_locations:  # a package from Python 3.12 on
        names = ("deadlock", "process_pool", "wait", "as_completed", "shutdown", "init")
        lines = [f"from {futures}.test_{name} import *\n" for name in names]
    with open(os.path.join(folder, "peer_futures.py"), "w") as file:
        file.writelines(lines)


def results(command: list[str], first: str, timeout: float) -> dict[str, str]:
    """Return the outcome of each test of a suite."""
    with tempfile.TemporaryDirectory(prefix="pyray_ser-peers-") as folder:
        write_modules(folder, first)
        paths = [folder, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYRAY_SER_STORE")
        }
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
            ended = f"exit status {process.returncode}" if process.returncode not in (0, 1) else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            ended = "timed out"
    found = {}
    for line in output.splitlines():
        if match := _UNITTEST.match(line):
            found[match[1]] = re.sub(r"skipped .*", "skipped", match[2])
        elif match := _PYTEST.match(line):
            found[match[2]] = match[1]
    if ended:
        found["the suite"] = ended
    return found


def exists(module: str) -> bool:
    """Return whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def failed(outcome: str) -> bool:
    """Return whether a test did not end as it should."""
    return outcome in ("ERROR", "FAIL", "FAILED", "timed out", "missing") or outcome.startswith("exit")


def compare(name: str, timeout: float) -> int:
    """Run a suite each way and print the differences; return their number."""
    command = SUITES[name]
    missing = [module for module in NEEDS.get(name, ["test._test_multiprocessing"]) if not exists(module)]
    if missing:
        print(f"{name}: this interpreter has no {missing[0]}", flush=True)
        return 0
    ends = {way: results(command, first, timeout) for way, first in WAYS.items()}
    number = 0
    for way, found in ends.items():
        bad = sorted(test for test, outcome in found.items() if failed(outcome))
        print(f"{name}, {way}: {len(found)} tests, {len(bad)} not passed", flush=True)
        for test in sorted({*found, *ends["without"]}):
            pair = ends["without"].get(test, "missing"), found.get(test, "missing")
            if failed(pair[0]) != failed(pair[1]):
                number += 1
                print(f"    {test}: {pair[0]} without, {pair[1]} {way}", flush=True)
    return number


def main() -> int:
    """Compare the suites that are asked for; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run of one suite")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default all")
    arguments = parser.parse_args()
    return min(1, sum([compare(name, arguments.timeout) for name in arguments.suites or SUITES]))


if __name__ == "__main__":
    sys.exit(main())
