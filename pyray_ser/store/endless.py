"""Detect waits that cannot end: for a name that no process can put, or an object that only the waiting thread can seal.

An error is raised only if it is certain that nothing can end the wait: no other process uses the store, no other thread
runs, and there is no child that could join. Otherwise, the process logs the name or object that it waits for.
"""

from __future__ import annotations

import _thread
import os
import sys

from .. import _core, _log
from ..exceptions import GetTimeoutError, NameNotFoundError

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from typing import Any

__all__ = ["PATIENCE", "check_name", "check_seal"]

# Seconds for which a process waits for a name before `check_name` is called.
PATIENCE = 3.0


def _other_threads() -> bool:
    """Return whether another thread may run Python code; this package's threads do not count, as they seal nothing."""
    threading = sys.modules.get("threading")
    if threading is None:
        return _thread._count() > 0
    threads = threading.enumerate()
    own = threading.current_thread()
    if any(thread is not own and not thread.name.startswith("pyray_ser") for thread in threads):
        return True
    return _thread._count() + 1 > len(threads)  # threads that `threading` did not start


def _children() -> bool:
    """Return whether this process has a child process, which could still attach to the store."""
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children") as file:
                if file.read().strip():
                    return True
    except OSError:
        return True  # it is unknown, so assume that it has
    return False


def check_seal(ref: _core.ObjectRef[Any]) -> None:
    """
    Raise if this thread waits without a timeout for an object that only this thread can seal.

    Raises
    ------
    GetTimeoutError
    """
    if not _core.is_ours(ref) or _other_threads():
        return
    raise GetTimeoutError(
        f"object {ref!r} is not sealed, and only this thread could seal it, so that get() would wait without end; "
        "hint: seal() the result of create() or empty() before get()",
        ref=repr(ref),
    )


def check_name(store: _core.Store, name: str) -> None:
    """
    Raise if no process can put a name that this one waits for without a timeout; otherwise log the wait.

    Raises
    ------
    NameNotFoundError
    """
    given = sorted(entry[0] for entry in _core.names_of(store) if not entry[0].startswith(_core.NAME_RESERVED))
    there = f"the store has {', '.join(map(repr, given[:5]))}{' and more' if len(given) > 5 else ''}" if given else (
        "the store has no named objects"
    )  # fmt: skip
    alone = store.path is None and not [pid for pid in store.client_pids() if pid != os.getpid()]
    if alone and not _other_threads() and not _children():
        raise NameNotFoundError(
            f"no {'newer ' if name in given else ''}object named {name!r}, and no process is left that could put one: only this "
            f"one uses {store!r}, which has no name for others to find it by, and {there}; hint: put(..., name={name!r}) first, "
            "or init(name=...) here and where it is put",
            name=name,
        )
    _log.warning("still waiting for an object named %r in %r: %s", name, store, there)
