"""Count the memory of workers so that the pages of the store count once per host.

The kernel counts a shared page in each process that maps it. With its figures, Dask would pause and restart all workers
of a host although they share one copy of a value.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import distributed

from . import private_names

__all__ = ["MemoryPlugin", "end_measure", "measure", "own_memory", "worker_memory"]


def own_memory(pid: int) -> int | None:
    """
    Return the resident memory of a process without shared memory, in bytes.

    Parameters
    ----------
    pid : int

    Returns
    -------
    int or None
        None if the process has ended.
    """
    try:
        with open(f"/proc/{pid}/status") as status:
            found = dict(line.split(":", 1) for line in status)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A process that has ended, but for which its parent has not waited, has no memory.
    return 1024 * sum(int(found.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssFile"))


def worker_memory(store: Any) -> int:
    """Return the memory of this worker: its own, and its share of the store that all processes of this host use."""
    stats = store.stats()
    return (own_memory(os.getpid()) or 0) + int(stats["backed"] // max(1, stats["clients"]))


class MemoryPlugin(distributed.NannyPlugin):  # type: ignore[misc]
    """Make a nanny restart its worker only if the worker's own memory exceeds the limit."""

    name = "pyray_ser-memory"

    def setup(self, nanny: Any) -> None:
        """
        Replace the measure of the nanny.

        Parameters
        ----------
        nanny : distributed.Nanny
        """
        if not private_names.problems():
            private_names.measure_in_nanny(nanny, own_memory)

    def teardown(self, nanny: Any) -> None:
        """Restore the measure of the nanny."""
        private_names.measure_in_nanny(nanny, None)


def measure(worker: Any, store: Any) -> None:
    """Make a worker measure its memory by `worker_memory`."""
    private_names.measure_in_worker(worker, partial(worker_memory, store))


def end_measure(worker: Any) -> None:
    """Restore the measure of a worker."""
    private_names.measure_in_worker(worker, None)
