"""Calls with several results: a stream of as many as there come, or a number known before."""

from __future__ import annotations

import threading
from collections import deque

from . import messages
from .refs import TaskRef

__all__ = ["Parts", "ResultStream"]


class ResultStream:
    """
    The results of a task that is a generator, as references, in order and as they come.

    Iterate over it, with ``for`` or ``async for``. An error of the generator is raised by `get` of the reference that comes
    last.
    """

    def __init__(self, ref: TaskRef) -> None:
        self._ref = ref
        self._ready: deque[TaskRef] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._count = 0

    def take(self, kind: int, outcome) -> None:
        """Take one answer. Called by whoever reads the channel."""
        with self._changed:
            if kind in (messages.ITEM, messages.FAILURE):
                item = TaskRef(f"{self._ref.name}[{self._count}]")
                item.settle(outcome)
                self._count += 1
                self._ready.append(item)
            if kind != messages.ITEM:
                self._ended = True
            self._changed.notify_all()

    @property
    def ref(self) -> TaskRef:
        """TaskRef : settled when the generator has ended; what `cancel` takes."""
        return self._ref

    def __iter__(self):
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

        self._ref_is_read()
        with self._changed:
            if not self._changed.wait_for(lambda: self._ready or self._ended, timeout):
                raise GetTimeoutError(ref=repr(self._ref), timeout=timeout)
            if self._ready:
                return self._ready.popleft()
        raise StopIteration

    def _ref_is_read(self) -> None:
        source = self._ref.source
        if source is not None:
            source.collect_later(self._ref)

    def __aiter__(self):
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
        return f"ResultStream({self._ref.name}, {self._count} so far{', ended' if self._ended else ''})"


class Parts:
    """The references of a call with ``num_returns=count``."""

    def __init__(self, ref: TaskRef, count: int, source) -> None:
        self.refs = [TaskRef(f"{ref.name}[{i}]", source) for i in range(count)]
        for part in self.refs:
            part.job = ref.job
        self._next = 0

    def take(self, kind: int, outcome) -> None:
        """Take one answer."""
        if kind == messages.ITEM:
            self.refs[self._next].settle(outcome)
            self._next += 1
        elif kind != messages.END:
            for ref in self.refs[self._next :]:
                ref.settle(outcome)
