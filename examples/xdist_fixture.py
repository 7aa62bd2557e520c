"""A test suite on four pytest-xdist workers whose session fixture is computed once, measured. Needs pytest-xdist."""

import os
import subprocess
import sys
import tempfile
import time

CONFTEST = """
import os, time
import numpy as np
import pytest
import pyray_ser

def make_table():
    with open(os.environ["RUNS"], "a") as file:
        file.write("x")
    time.sleep(0.5)  # real fixtures take longer
    return np.arange(5_000_000.0)

@pytest.fixture(scope="session")
def table():
    if os.environ["SHARED"] == "0":
        return make_table()
    pyray_ser.init(name=f"suite-{os.environ['PYTEST_XDIST_TESTRUNUID']}", capacity="1G")
    return pyray_ser.get_or_put("table", make_table)
"""

TESTS = """
import pytest

@pytest.mark.parametrize("number", range(40))
def test_table(table, number):
    assert table[number] == number
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("conftest.py", CONFTEST), ("test_table.py", TESTS)):
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)
        for shared in ("0", "1"):
            runs = os.path.join(folder, f"runs-{shared}")
            environment = {**os.environ, "SHARED": shared, "RUNS": runs}
            command = [sys.executable, "-m", "pytest", "-q", "-n", "4", "-p", "no:cacheprovider", folder]
            began = time.perf_counter()
            subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - began
            with open(runs) as file:
                count = len(file.read())
            assert count == 1 or shared == "0"
            kind = "in the store" if shared == "1" else "in each worker"
            print(f"fixture {kind}: computed {count} times, {seconds:.1f} s")


if __name__ == "__main__":
    main()
