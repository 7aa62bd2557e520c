"""Calls with several results: a stream of as many as there come, or a number known before."""

from __future__ import annotations

import time
from _thread import RLock, allocate_lock
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from sys import is_finalizing
from typing import TYPE_CHECKING, Any

from .._store import ObjectRef
from . import backpressure, protocol
from .refs import Source, TaskRef, patience

if TYPE_CHECKING:
    from _thread import LockType

__all__ = ["Parts", "ResultStream"]


class _Items:
    """What of a stream has come and was not taken. The call holds this, and not the stream: that one may be dropped."""

    def __init__(self, ref: TaskRef) -> None:
        self.ref = ref
        self.ready: deque[TaskRef] = deque()
        # A lock of C's, and no threading.Condition: Ctrl-C inside one of its methods, which are Python, would leave it locked
        # for good, and who reads the answers would wait for it until the end of time.
        self.lock = RLock()
        # Each is released at the next change.
        self.waiters: list[LockType] = []
        self.ended = False
        self.count = 0
        # Nobody will take the rest.
        self.abandoned = False
        # The worker is not to be held back; and it knows.
        self._free = self._told = False
        self._untold = 0

    def take(self, kind: int, outcome: Any) -> None:
        """Take one answer. Called by whoever reads the channel."""
        with self.lock:
            if kind in (protocol.ITEM, protocol.FAILURE):
                if not self.abandoned:
                    item: TaskRef = TaskRef(f"{self.ref.name}[{self.count}]")
                    item.settle(outcome)
                    self.ready.append(item)
                self.count += 1
            late = self._free and not self._told
            self._told = self._told or late
            if kind != protocol.ITEM:
                self.ended = True
            waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.release()
        if late:
            self._send(backpressure.everything())

    def tell(self, item: TaskRef) -> None:
        """Let the worker know that an item was taken: small ones several at a time."""
        self._untold += 1
        if self._untold >= backpressure.AHEAD // 2 or type(item.outcome) is ObjectRef:
            untold, self._untold = self._untold, 0
            self._send(backpressure.taken(untold))

    def run_freely(self) -> None:
        """Let the worker go on however much there is."""
        with self.lock:
            self._free = True
            # Before the first item the worker may not have begun, and would not know what this is about.
            now = self.count > 0 and not self._told
            self._told = self._told or now
        if now:
            self._send(backpressure.everything())

    def abandon(self) -> bool:
        """Drop what there is and what will come. For `collector().repeat`: never again."""
        with self.lock:
            self.abandoned = True
            self.ready.clear()
        self.run_freely()
        return False

    def _send(self, payload: bytes) -> None:
        source = self.ref.source
        if source is not None and not self.ended:
            source.tell(self.ref, payload)


class ResultStream:
    """
    The results of a task that is a generator, as references, in order and as they come.

    Iterate over it, with ``for`` or ``async for``. An error of the generator is raised by `get` of the reference that comes
    last. The generator is at most 16 results, or 64 MiB of them, ahead of who iterates; if the stream is dropped it runs on, and
    what it yields is dropped too.
    """

    def __init__(self, ref: TaskRef) -> None:
        self._items = _Items(ref)

    def __del__(self, is_finalizing: Callable[[], bool] = is_finalizing) -> None:
        # Bound here: at the end of the interpreter the module's names are gone.
        items = self._items
        if not items.ended and not is_finalizing():
            from .channel import collector

            # Not here: a destructor may run while this thread has the lock of the channel.
            collector().repeat(items.abandon)

    @property
    def take(self) -> Callable[[int, Any], None]:
        """callable : gets kind and outcome of each answer."""
        return self._items.take

    @property
    def ref(self) -> TaskRef:
        """TaskRef : settled when the generator has ended. Who asks for it may wait for that, so nothing holds the generator back."""
        self._items.run_freely()
        return self._items.ref

    def cancel(self, force: bool) -> bool:
        """Cancel the task; see `pyray_ser.cancel`."""
        ref = self._items.ref
        source = ref.source
        return source is not None and bool(source.cancel(ref, force))

    def __iter__(self) -> Iterator[TaskRef]:
        return self

    def __next__(self) -> TaskRef:
        return self.next()

    def next(self, timeout: float | None = None) -> TaskRef:
        """
        Return the reference to the next result.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for it.
        """
        from ..exceptions import GetTimeoutError

        items = self._items
        source = items.ref.source
        if source is not None:
            items.ref.check_process()
            source.collect_later(items.ref)
        deadline = None if timeout is None else time.monotonic() + timeout
        in_time = True
        while True:
            with items.lock:
                if items.ready:
                    item = items.ready.popleft()
                    break
                if items.ended:
                    raise StopIteration
                if not in_time:
                    raise GetTimeoutError(ref=repr(items.ref), timeout=timeout)
                waiter = allocate_lock()
                waiter.acquire()
                items.waiters.append(waiter)
            in_time = waiter.acquire(timeout=patience(deadline))
        items.tell(item)
        return item

    def __aiter__(self) -> AsyncIterator[TaskRef]:
        return self

    async def __anext__(self) -> TaskRef:
        import asyncio

        try:
            return await asyncio.to_thread(self._next_or_end)
        except EOFError:
            raise StopAsyncIteration from None

    def _next_or_end(self) -> TaskRef:
        # StopIteration cannot cross a future.
        try:
            return self.next()
        except StopIteration:
            raise EOFError from None

    def __repr__(self) -> str:
        items = self._items
        return f"ResultStream({items.ref.name}, {items.count} so far{', ended' if items.ended else ''})"


class Parts:
    """The references of a call with ``num_returns=count``."""

    def __init__(self, ref: TaskRef, count: int, source: Source) -> None:
        self.refs = [TaskRef(f"{ref.name}[{i}]", source) for i in range(count)]
        for part in self.refs:
            part.job = ref.job
        self._next = 0

    def take(self, kind: int, outcome: Any) -> None:
        """Take one answer."""
        if kind == protocol.ITEM:
            self.refs[self._next].settle(outcome)
            self._next += 1
        elif kind != protocol.END:
            for ref in self.refs[self._next :]:
                ref.settle(outcome)
