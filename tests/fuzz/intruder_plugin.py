"""A pytest plugin that calls an intruder at random points of every test.

Use it with ``-p intruder_plugin`` and a build with ``PYRAY_SER_INTRUDER=1``. The intruder runs collections, and dumps
and loads objects of many classes. The intruder raises no exceptions and does not access the memo of the pickler under
test, so tests must pass as they do without the plugin.
"""

import gc
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import intruder

_intruder = intruder.Intruder(int(os.environ.get("PYRAY_SER_INTRUDER_SEED", "0")))


_MOST = 2000  # maximum number of intrusions in one test; some tests pass millions of points


def _collect_or_use(work):
    if work.acted > _MOST:
        work.start()
        return
    work.r.choice((intruder.intrude_collect, intruder.intrude_other, intruder.intrude_evict))(work)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    gc.collect()
    gc.freeze()  # so that collections visit only objects that the test creates
    _intruder.start(_collect_or_use, rate=0.1)
    _intruder.install()
    yield
    _intruder.remove()
    _intruder.stop()
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("intruder: {} points met, {} intruded".format(*_intruder.counts))
