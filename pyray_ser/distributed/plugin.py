"""The Dask plugin that starts and ends the sharing of values in a worker."""

from __future__ import annotations

import sys
from typing import Any

import distributed

from .. import _core, _log, api
from ..store import discovery
from . import private_names, settings
from .memory import MemoryPlugin
from .sharing import Sharing

__all__ = ["NAME", "SharingPlugin", "register"]

NAME = "pyray_ser"
_warned = False


class SharingPlugin(distributed.WorkerPlugin):  # type: ignore[misc]
    """Share the large values of a worker with the other workers of its host."""

    name = NAME

    def __init__(self) -> None:
        self.sharing: Sharing | None = None
        self._collector: Any = None
        self._opened = False  # whether this plugin opened the store of the process

    def __reduce__(self) -> tuple[Any, ...]:
        return SharingPlugin, ()

    async def setup(self, worker: Any) -> None:
        """
        Attach to the store of the host. If that is impossible, warn once; the worker then works without the store.

        Parameters
        ----------
        worker : distributed.Worker
        """
        global _warned
        # Workers that are threads of the client's process share its memory already.
        if worker.address.partition("://")[0] not in ("tcp", "tls"):
            return
        try:
            problems = private_names.problems()
            if problems:
                raise RuntimeError("; ".join(problems))
            store = _core.default()
            if store is None:
                store = await _open_store(worker)
                self._opened = True
            self.sharing = Sharing(worker, store, settings.read())
            self.sharing.begin()
            self._collector = _publish_counters()
        except Exception as error:
            self.sharing = None
            if not _warned:
                _warned = True
                _log.warning(
                    "distributed %s: workers do not share values, plain Dask moves them: %s",
                    private_names.version(),
                    error,
                )

    def teardown(self, worker: Any) -> None:
        """
        Remove the hooks from the worker. If the worker ends, close the store that `setup` has opened.

        Parameters
        ----------
        worker : distributed.Worker
        """
        sharing, self.sharing = self.sharing, None
        if sharing is not None:
            sharing.end()
        collector, self._collector = self._collector, None
        if collector is not None:
            sys.modules["prometheus_client"].REGISTRY.unregister(collector)
        # Do not leave this to the end of the process: a nanny kills its worker after 4 s, and the last process of a store
        # would then leave its file in /dev/shm. Tasks that still run may need the store.
        if self._opened and private_names.is_ending(worker):
            discovery.close_all()
        self._opened = False


async def _open_store(worker: Any) -> _core.Store:
    """Open the store of this cluster on this host."""
    options = settings.read()
    name = options.store
    if name is None:
        # Use the scheduler's identity, which is the same for all workers; they may use different addresses for it.
        scheduler = await worker.scheduler.identity()
        name = f"dask-{scheduler['id'].removeprefix('Scheduler-')}"
    return api.init(name, capacity=options.capacity)


async def register(client: Any) -> Any:
    """
    Register the plugins of this module and of `memory` for the workers and nannies of a cluster.

    Parameters
    ----------
    client : distributed.Client

    Returns
    -------
    dict
        The answers of the workers, as from ``Client.register_plugin``.
    """
    answers = await client.register_plugin(SharingPlugin())
    await client.register_plugin(MemoryPlugin())
    return answers


def _publish_counters() -> Any:
    """
    Add the counters of the store to ``/metrics`` of Dask's web server in this worker.

    Dask publishes the default registry of `prometheus_client`, and imports this package if it is installed.

    Returns
    -------
    StoreCollector or None
        None if the package is missing, or the program publishes the counters already.
    """
    if "prometheus_client" not in sys.modules:
        return None
    from .. import metrics

    try:
        return metrics.register()
    except ValueError:
        return None  # the registry has these names
