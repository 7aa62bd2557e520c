"""Find resources that a test run must not leave behind: entries in /dev/shm, descriptors, mappings, child processes."""

from __future__ import annotations

import gc
import glob
import os
import sys
import time
import uuid

from patience import patience

SHM = "/dev/shm"


def name_this_run() -> None:
    """
    Set a directory of named stores that only this run and its children use.

    All other entries of the tests in /dev/shm begin with `run_path`, which distinguishes them from entries of other
    programs.
    """
    os.environ.setdefault("PYRAY_SER_STORE_DIR", f"{SHM}/pyray_ser-test-{uuid.uuid4().hex[:12]}")


def run_path() -> str:
    """Return the path prefix of all entries that this run creates in /dev/shm."""
    return os.environ["PYRAY_SER_STORE_DIR"]


def shm_entries() -> set[str]:
    """Return the files and folders that this run made in /dev/shm; the directory of named stores itself is left out."""
    found = set()
    for top in glob.glob(glob.escape(run_path()) + "*"):
        if top != run_path():
            found.add(top)
        for folder, folders, names in os.walk(top):
            found.update(os.path.join(folder, name) for name in (*folders, *names))
    return found


def descriptors() -> dict[int, str]:
    """Return the open descriptors and the files that they refer to."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # this was the descriptor that listdir itself used
    return found


def store_maps() -> list[str]:
    """Return the mappings of shared memory: files of stores in /dev/shm and memfds."""
    with open("/proc/self/maps") as maps:
        return [line.rstrip("\n") for line in maps if SHM in line or "memfd:" in line]


def descendants(pid: int) -> dict[int, str]:
    """Return the living descendants of `pid`, with their names."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                text = stat.read()
        except OSError:
            continue
        name = text[text.index("(") + 1 : text.rindex(")")]
        parent = int(text[text.rindex(")") + 2 :].split()[1])
        children.setdefault(parent, []).append((int(entry), name))
    found, todo = {}, [pid]
    while todo:
        for child, name in children.get(todo.pop(), ()):
            found[child] = name
            todo.append(child)
    return found


class Watch:
    """Record the resources that exist now; `new()` returns those added later."""

    def __init__(self) -> None:
        self.shm = shm_entries()
        self.fds = descriptors()
        self.maps = len(store_maps())
        self.children = descendants(os.getpid())

    def shut_down_everything(self) -> None:
        """Close the store and end the helper processes of multiprocessing."""
        gc.collect()
        package = sys.modules.get("pyray_ser")
        if package is not None and hasattr(package, "shutdown"):
            package.shutdown()
        gc.collect()
        forkserver = sys.modules.get("multiprocessing.forkserver")
        if forkserver is not None:
            forkserver._forkserver._stop()
        tracker = sys.modules.get("multiprocessing.resource_tracker")
        if tracker is not None:
            tracker._resource_tracker._stop()

    def new(self, seconds: float = 20.0) -> list[str]:
        """Return one line per new resource, after waiting for processes that are ending."""
        end = time.monotonic() + patience(seconds)
        while (children := self._new_children()) and time.monotonic() < end:
            time.sleep(0.05)
        lines = [f"process {pid} ({name})" for pid, name in children.items()]
        lines += [f"file {path}" for path in sorted(shm_entries() - self.shm)]
        for fd, target in sorted(descriptors().items()):
            if self.fds.get(fd) != target and not self._is_foreign(target):
                lines.append(f"descriptor {fd} -> {target}")
        maps = store_maps()
        if len(maps) > self.maps:
            lines += [f"map {line}" for line in maps]
        return lines

    def _new_children(self) -> dict[int, str]:
        return {pid: name for pid, name in descendants(os.getpid()).items() if pid not in self.children}

    @staticmethod
    def _is_foreign(target: str) -> bool:
        """Return whether a descriptor belongs to pytest's capturing or to polars' runtime, which cannot be ended."""
        if "polars" in sys.modules and target in ("anon_inode:[eventpoll]", "anon_inode:[eventfd]"):
            return True
        return target.startswith("/tmp/") and target.endswith("(deleted)")
