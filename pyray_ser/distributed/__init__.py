"""Keep one copy of each large value on each host of a Dask cluster, without changes to the program.

The workers of a host keep large results in one store and send each other references to them. Dask distributed remains
responsible for scheduling, connections, security and recovery.

>>> client = distributed.Client("tcp://scheduler:8786")
>>> pyray_ser.distributed.enable(client)

Or start the workers with ``dask worker --preload pyray_ser.distributed``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _log
from .copies import broadcast, locations, prefetch

if TYPE_CHECKING:
    import distributed

__all__ = ["broadcast", "dask_setup", "enable", "locations", "prefetch"]


def enable(client: distributed.Client) -> None:
    """
    Let the workers of a cluster share large values, including workers that start later.

    Parameters
    ----------
    client : distributed.Client
        A client of the cluster. If it is asynchronous, the caller must await the result.

    Examples
    --------
    >>> with distributed.Client(n_workers=4) as client:
    ...     pyray_ser.distributed.enable(client)
    """
    from .plugin import register
    from .private_names import run_in

    return run_in(client, register, client)  # type: ignore[no-any-return]


async def dask_setup(server: Any) -> None:
    """
    Set up a server of Dask.

    A worker shares large values, a nanny measures the memory of its worker without shared memory, and a scheduler shows
    the figures of all hosts on the page ``/pyray-ser``. Dask calls this for ``--preload pyray_ser.distributed`` and
    ``--preload-nanny pyray_ser.distributed``.

    Parameters
    ----------
    server : distributed.Worker, distributed.Nanny or distributed.Scheduler

    Examples
    --------
    >>> dask.config.set({"distributed.worker.preload": ["pyray_ser.distributed"]})
    """
    from distributed import Nanny, Scheduler, Worker

    if isinstance(server, Worker):
        from .plugin import NAME, SharingPlugin

        await server.plugin_add(SharingPlugin(), name=NAME)
    elif isinstance(server, Nanny):
        from .memory import MemoryPlugin

        await server.plugin_add(MemoryPlugin())
    elif isinstance(server, Scheduler):
        try:
            from .page import install

            install(server)
        except Exception as error:
            _log.warning("the scheduler does not serve the page /pyray-ser: %s: %s", type(error).__name__, error)
