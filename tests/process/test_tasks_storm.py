"""A short storm over tasks and actors; see tests/torture/storm_tasks.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STORM = Path(__file__).resolve().parents[1] / "torture" / "storm_tasks.py"


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_or_left_in_a_storm(seed):
    done = subprocess.run(
        [sys.executable, "-P", STORM, "30", str(seed)],
        capture_output=True,
        text=True,
        timeout=900,
        env=dict(os.environ),
    )
    assert done.returncode == 0 and done.stdout.startswith("fine"), done.stdout + done.stderr
