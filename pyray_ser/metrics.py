"""Export the counters of the stores that this process has open to Prometheus. They are read at each scrape.

This module needs the package prometheus-client (the extra ``prometheus``). Any process that uses a store can export its
counters. They describe the whole store, so one process is enough.
"""

import os
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from . import _core, _log, exceptions

__all__ = ["StoreCollector", "register"]

# Each entry has the key in `Store.stats`, and the name and description of the metric. The scraped names of counters end
# with "_total".
_GAUGES = (
    ("capacity", "capacity_bytes", "Bytes that the store may hold."),
    ("used", "used_bytes", "Bytes in use by objects in memory."),
    ("reserved", "reserved_bytes", "Bytes that clients have in hand for small objects to come."),
    ("backed", "backed_bytes", "Bytes of memory that the kernel holds for the store."),
    ("overhead", "overhead_bytes", "Bytes of memory for bookkeeping, part of those backed."),
    ("largest_free", "largest_free_bytes", "Bytes of the largest object that fits without spilling."),
    ("spilled_bytes", "spilled_bytes", "Bytes of objects that are in spill files."),
    ("spilled", "spilled_objects", "Objects that are in spill files."),
    ("objects", "objects", "Objects, spilled ones included."),
    ("unsealed", "unsealed_objects", "Objects being made."),
    ("orphaned", "orphaned_objects", "Objects left to the store by forks that got no client slot."),
    ("in_flight", "references_in_flight", "References sent and not yet received."),
    ("edges", "edges", "References from objects to objects."),
    ("clients", "clients", "Processes that use the store."),
    ("max_clients", "max_clients", "Processes that may use the store."),
)
_COUNTERS = (
    ("reaped", "reaped_clients", "Processes that ended without closing the store."),
    ("stolen", "stolen_locks", "Locks taken from a process that died with it."),
    ("pulls", "pulls", "Values that this host has received from other hosts."),
    ("pulled_bytes", "pulled_bytes", "Bytes of the values that this host has received from other hosts."),
    ("failed_pulls", "failed_pulls", "Values of other hosts that did not arrive."),
)


class StoreCollector:
    """
    A collector for `prometheus_client` that reads the counters of all open stores at each scrape.

    Every sample has the labels ``store`` (the identity) and ``path`` (the file of a named store, else empty). A process
    without a store has no samples, and a scrape never opens one. ``<prefix>_up`` is 0 for a store that could not be read.

    Parameters
    ----------
    prefix : str
        The beginning of the names of the metrics.
    """

    def __init__(self, prefix: str = "pyray_ser") -> None:
        self._prefix = prefix

    def describe(self) -> Iterator[Any]:
        """Return the metrics without samples; a registry checks their names."""
        yield from self._families().values()

    def collect(self) -> Iterator[Any]:
        """Return the metrics as they are now."""
        families = self._families()
        for store in _core.open_stores():
            # The path may contain bytes that are not valid text.
            path = os.fsencode(store.path or "").decode("utf-8", "backslashreplace")
            labels = [f"{store.id:016x}", path]
            try:
                figures = {"up": 1, **store.stats()}
            except exceptions.StoreClosedError:
                continue  # another thread has closed the store
            except (exceptions.PyraySerError, OSError) as error:
                _log.warning("the counters of %r cannot be read: %s", store, error)
                figures = {"up": 0}
            for key, family in families.items():
                if key in figures:
                    family.add_metric(labels, figures[key])
        yield from families.values()

    def _families(self) -> dict[str, Any]:
        labels = ("store", "path")
        made: dict[str, Any] = {"up": GaugeMetricFamily(f"{self._prefix}_up", "1 if it could be read.", labels=labels)}
        for family, metrics in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for key, name, text in metrics:
                made[key] = family(f"{self._prefix}_{name}", text, labels=labels)
        return made


def register(registry: Any = REGISTRY, prefix: str = "pyray_ser") -> StoreCollector:
    """
    Register a collector for the stores of this process.

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry, optional
        The default is the registry that ``start_http_server`` serves.
    prefix : str
        The beginning of the names of the metrics.

    Returns
    -------
    StoreCollector
        For ``registry.unregister``.

    Examples
    --------
    >>> from prometheus_client import start_http_server
    >>> collector = pyray_ser.metrics.register()
    >>> server = start_http_server(8000)
    """
    collector = StoreCollector(prefix)
    registry.register(collector)
    return collector
