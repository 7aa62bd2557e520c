"""The interface that every engine implements.

`remote`, references, `get` and `wait` call the methods of `Engine` to run functions, and the methods of `Source` to
receive the answer for a reference. The engine of one node is `pool.Pool`; that of a Dask cluster is
`pyray_ser.distributed.cluster.Cluster`. An engine is installed with `use`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from .refs import Source

if TYPE_CHECKING:
    from .function import RemoteFunction
    from .refs import TaskRef

__all__ = ["Engine", "current", "use"]


class Engine(Source, Protocol):
    """An engine that runs tasks."""

    def call(self, function: RemoteFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Call a function when its arguments are ready; return what ``.remote`` returns.

        The engine settles the references whatever happens. The caller may change the arguments afterwards.
        """

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Prevent a task from running, or end it if `force` is true; return True if the task will have no result."""

    def shutdown(self) -> None:
        """End all processes; calls without a result fail."""


# The engine, if any, under the key "engine". A dict is used because reading or changing it is one atomic step.
_used: dict[str, Engine] = {}


def current() -> Engine:
    """Return the engine that runs tasks, starting the local pool if there is none."""
    engine = _used.get("engine")
    if engine is None:
        from .pool import Pool

        # There is no lock here, because a signal handler could deadlock with the thread that it interrupts. If two
        # pools are made, the second one is discarded; it has not started any process.
        engine = _used.setdefault("engine", Pool())
    return engine


def use(engine: Engine | None) -> Engine | None:
    """Let `engine` (None for the local pool) run tasks from now on; return the previous engine."""
    before = _used.pop("engine", None)
    if engine is not None:
        _used["engine"] = engine
    return before


def cluster() -> Any:
    """Return the engine of a cluster, which also makes actors, or None."""
    engine = _used.get("engine")
    return engine if engine is not None and engine.spans_hosts else None


def started() -> bool:
    """Return whether an engine exists already."""
    return bool(_used)


def _after_fork_in_child() -> None:
    _used.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
