"""Settings of tasks: the number of workers, and their start method."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["num_workers", "set_pool", "start_method"]

_METHODS = ("fork", "spawn", "forkserver")
_settings: dict[str, Any] = {}


def set_pool(num_workers: int | None = None, start_method: str | None = None) -> None:
    """
    Set how tasks are run. This must be called before the first task runs.

    Parameters
    ----------
    num_workers : int, optional
        Number of processes for tasks; default is the number of CPUs that this process may use.
    start_method : {"fork", "spawn", "forkserver"}, optional
        The default is the method that multiprocessing uses.
    """
    if num_workers is not None and (type(num_workers) is not int or num_workers < 1):
        raise ValueError(f"num_workers must be a positive int, not {num_workers!r}")
    if start_method is not None and start_method not in _METHODS:
        raise ValueError(f"start_method must be one of {', '.join(map(repr, _METHODS))}, not {start_method!r}")
    changed = {
        key: value
        for key, value in (("num_workers", num_workers), ("start_method", start_method))
        if value is not None and _settings.get(key) != value
    }
    if changed:
        from . import engine

        if engine.started():
            raise ValueError(f"{', '.join(changed)} cannot change while the pool runs: shutdown() first")
        _settings.update(changed)


def num_workers() -> int:
    """Return how many processes run tasks."""
    return _settings.get("num_workers") or len(os.sched_getaffinity(0))


def start_method() -> str | None:
    """Return the method by which processes are started; None means multiprocessing's default."""
    return _settings.get("start_method")


def passed_on(share: int) -> dict[str, Any]:
    """Return the settings for a worker that may itself start `share` processes."""
    return {"num_workers": share, "start_method": start_method(), "set_up": _settings.get("set_up")}


def inherit(settings: dict[str, Any]) -> None:
    """Apply the owner's settings in a new worker."""
    _settings.clear()
    _settings.update(settings)


def set_up() -> None:
    """Call the function with which the owner wants to prepare each worker, if any."""
    found = _settings.get("set_up")
    if found is not None:
        function, arguments = found
        function(*arguments)


def reset() -> None:
    """Restore the defaults."""
    _settings.clear()
