"""Actors on a Dask cluster: the part of the agent, which owns the actor's process.

Dask knows the actor as a key of its worker. The actor ends when Dask releases this key, because the client has dropped
its last handle or has ended.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _core
from ..tasks import protocol
from ..tasks.actor import Grip, Owner
from ..tasks.call import forwarded
from . import agent as agents
from . import private_names
from .results import Results
from .stream_host import HostedStream

if TYPE_CHECKING:
    from .agent import Agent, Packet

__all__ = ["ActorHead", "CallHead", "Hosted", "call", "kill", "let_go", "make"]

# Seconds between two checks whether an actor has ended.
_CHECK = 0.2


class ActorHead(NamedTuple):
    """An actor to make, as a client sends it."""

    key: str
    name: str
    call: Packet
    arguments: list[Packet]
    max_restarts: int
    is_async: bool


class CallHead(NamedTuple):
    """A call of an actor, as a client sends it."""

    actor: str
    number: int
    key: str
    name: str
    call: Packet
    arguments: list[Packet]
    several: bool | int


class Hosted:
    """
    An actor whose process this agent owns.

    Parameters
    ----------
    agent : Agent
    owner : Owner
    """

    def __init__(self, agent: Agent, owner: Owner) -> None:
        self._agent = agent
        # Held as long as the program has a handle.
        self._grip: Grip | None = Grip(owner)
        self._owner = owner
        self._is_shared = False
        # The number of the call whose turn it is, and the calls that arrived before their turn.
        self._turn = 0
        self._early: dict[int, asyncio.Event] = {}

    async def call(self, head: CallHead) -> Results:
        """
        Run a call after those with lower numbers; return its outcomes, also if it failed.

        For a stream, return when its outcomes can be requested (`stream_host`); there are none here, unless it cannot run.
        """
        agent = self._agent
        owner = self._owner
        prepared = await self._prepare(head)
        if head.number != self._turn:
            event = self._early[head.number] = asyncio.Event()
            await event.wait()
        try:
            if isinstance(prepared, Exception):
                return agent.keep(head.key, [prepared])
            payload, held, arguments = prepared
            work = forwarded(head.name, payload, held, arguments, head.several, owner)
            del prepared, payload, held, arguments
            if head.several is True:
                agent.streams[head.key] = HostedStream(agent, head.key, head.actor, work)
                owner.submit(work)
                return Results([])
            awaited = [work.job.ref] if head.several is False else list(work.hand_over())
            agent.running[head.key] = work.job.ref
            owner.submit(work)
            del work
        finally:
            self._turn += 1
            following = self._early.pop(self._turn, None)
            if following is not None:
                following.set()
        try:
            await agent.settled(awaited)
        finally:
            agent.running.pop(head.key, None)
        results = agent.keep(head.key, [one.outcome for one in awaited if one.outcome is not None])
        if agent.holds(head.key):
            agent.unclaimed[head.key] = head.actor
        return results

    async def _prepare(self, head: CallHead) -> Any:
        """Return the payload, the object in it, and the arguments of a call, or the error that prevents it."""
        try:
            payload, held = await self._agent.payload(head.call, ())
            return payload, held, [await self._agent.argument(packet, ()) for packet in head.arguments]
        except Exception as error:
            return error

    def kill(self) -> None:
        """End the actor immediately."""
        self._owner.kill()

    def share(self) -> str:
        """Return the address at which other processes connect to the actor."""
        self._is_shared = True
        return self._owner.address

    async def let_go(self) -> None:
        """Release the handle of the program; return when the actor has ended, because others may have handles."""
        self._grip = None
        owner = self._owner
        start = _core.start_time(owner.pid)
        while start and _core.start_time(owner.pid) == start:
            await asyncio.sleep(_CHECK)
        self._is_shared = False

    def release(self, is_reading: bool) -> None:
        """
        End the actor when Dask has released its key.

        Parameters
        ----------
        is_reading : bool
            Whether the program has not read a stream of the actor to its end.
        """
        # The program has ended if the actor still runs for it or for other processes.
        if self._is_shared or is_reading:
            self.kill()
        self._grip = None


async def make(head: bytes, *given: Results) -> str:
    """Make an actor; this is a Dask task whose result Dask treats as an actor."""
    from distributed.utils import offload

    what: ActorHead = pickle.loads(head)
    agent = agents.agent_of(private_names.current_worker())
    payload, held = await agent.payload(what.call, given)
    arguments = [await agent.argument(packet, given) for packet in what.arguments]

    def start() -> Owner:
        return Owner(
            what.name,
            None,
            lambda owner: forwarded(f"{what.name}.__init__", payload, held, arguments, False, owner, protocol.CREATE),
            what.max_restarts,
            what.is_async,
        )

    agent.actors[what.key] = Hosted(agent, await offload(start))
    return what.key


async def call(head: bytes, dask_worker: Any = None) -> Results:
    """Call a method of an actor of this worker."""
    what: CallHead = pickle.loads(head)
    hosted = agents.agent_of(dask_worker).actors.get(what.actor)
    if hosted is None:
        raise LookupError(f"worker {dask_worker.address} has no actor {what.actor}")
    return await hosted.call(what)


async def let_go(key: str, dask_worker: Any = None) -> None:
    """Release the program's handle of an actor of this worker, and wait until the actor has ended."""
    hosted = agents.agent_of(dask_worker).actors.get(key)
    if hosted is not None:
        await hosted.let_go()


async def kill(key: str, dask_worker: Any = None) -> None:
    """End an actor of this worker."""
    hosted = agents.agent_of(dask_worker).actors.get(key)
    if hosted is not None:
        hosted.kill()
