"""Measure the memory of workers so that Dask's limits count the store once per host.

The kernel counts a shared page in each process that maps it. With its figures, Dask would pause and restart all workers
of a host although they share one copy of a value.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import distributed

from ..exceptions import StoreClosedError
from . import private_names

if TYPE_CHECKING:
    from .._core import Store

__all__ = ["MemoryPlugin", "end_measure", "measure", "own_memory", "worker_memory"]


def own_memory(pid: int, shared: int | None = None) -> int:
    """
    Return the resident memory of a process without shared memory.

    Parameters
    ----------
    pid : int
    shared : int, optional
        Subtract at most this number of bytes; default is no limit.

    Returns
    -------
    int
        In bytes; 0 if the process has ended.
    """
    try:
        with open(f"/proc/{pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # A process that has ended, but for which its parent has not waited, has no fields of memory.
    resident, mapped = (1024 * int(fields.get(name, "0 kB").split()[0]) for name in ("VmRSS", "RssShmem"))
    return resident - (mapped if shared is None else min(mapped, shared))


def worker_memory(store: Store) -> int:
    """
    Return the memory of this worker: its own, and an equal share of the store.

    Parameters
    ----------
    store : Store
        All processes that use it have a share.

    Returns
    -------
    int
        In bytes.
    """
    try:
        stats = store.stats()
    except StoreClosedError:
        # The program has called `shutdown` in a task. Views that are still mapped count in full.
        return own_memory(os.getpid(), 0)
    backed = int(stats["backed"])
    return own_memory(os.getpid(), backed) + backed // max(1, int(stats["clients"]))


class MemoryPlugin(distributed.NannyPlugin):  # type: ignore[misc]
    """Make a nanny restart its worker only if the worker's memory without shared memory exceeds the limit."""

    name = "pyray_ser-memory"

    def setup(self, nanny: Any) -> None:
        """
        Replace the measure of the nanny, unless the installed version of distributed is unknown.

        Parameters
        ----------
        nanny : distributed.Nanny
        """
        if not private_names.problems():
            private_names.measure_in_nanny(nanny, own_memory)

    def teardown(self, nanny: Any) -> None:
        """
        Restore the measure of the nanny.

        Parameters
        ----------
        nanny : distributed.Nanny
        """
        private_names.measure_in_nanny(nanny, None)


def measure(worker: Any, store: Store) -> None:
    """Make a worker measure its memory by `worker_memory`."""
    private_names.measure_in_worker(worker, partial(worker_memory, store))


def end_measure(worker: Any) -> None:
    """Restore the measure of a worker."""
    private_names.measure_in_worker(worker, None)
