"""Test that values of all kinds arrive through each channel of pools as they do without `install`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pool_zoo
import pytest
from isolated import environment
from patience import patience

LIGHT = ["Pool", "Pipe"]
# Each value of this channel has its own process.
FEW = ["arguments of processes"]
# To run one of them by hand: python tests/support/pool_zoo.py CHANNEL all | some with | without


def lines(channel: str, which: str, way: str) -> list[str]:
    """Send the values through a channel, in a fresh interpreter, and return a line for each value and each role."""
    variables = environment()
    paths = [os.path.dirname(os.path.abspath(pool_zoo.__file__)), *(path for path in sys.path if path)]
    with tempfile.TemporaryDirectory(prefix="pyray_ser-test-") as folder:
        done = subprocess.run(
            [sys.executable, pool_zoo.__file__, channel, which, way],
            capture_output=True,
            text=True,
            timeout=patience(280 if which == "some" else 600),
            env={**variables, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=folder,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def compare(channel: str, which: str) -> None:
    """Assert that each value looks the same with `install` as without."""
    if "joblib" in channel or channel == "loky":
        pytest.importorskip(channel.split(",")[0].split()[0])
    with ThreadPoolExecutor(2) as threads:
        without, installed = threads.map(lambda way: lines(channel, which, way), ["without", "with"])
    assert len(without) == len(installed) > (300 if which == "some" else 7500)
    differing = [pair for pair in zip(without, installed, strict=True) if pair[0] != pair[1]]
    assert not differing, f"{len(differing)} lines differ:\n" + "\n".join(f"- {a}\n+ {b}" for a, b in differing[:10])


@pytest.mark.parametrize("channel", LIGHT)
def test_some_values_of_each_kind_arrive_as_they_do_without(channel):
    compare(channel, "some")


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("channel", [channel for channel in pool_zoo.CHANNELS if channel not in FEW])
def test_every_value_arrives_through_every_channel_as_it_does_without(channel):
    compare(channel, "all")


@pytest.mark.heavy
@pytest.mark.parametrize("channel", FEW)
def test_some_values_of_each_kind_arrive_as_arguments_of_processes_as_they_do_without(channel):
    compare(channel, "some")
