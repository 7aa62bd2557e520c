"""Streams on a Dask cluster: the part of the agent, where the generators run.

A stream that a pool or an actor of this host produces is one of this node. The agent keeps its items until the client
asks for them. It passes the reports of the client about the items that the program has taken to the generator, so the
generator runs as far ahead of the program as on one node.

Dask runs a task again if its worker dies, but a stream must not start twice. So the agent announces a task's stream to
the client, and starts the generator when the client asks for the first item.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .._core import ObjectRef
from . import agent as agents
from .results import Results, part_of

if TYPE_CHECKING:
    from ..tasks.call import Call
    from ..tasks.refs import TaskRef
    from ..tasks.streams import Items, ResultStream
    from .agent import Agent

__all__ = ["Answer", "HostedStream", "item_key", "report", "take"]

# Seconds after which the agent answers without an item, because each request occupies a connection of the scheduler.
_PATIENCE = 10.0


class Answer(NamedTuple):
    """Items of a stream, and the outcome of the call if these are the last ones."""

    items: list[Results]
    end: Results | None


def item_key(key: str, number: int) -> str:
    """Return the key by which Dask keeps a large item of a stream."""
    return f"{key}-{number}"


class HostedStream:
    """
    A stream whose generator runs on this host, and whose reader is a client.

    Parameters
    ----------
    agent : Agent
    key : str
        The key of the call.
    owner : str
        The key of the actor, or that of the call. When Dask releases it, no client needs the stream.
    call : Call
    run : str
        Identifies this attempt to run the call.

    Attributes
    ----------
    wanted : asyncio.Event
        Set when the client has asked for an item, or the call has ended.
    """

    def __init__(self, agent: Agent, key: str, owner: str, call: Call, run: str = "") -> None:
        self.key = key
        self.owner = owner
        self.run = run
        self.wanted = asyncio.Event()
        self._agent = agent
        self._items: Items = call.job.stream
        # Its destructor ends the generator.
        self._result: ResultStream | None = call.hand_over()
        self._count = 0
        self.ref.add_done_callback(partial(self._wake, asyncio.get_running_loop()))

    @property
    def ref(self) -> TaskRef:
        """TaskRef : the reference to the end of the stream."""
        return self._items.ref

    def _wake(self, loop: asyncio.AbstractEventLoop, _: TaskRef) -> None:
        if not loop.is_closed():  # the worker may have ended
            loop.call_soon_threadsafe(self.wanted.set)

    def report(self, payload: bytes) -> None:
        """Apply what the client reports about the items that its program has taken; see `backpressure`."""
        if payload:
            self._items.report(payload)

    async def take(self, payload: bytes) -> Answer:
        """
        Return the items that have arrived, after waiting for one of them.

        Parameters
        ----------
        payload : bytes
            As for `report`.
        """
        self.wanted.set()
        self.report(payload)
        items = self._items
        until = time.monotonic() + _PATIENCE
        while True:
            # Check this first, because the last item and the end of the stream may arrive in one step.
            ended = items.ended
            found = items.take_all()
            if found or ended or time.monotonic() > until:
                break
            await items.wait_async()
        end = None
        if ended:
            outcome = self.ref.outcome
            assert outcome is not None
            # The error of a stream is also its last item; the client adds it again.
            if found and found[-1] is outcome:
                found.pop()
            end = Results([part_of(outcome)])
            self._agent.streams.pop(self.key, None)
        return Answer([self._keep(one) for one in found], end)

    def _keep(self, outcome: Any) -> Results:
        key = item_key(self.key, self._count)
        self._count += 1
        if type(outcome) is ObjectRef:
            # Until Dask keeps the item; if the client ends before that, with the owner.
            self._agent.unclaimed[key] = self.owner
        return self._agent.keep(key, [outcome])

    def drop(self) -> None:
        """End the generator at its next item, and release the items, because no client needs them."""
        self._result = None


def _stream_of(key: str, run: str, worker: Any) -> HostedStream | None:
    stream = agents.agent_of(worker).streams.get(key)
    return stream if stream is not None and stream.run == run else None


async def take(key: str, run: str, payload: bytes, dask_worker: Any = None) -> Answer:
    """Return the next items of a stream of this worker; see `HostedStream.take`."""
    stream = _stream_of(key, run, dask_worker)
    if stream is None:
        raise LookupError(f"worker {dask_worker.address} has no stream {key}")
    return await stream.take(payload)


async def report(key: str, run: str, payload: bytes, dask_worker: Any = None) -> None:
    """Tell a stream of this worker, unless it has ended, which items were taken."""
    stream = _stream_of(key, run, dask_worker)
    if stream is not None:
        stream.report(payload)
