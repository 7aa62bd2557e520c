"""Limit, in the worker, how far a stream of results may run ahead of its reader.

The caller reports which items were taken. Unreported items count towards the limit, and a generator that has reached
the limit waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from struct import Struct

__all__ = ["AHEAD", "AHEAD_BYTES", "Flow", "everything", "nothing", "taken"]

# The maximum number of unread items and of their bytes. One unread item is always allowed.
AHEAD, AHEAD_BYTES = 16, 64 << 20

_count = Struct("<Q")
# TAKEN carries this value instead of a count if a process waits for the end of the stream. The stream then runs without
# a limit.
_ALL = 0xFFFFFFFFFFFFFFFF
# TAKEN carries this value instead of a count if the reader has dropped the stream. The stream then ends.
_NONE = 0xFFFFFFFFFFFFFFFE


def taken(count: int) -> bytes:
    """Return the payload of TAKEN that reports the number of items taken since the beginning of the stream."""
    return _count.pack(count)


def everything() -> bytes:
    """Return the payload of TAKEN that lets the stream run to its end."""
    return _count.pack(_ALL)


def nothing() -> bytes:
    """Return the payload of TAKEN that ends the stream at its next item."""
    return _count.pack(_NONE)


class Flow:
    """
    The items of one stream that the caller has not taken yet.

    Parameters
    ----------
    on_change : callable, optional
        Called when items were taken.
    """

    def __init__(self, on_change: Callable[[], object] | None = None) -> None:
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._free = False
        self._taken = 0
        # The stream was dropped.
        self.stopped = False
        self._on_change = on_change

    def sent(self, nbytes: int) -> None:
        """Count an item."""
        if not self._free:
            self._sizes.append(nbytes)
            self._bytes += nbytes

    def full(self) -> bool:
        """Return whether the next item must wait."""
        return len(self._sizes) >= AHEAD or (self._bytes >= AHEAD_BYTES and bool(self._sizes))

    def take(self, payload: bytes | memoryview) -> None:
        """Apply the payload of TAKEN."""
        (count,) = _count.unpack(payload)
        if count == _ALL:
            self.end()
            return
        if count == _NONE:
            self.stop()
            return
        for _ in range(min(count - self._taken, len(self._sizes))):
            self._bytes -= self._sizes.popleft()
        self._taken = max(count, self._taken)
        self._changed()

    def stop(self) -> None:
        """End the stream, because no process will take its items."""
        self.stopped = True
        self.end()

    def end(self) -> None:
        """Let the stream run without a limit."""
        self._free = True
        self._sizes.clear()
        self._bytes = 0
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()
