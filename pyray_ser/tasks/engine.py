"""The seam where another engine plugs in.

Everything above (`remote`, references, `get`, `wait`) speaks to the engine that runs plain functions through the methods of
`Engine`, of which it inherits those that a reference asks for its answer. The one here is `pool.Pool`; a distributed one implements the same and is installed with `use`. Actors
are processes on this node in either case.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
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


_lock = allocate_lock()
_engine: Engine | None = None


def current() -> Engine:
    """Return the engine that runs tasks, starting the local pool if there is none."""
    global _engine
    engine = _engine
    if engine is None:
        from .pool import Pool

        with _lock:
            if _engine is None:
                _engine = Pool()
            engine = _engine
    return engine


def use(engine: Engine | None) -> Engine | None:
    """Let `engine` run tasks from now on, None for the local pool; return the one before."""
    global _engine
    with _lock:
        before, _engine = _engine, engine
    return before


def started() -> bool:
    """Tell whether there is an engine already."""
    return _engine is not None


def _after_fork_in_child() -> None:
    global _engine, _lock
    _engine = None
    _lock = allocate_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
