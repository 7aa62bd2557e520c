"""Read the memory usage of processes as the kernel accounts for it."""

from __future__ import annotations

from multiprocessing.connection import Connection

import numpy as np

__all__ = ["do_nothing", "pss"]


def pss(pid: int | str = "self", kind: str = "Pss") -> int:
    """
    Return the proportional set size in bytes.

    It counts each shared page in equal parts for all processes that map the page.
    """
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) * 1024
    raise LookupError(f"no {kind} in smaps_rollup")


def do_nothing(pipe: Connection) -> None:
    """Run a process with numpy but no store, as the baseline of a reader. See rows/memory.py."""
    pipe.recv()
    pipe.send(int(np.int64(0)))
    pipe.recv()
    pipe.send((pss(), pss(kind="Pss_Shmem")))
    pipe.recv()
