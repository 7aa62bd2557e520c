"""The settings, which are read from Dask's configuration under the key ``pyray-ser``."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Settings", "read"]


class Settings(NamedTuple):
    """
    Settings of a worker.

    Attributes
    ----------
    share : int
        Minimum size in bytes of values that the workers of a host share (``pyray-ser.share``).
    pull : int
        Minimum size in bytes of values that a host fetches once for all its workers (``pyray-ser.pull``).
    capacity : str or None
        Capacity of each host's store (``pyray-ser.capacity``); the default is that of `pyray_ser.init`.
    store : str or None
        Name of the store (``pyray-ser.store``); the default is made from the scheduler's identity.
    keep : float
        Seconds for which a host keeps the copy of a foreign object that no task uses any more (``pyray-ser.keep``).
    start_method : str
        How workers start the processes that run tasks (``pyray-ser.start-method``).
    """

    share: int
    pull: int
    capacity: str | None
    store: str | None
    keep: float
    start_method: str


def read() -> Settings:
    """Return the settings from Dask's configuration."""
    import dask
    from dask.utils import parse_bytes, parse_timedelta

    capacity = dask.config.get("pyray-ser.capacity", None)
    return Settings(
        share=parse_bytes(dask.config.get("pyray-ser.share", "128 KiB")),
        pull=parse_bytes(dask.config.get("pyray-ser.pull", "16 MiB")),
        capacity=None if capacity is None else str(capacity),
        store=dask.config.get("pyray-ser.store", None),
        keep=parse_timedelta(dask.config.get("pyray-ser.keep", "30s")),
        start_method=dask.config.get("pyray-ser.start-method", "forkserver"),
    )
