"""Test that unsupported interpreters raise a clear ImportError and do no harm to the main interpreter."""

import re
import subprocess
import sys

import pytest

# Python versions differ in the name and return values of the module for subinterpreters, but all have `run_string`.
CHILD = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

if {main_first}:
    import pyray_ser

SOURCE = '''
import sys
for name in {names!r}:
    try:
        __import__(name)
    except ImportError as error:
        print(name, "ImportError", error, flush=True)
    else:
        print(name, "imported", flush=True)
left = [name for name in sys.modules if name.startswith("pyray_ser")]
assert not left, left
'''
for again in range(2):
    interpreter = {create}
    failure = interpreters.run_string(interpreter, SOURCE)
    if failure is not None:
        raise SystemExit(failure.formatted)
    interpreters.destroy(interpreter)

import pyray_ser
assert pyray_ser.loads(pyray_ser.dumps([1, "a"])) == [1, "a"]
ref = pyray_ser.put(b"x" * 100_000)
assert pyray_ser.get(ref) == b"x" * 100_000
pyray_ser.shutdown()
print("main: well")
"""
NAMES = ["pyray_ser", "pyray_ser._core", "pyray_ser._unpickle", "pyray_ser._pickle", "pyray_ser._ndarray"]

CREATE = {
    "own GIL": "interpreters.create()",
    "shared GIL": (
        "interpreters.create('legacy')" if sys.version_info >= (3, 13) else "interpreters.create(isolated=False)"
    ),
}


@pytest.mark.parametrize("main_first", [True, False])
@pytest.mark.parametrize("kind", CREATE)
def test_subinterpreter_is_refused(kind, main_first):
    source = CHILD.format(main_first=main_first, names=NAMES, create=CREATE[kind])
    child = subprocess.run([sys.executable, "-P", "-c", source], capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stdout + child.stderr
    *lines, last = child.stdout.splitlines()
    assert last == "main: well"
    assert len(lines) == 2 * len(NAMES)
    for line, name in zip(lines, NAMES * 2):
        assert line.startswith(f"{name} ImportError pyray_ser does not support subinterpreters"), line


def test_without_the_gil_is_refused():
    """A build without the GIL is not available everywhere, so the test patches the check of the current interpreter."""
    source = "import sys; sys._is_gil_enabled = lambda: False; import pyray_ser"
    child = subprocess.run([sys.executable, "-P", "-c", source], capture_output=True, text=True, timeout=120)
    assert child.returncode == 1
    assert re.search("^ImportError: pyray_ser needs Python with the GIL", child.stderr, re.MULTILINE)
