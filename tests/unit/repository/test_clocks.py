"""Test that no wait and no age depends on a clock that can be set."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs a source checkout")

WALL_CLOCK = re.compile(
    r"CLOCK_(REALTIME|TAI)|gettimeofday|\btime\((NULL|0|&\w+)\)|\btime\.time(_ns)?\(|datetime\.(now|today|utcnow)\(|PyTime_Time\b"
)

# These places only show the time to a user.
SHOWN = {
    "pyx/pyray_ser/_core/prelude.pxi": "when an object was made, for `records` and `flights`",
    "pyray_ser/cli/map.py": "when a page of `map --html` was written",
    "pyray_ser/cli/top.py": "when a line of `top --json` was written",
    "pyray_ser/store/by_name.py": "when a name was bound, for `names`",
    "pyray_ser/store/versions.py": "when a name was bound, for `watch`",
}


def test_the_wall_clock_is_only_shown():
    found = {}
    for folder in ("csrc", "pyx", "pyray_ser"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".c", ".h", ".py", ".pyx", ".pxi", ".pxd"}:
                lines = [line.strip() for line in path.read_text().splitlines() if WALL_CLOCK.search(line)]
                if lines:
                    found[str(path.relative_to(ROOT))] = lines
    assert {name: len(lines) for name, lines in found.items()} == dict.fromkeys(SHOWN, 1), found
