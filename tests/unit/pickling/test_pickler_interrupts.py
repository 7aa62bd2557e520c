"""Test that a dump or a load raises every exception that interrupts Python code inside it."""

from pathlib import Path

import pytest
from isolated import run

SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    import interrupted
    interrupted.main({error}, {lines})
"""


def script(error, lines):
    return SCRIPT.format(tests=str(Path(__file__).parents[2] / "support"), error=error, lines=lines)


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "MemoryError"])
def test_interrupted_at_each_line(error):
    # Long programs mostly run code of other libraries: after 25 lines, only one line in 29 is interrupted.
    said = run(script(error, "[*range(1, 26), *range(54, 10**6, 29)]"), timeout=500).splitlines()
    assert said[:-1] == []
    assert int(said[-1].split()[0]) > 1000


# Each of the four exceptions interrupts every fourth line, so together they cover all lines. With all lines for each
# exception, this test would take over ten minutes.
@pytest.mark.heavy
@pytest.mark.parametrize(
    "error, first", [("KeyboardInterrupt", 1), ("SystemExit", 2), ("MemoryError", 3), ("RecursionError", 4)]
)
def test_interrupted_at_every_line(error, first):
    assert run(script(error, f"range({first}, 10**9, 4)"), timeout=3000).splitlines()[:-1] == []
