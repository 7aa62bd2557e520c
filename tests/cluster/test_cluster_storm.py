"""Run a short stress test of a cluster of two hosts; `tests/torture/storm_cluster.py` describes it."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import hosts
import pytest
from isolated import environment
from patience import patience

STORM = Path(__file__).parent.parent / "torture" / "storm_cluster.py"


@pytest.mark.heavy
@pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")
@pytest.mark.skipif(bool(hosts.missing()), reason=hosts.missing() or "-")
def test_random_graphs_beside_failures_of_workers_hosts_and_links(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", STORM, "8", "1"],
        capture_output=True,
        text=True,
        timeout=patience(240),
        env=environment(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
