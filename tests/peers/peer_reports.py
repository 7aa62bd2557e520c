"""Record the outcome of each test and select the tests to run, as a pytest plugin in the runs of `suites.py`.

``PEER_RESULTS`` names the file to which the plugin writes a line for each test. If ``PEER_WORD`` is set, only tests
whose source contains that word run. ``PEER_ONLY`` names a file that lists the tests to run.
"""

from __future__ import annotations

import inspect
import os


def pytest_collection_modifyitems(config, items):
    """Deselect the tests that were not requested."""
    word, only = os.environ.get("PEER_WORD"), os.environ.get("PEER_ONLY")
    if word:
        items[:] = [item for item in items if word in _source(item).lower()]
    if only:
        with open(only, encoding="utf-8") as file:
            names = set(file.read().splitlines())
        items[:] = [item for item in items if repr(item.nodeid) in names]


def _source(item) -> str:
    names = " ".join([item.name, *getattr(item, "fixturenames", ())])
    try:
        return names + inspect.getsource(item.function)
    except (AttributeError, OSError, TypeError):
        return names


def pytest_runtest_logreport(report):
    """Write the outcome of a test as soon as one of its phases determines the outcome."""
    if report.when == "call" or report.outcome != "passed":
        with open(os.environ["PEER_RESULTS"], "a", encoding="utf-8") as file:
            outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            file.write(f"{outcome}\t{report.nodeid!r}\n")


def pytest_collectreport(report):
    """Write a line for a file that cannot be collected."""
    if report.failed:
        with open(os.environ["PEER_RESULTS"], "a", encoding="utf-8") as file:
            file.write(f"failed\t{report.nodeid!r}\n")
