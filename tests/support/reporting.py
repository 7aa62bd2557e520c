"""Report failures even if the run is cut short by a crash or by a test that cannot be interrupted.

`make test` reads the file that PYRAY_SER_TEST_LOG names when pytest ends without a summary.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from typing import Any

import pytest
from patience import patience

_failed: list[str] = []
_timers: dict[str, threading.Timer] = {}
# A signal ends a test that takes too long, but Python handles signals only between two bytecodes. A test that still
# runs this many seconds after the signal is stuck in C.
_GRACE = 60.0


def _log(text: str) -> None:
    path = os.environ.get("PYRAY_SER_TEST_LOG")
    if path:
        with open(path, "a") as file:
            file.write(text + "\n")


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    """Log the name of the test before it runs, because a crash reports nothing."""
    _log(f"running {nodeid}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Log a failure."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        _failed.append(f"{report.nodeid} ({report.when}): {crash.message.splitlines()[0] if crash else ''}")
        _log(f"FAILED {_failed[-1]}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Log that pytest prints its own summary."""
    _log("finished")


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Any:
    """Fail a test that takes too long for this machine, and continue; end the run if the test cannot be ended."""
    import pytest_timeout

    settings = settings._replace(timeout=patience(settings.timeout))
    # While a test is stuck in C with the GIL, no Python thread runs.
    faulthandler.dump_traceback_later(settings.timeout + 2 * _GRACE, exit=True, file=_stderr(item.config))
    timer = threading.Timer(settings.timeout + _GRACE, _give_up, (item,))
    timer.daemon = True
    timer.start()
    _timers[item.nodeid] = timer
    return pytest_timeout.pytest_timeout_set_timer(item, settings)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    """Cancel the timer of a test that has ended."""
    faulthandler.cancel_dump_traceback_later()
    timer = _timers.pop(item.nodeid, None)
    if timer is not None:
        timer.cancel()


def _stderr(config: pytest.Config) -> int:
    """Return the descriptor that pytest does not capture."""
    from _pytest.faulthandler import fault_handler_stderr_fd_key

    return config.stash.get(fault_handler_stderr_fd_key, 2)


def _give_up(item: pytest.Item) -> None:
    capture = item.config.pluginmanager.getplugin("capturemanager")
    try:
        if capture is not None:
            capture.suspend_global_capture(in_=True)
        print(f"\n{item.nodeid} does not end, and cannot be interrupted. Every thread:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True, file=sys.stderr)
        _failed.append(f"{item.nodeid}: does not end")
        print("\nfailures of the run that ends here:", *_failed, sep="\n  ", file=sys.stderr, flush=True)
        _log("finished")
    finally:
        os._exit(1)
