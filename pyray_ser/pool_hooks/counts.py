"""Counts of what this process sends and receives while `install` is active.

They are plain numbers without a lock, so that a small message costs no more. If two threads send at the same moment, a
message may be missing in the counts.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["REASONS", "Counts", "counts", "installed_at", "mark_installation"]

# Why a buffer was not sent through shared memory -> the text of the report.
REASONS: Final = {
    "below_min_bytes": "smaller than min_bytes",
    "started_before_install": "the pool, queue or receiver was made before install(); hint: call install() first",
    "reader_cannot_attach": "the receiver is no client of the store, or its identity is not known",
    "not_a_local_pipe": "the connection is a socket, for example that of a Manager or a Listener",
    "max_in_flight": "max_in_flight was reached; hint: put() the array first, or call install(max_in_flight=...)",
    "store_full": "the store was full; hint: init(capacity=...)",
    "no_store": "this process has no store",
    "left_store": "this process left the store because of its address space limit (RLIMIT_AS)",
    "error": "an error of this package, which the log shows at level DEBUG",
}


class Counts:
    """
    The counts of a process.

    Attributes
    ----------
    messages, message_bytes : int
        Messages that were pickled for a queue or pipe, and their size.
    shared, shared_bytes : int
        Buffers that went through the store.
    reused, reused_bytes : int
        Those of them that were in the store already.
    arguments, arguments_bytes : int
        Buffers in the arguments of processes.
    received, received_bytes : int
        Buffers that arrived through shared memory.
    refused : dict
        Reason -> [buffers, bytes] of the buffers that stayed in their message.
    """

    __slots__ = (
        "arguments",
        "arguments_bytes",
        "message_bytes",
        "messages",
        "received",
        "received_bytes",
        "refused",
        "reused",
        "reused_bytes",
        "shared",
        "shared_bytes",
    )

    def __init__(self) -> None:
        self.messages = self.message_bytes = 0
        self.shared = self.shared_bytes = 0
        self.reused = self.reused_bytes = 0
        self.arguments = self.arguments_bytes = 0
        self.received = self.received_bytes = 0
        self.refused: dict[str, list[int]] = {}

    def sent(self, nbytes: int) -> None:
        """Count a message."""
        self.messages += 1
        self.message_bytes += nbytes

    def share(self, nbytes: int, reused: bool) -> None:
        """Count a buffer that goes through the store."""
        self.shared += 1
        self.shared_bytes += nbytes
        if reused:
            self.reused += 1
            self.reused_bytes += nbytes

    def receive(self, nbytes: int) -> None:
        """Count a buffer that arrived through shared memory."""
        self.received += 1
        self.received_bytes += nbytes

    def refuse(self, reason: str, nbytes: int) -> None:
        """Count a buffer that stays in its message."""
        found = self.refused.setdefault(reason, [0, 0])
        found[0] += 1
        found[1] += nbytes


counts = Counts()
# The time of the first `install` in clock ticks since boot, as start times of processes; 0 if it is unknown.
_installed_at = 0


def mark_installation() -> None:
    """Remember the time of the first installation."""
    global _installed_at
    if _installed_at:
        return
    try:
        with open("/proc/uptime") as file:
            _installed_at = int(float(file.read().split()[0]) * os.sysconf("SC_CLK_TCK"))
    except OSError:
        return  # no /proc: the report then does not distinguish processes that were started before


def installed_at() -> int:
    """Return the time of the first installation."""
    return _installed_at


def _after_fork_in_child() -> None:
    # Functions hold the object, so it cannot be replaced.
    counts.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork_in_child)
