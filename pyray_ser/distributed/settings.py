"""The settings, which Dask's configuration can hold under the key ``pyray-ser``."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Settings", "read"]


class Settings(NamedTuple):
    """
    Settings of a worker.

    Attributes
    ----------
    share : int
        Smallest value in bytes that workers of a host share (``pyray-ser.share``).
    pull : int
        Smallest value in bytes that a host fetches once for all its workers (``pyray-ser.pull``).
    capacity : str or None
        Capacity of the store of a host (``pyray-ser.capacity``); default is that of `pyray_ser.init`.
    store : str or None
        Name of the store (``pyray-ser.store``); default is a name made from the identity of the scheduler.
    """

    share: int
    pull: int
    capacity: str | None
    store: str | None


def read() -> Settings:
    """Return the settings from Dask's configuration."""
    import dask
    from dask.utils import parse_bytes

    capacity = dask.config.get("pyray-ser.capacity", None)
    return Settings(
        share=parse_bytes(dask.config.get("pyray-ser.share", "128 KiB")),
        pull=parse_bytes(dask.config.get("pyray-ser.pull", "16 MiB")),
        capacity=None if capacity is None else str(capacity),
        store=dask.config.get("pyray-ser.store", None),
    )
