"""The Dask plugin that starts and ends the sharing of values in a worker."""

from __future__ import annotations

from typing import Any

import distributed

from .. import _core, _log, api
from . import private_names, settings
from .sharing import Sharing

__all__ = ["NAME", "SharingPlugin"]

NAME = "pyray_ser"
_warned = False


class SharingPlugin(distributed.WorkerPlugin):  # type: ignore[misc]
    """Share the large values of a worker with the other workers of its host."""

    name = NAME

    def __init__(self) -> None:
        self.sharing: Sharing | None = None

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
            self.sharing = Sharing(worker, await _open_store(worker), settings.read())
            self.sharing.begin()
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
        Remove the hooks from the worker.

        Parameters
        ----------
        worker : distributed.Worker
        """
        sharing, self.sharing = self.sharing, None
        if sharing is not None:
            sharing.end()


async def _open_store(worker: Any) -> _core.Store:
    """Open the store of this cluster on this host, unless this process uses a store already; then return that store."""
    store = _core.default()
    if store is not None:
        return store
    options = settings.read()
    name = options.store
    if name is None:
        # Use the scheduler's identity, which is the same for all workers; they may use different addresses for it.
        scheduler = await worker.scheduler.identity()
        name = f"dask-{scheduler['id'].removeprefix('Scheduler-')}"
    return api.init(name, capacity=options.capacity)
