"""Find this user's stores: those that processes have open, and the files of all named stores."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .. import _core
from ..store import named_stores

__all__ = ["Found", "add_selection", "find", "opened", "own_pids", "selected"]


@dataclass
class Found:
    """A store, before it is opened."""

    id: str | None
    """16 hexadecimal digits; None if the file could not be read."""
    path: str | None = None
    """The file of a named store."""
    holders: dict[int, int] = field(default_factory=dict)
    """Pid of each process that has the store open -> its descriptor in that process."""
    used: bool = True
    """Whether any process uses it; False only if that is proven."""

    @property
    def label(self) -> str:
        """Return the name under which a user knows the store."""
        if self.path is None:
            return self.id or "?"
        folder, name = os.path.split(self.path)
        return name if folder == named_stores.directory() else self.path

    def describe(self) -> dict[str, Any]:
        """Return the facts that are known without opening the store."""
        return {"id": self.id, "path": self.path, "pids": sorted(self.holders), "used": self.used}


def own_pids() -> list[int]:
    """Return the pids of this user's other processes."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{entry}").st_uid == os.geteuid() and int(entry) != os.getpid():
                found.append(int(entry))
        except FileNotFoundError:
            continue  # the process has just ended
    return sorted(found)


def _id_in(path: str) -> str | None:
    """Read the identity from the head of a store's file: magic, version, page, layout, then the identity."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(32)
    except OSError:
        return None
    return f"{int.from_bytes(head[24:32], 'little'):016x}" if len(head) == 32 else None


def _of_file(path: str, by_id: dict[str, Found]) -> Found:
    ident = _id_in(path)
    found = by_id.get(ident) if ident is not None else None
    if found is None:
        try:
            used = named_stores.in_use(path)
        except OSError:
            used = True  # some process may still use the store
        found = Found(ident, used=used)
    found.path = path
    return found


def find() -> list[Found]:
    """Return every visible store of this user, stores in use first."""
    by_id: dict[str, Found] = {}
    for pid in own_pids():
        for ident, fd in _core.stores_of(pid):
            key = f"{ident:016x}"
            by_id.setdefault(key, Found(key)).holders[pid] = fd
    stores = list(by_id.values())
    folder = named_stores.directory()
    try:
        named_stores.check_directory(folder)
        names = sorted(os.listdir(folder))
    except OSError:
        names = []  # the directory does not exist or belongs to another user, which `doctor` reports
    for name in names:
        path = os.path.join(folder, name)
        if named_stores.is_store(path):
            found = _of_file(path, by_id)
            if found not in stores:
                stores.append(found)
    return sorted(stores, key=lambda found: (not found.used, found.path or "", found.id or ""))


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the command-line argument that selects stores."""
    parser.add_argument(
        "store",
        nargs="*",
        help="name or path of a store, the beginning of its id, or the pid of a process that uses it; default: all",
    )


def selected(words: list[str]) -> list[Found]:
    """
    Return the stores that the arguments on the command line select.

    Raises
    ------
    LookupError
        If an argument selects no store.
    """
    stores = find()
    if not words:
        return stores
    chosen: list[Found] = []
    for word in words:
        found = [store for store in stores if word in (store.label, store.path)]
        found = found or [store for store in stores if word.isdigit() and int(word) in store.holders]
        found = found or [store for store in stores if len(word) >= 4 and (store.id or "").startswith(word.lower())]
        if not found and named_stores.is_store(word):
            found = [_of_file(os.path.abspath(word), {store.id: store for store in stores if store.id})]
        if not found:
            raise LookupError(f"no store of this user matches {word!r}; pyray-ser stat lists all of them")
        chosen += [store for store in found if store not in chosen]
    return chosen


def _attach(found: Found) -> _core.Store:
    if found.path is not None:
        # Attach by the path, because this process must know which file to remove if it becomes the last client.
        return _core.attach_path(found.path, tables_only=True)
    for pid, fd in found.holders.items():
        store = _core.attach_pid(pid, fd, int(found.id or "0", 16), tables_only=True)
        if store is not None:
            return store
    raise ProcessLookupError("its last process has just ended, or this user may not examine it")


@contextmanager
def opened(found: Found) -> Iterator[tuple[_core.Store, str | None]]:
    """
    Open a store: attach as another client if a process uses the store, otherwise open a copy of its tables.

    Yields
    ------
    tuple of (Store, str or None)
        The handle, and the store's spill directory.

    Raises
    ------
    OSError, ValueError, RuntimeError
        If the store cannot be opened, because it is damaged, has another version, is blocked by a stopped process, or
        no longer exists.
    """
    if not found.used and found.path is not None:
        store, spill_dir = _core.snapshot(found.path)
    else:
        store = _attach(found)
        spill_dir = store.spill_dir
    try:
        yield store, spill_dir
    finally:
        named_stores.leave(store)
        store.close()
