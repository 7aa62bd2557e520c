"""The figures of all hosts of a cluster, from what their workers report to the scheduler with each heartbeat.

So a reader asks only the scheduler, and a worker that is stopped delays nobody. The figures are as old as the last
heartbeat, which Dask sends every 0.5 s on a small cluster and every few seconds on a large one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from . import handshake

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._core import Store
    from .counts import Counts

__all__ = ["FIELD", "Cluster", "Report", "by_host", "report_of"]

# The key under which a worker reports its figures.
FIELD = "pyray_ser_figures"


class Report(NamedTuple):
    """
    What the scheduler knows about a worker.

    Attributes
    ----------
    address : str
    last_seen : float
        Time of the last heartbeat, in seconds since the epoch.
    metrics : dict
        What the worker reported.
    """

    address: str
    last_seen: float
    metrics: dict[str, Any]


class Cluster(NamedTuple):
    """
    The figures of a cluster.

    Attributes
    ----------
    hosts : list of dict
        For each store: ``host`` (of the addresses of its workers), ``id`` of the store, ``stats`` of the store, and
        ``workers``, each with ``address``, ``pulls``, ``pulled_bytes`` and ``failed_pulls``.
    silent : list of str
        Addresses of the workers that report no figures.
    """

    hosts: list[dict[str, Any]]
    silent: list[str]


def report_of(store: Store, counts: Counts) -> dict[str, Any]:
    """Return what a worker reports."""
    return {"stats": store.stats(), "worker": counts.as_dict()}


def by_host(reports: Iterable[Report]) -> Cluster:
    """
    Group the reports of workers by the store that they use.

    Parameters
    ----------
    reports : iterable of Report
    """
    hosts: dict[str, dict[str, Any]] = {}
    silent = []
    # The newest report of each host is last, so its figures of the store remain.
    for report in sorted(reports, key=lambda report: (report.last_seen, report.address)):
        store, figures = report.metrics.get(handshake.FIELD), report.metrics.get(FIELD)
        if store is None or figures is None:
            silent.append(report.address)
            continue
        host = hosts.setdefault(store, {"host": "", "id": store, "stats": {}, "workers": []})
        host["host"] = _host_of(report.address)
        host["stats"] = dict(figures["stats"])
        host["workers"].append({"address": report.address, **figures["worker"]})
    for host in hosts.values():
        host["workers"].sort(key=lambda worker: worker["address"])
    return Cluster(sorted(hosts.values(), key=lambda host: (host["host"], host["id"])), sorted(silent))


def _host_of(address: str) -> str:
    """Return the host of an address such as ``tcp://[::1]:4000``."""
    return address.partition("://")[2].rpartition(":")[0].strip("[]")
