"""Copy random graphs and layouts with every pickler, the store and other processes; the copies must be isomorphic.

A failure prints its seed and a command that reproduces it; see ``run_graphs.py``.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "run_graphs.py")
SANITIZED = bool(os.environ.get("PYRAY_SER_UNDER_SANITIZER"))


def run(count, *words, timeout=280):
    """Check graphs in separate processes, so that a crash becomes a failure with a seed."""
    if SANITIZED:
        count //= 10
    done = subprocess.run(
        [sys.executable, "-P", SCRIPT, "--count", str(count), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout


def test_graphs_and_layouts_come_back_isomorphic():
    run(3000, "--quiet")


def test_graphs_come_back_isomorphic_while_finalizers_use_the_picklers():
    run(1500)


def test_graphs_come_back_isomorphic_from_a_store_that_spills():
    output = run(2000, "--start", "3000", "--quiet", "--spill", "--ways", "put,name,process")
    assert SANITIZED or " 0 objects were in spill files" not in output


def test_graphs_come_back_isomorphic_in_threads():
    run(1000, "--start", "6000", "--threads", "4", "--quiet")


# Seeds of earlier errors: overwritten strided arrays, and finalizers that dumped instances of the class being dumped.
@pytest.mark.parametrize("seed", (56, 595, 632, 727, 1545, 202_870))
def test_seeds_that_once_failed_come_back_isomorphic(seed):
    run(10 if SANITIZED else 1, "--start", str(seed))


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_200_000_graphs_come_back_isomorphic():
    run(200_000, "--start", "1000000", "--processes", "2", timeout=3500)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_graphs_come_back_isomorphic_in_eight_threads():
    run(10_000, "--start", "2000000", "--threads", "8", timeout=1700)
