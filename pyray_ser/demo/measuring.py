"""Read the system's statistics about processes and shared memory from /proc and /dev/shm."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SHM = Path("/dev/shm")


@dataclass
class Memory:
    """Bytes of physical memory of some processes.

    Attributes
    ----------
    shared_out : int
        Proportional set size: a page that n processes map counts 1/n in each, so the sum over
        processes is correct.
    own : int
        Pages that no other process maps, which would be freed if the process ended.
    """

    shared_out: int
    own: int


def memory(pid: int) -> Memory:
    """Return the memory of one process."""
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) << 10
    return Memory(fields["Pss"], fields["Private_Clean"] + fields["Private_Dirty"])


def total(pids: Iterable[int]) -> int:
    """Return the PSS of several processes."""
    return sum(memory(pid).shared_out for pid in pids)


def available() -> int:
    """Return the number of bytes that the kernel can still allocate to new processes without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise OSError("no MemAvailable in /proc/meminfo")


def shm_entries() -> set[str]:
    """Return every file of this package in /dev/shm, at any depth, that this user owns."""
    found = set()
    for folder, _, names in os.walk(SHM):
        if folder != str(SHM) and "pyray_ser" not in folder:
            continue
        for name in names:
            path = Path(folder, name)
            try:
                if "pyray_ser" in str(path) and path.lstat().st_uid == os.getuid():
                    found.add(str(path))
            except FileNotFoundError:
                continue
    return found


def left_in_shm(before: set[str]) -> set[str]:
    """Return the new files of this package in /dev/shm that no process uses; other programs may use theirs meanwhile."""
    from pyray_ser.store import named_stores

    left = set()
    for path in shm_entries() - before:
        try:
            if not named_stores.in_use(path):
                left.add(path)
        except FileNotFoundError:
            continue
    return left


def children() -> set[int]:
    """Return the processes whose parent is this one."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue  # the process ended meanwhile
        if int(stat[stat.rindex(")") + 2 :].split()[1]) == os.getpid():
            found.add(int(entry))
    return found
