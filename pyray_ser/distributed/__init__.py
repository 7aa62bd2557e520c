"""Keep one copy of each large value on each host of a Dask cluster, without changes to the program.

The workers of a host keep large results in one store and send each other references to them. Dask distributed remains
responsible for scheduling, connections, security and recovery.

>>> client = distributed.Client("tcp://scheduler:8786")
>>> pyray_ser.distributed.enable(client)

Or start the workers with ``dask worker --preload pyray_ser.distributed``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    from .plugin import SharingPlugin

    return client.register_plugin(SharingPlugin())  # type: ignore[no-any-return]


async def dask_setup(worker: Any) -> None:
    """
    Let a worker share large values. Dask calls this for ``--preload pyray_ser.distributed``.

    Parameters
    ----------
    worker : distributed.Worker

    Examples
    --------
    >>> dask.config.set({"distributed.worker.preload": ["pyray_ser.distributed"]})
    """
    from distributed import Worker

    from .plugin import NAME, SharingPlugin

    if isinstance(worker, Worker):
        await worker.plugin_add(SharingPlugin(), name=NAME)
