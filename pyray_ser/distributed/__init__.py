"""One copy of each large value on each host of a Dask cluster, for programs that need no change.

Workers of a host keep large results in one store and hand each other references. Dask distributed schedules, connects,
secures and recovers, as before.

>>> client = distributed.Client("tcp://scheduler:8786")
>>> pyray_ser.distributed.enable(client)

Or start the workers with ``dask worker --preload pyray_ser.distributed``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import distributed

__all__ = ["dask_setup", "enable"]


def enable(client: distributed.Client) -> None:
    """
    Let the workers of a cluster share large values, those that come later, too.

    Parameters
    ----------
    client : distributed.Client
        A client of the cluster. It may be asynchronous: then await the result.

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
