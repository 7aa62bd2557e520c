"""Test that docs/internals/liveness.md names a test for each row, and that each of these tests exists."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[3]
PAGE = ROOT / "docs" / "internals" / "liveness.md"


@pytest.mark.skipif(not PAGE.exists(), reason="no source tree beside the tests")
def test_each_row_has_a_test_that_exists():
    known = set()
    for path in (ROOT / "tests").rglob("test_*"):
        if path.suffix in (".c", ".py"):
            known.update(re.findall(r"^(?:def |TEST\()(\w+)", path.read_text(), re.MULTILINE))
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "Test |" not in line]
    assert len(rows) > 20
    for row in rows:
        last = row.rstrip("| ").rpartition("|")[2]
        named = re.findall(r"`(\w+)`", last)
        assert named or "above" in last, row
        assert set(named) <= known, (set(named) - known, row)
