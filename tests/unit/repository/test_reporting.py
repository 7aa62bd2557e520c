"""Test that a test run reports its failures even if the run is cut short."""

import os
import pathlib
import subprocess
import sys
import textwrap

from isolated import environment
from patience import patience

TESTS = pathlib.Path(__file__).parents[2] / "support"


def run(tmp_path, tests):
    """Run pytest on some tests with this configuration; return its exit status, its output and its log."""
    log = tmp_path / "log"
    (tmp_path / "test_it.py").write_text("import os, time, pytest\n" + textwrap.dedent(tests))
    (tmp_path / "conftest.py").write_text(
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\nimport reporting\nreporting._GRACE = 3\nfrom reporting import *\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "timeout_method=signal",
            "-c",
            "/dev/null",
        ]
        + ["--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=patience(120),
        env=environment() | {"PYRAY_SER_TEST_LOG": str(log)},
        cwd=tmp_path,
    )
    return done.returncode, done.stdout + done.stderr, log.read_text()


FIRST = """
def test_first():
    assert 0, "this first"
"""


def test_a_test_over_its_limit_fails_and_the_next_one_runs(tmp_path):
    status, said, log = run(
        tmp_path,
        FIRST
        + "\n@pytest.mark.timeout(1)\ndef test_slow():\n    time.sleep(600)\n\ndef test_last():\n    assert 0, 'this too'\n",
    )
    assert status == 1 and "3 failed" in said and "this first" in said and "this too" in said
    assert log.endswith("finished\n")


def test_a_test_that_nothing_interrupts_ends_the_run_with_its_failures(tmp_path):
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])"
    status, said, log = run(
        tmp_path,
        FIRST + f"\n@pytest.mark.timeout(1)\ndef test_stuck():\n    import signal; {blocked}; time.sleep(600)\n",
    )
    assert status == 1 and "test_stuck does not end" in said and "this first" in said, said
    assert "FAILED test_it.py::test_first" in log


def test_a_crash_leaves_a_list_of_failures(tmp_path):
    status, _, log = run(tmp_path, FIRST + "\ndef test_crash():\n    os.abort()\n")
    assert status < 0
    assert log.splitlines()[-1] == "running test_it.py::test_crash" and "this first" in log


def test_what_others_leave_in_shared_memory_is_not_this_runs():
    import hygiene

    path = f"/dev/shm/test-of-another-program-{os.getpid()}"
    before = hygiene.shm_entries()
    with open(path, "w"):
        pass
    try:
        assert hygiene.shm_entries() == before
        ours = hygiene.run_path() + "-left"
        os.mkdir(ours)
        assert hygiene.shm_entries() == before | {ours}
        os.rmdir(ours)
    finally:
        os.unlink(path)
