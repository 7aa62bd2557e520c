"""Run a short stress test of the life cycle of a store; `tests/torture/storm_lifetime.py` describes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from isolated import environment
from patience import patience

STORM = Path(__file__).parent.parent / "torture" / "storm_lifetime.py"


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [1, 2])
def test_every_operation_beside_shutdown_fork_signals_and_a_stopped_peer(seed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", STORM, "20", str(seed)],
        capture_output=True,
        text=True,
        timeout=patience(120),
        env={**environment(), "STORM_GRACE": str(min(100, patience(30)))},
        cwd=tmp_path,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not done.stderr, done.stderr
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("pyray_ser-storm-")]
