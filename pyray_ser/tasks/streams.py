"""Calls with several results: a stream of any length, or a fixed number of results.

This module uses no locks. Received items are in a deque of the call's `Job`. A waiting thread registers a callback for
the next change, and then checks again for items.
"""

from __future__ import annotations

import time
from _thread import allocate_lock
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import count
from sys import is_finalizing
from typing import TYPE_CHECKING

from .._core import ObjectRef
from . import backpressure
from .refs import SLICE, Outcome, Source, TaskRef, patience

if TYPE_CHECKING:
    import asyncio

    from .._calls import Job

__all__ = ["Items", "Parts", "ResultStream"]


class Items:
    """The items of a stream that were received but not taken. The call holds this object if the stream is dropped."""

    def __init__(self, ref: TaskRef, job: Job) -> None:
        self.ref = ref
        self._job: Job | None = job
        assert job.items is not None
        self._ready = job.items
        # Each callback is called once, at the next change.
        self.waiters: dict[object, Callable[[], object]] = {}
        self._numbers = count()
        self._counts = count(1)
        self.taken = 0
        # The number of taken items that was reported to the worker.
        self._told = 0
        # Whether the reader no longer wants the remaining items.
        self._abandoned = False
        # The payload that is sent instead of counts from now on, and whether the worker had started the call when it
        # was sent.
        self._last: bytes | None = None
        self._last_told = False

    @property
    def ended(self) -> bool:
        """bool : Whether no more items will arrive."""
        job = self._job
        return job is None or job.ended

    @property
    def waits(self) -> bool:
        """bool : Whether the reader must wait for the next item."""
        return not self.ended and not self._ready

    def notice(self) -> None:
        """Wake waiting threads after a change. The reader of the channel calls this, possibly more often than needed."""
        if self._abandoned:
            self._ready.clear()
        if self._last is not None and not self._last_told:
            # Before the first item, the worker may not have started the call. In that case it ignores the message.
            self._last_told = True
            self._send(self._last)
        if self.ended:
            # Job and stream refer to each other. This cycle would keep the items alive until the next garbage
            # collection.
            self._job = None
        while self.waiters:
            try:
                _, act = self.waiters.popitem()
            except KeyError:
                return
            act()

    def take(self) -> TaskRef | None:
        """Return the next item, or None."""
        try:
            item = self._ready.popleft()
        except IndexError:
            return None
        number = next(self._numbers)
        # A cluster adds references, because it knows more about its items than their outcomes.
        if type(item) is not TaskRef:
            outcome, item = item, TaskRef(f"{self.ref.name}[{number}]")
            item.settle(outcome)
        self.taken = next(self._counts)
        # Report several small items at a time.
        if self.taken - self._told >= backpressure.AHEAD // 2 or type(item.outcome) is ObjectRef:
            self.tell()
        return item

    def take_all(self) -> list[Outcome]:
        """Return the outcomes that have arrived, for a reader in another process, which reports them by `report`."""
        taken: list[Outcome] = []
        with suppress(IndexError):
            while True:
                taken.append(self._ready.popleft())
        return taken

    def report(self, payload: bytes) -> None:
        """Pass on the payload of TAKEN that a reader in another process has sent."""
        if payload == backpressure.nothing():
            self.abandon()
        elif payload == backpressure.everything():
            self.run_freely()
        else:
            self._send(payload)

    def tell(self) -> None:
        """Report to the worker how many items were taken."""
        if self._told != self.taken and self._last is None:
            self._told = self.taken
            self._send(backpressure.taken(self.taken))

    def run_freely(self) -> None:
        """Let the worker continue without a limit."""
        if self._last is None:
            self._last = backpressure.everything()
            self._send(self._last)

    def abandon(self) -> bool:
        """Discard the items and end the stream. Return False, so that `collector().repeat` does not call this again."""
        self._abandoned = True
        self._ready.clear()
        if self._last is None:
            self._last = backpressure.nothing()
            self._send(self._last)
        return False

    def _send(self, payload: bytes) -> None:
        source = self.ref.source
        if source is not None and not self.ended:
            source.tell(self.ref, payload)

    def ask(self) -> bool:
        """Have another thread read the answers; see `Source.collect_later`."""
        source = self.ref.source
        if source is None:
            return False
        self.ref.check_process()
        return source.collect_later(self.ref)

    def wait(self, deadline: float | None) -> bool:
        """Sleep until an item may have arrived; return False after the deadline."""
        self.tell()
        waiter = allocate_lock()
        waiter.acquire()
        self.waiters[waiter] = waiter.release
        try:
            if not self.waits:
                return True
            if self.ask():
                # This code runs in a signal handler or finalizer that interrupts the reading thread.
                until = time.monotonic() + 0.005
                self.ref.join(until if deadline is None else min(until, deadline))
            else:
                # Wait for a limited time, because the reading thread may have stopped.
                waiter.acquire(timeout=SLICE if deadline is None else min(SLICE, patience(deadline)))
        finally:
            self.waiters.pop(waiter, None)
        return deadline is None or time.monotonic() < deadline

    async def wait_async(self) -> None:
        """Wait until an item may have arrived, without using a thread."""
        import asyncio

        self.tell()
        loop = asyncio.get_running_loop()
        moved: asyncio.Future[None] = loop.create_future()
        self.waiters[moved] = lambda: _wake(loop, moved)
        try:
            self.ask()
            if self.waits:
                await asyncio.wait([moved], timeout=SLICE)
        finally:
            self.waiters.pop(moved, None)

    def __repr__(self) -> str:
        so_far = self.taken + len(self._ready)
        return f"{self.ref.name}, {so_far} so far{', ended' if self.ended else ''}"


def _wake(loop: asyncio.AbstractEventLoop, moved: asyncio.Future[None]) -> None:
    def wake() -> None:
        if not moved.done():
            moved.set_result(None)

    if loop.is_closed():
        return  # the event loop is closed, so no code is waiting
    try:
        loop.call_soon_threadsafe(wake)
    except RuntimeError:
        if not loop.is_closed():
            raise


class ResultStream:
    """
    An iterator over references to the results of a generator task, in order, as they arrive.

    Iterate over this object with ``for`` or ``async for``. If the generator raises an error, `get` of the last
    reference raises it. The generator runs at most 16 results, or 64 MiB of results, ahead of its reader. If the stream
    is dropped, the worker closes the generator at its next item.
    """

    def __init__(self, items: Items) -> None:
        self._items = items

    def __del__(self, is_finalizing: Callable[[], bool] = is_finalizing) -> None:
        # Get the function from a default argument: at shutdown, the interpreter may have cleared the module's globals.
        items = self._items
        if not items.ended and not is_finalizing():
            items.abandon()

    @property
    def ref(self) -> TaskRef:
        """
        TaskRef : A reference that is settled when the generator has ended.

        After this access the generator runs to its end, even if no process takes its items, because a process may wait
        for the end.
        """
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
        items = self._items
        deadline = None if timeout is None else time.monotonic() + timeout
        in_time = True
        while True:
            # Check this first, because the last item and the end of the stream may arrive in one step.
            ended = items.ended
            item = items.take()
            if item is not None:
                return item
            if ended:
                raise StopIteration
            if not in_time:
                from ..exceptions import GetTimeoutError

                raise GetTimeoutError(ref=repr(items.ref), timeout=timeout)
            in_time = items.wait(deadline)

    def __aiter__(self) -> AsyncIterator[TaskRef]:
        return self

    async def __anext__(self) -> TaskRef:
        items = self._items
        while True:
            ended = items.ended
            # There is no await after this code takes an item, so a cancelled wait loses no item.
            item = items.take()
            if item is not None:
                return item
            if ended:
                raise StopAsyncIteration
            await items.wait_async()

    def __repr__(self) -> str:
        return f"ResultStream({self._items!r})"

    def _repr_html_(self) -> str:
        from ..store.references import table

        items = self._items
        rows = [("task", items.ref.name), ("taken", str(items.taken)), ("waiting", str(len(items._ready)))]
        return table("ResultStream", [*rows, ("ended", "yes" if items.ended else "no")])


class Parts:
    """The references of a call with ``num_returns=count``."""

    def __init__(self, ref: TaskRef, count: int, source: Source, job: Job) -> None:
        self.refs = [TaskRef(f"{ref.name}[{i}]", source) for i in range(count)]
        for part in self.refs:
            part.job = job
        self._job: Job | None = job

    def notice(self) -> None:
        """Settle the references whose outcome has arrived. The call may be repeated."""
        job = self._job
        if job is None:
            return
        outcomes = list(job.items or ())
        for part, outcome in zip(self.refs, outcomes, strict=False):
            part.settle(outcome)
        if job.ended and outcomes:
            # An error settles all remaining references.
            for part in self.refs[len(outcomes) :]:
                part.settle(outcomes[-1])
        if job.ended:
            # Job and parts refer to each other. This cycle would keep the results alive until the next garbage collection.
            self._job = None
