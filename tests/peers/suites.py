"""Run test suites of other projects with and without this library, and print only the differences.

    python tests/peers/suites.py [--sources FOLDER] [--timeout SECONDS] [SUITE ...]

Suites of pools run with and without `install` in all of their processes. Suites of types run with `pickle`, with our
pickler in its place, and with ``put`` and ``get`` in its place.  Tests that succeed in only one configuration run again together;
a test counts as a difference only if it differs again.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "peers"

# Code that the interpreter runs at its start: name of the configuration -> text of sitecustomize.
INSTALL = "import pyray_ser; pyray_ser.install({})\n"
POOLS = {"without": "", "with": INSTALL.format(""), "with min_bytes=64": INSTALL.format("min_bytes=64")}
# In this configuration a ".pth" file has the text of "with". Such a file runs earlier, while half of `sys.path` is still missing.
PTH = "with, from a .pth"
PICKLES = {
    "without": "",
    "our pickler": "import peer_pickles; peer_pickles.by_our_pickler()\n",
    "put and get": "import peer_pickles; peer_pickles.by_put_and_get()\n",
}
MULTIPROCESSING = """
import unittest
from test import _test_multiprocessing
_test_multiprocessing.install_tests_in_module_dict(globals(), {method!r})
"""


class Suite(NamedTuple):
    """One suite: the packages that it needs, and the arguments with which pytest runs it."""

    needs: tuple[str, ...]
    arguments: Callable[[Path], list[str]]
    ways: dict[str, str]
    word: str = ""
    # The project whose source distribution the children of the tests import from.
    project: str = ""


def cpython(module: str) -> Callable[[Path], list[str]]:
    """Return the arguments to run a module that `write_modules` wrote."""
    # "-s", because the tests of this suite examine the standard streams.
    return lambda sources: ["-s", f"{module}.py"]


def joblib(sources: Path) -> list[str]:
    """Return the pytest arguments for joblib's tests of pools."""
    folder = package("joblib")
    names = ("parallel", "memmapping", "cloudpickle_wrapper", "module")
    return [f"--rootdir={folder.parent}", *(str(folder / "test" / f"test_{name}.py") for name in names)]


def loky(sources: Path) -> list[str]:
    """Return the pytest arguments for the tests in loky's source distribution."""
    return ["--skip-high-memory", "--loky-verbosity=20", str(unpacked("loky", sources) / "tests")]


def distributed(sources: Path) -> list[str]:
    """Return the pytest arguments for the serialization tests in distributed's source distribution."""
    folder = unpacked("distributed", sources)
    # The suite's conftest needs plugins that are not part of the source distribution.
    return [
        "--noconftest",
        "-p",
        "distributed.utils_test",
        f"--rootdir={folder}",
        str(folder / "distributed" / "protocol" / "tests"),
    ]


def package(name: str) -> Path:
    """Return the folder of an installed package."""
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def about_pickles(name: str, *options: str, leave: str = "") -> Callable[[Path], list[str]]:
    """Return the pytest arguments for a package's test files that mention pickle, except paths with a given word."""

    def arguments(sources: Path) -> list[str]:
        folder = package(name)
        found = [path for path in sorted(folder.rglob("test_*.py")) if "pickle" in path.read_text(errors="replace")]
        chosen = [str(path) for path in found if not leave or leave not in str(path)]
        return [f"--rootdir={folder.parent}", f"--confcutdir={folder.parent}", *options, *chosen]

    return arguments


def types(name: str, *options: str, leave: str = "") -> Suite:
    """Return the suite of a package whose types are pickled."""
    return Suite((name,), about_pickles(name, *options, leave=leave), PICKLES, "pickle")


MULTI = ("test._test_multiprocessing",)
SUITES = {
    **{
        f"cpython-{method}": Suite(MULTI, cpython(f"peer_{method}"), POOLS)
        for method in ("fork", "spawn", "forkserver")
    },
    "cpython-futures": Suite(("test.test_concurrent_futures",), cpython("peer_futures"), POOLS),
    "joblib": Suite(("joblib.test.test_parallel",), joblib, {**POOLS, PTH: INSTALL.format("")}),
    "loky": Suite(("loky",), loky, {**POOLS, PTH: INSTALL.format("")}, project="loky"),
    "distributed": Suite(("distributed",), distributed, PICKLES),
    # If PyTables is missing, the folder of its tests would abort the whole run.
    "pandas": types("pandas", "--no-strict-data-files", leave="pytables"),
    # The tests in test_fs.py wait for servers.
    "pyarrow": types("pyarrow", leave="test_fs.py"),
    "numpy": types("numpy"),
    "scipy": types("scipy"),
}


# ---- sources of the tests ----------------------------------------------------------------------------------------------


def unpacked(project: str, sources: Path) -> Path:
    """Return the folder of the source distribution of a project's installed version; download it if it is missing."""
    version = importlib.metadata.version(project)
    folder = sources / f"{project}-{version}"
    if not folder.is_dir():
        fetch = ["download", "--quiet", "--no-deps", "--no-binary", project, "--dest", str(sources)]
        subprocess.run([sys.executable, "-m", "pip", *fetch, f"{project}=={version}"], check=True)
        with tarfile.open(f"{folder}.tar.gz") as archive:
            archive.extractall(sources, filter="data")
    return folder


def write_modules(folder: Path, first: str) -> None:
    """Write the module that the interpreter imports first, and modules that run CPython's suites."""
    (folder / "sitecustomize.py").write_text(first)
    (folder / "pytest.ini").write_text("[pytest]\n")
    for method in ("fork", "spawn", "forkserver"):
        (folder / f"peer_{method}.py").write_text(MULTIPROCESSING.format(method=method))
    futures = "test.test_concurrent_futures"
    lines = [f"from {futures} import *\n"]
    if exists(futures) and getattr(find_spec(futures), "submodule_search_locations", None):  # since Python 3.12
        names = ("deadlock", "process_pool", "wait", "as_completed", "shutdown", "init")
        lines = [f"from {futures}.test_{name} import *\n" for name in names]
    (folder / "peer_futures.py").write_text("".join(lines))


def interpreter_with_pth(folder: Path, first: str) -> str:
    """Create an interpreter that has the packages of this one and runs a line at its start; return its path."""
    # Not from PYTHONPATH, which tests of joblib replace in their children.
    ours = str(package("pyray_ser").parent)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    packages = next((folder / "venv" / "lib").glob("python*/site-packages"))
    paths = [ours, *(path for path in sys.path if path.endswith("-packages"))]
    # A .pth file holds one statement or path per line; the interpreter reads the files in the order of their names.
    (packages / "a.pth").write_text("\n".join(paths) + "\n")
    (packages / "b.pth").write_text(first.strip() + "\n")
    return str(folder / "venv" / "bin" / "python")


# ---- running -----------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One run of a suite."""

    outcomes: dict[str, str]
    seconds: float
    output: str


def run(suite: Suite, way: str, options: argparse.Namespace, only: list[str] | None = None) -> Run:
    """Run a suite, or only some of its tests, in one of the configurations."""
    with tempfile.TemporaryDirectory(prefix="pyray_ser-peers-") as name:
        folder = Path(name)
        first = suite.ways[way]
        write_modules(folder, "" if way == PTH else first)
        python = interpreter_with_pth(folder, first) if way == PTH else sys.executable
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONSAFEPATH", "PYRAY_SER_STORE")}
        paths = [name, str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        if suite.project:
            paths.append(str(unpacked(suite.project, options.sources)))
        results = folder / "results"
        environment |= {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            # Some tests of loky start "python".
            "PATH": os.pathsep.join([os.path.dirname(python), os.environ["PATH"]]),
            "PEER_RESULTS": str(results),
            "PEER_WORD": suite.word,
        }
        command = [python, "-m", "pytest", "-q", "-c", str(folder / "pytest.ini"), "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors", "--tb=short", "--disable-warnings"]
        command += ["-p", "peer_reports", f"--timeout={options.test_timeout}", *suite.arguments(options.sources)]
        if only is not None:
            # The plugin selects tests by name after collection: names may contain characters that a command line
            # cannot.
            (folder / "only").write_text("\n".join(map(repr, only)), encoding="utf-8")
            environment["PEER_ONLY"] = str(folder / "only")
        start = time.monotonic()
        with open(folder / "output", "w+", errors="replace") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, cwd=folder, start_new_session=True
            )
            try:
                process.wait(options.timeout)
                # Exit status 1 means that tests failed, 5 that no test was collected.
                ended = f"exit status {process.returncode}" if process.returncode not in (0, 1, 5) else ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                ended = "timed out"
            output.seek(0)
            text = output.read()
        outcomes = read_results(results)
        if ended or not outcomes:
            outcomes["the suite"] = ended or "ran no test"
        return Run(outcomes, time.monotonic() - start, text)


def read_results(path: Path) -> dict[str, str]:
    """Return the outcome of each test; a test that fails in any of its phases has failed."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        outcome, _, name = line.partition("\t")
        test = ast.literal_eval(name)
        if found.get(test) != "failed":
            found[test] = outcome
    return found


def exists(module: str) -> bool:
    """Return whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def bad(outcome: str) -> bool:
    """Return whether a test has failed, or has passed unexpectedly."""
    return outcome not in ("passed", "skipped", "xfailed")


def differing(without: Run, other: Run) -> list[str]:
    """Return the tests that succeed in only one of the two runs."""
    tests = sorted({*without.outcomes, *other.outcomes})
    return [t for t in tests if bad(without.outcomes.get(t, "missing")) != bad(other.outcomes.get(t, "missing"))]


def compare(name: str, options: argparse.Namespace) -> int:
    """Run a suite in each configuration, print the differences, and return their number."""
    suite = SUITES[name]
    missing = [module for module in suite.needs if not exists(module)]
    if missing:
        print(f"{name}: this interpreter has no {missing[0]}", flush=True)
        return 0
    number = 0
    without = None
    ways = [way for way in suite.ways if way == "without" or way in (options.way or suite.ways)]
    with ThreadPoolExecutor(options.jobs) as threads:
        runs = threads.map(lambda way: run(suite, way, options), ways)
    for way, ended in zip(ways, runs, strict=True):
        values = list(ended.outcomes.values())
        failed, skipped = sum(map(bad, values)), sum(value in ("skipped", "xfailed") for value in values)
        print(
            f"{name}, {way}: {len(values) - failed - skipped} passed, {failed} not, {skipped} skipped, {ended.seconds:.0f} s",
            flush=True,
        )
        if without is None:
            without = ended
        tests = differing(without, ended)
        if tests and ended is not without:
            again = run(suite, "without", options, tests), run(suite, way, options, tests)
            repeated = set(differing(*again))
            for test in tests:
                pair = (found.outcomes.get(test, "missing") for found in (without, ended))
                print(f"    {test}: " + ", then ".join(pair) + ("" if test in repeated else " (once)"), flush=True)
            number += len(repeated)
            if options.verbose and repeated:
                print(again[1].output, flush=True)
    return number


def main() -> int:
    """Compare the requested suites; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sources", type=Path, default=BUILD, help="folder of unpacked source distributions")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run of one suite")
    parser.add_argument("--test-timeout", type=int, default=120, help="seconds for one test")
    parser.add_argument(
        "--jobs", type=int, default=1, help="ways at a time: most suites of pools wait most of the time"
    )
    parser.add_argument("--way", action="append", help="only this way, next to the one without")
    parser.add_argument("--verbose", action="store_true", help="print the output of the tests that differ")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default all")
    options = parser.parse_args()
    options.sources = options.sources.resolve()
    options.sources.mkdir(parents=True, exist_ok=True)
    return min(1, sum([compare(name, options) for name in options.suites or SUITES]))


if __name__ == "__main__":
    sys.exit(main())
