"""Actors on a Dask cluster: the part of the client.

Dask chooses a worker for an actor as for a task. The agent of this worker then owns the actor's process. Calls go through
the scheduler to this agent as messages, not as Dask tasks, because a call must not wait for a free thread of the worker.
They have numbers, so that the agent can restore the order in which they were made.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from .. import _log
from .._core import ObjectRef, fork_count
from ..exceptions import ObjectLostError, TaskCancelledError, WorkerDiedError
from ..tasks import protocol, signatures
from ..tasks.call import encode
from ..tasks.refs import TaskRef
from ..tasks.remote_handles import CLUSTER
from . import actor_host, agent, private_names
from .results import Part, Results, part_of
from .sent import Place, Sent
from .streams import SentStream

if TYPE_CHECKING:
    from ..tasks.actor import Grip
    from ..tasks.refs import Outcome
    from .cluster import Cluster

__all__ = ["ClusterActor", "known_actors"]

# Seconds between two checks whether the worker of an actor lives, if other processes have handles.
_CHECK = 0.25
# Seconds between two checks whether the worker of an actor lives, if a call waits for its answer.
_CHECK_CALL = 1.0
# Seconds that the scheduler may take to report the loss of a worker.
_NOTICE = 10.0


def known_actors(grips: list[Grip]) -> list[TaskRef]:
    """Return references that are settled when Dask knows the actors."""
    return [grip.client.is_known for grip in grips]


class ClusterActor:
    """
    The client of an actor on a cluster; see `pyray_ser.tasks.actor.Client`.

    Parameters
    ----------
    cluster : Cluster
    cls : type
    name : str
    args, kwargs : tuple, dict
    max_restarts : int
    resources : dict
    is_async : bool
    """

    spans_hosts = True
    takes_chunks = False

    def __init__(
        self,
        cluster: Cluster,
        cls: type,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        max_restarts: int,
        resources: dict[str, float],
        is_async: bool,
    ) -> None:
        self.cluster = cluster
        self.cls = cls
        self.name = name
        self.killed = False
        self._restarts = max_restarts
        self._resources = resources
        self._async = is_async
        self._forks = fork_count()
        # Settled when Dask knows the actor. Calls with a handle of this actor are sent after that; otherwise they could
        # occupy all threads that could make the actor, or find no actor.
        self.is_known = TaskRef(f"{name}.__init__")
        # The same in each restart, because handles in other processes contain it.
        self._key = f"{name}-{uuid4().hex}"
        # Whether a handle was sent to another process.
        self._was_sent = False
        self._signatures: dict[str, signatures.Signature] = {}
        args, kwargs, self._arguments = cluster.extract(args, kwargs)
        with cluster.carrying() as carried:
            payload, self._held = encode(f"{name}.__init__", cls, args, kwargs, False, protocol.CREATE)
        # Sending an object to a worker waits, which the event loop must not.
        self._others = known_actors(carried)
        self._carried = carried
        self._prepared = [cluster.packet_or_future(payload, self._held), *map(self._prepare, self._arguments)]
        # The actor as Dask knows it, the worker that has it, and the number of the next call there.
        self._future: Any = None
        self._address = ""
        self._number = 0
        # Why later calls fail.
        self._ended: BaseException | None = None
        self._released = False
        # A call to the worker of the actor has failed, so the worker may be dead.
        self._is_lost = False
        # Calls in the order in which they were made; True after the loss of the worker, and None after the last handle
        # was dropped.
        self._calls: asyncio.Queue[tuple[Sent, agent.Packet | Any, list[Any]] | bool | None] = asyncio.Queue()
        self._in_flight: set[asyncio.Task[None]] = set()
        cluster.start(self._serve())

    def check_process(self) -> None:
        """Raise if the handle was made before this process was forked."""
        if self._forks != fork_count():
            raise ObjectLostError(
                f"the handle of actor {self.name} belongs to the parent of this process, which was forked since",
                ref=f"<actor {self.name}>",
            )

    def check_arguments(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError if arguments do not fit the signature of a method."""
        signature = self._signatures.get(method)
        if signature is None:
            signature = signatures.of_method(self.cls, method, f"{self.name}.{method}")
            self._signatures[method] = signature
        signature.check(args, kwargs)

    @property
    def address(self) -> str:
        """str : What identifies the actor in handles of other processes."""
        return CLUSTER + self._key

    @property
    def is_over(self) -> bool:
        """bool : See `pyray_ser.tasks.actor.Client`."""
        return False

    def announce(self, token: int, grip: Grip) -> None:
        """Keep the actor alive until another process has loaded the handle."""
        self.check_process()
        self.cluster.carry(grip)
        if not self._was_sent:
            self._was_sent = True
            if self._restarts:
                self.cluster.start(self._watch())

    def hello(self, token: int) -> None:
        """Do nothing: the handle has come back to this process."""

    def call(self, name: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], several: bool | int) -> Any:
        """Call a method after all earlier calls; return what ``.remote`` returns."""
        cluster = self.cluster
        cluster.check_running()
        args, kwargs, arguments = cluster.extract(args, kwargs)
        with cluster.carrying() as carried:
            payload, held = encode(name, method, args, kwargs, several, protocol.CALL)
        # Sending an object to a worker waits, which the event loop must not.
        call = cluster.packet_or_future(payload, held)
        ready = [cluster.object(arg) if type(arg) is ObjectRef else arg for arg in arguments]
        sent = cluster.expect(name, several, self)
        sent.keeps += [held, *arguments]
        sent.carried = carried
        cluster.loop.call_soon_threadsafe(self._calls.put_nowait, (sent, call, ready))
        return sent.result()

    def release(self) -> None:
        """End the actor after the calls made so far. This method never blocks, because a destructor calls it."""
        if not self.cluster.loop.is_closed():
            self.cluster.loop.call_soon_threadsafe(self._calls.put_nowait, None)

    def kill(self) -> None:
        """End the actor immediately, without a restart."""
        self.killed = True
        if self._address:
            key = self._future.key
            self.cluster.client.run(actor_host.kill, key, workers=[self._address], on_error="ignore")

    @property
    def key(self) -> str:
        """str : The key under which Dask has the actor."""
        return "" if self._future is None else str(self._future.key)

    def leave(self) -> None:
        """Let Dask release the actor, which was killed."""
        self.killed = True
        if self._future is not None:
            self._future.release()
        self.release()

    # ---- in the event loop

    def _prepare(self, arg: TaskRef | ObjectRef[Any]) -> Any:
        """Return what `_create` needs for an argument of the constructor."""
        if type(arg) is ObjectRef:
            return self.cluster.object(arg)
        assert type(arg) is TaskRef
        return self.cluster.places.get(arg, arg)

    async def _create(self) -> None:
        """Make the actor on a worker, and find the worker."""
        for ref in self._others:
            await self._known(ref)
        given: list[Any] = []
        packets: list[agent.Packet] = []
        for what in self._prepared:
            if type(what) is TaskRef:
                packets.append(await self._known(what))
            elif isinstance(what, Place):
                packets.append(("given", len(given), what.index))
                given.append(what.future)
            elif isinstance(what, tuple):
                packets.append(what)
            else:
                packets.append(("given", len(given), 0))
                given.append(what)
        key = self._key
        head = actor_host.ActorHead(key, self.name, packets[0], packets[1:], self._restarts, self._async)
        self._future = self.cluster.client.submit(
            actor_host.make,
            pickle.dumps(head, 5),
            *given,
            key=key,
            pure=False,
            actor=True,
            # Before tasks that wait for a thread, because these may wait for the actor.
            priority=1,
            resources=self._resources or None,
        )
        self.cluster.settle_soon(self.is_known, b"")
        await self._find()

    async def _serve(self) -> None:
        """Send the calls in order, until the last handle was dropped and all calls are answered."""
        try:
            try:
                await self._create()
            except Exception as error:
                self._ended = error
                self.cluster.settle_soon(self.is_known, error)
            while (found := await self._calls.get()) is not None:
                if isinstance(found, bool):
                    await self._restart_if_lost()
                    continue
                sent, call, arguments = found
                del found
                try:
                    await self._send(sent, call, arguments)
                except Exception as error:
                    self.cluster.arrived(sent, error)
                del sent, call, arguments
            while self._in_flight:
                await asyncio.wait(self._in_flight)
            if self._was_sent and self._ended is None:
                # Dask's key lives as long as the actor, so that handles can be sent on, and the actor ends with this
                # program.
                await self.cluster.client.run(actor_host.let_go, self._key, workers=[self._address], on_error="ignore")
        except Exception as error:
            _log.debug("actor %s is left: %s", self.name, error)
        finally:
            self._released = True
            if self._future is not None:
                self._future.release()

    async def _find(self) -> None:
        """Wait until the actor is on a worker."""
        cluster, future = self.cluster, self._future
        await private_names.until_done(future)
        if future.status == "finished":
            found = await cluster.client.who_has([future])
            addresses = found.get(future.key)
            if addresses:
                self._address = addresses[0]
                self._number = 0
                if self.killed:
                    await cluster.client.run(actor_host.kill, future.key, workers=[self._address], on_error="ignore")
                return
            self._ended = self._died()
        elif future.status == "error":
            self._ended = await future.exception()
        else:
            self._ended = self._died()

    async def _send(self, sent: Sent, call: Any, arguments: list[Any]) -> None:
        packet = await self._known(call)
        parts = [await self._known(one) for one in arguments]
        for ref in known_actors(sent.carried):
            await self._known(ref)
        if sent.key not in self.cluster.pending:
            return  # cancelled
        if self._ended is None and (self._is_lost or self._future.status != "finished"):
            await self._restart()
        if self._ended is not None:
            raise self._ended
        head = actor_host.CallHead(self._future.key, self._number, sent.key, sent.name, packet, parts, sent.several)
        self._number += 1
        task = asyncio.ensure_future(self._exchange(sent, pickle.dumps(head, 5), self._address))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _known(self, what: Any) -> agent.Packet:
        """Return the packet of an argument when it is ready."""
        if isinstance(what, tuple):
            return what
        if type(what) is TaskRef:
            done = asyncio.Event()
            loop = self.cluster.loop
            what.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
            await done.wait()
            outcome: Outcome | None = what.outcome
            assert outcome is not None
            return "part", part_of(outcome), 0
        results: Results = await self.cluster.client.gather(what)
        part: Part = results.parts[0]
        return "part", part, 0

    async def _exchange(self, sent: Sent, head: bytes, address: str) -> None:
        client = self.cluster.client
        sent.address = address
        try:
            results = await self._answer(head, address)
            if isinstance(sent, SentStream) and not results.parts:
                await sent.read()
                return
        except Exception as error:
            _log.debug("actor %s does not answer: %s", self.name, error)
            # The scheduler may notice the death of the worker later.
            self._is_lost = self._is_lost or address == self._address
            self.cluster.arrived(sent, self._died(sent.name))
            return
        try:
            if any(kind == "object" for kind, _, _ in results.parts):
                # From now on, Dask keeps the result.
                kept = await client.scatter({sent.key: results}, workers=[address], hash=False)
                for i, ref in enumerate(sent.refs):
                    self.cluster.places[ref] = Place(kept[sent.key], i, sent.key)
        except Exception as error:
            self.cluster.arrived(sent, error)
        else:
            self.cluster.arrived(sent, results)

    async def _answer(self, head: bytes, address: str) -> Results:
        """Return the answer of the actor. The connection does not show the loss of a worker that is stopped."""
        future = self._future
        request = asyncio.ensure_future(self.cluster.direct.run(address, actor_host.call, head))
        try:
            while not request.done():
                await asyncio.wait([request], timeout=_CHECK_CALL)
                if not request.done() and future.status != "finished":
                    raise ConnectionResetError("the scheduler has lost the worker")
            results: Results = request.result()
            return results
        finally:
            request.cancel()

    async def _restart(self) -> None:
        """Make the actor again on another worker, if its worker has ended and restarts are left."""
        if self.killed or self._restarts == 0:
            self._ended = self._died()
            return
        self._restarts -= 1
        # The new actor has the same key, so a late report of the scheduler about the old one would end the new one.
        until = time.monotonic() + _NOTICE
        while self._future.status == "finished" and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self._address = ""
        self._is_lost = False
        self._future.release()
        await private_names.until_released(self.cluster.client, self._key)
        await self._create()

    async def _restart_if_lost(self) -> None:
        try:
            if self._ended is None and self._future.status != "finished":
                await self._restart()
        except Exception as error:
            self._ended = error

    async def _watch(self) -> None:
        """Restart the actor after the death of its worker, even if this program calls no method."""
        while not self._released and self._ended is None:
            await asyncio.sleep(_CHECK)
            if self._address and self._future.status != "finished":
                self._calls.put_nowait(True)

    def _died(self, task: str | None = None) -> WorkerDiedError:
        return WorkerDiedError(
            f"the Dask worker {self._address} of actor {self.name} has ended"
            + ("" if task is None else f", so {task} has no result"),
            task=task,
        )

    # ---- the source of its references

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """See `Cluster.collect`."""
        return self.cluster.collect(ref, deadline)

    def collect_later(self, ref: TaskRef) -> bool:
        """See `Cluster.collect_later`."""
        return self.cluster.collect_later(ref)

    def tell(self, ref: TaskRef, payload: bytes) -> None:
        """Do nothing: the source of a stream is its `SentStream`; see `Source`."""

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Cancel a call that has not started."""
        if force:
            raise ValueError("force=True ends a task; an actor is ended by kill(actor)")
        self.check_process()
        sent = self.cluster.sent_of(ref)
        if sent is None:
            return False
        if sent.address:
            # The actor decides whether the request arrives in time.
            self.cluster.client.run(agent.cancel, sent.key, False, workers=[sent.address], on_error="ignore")
            return False
        return self.cluster.give_up(sent, TaskCancelledError(task=sent.name))
