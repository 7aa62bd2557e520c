"""Check that the tests leave nothing behind and that they test the installed wheel."""

from __future__ import annotations

import gc
import os
import signal

import hygiene
import pytest
from hygiene import Watch, shm_entries
from reporting import (  # noqa: F401
    pytest_runtest_logreport,
    pytest_runtest_logstart,
    pytest_sessionfinish,
    pytest_timeout_cancel_timer,
    pytest_timeout_set_timer,
)

hygiene.name_this_run()
# A shell that starts the tests in the background makes them, and all programs that they start, ignore SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def pytest_report_header(config):
    import pyray_ser

    debug = os.environ.get("PYRAY_SER_DEBUG_PATH")
    return [f"pyray_ser {pyray_ser.__version__} from {os.path.dirname(pyray_ser.__file__)}", f"debug build: {debug}"]


def pytest_collection_finish():
    """Make the collector skip all imported objects: none is garbage, and many tests collect after each allocation."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind():
    """Check after the whole suite that it left no /dev/shm entry, new descriptor, map of a store or child process."""
    watch = Watch()
    yield
    watch.shut_down_everything()
    left = watch.new()
    assert not left, "the suite leaked:\n" + "\n".join(left)


@pytest.fixture(scope="module", autouse=True)
def no_shm_entry_left_by_this_file(nothing_left_behind):
    """Report the test file that leaves entries in /dev/shm."""
    before = shm_entries()
    yield
    new = shm_entries() - before
    assert not new, f"left in /dev/shm: {sorted(new)}"


@pytest.fixture(autouse=True)
def no_file_left_in_the_checkout():
    """Report the test that leaves a file at the top of a checkout that nobody else uses, as in `.ci/run`."""
    before = checkout_entries()
    yield
    if "PYRAY_SER_CI_RUN" in os.environ:
        new = checkout_entries() - before
        assert not new, f"left in {ROOT}: {sorted(new)}"


def checkout_entries() -> set[str]:
    """Return the names at the top of the checkout, except those that test tools create: hidden ones, and gcov's."""
    return {name for name in os.listdir(ROOT) if not name.startswith(".") and not name.endswith(".gcov")}


@pytest.fixture(scope="session")
def debug_build() -> str:
    """Return the folder of the debug build, which must be first on PYTHONPATH of a child that uses failpoints."""
    path = os.environ.get("PYRAY_SER_DEBUG_PATH")
    if not path:
        pytest.skip("PYRAY_SER_DEBUG_PATH names no debug build; `make test` makes one")
    assert os.path.isdir(os.path.join(path, "pyray_ser")), f"no pyray_ser in {path}"
    return path
