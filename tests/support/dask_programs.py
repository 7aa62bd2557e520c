"""Run programs that start a Dask cluster, each in a fresh interpreter.

Dask's threads and sockets then end with the interpreter.
"""

from __future__ import annotations

import os
import textwrap

import isolated

_SUPPORT = os.path.dirname(os.path.abspath(__file__))

_HEAD = f"""
import glob, os, sys, time
sys.path.insert(0, {_SUPPORT!r})
os.environ["PYTHONPATH"] = {_SUPPORT!r} + ":" + os.environ.get("PYTHONPATH", "")
# Programs wait until the stores are empty.
os.environ["DASK_PYRAY_SER__KEEP"] = "1s"

import dask
import numpy as np
import pyray_ser.distributed
from distributed import Client, LocalCluster, wait
from patience import patience


def make(n, start=0):
    return np.arange(start, start + n, dtype="f8")


def total(value):
    return float(value.sum())


def stats():
    import pyray_ser

    return pyray_ser.stats() if pyray_ser.is_initialized() else None


def until(check, seconds=20):
    end = time.monotonic() + patience(seconds)
    while not (found := check()):
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.05)
    return found


def raises(kind, function, *args, **kwargs):
    try:
        found = function(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"no {{kind.__name__}}, but {{found!r}}")


def everything_freed(client, seconds=20):
    # Dask releases the values of a client some time after the client has let go of them.
    def check():
        found = [one for one in client.run(stats).values() if one is not None]
        return all(one["objects"] == one["in_flight"] == 0 for one in found)

    until(check, seconds)


def addresses(client, count=0):
    # Without an argument, `scheduler_info` omits workers in versions since 2025.
    # A worker that has just ended does not answer.
    known = lambda: sorted(client.run(os.getpid, on_error="ignore"))
    return until(lambda: len(known()) >= count and known())


def local(workers=3, **options):
    # Dask gives up a killed worker if its nanny does not restart it within 15 s, which a loaded machine does not manage.
    dask.config.set({{"distributed.deploy.lost-worker-timeout": "10 minutes"}})
    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, **options)
"""


def run(script: str, *, timeout: float = 120, prefix: tuple[str, ...] = ()) -> str:
    """
    Run a program with the functions above.

    Parameters
    ----------
    script : str
        What the main process does.
    timeout : float
        In seconds, on an idle machine.
    prefix : tuple of str
        Command that runs the interpreter.

    Returns
    -------
    str
        The output of the program. Dask's log goes to stderr.
    """
    body = textwrap.indent(textwrap.dedent(script), "    ")
    return isolated.run(f'{_HEAD}\n\nif __name__ == "__main__":\n{body}', timeout=timeout, errors=True, prefix=prefix)
