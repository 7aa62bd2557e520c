"""Streams on a Dask cluster: the part of the client, which asks the agent for the items; see `stream_host`.

An item is a settled reference. A large item stays in the store of the host where it was made, and Dask keeps it under a
separate key, so that tasks that need it run there.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from .._calls import Job
from ..exceptions import WorkerDiedError
from ..tasks.channel import stop
from ..tasks.refs import TaskRef
from ..tasks.streams import Items, ResultStream
from . import stream_host
from .sent import Place, Sent

if TYPE_CHECKING:
    from ..tasks.refs import Outcome, Source
    from .cluster import Cluster
    from .results import Results
    from .stream_host import Answer

__all__ = ["SentStream"]


class SentStream(Sent):
    """
    A call that returns a stream and has not ended. It is also the source of the stream's reference.

    Parameters
    ----------
    key : str
    name : str
    cluster : Cluster
    source : Cluster or ClusterActor
        Cancels the call.

    Attributes
    ----------
    run : str
        Identifies the attempt to run a task; empty until it runs, and for a call of an actor.
    """

    spans_hosts = True

    def __init__(self, key: str, name: str, cluster: Cluster, source: Source) -> None:
        ref = TaskRef(name, self)
        super().__init__(key, name, True, [ref])
        self.run = ""
        self._cluster = cluster
        self._source = source
        self._job = ref.job = Job(ref, b"", 0, None)
        self._arrived: deque[Any] = deque()
        self._job.items = self._arrived
        self._items = self._job.stream = Items(ref, self._job)
        # The number of items that have arrived from the agent.
        self._count = 0
        # What to report about the items that the program has taken, what was reported, and whether a coroutine reports.
        self._report = self._reported = b""
        self._reporting = False

    def result(self) -> ResultStream:
        """Return the value of ``.remote(...)``. Its destructor ends the stream, so this object has no reference to it."""
        return ResultStream(self._items)

    def settle(self, outcomes: list[Outcome]) -> None:
        """End the stream; an error is also its last item."""
        [outcome] = outcomes
        if type(outcome) is not bytes:
            stop(self._job, outcome)
            return
        self._job.ref.settle(outcome)
        self._job.ended = True
        self._items.notice()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error."""
        stop(self._job, error)

    def deliver(self, items: list[TaskRef]) -> None:
        """Pass items to the reader, in the thread that settles references."""
        if self._cluster.pending.get(self.key) is self:
            self._arrived.extend(items)
            self._items.notice()

    # ---- in the event loop

    async def read(self) -> None:
        """
        Get the items and the end of the stream from the agent at `address`.

        Raises
        ------
        Exception
            If the worker fails.
        """
        cluster = self._cluster
        while cluster.pending.get(self.key) is self:
            payload = self._reported = self._report
            answers = await cluster.client.run(stream_host.take, self.key, self.run, payload, workers=[self.address])
            answer: Answer = answers[self.address]
            if answer.items:
                cluster.deliver(self, await self._references(answer.items))
            if answer.end is not None:
                cluster.arrived(self, answer.end)
                return

    async def _references(self, items: list[Results]) -> list[TaskRef]:
        """Return references to items; from now on, Dask keeps the large ones."""
        numbered = list(enumerate(items, self._count))
        self._count += len(items)
        large = {stream_host.item_key(self.key, i): one for i, one in numbered if one.parts[0][0] == "object"}
        kept: dict[str, Any] = {}
        if large:
            kept = await self._cluster.client.scatter(large, workers=[self.address], hash=False)
        refs = []
        for i, results in numbered:
            ref = TaskRef(f"{self.name}[{i}]")
            ref.settle(results.outcome(0))
            key = stream_host.item_key(self.key, i)
            if key in kept:
                self._cluster.places[ref] = Place(kept[key], 0, key)
            refs.append(ref)
        return refs

    def _note(self, payload: bytes) -> None:
        """Report to the agent; without an agent, the first request for items contains the report."""
        self._report = payload
        if self.address and not self._reporting:
            self._reporting = True
            self._cluster.spawn(self._report_all())

    async def _report_all(self) -> None:
        try:
            while self._report != self._reported and self._cluster.pending.get(self.key) is self:
                payload = self._reported = self._report
                await self._cluster.client.run(
                    stream_host.report, self.key, self.run, payload, workers=[self.address], on_error="ignore"
                )
        finally:
            self._reporting = False

    def died(self) -> WorkerDiedError:
        """Return the error for the end of the Dask worker."""
        return WorkerDiedError(
            f"the Dask worker {self.address} that ran {self.name} has ended; a stream does not run again, because its "
            "items would arrive twice",
            task=self.name,
        )

    # ---- the source of the reference

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """See `Cluster.collect`."""
        return self._cluster.collect(ref, deadline)

    def collect_later(self, ref: TaskRef) -> bool:
        """See `Cluster.collect_later`."""
        return self._cluster.collect_later(ref)

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Cancel the call; see `pyray_ser.cancel`."""
        return self._source.cancel(ref, force)

    def tell(self, ref: TaskRef, payload: bytes) -> None:
        """Report which items were taken. This method never blocks, because a destructor calls it."""
        loop = self._cluster.loop
        try:
            loop.call_soon_threadsafe(self._note, payload)
        except RuntimeError:
            if not loop.is_closed():
                raise
