"""Manage the files of named stores: their paths, whether a process uses them, and their removal.

A named store is a file in which each client holds a record lock on one byte. The store is dead when no process holds
such a lock and no process has the file mapped. The next process that opens this name, or `pyray-ser clean`, then
removes the file. If the last process exits normally, it removes the file itself, and also this user's directory if no
file is left in it.

A process holds a lock (``flock``) on the directory while it opens or removes a store, so no other process opens
or removes a store at the same time. If the directory was removed while a process waited for its lock, the process
starts again.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import stat
import struct
import sys
import time
from _thread import get_ident
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from weakref import ref

from .. import _core, _log

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = [
    "attach_existing",
    "check_directory",
    "directory",
    "guard",
    "in_use",
    "is_store",
    "leave",
    "mapped_by",
    "open_named",
    "path_of",
    "remove_dead",
    "remove_directory",
]

# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"
_F_OFD_GETLK = 36
# The first bytes of a store's file.
_MAGIC = b"PYRAYSER"


def directory() -> str:
    """
    Return the directory of this user's named stores.

    It is ``/dev/shm/pyray_ser-UID``, or the value of ``PYRAY_SER_STORE_DIR``. It must be on a tmpfs and accessible only
    to this user.
    """
    chosen = os.environ.get("PYRAY_SER_STORE_DIR")
    return os.path.abspath(chosen) if chosen else f"/dev/shm/pyray_ser-{os.geteuid()}"


def path_of(name: str) -> str:
    """
    Return the file of a named store.

    Parameters
    ----------
    name : str
        A name without a slash is a file in `directory`; a name with a slash is a path.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a store is a str, not {type(name).__name__!r}")
    if "\0" in name:
        raise ValueError("the name of a store cannot hold a null character")
    if "/" in name:
        return os.path.abspath(name)
    plain = name.replace(".", "").replace("+", "").replace("-", "").replace("_", "")
    if not plain.isalnum() or not plain.isascii() or len(name) > 200:
        raise ValueError(f"{name!r} cannot name a store: use letters, digits and any of '_.+-', or a path")
    return f"{directory()}/{name}"


def check_directory(folder: str) -> None:
    """
    Raise if another user could replace files in a directory.

    Raises
    ------
    StoreAccessError
        If another user owns the directory of named stores or can write to it, or if any user can write to a directory
        given by path.
    """
    from ..exceptions import StoreAccessError

    found = os.lstat(folder)
    reason = None
    if not stat.S_ISDIR(found.st_mode):
        reason = "it is a symbolic link" if stat.S_ISLNK(found.st_mode) else "it is not a directory"
    if folder != directory():
        found = os.stat(folder)
        if not stat.S_ISDIR(found.st_mode):
            reason = "it is not a directory"
        else:
            # A sticky directory such as /dev/shm is acceptable, because the owner and mode of the file itself are also
            # checked.
            open_to_all = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
            reason = "its directory can be written to by other users" if open_to_all else None
    elif reason is None and found.st_uid != os.geteuid():
        reason = f"it belongs to user {found.st_uid}"
    elif reason is None and found.st_mode & 0o777 != 0o700:
        reason = f"its mode is {stat.S_IMODE(found.st_mode):04o}, not 0700"
    if reason:
        raise StoreAccessError(path=folder, reason=reason)


@contextmanager
def guard(folder: str, timeout: float = 1.0) -> Iterator[None]:
    """
    Exclude other processes and threads from opening and removing stores in `folder`; wait at most `timeout` seconds for them.

    A signal handler or finalizer does not wait for the call that it interrupts, but shares that call's lock. So a call
    cannot rely on an earlier state of the directory, because a handler may have opened or removed a store meanwhile.
    """
    until = time.monotonic() + timeout
    while True:
        interrupted = _opened_by_this_thread(folder)
        with (
            nullcontext(interrupted)
            if interrupted is not None
            else _core.Opened(folder, os.O_RDONLY | os.O_DIRECTORY, get_ident())
        ) as opened:
            _guards.append(ref(opened, _guards.remove))
            if _locked(opened) and _leads_to(opened, folder):
                yield
                return
            if time.monotonic() > until:
                from ..exceptions import StoreBusyError

                raise StoreBusyError(
                    f"another process has been opening a store in {folder} for {timeout:g} s; continue or end it"
                )
        time.sleep(0.002)


# The directories that `guard` has open. This is a list, because other threads may append to it while it is copied.
_guards: list[ref[_core.Opened]] = []


def _opened_by_this_thread(folder: str) -> _core.Opened | None:
    """Return the directory that an interrupted call of this thread has open, whether or not it is locked yet."""
    own = get_ident()
    for opened in [found() for found in _guards.copy()]:
        if opened is not None and opened.thread == own and opened.fileno() >= 0 and _leads_to(opened, folder):
            return opened
    return None


def _leads_to(opened: _core.Opened, folder: str) -> bool:
    return os.path.samestat(os.fstat(opened.fileno()), os.stat(folder))


def _after_fork_in_child() -> None:
    """Close the directories that other threads of the parent have open. The parent keeps this thread's own lock."""
    own = get_ident()
    for opened in [found() for found in _guards.copy()]:
        if opened is not None and opened.thread != own:
            opened.close()
    _guards.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _locked(opened: _core.Opened) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _made(folder: str) -> bool:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return False
    return True


def _give_owner_rights(folder: str) -> None:
    """Restore the owner's rights that the umask removed from a new directory; do not follow a link in its place."""
    with _core.Opened(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW) as opened:
        found = os.fstat(opened.fileno())
        if found.st_uid == os.geteuid() and found.st_mode & 0o777 != 0o700:
            os.chmod(f"/proc/self/fd/{opened.fileno()}", 0o700)


@contextmanager
def _guard_made(folder: str, timeout: float) -> Iterator[None]:
    """Act as `guard` for a safe directory; make this user's directory if it is missing or is removed meanwhile."""
    with ExitStack() as stack:
        while True:
            made = folder == directory() and _made(folder)
            try:
                if made:
                    _give_owner_rights(folder)
                check_directory(folder)
                stack.enter_context(guard(folder, timeout))
                check_directory(folder)  # the directory is locked now, so no process can replace it
            except FileNotFoundError:
                if folder != directory():
                    raise
                stack.close()
            else:
                break
        yield


def mapped_by(device: int, inode: int) -> list[int]:
    """Return the pids of the processes that have a file mapped, among those that this process may examine."""
    found = []
    where = f" {os.major(device):02x}:{os.minor(device):02x} {inode} "
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/maps") as maps:
                if any(where in line for line in maps):
                    found.append(int(entry))
        except OSError:
            continue  # the process has ended, or belongs to another user
    return found


def is_store(path: str) -> bool:
    """Return whether the file `path` is a store of this user; other files must not be removed."""
    try:
        opened = _core.Opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with opened:
        fd = opened.fileno()
        found = os.fstat(fd)
        return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and os.pread(fd, 8, 0) == _MAGIC


def in_use(path: str) -> bool:
    """
    Return whether any process uses the store in the file `path`.

    A client holds a record lock on the file. Other pid namespaces and containers can also see this lock. A process
    that closes all its descriptors loses this lock, but still has the file mapped.
    """
    with _core.Opened(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK) as opened:
        lock = fcntl.fcntl(opened, _F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        if struct.unpack(_FLOCK, lock)[0] != fcntl.F_UNLCK:
            return True
        found = os.fstat(opened.fileno())
        return bool(mapped_by(found.st_dev, found.st_ino))


def remove_dead(path: str) -> bool:
    """Remove the file of a store that no process uses. The caller holds the `guard`. Return whether it was removed."""
    try:
        if not is_store(path) or in_use(path):
            return False
        os.unlink(path)
    except FileNotFoundError:
        return False
    _log.info("removed the store %s, which no process used any more", path)
    return True


def remove_directory(folder: str) -> None:
    """Remove this user's directory of named stores if it is empty. The caller holds its `guard`."""
    if folder == directory():
        with suppress(OSError):  # the directory is not empty
            os.rmdir(folder)


def _remove_others_that_are_dead(folder: str, path: str) -> None:
    """
    Remove the files of stores whose last process was ended by a signal. The caller holds the `guard`.

    Otherwise the memory of these stores would stay in use until a process opens the same name. Only the user's own
    directory is examined.
    """
    if folder != directory():
        return
    for name in os.listdir(folder):
        other = os.path.join(folder, name)
        if other != path:
            try:
                remove_dead(other)
            except OSError as error:
                _log.debug("left the file of the store %s where it is: %s", other, error)


def open_named(path: str, options: dict[str, Any]) -> tuple[_core.Store, bool]:
    """
    Attach to the store in the file `path`, or make it if no process uses one there.

    Returns
    -------
    tuple of (Store, bool)
        The store, and whether another process made it.
    """
    folder = os.path.dirname(path)
    timeout = options.get("lock_timeout", 1.0)
    until = time.monotonic() + timeout
    while True:
        with _guard_made(folder, timeout):
            there = False
            try:
                _remove_others_that_are_dead(folder, path)
                there = os.path.lexists(path) and not remove_dead(path)
                return _attach_or_make(path, folder, options, there), there
            except (FileNotFoundError, FileExistsError) as error:
                # Try again if a handler or finalizer of this thread made or removed the store or the directory.
                changed = os.path.lexists(path) != there or not os.path.isdir(folder)
                # The last process is closing the store: it has removed the store's spill directory, and its lock will go.
                ending = there and type(error) is FileNotFoundError and time.monotonic() < until
                if not changed and not ending:
                    raise
            finally:
                remove_directory(folder)  # no store was made
        if ending:
            time.sleep(0.002)


def _attach_or_make(path: str, folder: str, options: dict[str, Any], there: bool) -> _core.Store:
    if there:
        return _core.attach_path(path, **{key: options[key] for key in ("lock_timeout", "flags") if key in options})
    from .options import for_new_store

    return _core.create_store(path, **for_new_store(options, folder))


def attach_existing(path: str, ident: int, timeout: float = 1.0, flags: int = 0) -> _core.Store | None:
    """Attach to the store in the file `path` if it has this identity; return None if it no longer exists."""
    folder = os.path.dirname(path)
    try:
        check_directory(folder)
        with guard(folder, timeout):
            store = _core.attach_path(path, lock_timeout=timeout, flags=flags)
    except (OSError, ValueError) as error:
        _log.debug("the store %016x is not at %s, and is searched for elsewhere: %s", ident, path, error)
        return None
    if store.id == ident:
        return store
    store.close()
    return None


def leave(store: _core.Store) -> None:
    """Remove the file of a named store if all its living clients are detaching. Call this before the store is closed."""
    path = store.path
    if path is None or store.closed or store.orphaned:
        return
    folder = os.path.dirname(path)
    try:
        with guard(folder):
            if store.leave() and _is_file_of(store, path):
                os.unlink(path)
                remove_directory(folder)
    except (OSError, ValueError) as error:
        # Detaching must not fail. The file then stays until another process opens the name.
        _log.debug("left the file of the store %s where it is: %s", path, error)


def _is_file_of(store: _core.Store, path: str) -> bool:
    """Return whether the file `path` still belongs to this store: another store may have the name by now."""
    fd = store.locator[2]
    ours, theirs = os.fstat(fd), os.stat(path, follow_symlinks=False)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def leave_all() -> None:
    """Detach from all named stores at the end of the interpreter, so that the last process leaves no file."""
    for store in _core.open_stores():
        leave(store)


def _with_finalizers(_: object = None) -> None:
    """Register `leave_all` for children of multiprocessing, which end by ``os._exit`` and run only its finalizers."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, leave_all, exitpriority=-100)


def _before_fork() -> None:
    # A forked child of multiprocessing starts without finalizers, then calls the functions registered here.
    global _announced
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not _announced:
        _announced = True
        util.register_after_fork(leave_all, _with_finalizers)


_announced = False
_with_finalizers()
os.register_at_fork(before=_before_fork)
atexit.register(leave_all)
