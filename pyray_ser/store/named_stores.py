"""Files of named stores: where they lie, whether anybody uses them, and how they end.

A named store is a file that its clients hold record locks on, one byte each. It is gone when nobody holds one any more and no
process has it mapped: the next one to open that name, or `pyray-ser clean`, removes the file then. The last process that
leaves in an orderly way removes it itself, and this user's directory with the last file in it.

Opening and removing exclude each other by a lock (``flock``) on the directory, held for as long as an open takes. Who waited for
the lock of a directory that was removed meanwhile begins anew.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import stat
import struct
import sys
import time
from contextlib import ExitStack, contextmanager, suppress

from .. import _log, _store
from .._descriptors import above_standard

TYPE_CHECKING = False  # importing typing costs more than it is worth here
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
# How a store's file begins.
_MAGIC = b"PYRAYSER"


def directory() -> str:
    """
    Return the directory of this user's named stores.

    It is ``/dev/shm/pyray_ser-UID``, or what ``PYRAY_SER_STORE_DIR`` says: a directory of this user alone on a tmpfs.
    """
    chosen = os.environ.get("PYRAY_SER_STORE_DIR")
    return os.path.abspath(chosen) if chosen else f"/dev/shm/pyray_ser-{os.geteuid()}"


def path_of(name: str) -> str:
    """
    Return the file of a named store.

    Parameters
    ----------
    name : str
        A plain name lies in `directory`; anything with a slash is a path.
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
    Refuse a directory in which somebody else could put a file of theirs in place of ours.

    Raises
    ------
    StoreAccessError
        If the directory of named stores is not ours alone, or another one can be written to by anybody.
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
            # A sticky directory such as /dev/shm is fine: the file's own owner and mode are checked as well.
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
    """Exclude others from opening and removing stores in `folder`; at most `timeout` seconds are waited for them."""
    until = time.monotonic() + timeout
    while True:
        fd = above_standard(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            if _locked(fd) and os.path.samestat(os.fstat(fd), os.stat(folder)):
                yield
                return
            if time.monotonic() > until:
                from ..exceptions import StoreBusyError

                raise StoreBusyError(
                    f"another process has been opening a store in {folder} for {timeout:g} s; continue or end it"
                )
        finally:
            os.close(fd)
        time.sleep(0.002)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Give back what the umask took of a directory that was just made; never of what a link in its place leads to."""
    fd = above_standard(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    try:
        found = os.fstat(fd)
        if found.st_uid == os.geteuid() and found.st_mode & 0o777 != 0o700:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)


@contextmanager
def _guard_made(folder: str, timeout: float) -> Iterator[None]:
    """As `guard`, of a directory that is safe to use; this user's own is made if it is not there, or is removed meanwhile."""
    with ExitStack() as stack:
        while True:
            made = folder == directory() and _made(folder)
            try:
                if made:
                    _give_owner_rights(folder)
                check_directory(folder)
                stack.enter_context(guard(folder, timeout))
            except FileNotFoundError:
                if folder != directory():
                    raise
            else:
                break
        check_directory(folder)  # it is the one that is locked now, and stays
        yield


def mapped_by(device: int, inode: int) -> list[int]:
    """Return the pids of the processes that have a file mapped, as far as this process may look into them."""
    found = []
    where = f" {os.major(device):02x}:{os.minor(device):02x} {inode} "
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/maps") as maps:
                if any(where in line for line in maps):
                    found.append(int(entry))
        except OSError:
            continue  # gone meanwhile, or another user's
    return found


def is_store(path: str) -> bool:
    """Tell whether the file `path` is a store of this user's: what else lies there is not ours to remove."""
    try:
        fd = above_standard(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and os.pread(fd, 8, 0) == _MAGIC
    finally:
        os.close(fd)


def in_use(path: str) -> bool:
    """
    Tell whether any process uses the store in the file `path`.

    A client holds a record lock on the file, which is seen from other pid namespaces and containers too. Code that closes all
    descriptors of a process drops that lock; such a process still has the file mapped.
    """
    fd = above_standard(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    try:
        lock = fcntl.fcntl(fd, _F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        if struct.unpack(_FLOCK, lock)[0] != fcntl.F_UNLCK:
            return True
        found = os.fstat(fd)
        return bool(mapped_by(found.st_dev, found.st_ino))
    finally:
        os.close(fd)


def remove_dead(path: str) -> bool:
    """Remove the file of a store that nobody uses; the caller holds the `guard`. False if there is none, or it is in use."""
    try:
        if not is_store(path) or in_use(path):
            return False
        os.unlink(path)
    except FileNotFoundError:
        return False
    _log.info("removed the store %s, which no process used any more", path)
    return True


def remove_directory(folder: str) -> None:
    """Remove this user's directory of named stores if nothing is left in it; the caller holds its `guard`."""
    if folder == directory():
        with suppress(OSError):  # there is something in it
            os.rmdir(folder)


def _remove_others_that_are_dead(folder: str, path: str) -> None:
    """
    Remove the files of stores whose last process was ended by a signal; the caller holds the `guard`.

    Their memory would stay in use until somebody opens that very name again. Only the user's own directory is looked at.
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


def open_named(path: str, options: dict[str, Any]) -> tuple[_store.Store, bool]:
    """
    Attach to the store in the file `path`, or make it if there is none that anybody uses.

    Returns
    -------
    tuple of (Store, bool)
        The store, and whether another process had made it.
    """
    folder = os.path.dirname(path)
    attach = {key: options[key] for key in ("lock_timeout", "flags") if key in options}
    with _guard_made(folder, options.get("lock_timeout", 1.0)):
        try:
            _remove_others_that_are_dead(folder, path)
            if os.path.lexists(path) and not remove_dead(path):
                return _store.attach_path(path, **attach), True
            from .options import for_new_store

            return _store.create_store(path, **for_new_store(options, folder)), False
        finally:
            remove_directory(folder)  # no store came of it


def attach_existing(path: str, ident: int, timeout: float = 1.0, flags: int = 0) -> _store.Store | None:
    """Attach to the store in the file `path` if it is the one with this identity; None if it is not there any more."""
    folder = os.path.dirname(path)
    try:
        check_directory(folder)
        with guard(folder, timeout):
            store = _store.attach_path(path, lock_timeout=timeout, flags=flags)
    except (OSError, ValueError) as error:
        _log.debug("the store %016x is looked for elsewhere than at %s: %s", ident, path, error)
        return None
    if store.id == ident:
        return store
    store.close()
    return None


def leave(store: _store.Store) -> None:
    """Remove a named store's file if all its clients that live are leaving. Called before the store is closed."""
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
        # The file stays for the next one to open that name: leaving must not fail.
        _log.debug("left the file of the store %s where it is: %s", path, error)


def _is_file_of(store: _store.Store, path: str) -> bool:
    """Whether the file `path` is still this store's: the name may be another's by now."""
    fd = store.locator[2]
    ours, theirs = os.fstat(fd), os.stat(path, follow_symlinks=False)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def leave_all() -> None:
    """At the end of the interpreter: what the last process of a named store leaves behind is nothing."""
    for store in _store.open_stores():
        leave(store)


def _with_finalizers(_: object = None) -> None:
    """Children of multiprocessing end by ``os._exit``: handlers of `atexit` do not run there, but its finalizers do."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, leave_all, exitpriority=-100)


def _before_fork() -> None:
    # A forked child of multiprocessing starts with no finalizers, and then calls what is registered here.
    global _announced
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not _announced:
        _announced = True
        util.register_after_fork(leave_all, _with_finalizers)


_announced = False
_with_finalizers()
os.register_at_fork(before=_before_fork)
atexit.register(leave_all)
