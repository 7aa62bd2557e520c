"""Determine which processes may read a message. References are sent only if all of them are clients of the store.

A client has already attached to the store, so missing permissions, limits or a lack of slots cannot prevent it from
reading. The readers of a pipe are all processes that have its reading side open, according to ``/proc``.
"""

from __future__ import annotations

import os
import time
from _thread import get_ident

from .. import _core
from . import pipes
from .counts import installed_at

__all__ = ["all_can_attach", "changed", "failed", "launching", "reason", "started"]

# Seconds for which a result stays valid, provided that this process starts no other process and the readers stay
# clients.
HOLDS = 1.0
# Initial and maximum number of seconds until a pipe is checked again, if some of its readers are not clients.
AGAIN, AT_MOST = 0.05, 5.0

# The number of processes that this process has started.
_generation = 0
# Inode of the reading side -> (generation, store, readers, time at which the result expires)
_known: dict[int, tuple[int, int, frozenset[int], float]] = {}
# Inode -> (generation, seconds to wait, time until which no references are sent, reason for the report)
_refused: dict[int, tuple[int, float, float, str]] = {}
# Children that will install the hooks when they start -> time until which a message waits for them to do so
_starting: dict[int, float] = {}
# Threads that are currently starting such a child
_launching: set[int] = set()
# The maximum time that a message waits, and the time between two checks, in seconds.
START, PAUSE = 20.0, 0.01
# The maximum number of results that are kept; the results for other pipes are determined again.
_MOST = 1000


def changed() -> None:
    """Record that this process has started, or is about to start, another process."""
    global _generation
    _generation += 1


def launching() -> None:
    """Record that this thread is starting a child. A call of `started` or `failed` follows."""
    _launching.add(get_ident())


def failed() -> None:
    """Record that the child was not started."""
    _launching.discard(get_ident())


def started(pid: int) -> None:
    """Record that a child was started; it will install the hooks before it loads its work."""
    _launching.discard(get_ident())
    now = time.monotonic()
    for other in [other for other, until in _starting.items() if until < now]:
        _starting.pop(other, None)
    if _can_be_looked_into():
        _starting[pid] = now + START


def _can_be_looked_into() -> bool:
    """Return whether other processes of this user can open this process's descriptors; after setuid() they cannot."""
    try:
        return os.stat("/proc/self/fd").st_uid == os.geteuid()
    except OSError:
        return False


def all_can_attach(inode: int, store: _core.Store, blocks: bool) -> bool:
    """
    Return whether every process that may read from a pipe is a client of the store.

    Parameters
    ----------
    inode : int
        Inode of the reading side.
    store : Store
    blocks : bool
        Whether writing the message would block until a process reads. If so, this call also waits for readers that are
        just starting.

    Returns
    -------
    bool
    """
    if _all_are_clients(inode, store):
        return True
    end = time.monotonic() + START
    if not blocks or not (_starting or _launching - {get_ident()}):
        return False
    while _waits_for_start(inode, store) and time.monotonic() < end:
        time.sleep(PAUSE)
    changed()
    return _all_are_clients(inode, store)


def _waits_for_start(inode: int, store: _core.Store) -> bool:
    """Return whether some reader is not a client yet, but may become one because it is still starting."""
    clients = set(store.client_pids())
    if _launching - {get_ident()}:
        return True
    if not _starting.keys() - clients or len(clients) >= store.stats()["max_clients"]:
        return False
    missing = (_readers(inode, clients) or set()) - clients
    now = time.monotonic()
    return any(_starting.get(pid, 0.0) > now for pid in missing)


def _all_are_clients(inode: int, store: _core.Store) -> bool:
    now = time.monotonic()
    clients = set(store.client_pids())
    known = _known.get(inode)
    if known is not None and known[:2] == (_generation, store.id) and now < known[3] and known[2] <= clients:
        return True
    refused = _refused.get(inode)
    if refused is not None and refused[0] == _generation and now < refused[2]:
        return False
    generation = _generation
    readers = _readers(inode, clients)
    if readers is not None and readers <= set(store.client_pids()):
        if len(_known) >= _MOST:
            _known.clear()
        _known[inode] = generation, store.id, frozenset(readers), now + HOLDS
        _refused.pop(inode, None)
        return True
    if len(_refused) >= _MOST:
        _refused.clear()
    wait = min(2 * refused[1], AT_MOST) if refused is not None else AGAIN
    _refused[inode] = generation, wait, now + wait, _why(readers, clients)
    _known.pop(inode, None)
    return False


def _why(readers: set[int] | None, clients: set[int]) -> str:
    missing = (readers or set()) - clients
    since = installed_at()
    # Start times have a resolution of a clock tick.
    if any(0 < _core.start_time(pid) < since for pid in missing):
        return "started_before_install"
    return "reader_cannot_attach"


def reason(inode: int) -> str:
    """Return why no references are sent to a pipe, as a key of `counts.REASONS`."""
    refused = _refused.get(inode)
    return "reader_cannot_attach" if refused is None else refused[3]


def _readers(inode: int, clients: set[int]) -> set[int] | None:
    """Return the processes that may read; None if they are unknown, or if no process may read at the moment."""
    found = set()
    me = os.getpid()
    family = {me, *clients}
    try:
        for pid in pipes._pids():
            try:
                if any(other == inode for other, _ in pipes._readable(pid, complain=True)):
                    found.add(pid)
            except PermissionError:
                if pid in clients or _is_of(pid, family):
                    return None
    except OSError:
        return None  # no /proc
    return found or None


def _is_of(pid: int, family: set[int]) -> bool:
    """Return whether a process that cannot be examined descends from `family` or belongs to this process's session."""
    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        seen.add(pid)
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The name is in parentheses and may contain any character.
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return True  # the process has ended, or /proc hides it
        if int(fields[3]) == os.getsid(0):
            return True
        pid = int(fields[1])
        if pid in family:
            return True
    return False


def _after_fork_in_child() -> None:
    changed()
    _starting.clear()
    _launching.clear()


os.register_at_fork(after_in_parent=changed, after_in_child=_after_fork_in_child)
