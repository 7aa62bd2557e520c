"""The intruder disturbs each call at each point, and the result must not change; see ``intruder.py``.

`make test-heavy` sets PYRAY_SER_INTRUDER_PATH to a build that has the points; `make intruder` runs more of these tests.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "intruder.py")


@pytest.fixture(scope="module")
def intruder_build():
    path = os.environ.get("PYRAY_SER_INTRUDER_PATH")
    if not path:
        pytest.skip("PYRAY_SER_INTRUDER_PATH names no build with PYRAY_SER_INTRUDER=1; `make test-heavy` makes one")
    return path


def run(path, *words, timeout=280):
    done = subprocess.run(
        [sys.executable, "-P", SCRIPT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout[-20_000:]


@pytest.mark.heavy
def test_a_call_disturbed_at_each_point_gives_the_undisturbed_result(intruder_build):
    run(intruder_build, "--points", "8")


@pytest.mark.heavy
def test_calls_for_random_graphs_disturbed_at_random_points_give_the_undisturbed_result(intruder_build):
    run(intruder_build, "--only", "none", "--graphs", "200")


def test_a_build_without_points_is_refused():
    from pyray_ser import _pickle

    if hasattr(_pickle, "_set_intruder"):
        pytest.skip("this build has an intruder")
    done = subprocess.run([sys.executable, "-P", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "PYRAY_SER_INTRUDER" in done.stderr
