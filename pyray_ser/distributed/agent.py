"""The part of a Dask worker that runs the tasks of `pyray_ser.remote`: the agent of the cluster on its host.

Dask decides on which worker a task runs. There, the task is a coroutine that passes the call to worker processes of this
package (`pyray_ser.tasks.pool`) and waits for the outcome. So the program's code runs in these processes, and a task
that ends its process does not end the Dask worker. The agent does not unpickle arguments or results.

A large result stays in the store of the host. The agent holds it as long as Dask keeps the key of the task.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import distributed

from .. import _core, _log
from .._core import ObjectRef
from ..exceptions import PyraySerError, TaskCancelledError
from ..store import foreign
from ..tasks import settings as task_settings
from ..tasks.actor import Client
from ..tasks.call import forwarded
from ..tasks.function import Function
from ..tasks.pool import Pool
from ..tasks.refs import TaskRef
from . import forwarding, private_names, settings
from . import plugin as sharing_plugin
from .direct import Desk
from .relays import Relays
from .results import Results, Stored, part_of
from .sharing import take_results
from .stream_host import HostedStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..tasks.call import Call
    from ..tasks.refs import Outcome
    from .actor_host import Hosted

__all__ = [
    "NAME",
    "Agent",
    "AgentPlugin",
    "Head",
    "Packet",
    "agent_of",
    "cancel",
    "has_agent",
    "keep",
    "release_processes",
    "run_task",
]

NAME = "pyray_ser-tasks"
# Seconds without work after which the agent ends its idle processes.
IDLE = 60.0
# How many cancelled keys an agent remembers.
_REMEMBERED = 10_000

# A value that a client sends with a call: "part" and a Part, or "given" with the number of a Dask argument and the index
# of one of its outcomes.
Packet = tuple[str, Any, int]


class Head(NamedTuple):
    """A call as a client sends it. It is sent as bytes, because Dask's scheduler unpickles and pickles arguments."""

    key: str
    name: str
    function_number: int
    function: Packet
    call: Packet
    arguments: list[Packet]
    several: bool | int
    max_retries: int
    # The topic of Dask's events by which to announce a stream.
    topic: str


class AgentPlugin(distributed.WorkerPlugin):  # type: ignore[misc]
    """Run tasks of this package in a Dask worker."""

    name = NAME
    # A second client must not end the agents that the first one uses.
    idempotent = True

    def __init__(self) -> None:
        self.agent: Agent | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return AgentPlugin, ()

    async def setup(self, worker: Any) -> None:
        """
        Start the agent of a worker.

        Parameters
        ----------
        worker : distributed.Worker

        Raises
        ------
        RuntimeError
            If the worker cannot use the store of its host.
        """
        if sharing_plugin.NAME not in worker.plugins:
            await worker.plugin_add(sharing_plugin.SharingPlugin(), name=sharing_plugin.NAME)
        if worker.plugins[sharing_plugin.NAME].sharing is None:
            raise RuntimeError(
                f"worker {worker.address} cannot run tasks of pyray_ser, because it does not use the store of its host; "
                "hint: its log has the reason, and workers must be processes (LocalCluster(processes=True))"
            )
        self.agent = Agent(worker)
        take_results[worker] = self.agent.take

    def teardown(self, worker: Any) -> None:
        """
        End the processes of the agent.

        Parameters
        ----------
        worker : distributed.Worker
        """
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.end()
        take_results.pop(worker, None)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """
        Release what the agent holds for a key that Dask has released, and end a call that no client needs any more.

        Parameters
        ----------
        key : str or tuple
        start : str
        finish : str
        **kwargs
        """
        if self.agent is None:
            return
        # `finish` is what Dask asked for: a running task goes on, and Dask later ignores its result.
        if start in ("executing", "long-running") and finish in ("released", "forgotten"):
            self.agent.abandon(key)
        elif start == "cancelled" or finish in ("released", "forgotten"):
            self.agent.release(key)
        elif finish == "memory":
            self.agent.claim(key)


class Agent:
    """
    Runs calls on the host of a worker.

    Parameters
    ----------
    worker : distributed.Worker
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        # The key of each actor of this agent.
        self.actors: dict[str, Hosted] = {}
        self._loop = asyncio.get_running_loop()
        # Actors and the pool of this process use these settings.
        threads, method = private_names.thread_count(worker), settings.read().start_method
        self.relays = Relays(self)
        self.desk = Desk(worker)
        set_up = forwarding.setup_of(worker, self.relays.address)
        task_settings.inherit({"num_workers": threads, "start_method": method, "set_up": set_up})
        worker.handlers[forwarding.COPY] = forwarding.serve
        self._pool: Pool | None = None
        # The key of each result that Dask keeps here -> its objects.
        self._held: dict[Any, list[ObjectRef[Any]]] = {}
        # The key of each running call -> its reference here.
        self.running: dict[str, TaskRef] = {}
        # Keys of calls that this agent prepares or runs, and of those that no client needs any more, because their client
        # has ended.
        self._calls: set[str] = set()
        self._abandoned: set[str] = set()
        # The key of each stream with items that its client has not taken.
        self.streams: dict[str, HostedStream] = {}
        # The key of each result that Dask does not keep yet -> the key of its actor or stream.
        self.unclaimed: dict[str, str] = {}
        # Keys that were cancelled before they started.
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._rest: asyncio.TimerHandle | None = None

    # ---- calls

    async def run(self, head: Head, given: Sequence[Results]) -> Results:
        """
        Run a call; return its outcomes, also if it failed.

        Parameters
        ----------
        head : Head
        given : sequence of Results
            The results of other calls to which the head refers.
        """
        if head.key in self._cancelled:
            return Results([part_of(TaskCancelledError(task=head.name))])
        if not private_names.is_needed(self.worker, head.key):
            # The client has ended or cancelled the call while Dask was starting it.
            raise distributed.Reschedule
        self._calls.add(head.key)
        try:
            outcomes = await self._run(head, given)
        except Exception as error:
            outcomes = [error]
        finally:
            self._calls.discard(head.key)
        if head.key in self._abandoned:
            self._abandoned.discard(head.key)
            self.release(head.key)
            # Dask runs the call again if a client needs it after all.
            raise distributed.Reschedule
        return self.keep(head.key, outcomes)

    async def _run(self, head: Head, given: Sequence[Results]) -> list[Outcome]:
        code, function_held = await self.payload(head.function, given)
        payload, payload_held = await self.payload(head.call, given)
        arguments = [await self.argument(packet, given) for packet in head.arguments]
        call = forwarded(head.name, payload, payload_held, arguments, head.several, self.pool())
        del payload_held, arguments
        ref = call.job.ref
        if head.key in self._abandoned:
            return []
        self.running[head.key] = ref
        try:
            if head.several is True:
                await self._announce(head, call)
                awaited = [ref]
            else:
                awaited = [ref] if head.several is False else list(call.hand_over())
            self.pool().submit(Function(head.name, head.function_number, code, function_held), call, head.max_retries)
            del call, function_held
            await self.settled(awaited)
        finally:
            self.running.pop(head.key, None)
            self._rest_later()
        # The client asks for the outcomes of a stream.
        return [one.outcome for one in awaited if one.outcome is not None and head.several is not True]

    async def _announce(self, head: Head, call: Call) -> None:
        """Tell the client that a stream is here, and wait until the client asks for items, or the call is cancelled."""
        stream = self.streams[head.key] = HostedStream(self, head.key, head.key, call, secrets.token_hex(8))
        self.worker.log_event(head.topic, {"key": head.key, "address": self.worker.address, "run": stream.run})
        await stream.wanted.wait()

    async def settled(self, refs: Iterable[TaskRef]) -> None:
        """Wait until references are settled."""
        for ref in refs:
            done = asyncio.Event()
            ref.add_done_callback(partial(self._wake, done))
            await done.wait()

    def _wake(self, done: asyncio.Event, _: TaskRef) -> None:
        if not self._loop.is_closed():  # the worker may have ended
            self._loop.call_soon_threadsafe(done.set)

    async def payload(self, packet: Packet, given: Sequence[Results]) -> tuple[bytes, ObjectRef[Any] | None]:
        """Return a payload for `protocol.write`, and the object to hold until a worker process holds it."""
        outcome = await self._outcome(packet, given)
        if type(outcome) is ObjectRef:
            return b"r" + outcome.travel(0, b"")[0], outcome
        if type(outcome) is bytes:
            return b"b" + outcome, None
        assert isinstance(outcome, BaseException)
        raise outcome

    async def argument(self, packet: Packet, given: Sequence[Results]) -> TaskRef:
        ref = TaskRef("argument")
        ref.settle(await self._outcome(packet, given))
        return ref

    async def _outcome(self, packet: Packet, given: Sequence[Results]) -> Outcome:
        """Return an outcome whose object, if any, is in the store of this host."""
        kind, which, index = packet
        outcome = given[which].outcome(index) if kind == "given" else Results([which]).outcome(0)
        if type(outcome) is not ObjectRef or not _core.is_foreign(outcome):
            return outcome
        try:
            # The copy lives as long as this process holds a reference to it.
            copy: ObjectRef[Any] = await asyncio.wrap_future(foreign.arrival(outcome))
            return copy
        except PyraySerError as error:
            return error

    def cancel(self, key: str, force: bool) -> bool | None:
        """Cancel a call; return None if it does not run here. It will then not start here either."""
        ref = self._ref_of(key)
        if ref is None:
            self._cancelled[key] = None
            while len(self._cancelled) > _REMEMBERED:
                self._cancelled.popitem(last=False)
            return None
        source = ref.source
        return source is not None and source.cancel(ref, force)

    def _ref_of(self, key: str) -> TaskRef | None:
        """Return the reference of a running call."""
        stream = self.streams.get(key)
        return self.running.get(key) if stream is None else stream.ref

    def abandon(self, key: Any) -> None:
        """End a call that no client needs any more."""
        if key in self._calls:
            self._abandoned.add(key)
        ref = self.running.get(key)
        if ref is not None and ref.source is not None:
            ref.source.cancel(ref, True)  # never a call of an actor, which is no Dask task

    def secede(self, seconds: float) -> None:
        """
        Let Dask run other tasks beside the running calls, because one of them waits for an actor that Dask has yet to make.

        Otherwise, calls that wait for an actor could occupy all threads of all workers, and the actor would never be made.
        """
        for key, ref in list(self.running.items()):
            if ref.job is not None and ref.job.worker is not None:
                private_names.secede(self.worker, key, seconds)

    def end_call(self, key: str) -> None:
        """End a running call of a client that ends, or let it not start."""
        ref = self._ref_of(key)
        if ref is None or not isinstance(ref.source, Client):  # calls of actors end with their actor
            self.cancel(key, True)

    # ---- results

    def keep(self, key: Any, outcomes: Sequence[Outcome]) -> Results:
        """Hold the objects among the outcomes as long as Dask keeps the key, and return the results for Dask."""
        objects: list[ObjectRef[Any]] = [one for one in outcomes if type(one) is ObjectRef]
        if objects:
            self._held[key] = objects
        return Results([part_of(one) for one in outcomes])

    async def take(self, values: Mapping[Any, Any]) -> None:
        """
        Hold the objects of results that have arrived, and copy those of other hosts into the store of this host.

        Dask believes that a value is where its replica is. Without this, a result would be lost with the worker that made
        it, even if Dask has moved it to another one before, as it does when it retires a worker.

        Parameters
        ----------
        values : mapping
            The key of each value that Dask has fetched -> the value.
        """
        found = {key: value.objects() for key, value in values.items() if type(value) is Results}
        missing = [ref for refs in found.values() for ref in refs if _core.is_foreign(ref)]
        arrivals = [asyncio.wrap_future(foreign.arrival(ref)) for ref in missing]
        for arrived in await asyncio.gather(*arrivals, return_exceptions=True):
            if isinstance(arrived, Exception):
                # The call that reads the object raises this error.
                _log.debug("the object of a result has not arrived: %s", arrived)
        for key, refs in found.items():
            # Dask can have released the key meanwhile. The value itself does not hold the objects, as Dask may spill it.
            if refs and private_names.is_needed(self.worker, key):
                self._held[key] = refs

    def holds(self, key: Any) -> bool:
        """Return whether this agent holds objects for a key."""
        return key in self._held

    def claim(self, key: Any) -> None:
        """Note that Dask keeps the results of a call of an actor, or an item of a stream."""
        self.unclaimed.pop(key, None)

    def release(self, key: Any) -> None:
        """Release the objects, the actor and the streams of a key."""
        streams = [stream for stream in self.streams.values() if stream.owner == key] if self.streams else []
        for stream in streams:
            del self.streams[stream.key]
            stream.drop()
        hosted = self.actors.pop(key, None)
        if hosted is not None:
            hosted.release(is_reading=bool(streams))
        # Results that the client has not passed to Dask are lost with the client.
        for other in [other for other, owner in self.unclaimed.items() if owner == key] if self.unclaimed else ():
            del self.unclaimed[other]
            self._held.pop(other, None)
        if self._held.pop(key, None) is not None:
            self._rest_later()

    # ---- processes

    def pool(self) -> Pool:
        """Return the pool, which starts processes when they are needed."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._pool is None:
            self._pool = Pool()
        return self._pool

    def _rest_later(self) -> None:
        if self._rest is None and not self.running and not self._held:
            self._rest = self._loop.call_later(IDLE, self._rest_if_idle)

    def _rest_if_idle(self) -> None:
        self._rest = None
        if not self.running and not self._held:
            self.release_processes()

    def release_processes(self) -> None:
        """Let the processes end after their calls, because they keep functions that they have loaded."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.finish()

    def end(self) -> None:
        """End all processes."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.end()
        for hosted in self.actors.values():
            hosted.kill()
        self.actors.clear()
        self.streams.clear()
        if self._rest is not None:
            self._rest.cancel()
        self.worker.handlers.pop(forwarding.COPY, None)
        self.relays.end()
        self.desk.end()
        self._held.clear()


# ---- what Dask calls in a worker --------------------------------------------------------------------------------------


def agent_of(worker: Any) -> Agent:
    plugin = worker.plugins.get(NAME)
    if plugin is None or plugin.agent is None:
        raise RuntimeError(
            f"worker {worker.address} runs no tasks of pyray_ser; hint: call pyray_ser.init(address=...) again, and look at "
            "the log of the worker"
        )
    agent: Agent = plugin.agent
    return agent


async def run_task(head: bytes, *given: Results) -> Results:
    """Run a call; this is the Dask task of each call of a remote function."""
    return await agent_of(private_names.current_worker()).run(pickle.loads(head), given)


async def keep(key: str, stored: Stored) -> Results:
    """Make an object in the store of this host, and keep it as long as Dask keeps the key."""
    from distributed.utils import offload

    agent = agent_of(private_names.current_worker())
    try:
        return agent.keep(key, [await offload(stored.put)])
    except PyraySerError as error:
        return Results([part_of(error)])


async def cancel(key: str, force: bool, dask_worker: Any = None) -> bool | None:
    """Cancel a call on a worker."""
    return agent_of(dask_worker).cancel(key, force)


async def has_agent(dask_worker: Any = None) -> bool:
    """Return whether a worker runs tasks of this package."""
    plugin = dask_worker.plugins.get(NAME)
    return plugin is not None and plugin.agent is not None


async def release_processes(keys: list[str], actors: list[str], dask_worker: Any = None) -> None:
    """End the running calls and the actors of a client, and let the idle processes end."""
    plugin = dask_worker.plugins.get(NAME)
    if plugin is None or plugin.agent is None:
        return
    for key in actors:
        hosted = plugin.agent.actors.get(key)
        if hosted is not None:
            hosted.kill()
    for key in keys:
        plugin.agent.end_call(key)
    plugin.agent.release_processes()
    _log.debug("a client has left worker %s", dask_worker.address)
