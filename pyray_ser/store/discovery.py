"""Find the stores that a process uses: the default store for `put`, and the stores of references that it receives.

For `put`, a process uses the first available of these:

1. the store that the process already has; a forked child inherits the store of its parent;
2. the store that the environment variable ``PYRAY_SER_STORE`` hints at;
3. the store of the process that ``multiprocessing`` reports as the parent;
4. in a child of multiprocessing, the stores of its ancestors, because its direct parent may be a fork server;
5. a new anonymous store.

A hint is not trusted: before the engine attaches to a store, it verifies the store's owner, mode, identity and layout.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock
from contextlib import suppress

from .. import _core, _log

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# `.exceptions` is imported where it is needed: the import takes longer than the rest of a first put.

__all__ = [
    "close_all",
    "find",
    "find_arrived",
    "open_default",
    "open_inherited",
    "open_store",
    "parent_without_store",
    "reattach",
    "renew",
]

HINT = "PYRAY_SER_STORE"
# If this environment variable is set, `pyray_ser.store.allocation_sites` records where objects are made.
ORIGINS = "PYRAY_SER_ORIGINS"

# Only code that opens a store takes this lock, and it holds no other lock meanwhile. While the lock is held, only an
# allocation in that code can cause a reference to be released.
_lock = RLock()


class _Asked:
    """
    The options that this process requested.

    Attributes
    ----------
    store : Store or None
        The store to which the options apply.
    options : dict
        The options for opening a store.
    explicit : dict
        The arguments of `init` in this process.
    """

    __slots__ = ("explicit", "options", "store")

    def __init__(self, store: _core.Store | None, options: dict[str, Any], explicit: dict[str, Any]) -> None:
        self.store = store
        self.options = options
        self.explicit = explicit


_NOTHING = _Asked(None, {}, {})
# The value is replaced as a whole, in an expression that calls nothing. Signal handlers and finalizers may also open
# and close stores, but they cannot interrupt such an expression.
_asked = _NOTHING
# The last 1,024 stores that this process closed deliberately. A hint must not make one of these stores the default again.
# A list, because code that interrupts an operation of a list (see above) cannot make it fail.
_closed: list[int] = []


def _after_fork_in_child() -> None:
    global _lock, _asked
    _lock = RLock()
    _asked = _Asked(_asked.store, _asked.options, {})
    store = _core.default()
    if store is not None and not store.closed and not store.orphaned:
        _set_hint(store)


os.register_at_fork(after_in_child=_after_fork_in_child)


# ---- the hint ---------------------------------------------------------------------------------------------------------


def _set_hint(store: _core.Store) -> None:
    pid, start, fd = store.locator
    os.environ[HINT] = f"{store.id:016x}:{pid}:{start}:{fd}:{store.path or ''}"
    if store.closed:  # a handler or finalizer made the store after the first check
        _clear_hint(store)


def _clear_hint(store: _core.Store) -> None:
    hint = _read_hint()
    if hint is not None and hint[0] == store.id:
        # A handler or finalizer may have closed stores meanwhile.
        with suppress(KeyError):
            del os.environ[HINT]


def _read_hint() -> tuple[int, int, int, int, str] | None:
    parts = os.environ.get(HINT, "").split(":", 4)
    if len(parts) != 5:
        return None
    try:
        ident, pid, start, fd = int(parts[0], 16), int(parts[1]), int(parts[2]), int(parts[3])
    except ValueError:
        return None
    # Reject numbers that are out of range, because they would overflow the engine's types.
    if not (0 < ident < 1 << 64 and 0 < pid < 1 << 31 and 0 <= start < 1 << 64 and -1 <= fd < 1 << 31):
        return None
    return ident, pid, start, fd, parts[4]


# ---- finding ----------------------------------------------------------------------------------------------------------


def _parent_of(pid: int) -> int:
    """Return the pid of the parent of a process, or 0 if the process has no visible parent."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command name is in parentheses and may contain any character, including parentheses.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _ancestors(pid: int) -> Iterator[int]:
    seen: set[int] = set()
    while pid > 1 and pid not in seen and len(seen) < 64:
        seen.add(pid)
        yield pid
        pid = _parent_of(pid)


def _multiprocessing_parent() -> int:
    """Return the pid of the process that started this one with multiprocessing, or 0."""
    process = sys.modules.get("multiprocessing.process")
    parent = process.parent_process() if process is not None else None
    return parent.pid if parent is not None and parent.pid is not None else 0


def _attach(pid: int, fd: int, ident: int, options: dict[str, Any]) -> _core.Store | None:
    """Attach to a store of another process; return None if that is impossible."""
    try:
        store = _core.attach_pid(
            pid, fd, ident, lock_timeout=options.get("lock_timeout", 0.0), flags=options.get("flags", 0)
        )
    except (OSError, ValueError):
        # The process has ended, or may not be examined: try the next candidate.
        return None
    if store is not None and store.path is not None:
        # When the interpreter ends, this module removes the file if this process is then the last client.
        from . import named_stores  # noqa: F401
    return store


def _inherited(options: dict[str, Any]) -> _core.Store | None:
    """Find the store of the process that started this one."""
    hint = _read_hint()
    if hint is not None and hint[0] not in _closed:
        ident, pid, _, fd, path = hint
        # Attach by the store's name, if it has one, because the last process that detaches must know which file to
        # remove.
        if path:
            from . import named_stores

            found = named_stores.attach_existing(path, ident, options.get("lock_timeout", 1.0), options.get("flags", 0))
            if found is not None:
                return found
        if pid != os.getpid():
            found = _attach(pid, fd, ident, options)
            if found is not None:
                return found
    parent = _multiprocessing_parent()
    if not parent:
        return None
    for pid in dict.fromkeys((parent, *_ancestors(os.getppid()))):
        for ident, fd in _core.stores_of(pid):
            if ident not in _closed:
                found = _attach(pid, fd, ident, options)
                if found is not None:
                    return found
    return None


def find(ident: int, pid: int = 0, start: int = 0, fd: int = -1) -> _core.Store | None:
    """
    Find the store with this identity.

    Parameters
    ----------
    ident : int
        Identity of the store.
    pid, start, fd : int
        Locator of the process that sent the reference.

    Returns
    -------
    Store or None
    """
    with _lock:
        for store in _core.open_stores():
            if store.id == ident:
                return store
        options = _asked.options
        if pid and pid != os.getpid():
            found = _attach(pid, fd, ident, options)
            if found is not None:
                if found.path is None:  # the objects of a named store may outlive the process
                    _warn_of_separate_store(pid)
                return found
        hint = _read_hint()
        candidates = [hint[1]] if hint is not None and hint[0] == ident else []
        candidates += [_multiprocessing_parent(), *_ancestors(os.getppid())]
        for store in _core.open_stores():
            candidates += store.client_pids()
        for candidate in dict.fromkeys(candidates):
            if candidate and candidate != os.getpid():
                found = _attach(candidate, -1, ident, options)
                if found is not None:
                    return found
        if hint is not None and hint[0] == ident and hint[4]:
            from . import named_stores

            return named_stores.attach_existing(
                hint[4], ident, options.get("lock_timeout", 1.0), options.get("flags", 0)
            )
    return None


def _warn_of_separate_store(pid: int) -> None:
    """Log a warning, once, if process `pid`, a descendant of this process, has a store and this process has none."""
    global _warned
    if _warned or _core.default() is not None or os.getpid() not in _ancestors(pid):
        return
    _warned = True
    _log.warning(
        "process %d, a descendant of this process, put an object into a new store, because process %d has no store: "
        "references that arrive after the end of the former are lost; hint: call pyray_ser.init() before you start workers",
        pid, os.getpid(),
    )  # fmt: skip


_warned = False

# Processes of other machines whose stores this process searched for.
_searched: dict[tuple[int, int, int], None] = {}


def find_arrived(ident: int, pid: int, start: int, fd: int, node: bytes) -> _core.Store | None:
    """
    Find the store of a reference that has just arrived.

    The search examines every process of every open store. If a process receives many references from another machine,
    it searches only once for each sender.
    """
    if not node or node == node_name():
        return find(ident, pid, start, fd)
    sender = ident, pid, start
    if sender in _searched:
        return None
    store = find(ident, pid, start, fd)
    if store is None:
        if len(_searched) >= 1024:
            _searched.clear()
        _searched[sender] = None
    return store


def reattach(store: _core.Store) -> bool:
    """Make a forked child a client of its store again if no slot was free when it was forked."""
    with _lock:
        if not store.orphaned:
            return True
        for pid in _ancestors(os.getppid()):
            for ident, fd in _core.stores_of(pid):
                if ident == store.id and store.attach_again(pid, fd):
                    return True
        # The descriptor that the process inherited by the fork also refers to the store.
        return any(
            ident == store.id and store.attach_again(os.getpid(), fd) for ident, fd in _core.stores_of(os.getpid())
        )


def renew(store: _core.Store) -> None:
    """In a forked child, release the inherited references but not the views; the child stays a client of the store."""
    with _lock:
        # If no slot is free for another client, the process keeps the mapping that it inherited.
        if store.renew() and store is _core.default():
            _set_hint(store)


def node_name() -> bytes:
    """Return the name of the host, truncated to the length that a reference can contain."""
    global _node
    if _node is None:
        _node = os.uname().nodename.encode()[:32]
    return _node


_node: bytes | None = None


# ---- opening ----------------------------------------------------------------------------------------------------------


def open_store(name: str | None = None, *, inherit: bool = True, **options: Any) -> _core.Store:
    """
    Open the store that this process uses from now on.

    Parameters
    ----------
    name : str, optional
        Name or path of a store that unrelated processes can find.
    inherit : bool
        Whether to use the parent's store if there is one and no name is given.
    **options
        Options for the engine: ``capacity``, ``max_clients``, ``max_objects``, ``lock_timeout``, ``warm_reserve``,
        ``spill_dir``, ``flags``.

    Returns
    -------
    Store
    """
    global _asked
    with _lock:
        if options:
            from .options import check_repeated

            check_repeated(_asked.explicit, options)
        path = None
        if name is not None:
            from . import named_stores

            path = named_stores.path_of(name)
        store, joined = _core.default(), False
        late = store is not None
        if store is not None:
            if path is not None and store.path != path:
                raise ValueError(
                    f"this process uses {store!r} already; hint: shutdown() before init(name={name!r}), or leave the name out"
                )
            # If a handler or finalizer opened the store after the check, the options that it requested take precedence.
            asked = _Asked(store, _asked.options, {**options, **_asked.explicit})
            _asked = _asked if store.closed else asked
        else:
            store, joined = _open(path, inherit, options)
    problem = _ignored(store, options, joined) if late or joined else _capacity_problem(store)
    if problem:
        import warnings

        # Attribute the warning to the caller of `init`.
        warnings.warn(problem, RuntimeWarning, stacklevel=3)
    return store


def _open(path: str | None, inherit: bool, options: dict[str, Any]) -> tuple[_core.Store, bool]:
    """Open a store and make it the default of this process; also return whether another process made the store."""
    global _asked
    before = _asked
    wanted = {**before.options, **options}
    store, joined = _find_or_make(path, inherit, options, wanted)
    asked = _Asked(store, wanted, {**before.explicit, **options})
    _asked = _asked if store.closed else asked
    _use(store)
    if os.environ.get(ORIGINS):
        from . import allocation_sites

        allocation_sites.enable()
    _log.debug("using %r", store)
    return store, joined


def _use(store: _core.Store) -> None:
    """Make a store the default for `put`, unless a handler or finalizer has closed it meanwhile."""
    # No handler or finalizer can interrupt a single expression like this one.
    _core.set_default(_core.default() if store.closed else store)
    _set_hint(store)


def _find_or_make(
    path: str | None, inherit: bool, options: dict[str, Any], wanted: dict[str, Any]
) -> tuple[_core.Store, bool]:
    if path is not None:
        from . import named_stores

        return named_stores.open_named(path, options)
    found = _inherited(wanted) if inherit else None
    if found is not None:
        return found, True
    from .options import for_new_store

    made = _core.create_store(**for_new_store(options))
    parent = _multiprocessing_parent() if inherit else 0
    if parent and os.getppid() != 1:
        _lonely[made.id] = parent
        _log.info(
            "process %d made a store of its own, %r, because process %d, which started it, has none: references that it sends "
            "are lost when it ends; hint: call init() there before it starts workers", os.getpid(), made, parent,
        )  # fmt: skip
    return made, False


# Stores that this process made although another process started it -> the pid of that process, which has no store.
_lonely: dict[int, int] = {}


def parent_without_store(store: _core.Store) -> int:
    """Return the pid of the process that started this one, if this one had to make the store alone; 0 otherwise."""
    return _lonely.get(store.id, 0)


def _ignored(store: _core.Store, options: dict[str, Any], joined: bool) -> str:
    if not options:
        return ""
    from .options import ignored

    return ignored(store, options, joined)


def _capacity_problem(store: _core.Store) -> str:
    if store.path is None:
        return ""
    from .options import capacity_problem

    return capacity_problem(store)


def open_inherited() -> _core.Store | None:
    """Open the store of the process that started this one; return None if this process cannot attach to any."""
    with _lock:
        store = _core.default() or _inherited(_asked.options)
        if store is not None:
            _use(store)
        return store


def open_default() -> _core.Store:
    """Open the store for a `put` without an earlier `init`."""
    return open_store(**_asked.options)


def close_all() -> None:
    """Close every store of this process."""
    from .scopes import forget

    global _asked
    _core.abort_all()
    with _lock:
        for store in _core.open_stores():
            _clear_hint(store)
            if store.path is not None:
                from .named_stores import leave

                leave(store)
            _closed.append(store.id)
            del _closed[:-1024]
            _log.debug("closing %r", store)
            store.close()
            if "pyray_ser.store.allocation_sites" in sys.modules:
                sys.modules["pyray_ser.store.allocation_sites"].forget(store.id)
        forget()
        # A handler or finalizer may have opened a store meanwhile. Keep that store and its options.
        _asked = _NOTHING if _asked.store is None or _asked.store.closed else _asked
