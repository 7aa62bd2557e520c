"""Test that a dump or a load raises every exception that interrupts Python code inside it."""

from pathlib import Path

import pytest
from isolated import run

SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    import interrupted
    interrupted.main({error}, None, {lines})
"""


def script(error, lines):
    return SCRIPT.format(tests=str(Path(__file__).parents[2] / "support"), error=error, lines=lines)


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "MemoryError"])
def test_interrupted_at_each_line(error):
    said = run(script(error, 25), timeout=500).splitlines()
    assert said[:-1] == []
    assert int(said[-1].split()[0]) > 1000


@pytest.mark.heavy
@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit", "MemoryError", "RecursionError"])
def test_interrupted_at_every_line(error):
    assert run(script(error, 10**9), timeout=3000).splitlines()[:-1] == []
