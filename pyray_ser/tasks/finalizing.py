"""Run finalizers and exit functions at the end of a worker process, as at the end of a program.

multiprocessing ends a forked child with `os._exit`, which runs neither finalizers nor exit functions. Functions that
the parent registered must not run in a child, because they might remove the parent's temporary files.
"""

from __future__ import annotations

import atexit
import gc
import weakref

__all__ = ["forget_inherited", "run"]


def forget_inherited() -> None:
    """Prevent functions that the parent registered from running here. Call this once, when a worker starts."""
    from .. import _core

    if not _core.fork_count():
        return
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False
    atexit._clear()
    # The next `weakref.finalize` object registers weakref's exit function again.
    if hasattr(weakref.finalize, "_registered_with_atexit"):
        weakref.finalize._registered_with_atexit = False


def run() -> None:
    """Run finalizers and exit functions in a worker at its end."""
    gc.collect()
    atexit._run_exitfuncs()
