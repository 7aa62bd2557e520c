"""`Cluster`, the engine that runs the calls of remote functions on the workers of a Dask cluster.

Each call becomes one Dask task, which an agent on a worker runs (`agent`). References to results that are arguments
become dependencies of the task, so Dask runs it where most bytes of its arguments are. The client gets only the names of
large results (`results.Results`). It copies a result into the store of its host when `get` asks for it.

Outcomes arrive in Dask's event loop. A thread of this module settles the references, because callbacks of a reference may
wait, and the event loop must not.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
import threading
import time
import weakref
from _thread import get_ident
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakSet

import distributed

from .. import _core, _log
from .._core import ObjectRef
from ..exceptions import ObjectLostError, TaskCancelledError, WorkerDiedError
from ..store import discovery, foreign
from ..tasks import engine, protocol
from ..tasks.call import after, encode
from ..tasks.refs import TaskRef
from . import agent, copies, memory, private_names, settings
from .actors import ClusterActor, known_actors
from .direct import Direct
from .references import Receiver
from .results import Results, Stored, part_of
from .sent import Place, Sent, settle
from .streams import SentStream

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from ..tasks.actor import Grip
    from ..tasks.function import Function, RemoteFunction
    from ..tasks.refs import Outcome, Source

__all__ = ["Cluster", "connect"]

# Seconds between two checks whether a worker has the store of this process.
_RECHECK = 5.0
# Seconds that a process may take to connect to the actor of a handle that it has loaded.
_CONNECTING = 2.0


class Cluster:
    """
    The engine of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
    owned : bool
        Whether `shutdown` closes the client.
    """

    spans_hosts = True

    def __init__(self, client: Any, owned: bool) -> None:
        self.client = client
        self._owned = owned
        self.loop = private_names.loop_of(client)
        self._receiver = Receiver(client)
        self.direct = Direct(client)
        self._actors: WeakSet[ClusterActor] = WeakSet()
        self.pending: dict[str, Sent] = {}
        self.places: WeakKeyDictionary[TaskRef, Place] = WeakKeyDictionary()
        # What was sent once: the function or object -> the packet or the future.
        self._functions: WeakKeyDictionary[Function, tuple[int, agent.Packet | Any]] = WeakKeyDictionary()
        self._uploads: WeakKeyDictionary[ObjectRef[Any], Any] = WeakKeyDictionary()
        # Addresses of workers with the store of this process.
        self._neighbours: list[str] = []
        self._checked = 0.0
        self._ended = False
        # A thread that pickles the arguments of a call -> the actors whose handles it has found.
        self._carrying: dict[int, list[Grip]] = {}
        # The topic of Dask's events by which agents announce streams, and the coroutines that read them.
        self._topic = f"pyray_ser-streams-{uuid4().hex}"
        self._tasks: set[asyncio.Task[None]] = set()
        # In the event loop: calls whose results are ready, and whether a coroutine gets them.
        self._ready: list[Sent] = []
        self._gathering = False
        # What the thread that settles references has to do; None ends the thread.
        self._arrived: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="pyray_ser-cluster", daemon=True)

    def begin(self) -> None:
        """Let the workers run tasks, and let this process read objects of other hosts."""
        self.client.register_plugin(agent.AgentPlugin())
        self.client.register_plugin(memory.MemoryPlugin())
        found = self.client.run(agent.has_agent)
        unable = sorted(address for address, has in found.items() if not has)
        if unable:
            raise RuntimeError(
                f"worker {unable[0]} cannot run tasks of pyray_ser; hint: its log has the reason. Workers must be processes "
                "with pyray_ser installed, and use the store of their host"
            )
        private_names.run_in(self.client, self._receive)
        # Dask never forgets the function.
        self.client.subscribe_topic(self._topic, partial(_announced, weakref.ref(self)))
        self._thread.start()

    async def _receive(self) -> None:
        self._receiver.receive()

    # ---- calls

    def check_running(self) -> None:
        """Raise RuntimeError after `shutdown`."""
        if self._ended:
            raise RuntimeError("the cluster was left by shutdown(): call init(address=...) again")

    def call(self, function: RemoteFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function when its arguments are ready; see `Engine`."""
        self.check_running()
        several = function.several
        name = function.name
        pickled = function.pickled()
        code_number, code = self._function(pickled)
        args, kwargs, arguments = self.extract(args, kwargs)
        with self.carrying() as carried:
            payload, held = encode(name, code_number, args, kwargs, several, protocol.CALL)
        sent = self.expect(name, several, self)
        sent.keeps += [pickled, held, *arguments]
        sent.carried = carried
        resources, max_retries = function.resources, function.max_retries

        def submit() -> None:
            # This may run several times, also at the same time; see `after`.
            try:
                sent.right.pop()
            except IndexError:
                return
            if self.pending.get(sent.key) is not sent:
                return  # cancelled
            try:
                given: list[Any] = []
                head = agent.Head(
                    sent.key,
                    name,
                    code_number,
                    _given(code, given),
                    self.packet(payload, held, given),
                    [self.argument(arg, given) for arg in arguments],
                    several,
                    max_retries,
                    self._topic,
                )
                self._submit(sent, pickle.dumps(head, 5), given, resources)
            except Exception as error:
                # For example, the client was closed meanwhile. No other code would settle the references.
                self.give_up(sent, error)
                raise

        # Dask waits for results of Dask tasks, but not for those of actors and of this node.
        others = [arg for arg in arguments if type(arg) is TaskRef and arg not in self.places]
        others += known_actors(carried)
        after([ref for ref in others if ref.outcome is None], submit)
        return sent.result()

    def make_actor(
        self,
        cls: type,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
        is_async: bool,
    ) -> ClusterActor:
        """Make an actor on a worker, and return its client."""
        self.check_running()
        restarts, resources = options.get("max_restarts", 0), options.get("resources", {})
        made = ClusterActor(self, cls, name, args, kwargs, restarts, resources, is_async)
        self._actors.add(made)
        return made

    def extract(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], list[TaskRef | ObjectRef[Any]]]:
        """Replace the references among arguments by placeholders; return the arguments and the references."""
        found: list[Any] = []

        def written(arg: Any) -> Any:
            if type(arg) is TaskRef or type(arg) is ObjectRef:
                found.append(arg)
                return protocol.Placeholder(len(found) - 1)
            return arg

        return tuple(written(arg) for arg in args), {key: written(arg) for key, arg in kwargs.items()}, found

    def expect(self, name: str, several: bool | int, source: Source) -> Sent:
        """Make the references of a call."""
        key = f"{name}-{uuid4().hex}"
        if several is True:
            stream = self.pending[key] = SentStream(key, name, self, source)
            return stream
        names = [name] if several is False else [f"{name}[{i}]" for i in range(several)]
        sent = self.pending[key] = Sent(key, name, several, [TaskRef(each, source) for each in names])
        return sent

    @contextmanager
    def carrying(self) -> Iterator[list[Grip]]:
        """Collect the actors whose handles this thread pickles."""
        thread = get_ident()
        before = self._carrying.get(thread)
        found: list[Grip] = []
        self._carrying[thread] = found
        try:
            yield found
        finally:
            if before is None:
                del self._carrying[thread]
            else:
                self._carrying[thread] = before

    def carry(self, grip: Grip) -> None:
        """Keep an actor alive whose handle was pickled: as long as the call needs it, otherwise for a while."""
        found = self._carrying.get(get_ident())
        if found is not None:
            found.append(grip)
        else:
            self._keep_for(protocol.GRACE, grip)

    def _keep_for(self, seconds: float, what: object) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.call_later, seconds, _nothing, what)

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the event loop of the client."""
        asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def _submit(self, sent: Sent, head: bytes, given: list[Any], resources: dict[str, float]) -> None:
        future = self.client.submit(agent.run_task, head, *given, key=sent.key, pure=False, resources=resources or None)
        sent.future = future
        if not isinstance(sent, SentStream):
            for i, ref in enumerate(sent.refs):
                self.places[ref] = Place(future, i, sent.key)
        self.start(self._follow(sent))

    def _function(self, function: Function) -> tuple[int, Any]:
        """Return the number of a function for all processes of the cluster, and its packet or the future of its bytes."""
        known = self._functions.get(function)
        if known is None:
            code = self.packet_or_future(function.payload, function.held)
            known = self._functions[function] = secrets.randbits(62), code
        return known

    def packet_or_future(self, payload: bytes, held: ObjectRef[Any] | None) -> Any:
        """Return a packet for a payload of `protocol.encode`, or the future of its object."""
        return ("part", ("value", payload[1:], 0), 0) if held is None else self._object(held)

    def packet(self, payload: bytes, held: ObjectRef[Any] | None, given: list[Any]) -> agent.Packet:
        """Return a packet for a payload; append a future that it needs to the arguments of the Dask task."""
        return _given(self.packet_or_future(payload, held), given)

    def argument(self, arg: TaskRef | ObjectRef[Any], given: list[Any]) -> agent.Packet:
        """Return a packet for a reference; append a future that it needs to the arguments of the Dask task."""
        if type(arg) is ObjectRef:
            return _given(self.object(arg), given)
        assert type(arg) is TaskRef
        place = self.places.get(arg)
        if place is not None:
            return _given(place.future, given, place.index)
        outcome = arg.outcome
        assert outcome is not None
        if type(outcome) is ObjectRef:
            return _given(self._object(outcome), given)
        return "part", part_of(outcome), 0

    def _object(self, ref: ObjectRef[Any]) -> Any:
        """Return a packet that names an object, or the future of a copy if no worker could read it from here."""
        if _core.is_foreign(ref) or self._is_shared():
            return "part", part_of(ref), 0
        future = self._uploads.get(ref)
        if future is None:
            stored = self.client.scatter(Stored(foreign.export(ref)), hash=False)
            key = f"pyray_ser-upload-{uuid4().hex}"
            future = self.client.submit(agent.keep, key, stored, key=key, pure=False)
            self._uploads[ref] = future
        return future

    def object(self, ref: ObjectRef[Any]) -> Any:
        """
        Return the future of the name of an object that is an argument, so that Dask knows its size and place.

        A worker that has the name keeps its host's copy of the object. So a host gets the object once for several tasks.
        """
        if _core.is_foreign(ref) or not self._is_shared():
            return self._object(ref)
        future = self._uploads.get(ref)
        if future is None:
            key = f"pyray_ser-object-{uuid4().hex}"
            future = self.client.scatter({key: Results([part_of(ref)])}, workers=self._neighbours, hash=False)[key]
            self._uploads[ref] = future
        return future

    def _is_shared(self) -> bool:
        """Return whether a worker uses the store of this process, so that it can send its objects to other hosts."""
        if not self._neighbours and time.monotonic() >= self._checked:
            store = _core.default()
            mine = None if store is None else f"{store.id:016x}"
            found = self.client.run(copies.token_of_store, on_error="ignore")
            self._neighbours = [address for address, token in found.items() if token == mine]
            self._checked = time.monotonic() + _RECHECK
        return bool(self._neighbours)

    # ---- outcomes, in the event loop

    async def _follow(self, sent: Sent) -> None:
        """Wait for the end of a Dask task."""
        future = sent.future
        await private_names.until_done(future)
        if future.status == "finished":
            if sent.address:
                return  # a stream, whose agent reports its end
            self._ready.append(sent)
            if not self._gathering:
                self._gathering = True
                try:
                    await self._gather()
                finally:
                    self._gathering = False
        elif future.status == "error":
            self.arrived(sent, _error_of(sent, await future.exception()))
        else:
            self.arrived(sent, _lost(sent))

    async def _gather(self) -> None:
        """Get the results that are ready, many with one request."""
        while self._ready:
            batch, self._ready = self._ready, []
            try:
                found = await self.client.gather([sent.future for sent in batch])
            except (Exception, distributed.CancelledError) as error:
                _log.debug("results are requested one by one: %s", error)
                found = [await self._gather_one(sent) for sent in batch]
            for sent, results in zip(batch, found, strict=True):
                self.arrived(sent, results)
            del batch, found, sent, results

    def announced(self, announcement: dict[str, str]) -> None:
        """Begin to read a stream that an agent is about to produce."""
        sent = self.pending.get(announcement["key"])
        if not isinstance(sent, SentStream):
            return  # cancelled
        if sent.run:
            # Dask runs the task again, because it has lost the worker.
            self.spawn(self._lost_stream(sent))
        else:
            sent.address, sent.run = announcement["address"], announcement["run"]
            self.spawn(self._read(sent))

    async def _read(self, sent: SentStream) -> None:
        try:
            await sent.read()
        except Exception as error:
            _log.debug("worker %s does not answer: %s", sent.address, error)
            await self._lost_stream(sent)

    async def _lost_stream(self, sent: SentStream) -> None:
        self.arrived(sent, sent.died())
        await sent.future.cancel()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine in the event loop of the client, which this code runs in."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)

    def _ended_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # For example, the client was closed meanwhile.
            _log.debug("a request of a stream failed: %s", task.exception())

    def deliver(self, stream: SentStream, items: list[TaskRef]) -> None:
        """Pass items of a stream to the thread that settles references, which also settles its end."""
        self._arrived.put(partial(stream.deliver, items))

    def arrived(self, sent: Sent, results: Results | BaseException) -> None:
        """Pass an outcome to the thread that settles references."""
        self._arrived.put(partial(self._settle, sent, results))

    def settle_soon(self, ref: TaskRef, outcome: Outcome) -> None:
        """Settle a reference in the thread that does so, because the callbacks of a reference may wait."""
        self._arrived.put(partial(settle, ref, outcome))

    async def _gather_one(self, sent: Sent) -> Any:
        try:
            return await self.client.gather(sent.future)
        except (Exception, distributed.CancelledError) as error:
            return _error_of(sent, error)

    # ---- outcomes, in the thread that settles references

    def _serve(self) -> None:
        while (step := self._arrived.get()) is not None:
            step()
            del step

    def _settle(self, sent: Sent, results: Results | BaseException) -> None:
        if self.pending.pop(sent.key, None) is None:
            return  # cancelled, or ended by `shutdown`
        sent.keeps.clear()
        if sent.carried:
            # The process that has loaded a handle may still be connecting to the actor.
            self._keep_for(_CONNECTING, sent.carried)
        try:
            outcomes = _outcomes(results)
        except Exception as error:
            outcomes = [error]
        try:
            sent.settle(outcomes)
        except BaseException:
            _log.exception("a callback of %s failed", sent.name)

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """Settle references if the caller is a callback in the thread that does so; see `Source`."""
        if not self.collect_later(ref):
            return False
        while ref.outcome is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                step = self._arrived.get(timeout=left)
            except Empty:
                break
            if step is None:
                self._arrived.put(None)
                break
            step()
            del step
        return True

    def collect_later(self, ref: TaskRef) -> bool:
        """Return whether the caller is a callback in the thread that settles references; see `Source`."""
        if get_ident() == self._thread.ident:
            return True
        if self.client.status == "closed":
            # The program has closed its client, so no outcome can arrive.
            for sent in list(self.pending.values()):
                self.arrived(sent, _lost(sent))
        return False

    def tell(self, ref: TaskRef, payload: bytes) -> None:
        """Do nothing: the source of a stream is its `SentStream`; see `Source`."""

    # ---- the end of calls

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Cancel a task; see `Engine`."""
        if ref.outcome is not None:
            return False
        sent = self.sent_of(ref)
        if sent is None:
            return False
        if sent.future is not None:
            answers = self.client.run(agent.cancel, sent.key, force, on_error="ignore")
            ran = [answer for answer in answers.values() if answer is not None]
            if ran:
                return any(ran)
        return self.give_up(sent, TaskCancelledError(task=sent.name))

    def sent_of(self, ref: TaskRef) -> Sent | None:
        """Return the call of a reference that has no outcome yet."""
        return next((one for one in list(self.pending.values()) if any(ref is each for each in one.refs)), None)

    def give_up(self, sent: Sent, error: BaseException) -> bool:
        """Settle a call that will not run; return False if its outcome has arrived meanwhile."""
        if self.pending.pop(sent.key, None) is None:
            return False
        if sent.future is not None:
            sent.future.cancel()
        sent.fail(error)
        return True

    def shutdown(self) -> None:
        """End the calls of this process, and leave the cluster."""
        self._ended = True
        is_connected = self.client.status == "running"
        if is_connected:
            private_names.run_in(self.client, self._stop_receiving)
            self.client.unsubscribe_topic(self._topic)
        else:
            self._receiver.stop_receiving()
            if not self.loop.is_closed():
                self.loop.call_soon_threadsafe(self.direct.close)
        sent, self.pending = list(self.pending.values()), {}
        actors = [actor.key for actor in list(self._actors)]
        if is_connected:
            try:
                self.client.run(agent.release_processes, [one.key for one in sent], actors, on_error="ignore")
            except Exception as error:
                # The cluster has ended meanwhile.
                _log.debug("cannot tell the workers that this client ends: %s", error)
        for one in sent:
            one.fail(WorkerDiedError(task=one.name, reason="was ended by shutdown() of this program"))
        self._arrived.put(None)
        if get_ident() != self._thread.ident:
            self._thread.join()
        for actor in list(self._actors):
            actor.leave()
        for place in list(self.places.values()):
            place.future.release()
        self.places.clear()
        self._functions.clear()
        self._uploads.clear()
        self._ready.clear()
        del sent
        if self._owned and is_connected:
            self.client.close()

    async def _stop_receiving(self) -> None:
        self._receiver.stop_receiving()
        self.direct.close()


def _announced(cluster: weakref.ref[Cluster], event: tuple[float, dict[str, str]]) -> None:
    engine = cluster()
    if engine is not None:
        engine.announced(event[1])


def _nothing(what: object) -> None:
    """Release an object that was held until now."""


def _given(what: Any, given: list[Any], index: int = 0) -> agent.Packet:
    """Return a packet; append the future, if `what` is one, to the arguments of the Dask task."""
    if isinstance(what, tuple):
        packet: agent.Packet = what
        return packet
    given.append(what)
    return "given", len(given) - 1, index


def _outcomes(results: Results | BaseException) -> list[Outcome]:
    if isinstance(results, BaseException):
        return [results]
    return [results.outcome(i) for i in range(len(results.parts))]


def _error_of(sent: Sent, error: BaseException) -> BaseException:
    """Return the error for a call whose Dask task failed. Errors of the program are results of the task."""
    if isinstance(error, distributed.KilledWorker):
        return WorkerDiedError(
            f"{sent.name} has no result, because each Dask worker that ran it has ended ({error.allowed_failures + 1} in all, "
            f"the last one was {error.last_worker.address}); hint: its log may have the cause",
            task=sent.name,
        )
    if isinstance(error, distributed.CancelledError):
        return _lost(sent)
    return error


def _lost(sent: Sent) -> BaseException:
    return ObjectLostError(
        ref=sent.name,
        reason="Dask has cancelled its task or lost data that it needs, because workers or the client ended",
    )


def connect(address: str | Any, name: str | None, options: dict[str, Any]) -> _core.Store:
    """
    Let `remote` run tasks on a cluster; see `pyray_ser.init`.

    Parameters
    ----------
    address : str or distributed.Client
    name : str or None
        Name of the store of this process.
    options : dict
        The other options of `init`.

    Returns
    -------
    Store
    """
    if engine.started():
        raise ValueError("tasks run already, so address= has no effect: call shutdown() first")
    problems = private_names.problems()
    if problems:
        raise RuntimeError(f"distributed {private_names.version()} is not supported: {'; '.join(problems)}")
    owned = isinstance(address, str)
    if not owned and not isinstance(address, distributed.Client):
        raise TypeError(
            f"address must be the address of a Dask scheduler or a distributed.Client, not {type(address).__name__!r}"
        )
    client: Any = distributed.Client(address, set_as_default=False) if owned else address
    if client.asynchronous:
        raise TypeError("address must be a distributed.Client that is not asynchronous")
    try:
        if name is None and _core.default() is None:
            identity = client.scheduler_info()["id"].removeprefix("Scheduler-")
            name = settings.read().store or f"dask-{identity}"
        store = discovery.open_store(name, **options)
        cluster = Cluster(client, owned)
        cluster.begin()
    except BaseException:
        if owned:
            client.close()
        raise
    engine.use(cluster)
    return store
