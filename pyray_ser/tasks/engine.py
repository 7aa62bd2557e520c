"""The seam where another engine plugs in.

Everything above (`remote`, references, `get`, `wait`) speaks to the engine that runs plain functions through the methods of
`Engine`, of which it inherits those that a reference asks for its answer. The one here is `pool.Pool`; a distributed one implements the same and is installed with `use`. Actors
are processes on this node in either case.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from .refs import Source

if TYPE_CHECKING:
    from .call import Call
    from .function import Function
    from .refs import TaskRef

__all__ = ["Engine", "current", "use"]


class Engine(Source, Protocol):
    """What runs tasks."""

    def submit(self, function: Function, call: Call, max_retries: int) -> None:
        """Run a call whose arguments are ready, some time, and settle its reference in any case."""

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Keep a task from running, or with `force` end it; True if it will have no result."""

    def shutdown(self) -> None:
        """End everything; what has no result by then fails."""


# Under "engine", if there is one: a dict can be asked and changed in one step.
_used: dict[str, Engine] = {}


def current() -> Engine:
    """Return the engine that runs tasks, starting the local pool if there is none."""
    engine = _used.get("engine")
    if engine is None:
        from .pool import Pool

        # No lock, which a signal handler could meet again: a pool that comes second has started nothing, and is dropped.
        engine = _used.setdefault("engine", Pool())
    return engine


def use(engine: Engine | None) -> Engine | None:
    """Let `engine` run tasks from now on, None for the local pool; return the one before."""
    before = _used.pop("engine", None)
    if engine is not None:
        _used["engine"] = engine
    return before


def started() -> bool:
    """Tell whether there is an engine already."""
    return bool(_used)


def _after_fork_in_child() -> None:
    _used.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
