"""Handles of a cluster's actors in the processes that run tasks and actors.

Such a handle contains the key under which Dask knows the actor. A process asks the agent of its host for the actor. If
the actor runs on this host, the agent names the actor's own socket. Otherwise it relays the messages of this process to
the agent on the other host, which connects to the actor. So the process uses the same messages in both cases, and the
order of its calls, streams and errors are those of one node.

A large value in a message is an object of the sender's host. The agent that receives the message copies the object into
the store of its host, and names the copy instead.
"""

from __future__ import annotations

import asyncio
import hmac
import multiprocessing
import os
import socket
import time
from collections import deque
from contextlib import suppress
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any

from .. import _core, _log
from .._calls import Descriptor
from .._core import ObjectRef, load_ref
from .._descriptors import above_standard, socket_above_standard
from ..exceptions import PyraySerError
from ..store import foreign
from ..tasks import protocol, remote_handles
from ..tasks.errors import describe
from ..tasks.listener import Visitors, listen
from ..tasks.process import new_address
from . import private_names

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from .agent import Agent

__all__ = ["RELAY", "Relays", "install"]

# The name of the request to another agent.
RELAY = "pyray_ser_relay"
# The requests of a process to its agent.
_VISIT, _KILL = b"visit", b"kill"
# The answers.
_HERE, _RELAYED, _ENDED = b"here", b"relayed", b"ended"
# Seconds for which Dask must not know an actor before its callers get an error: its program may make it again.
_GONE = 2.0
# Seconds between two questions to the scheduler: at first, and at most.
_SOON, _LATE = 0.02, 0.5

_length = Struct(">i")
# Frames with an object that the receiver must be able to read, and frames that end a call.
_CALLS = (protocol.CALL, protocol.EACH, protocol.ARGUMENTS)
_ANSWERS = (protocol.RESULT, protocol.ITEM, protocol.FAILURE)
_ENDS = (protocol.RESULT, protocol.FAILURE, protocol.END)


# ---- in a process that runs tasks -------------------------------------------------------------------------------------


def install(address: str) -> None:
    """
    Connect handles of a cluster's actors through the agent.

    Parameters
    ----------
    address : str
        The abstract address at which the agent listens.
    """
    remote_handles.set_connector(_Connector(address))


class _Connector:
    """Connects a process to actors of its cluster; see `remote_handles.set_connector`."""

    def __init__(self, address: str) -> None:
        self._address = address

    def connect(self, key: str, name: str) -> tuple[Any, Descriptor, str]:
        """Return the peer, the pipe, and the abstract address of the actor if it runs on this host."""
        mine, other = socket.socketpair()
        watch = Descriptor(socket_above_standard(mine).detach())
        connection = None
        try:
            with other:
                connection = self._ask(_VISIT, key, [other.fileno()])
            word, _, rest = connection.recv_bytes().partition(b" ")
            if word == _HERE:
                return *remote_handles.connect_here(rest.decode()), rest.decode()
            if word == _ENDED:
                raise remote_handles.EndedError(rest.decode())
            end, connection = connection, None
            pipe = Descriptor(above_standard(os.dup(end.fileno())))
            end.close()
            return _Relayed(self, key, name, rest.decode(), watch), pipe, ""
        finally:
            if connection is not None:
                connection.close()

    def kill(self, key: str) -> None:
        """End an actor without a restart."""
        with suppress(OSError, EOFError), self._ask(_KILL, key, []) as connection:
            connection.recv_bytes()

    def _ask(self, request: bytes, key: str, descriptors: list[int]) -> Connection:
        from multiprocessing.connection import Connection

        end, _, _ = remote_handles.introduce(self._address)
        with end:
            socket.send_fds(end, [request + b" " + key.encode()], descriptors)
            return Connection(end.detach())


class _Relayed:
    """The peer of a channel for an actor on another host; see `channel.Peer`."""

    pid = 0
    ready = True

    def __init__(self, connector: _Connector, key: str, name: str, worker: str, watch: Descriptor) -> None:
        self._connector = connector
        self._key = key
        self._name = name
        self._worker = worker
        # Readable when the agent has closed the connection.
        self.watch = watch

    def kill(self) -> None:
        self._connector.kill(self._key)

    def died(self, task: str | None) -> Any:
        from ..exceptions import WorkerDiedError

        return WorkerDiedError(
            f"actor {self._name} on worker {self._worker} has ended, or its host cannot be reached"
            + ("" if task is None else f", so {task} has no result"),
            task=task,
        )

    def reap(self) -> None:
        self.watch.close()

    def second_watch(self) -> Descriptor:
        fd = self.watch.fileno()
        return Descriptor() if fd < 0 else Descriptor(above_standard(os.dup(fd)))


# ---- in the agent -----------------------------------------------------------------------------------------------------


class _Callers(Visitors):
    """Accepts the processes of this agent, and receives their requests."""

    def introduced(self, connection: Connection) -> Any:
        with socket.socket(fileno=above_standard(os.dup(connection.fileno()))) as end:
            request, descriptors, _, _ = socket.recv_fds(end, 4096, 1)
        if not request:
            raise EOFError
        return request, [Descriptor(above_standard(fd)) for fd in descriptors], connection


class Relays:
    """
    The connections of an agent's processes with actors of other hosts, and of other hosts with actors of this one.

    Parameters
    ----------
    agent : Agent
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.address = new_address()
        listener = listen(self.address)
        self._listener = socket_above_standard(socket.socket(fileno=above_standard(os.dup(listener.fileno()))))
        listener.close()
        self._callers = _Callers(self._listener)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._callers.fd, self._begin)
        agent.worker.handlers[RELAY] = self.serve

    def end(self) -> None:
        """End all connections."""
        self._agent.worker.handlers.pop(RELAY, None)
        self._loop.remove_reader(self._callers.fd)
        self._callers.end()
        for task in list(self._tasks):
            task.cancel()

    def _begin(self) -> None:
        for request, descriptors, connection in self._callers.take():
            task = asyncio.ensure_future(self._answer(request, descriptors, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: bytes, descriptors: list[Descriptor], connection: Connection) -> None:
        """Serve a process of this agent."""
        try:
            word, _, key = request.partition(b" ")
            if word == _KILL:
                await self._kill(key.decode())
                connection.send_bytes(b"")
            else:
                await self._visit(key.decode(), connection)
        except OSError as error:
            _log.debug("a process cannot use actor %s: %s", request, error)
        finally:
            connection.close()
            for one in descriptors:
                one.close()

    async def _visit(self, key: str, connection: Connection) -> None:
        place = await self._find(key, connection)
        if place is None:
            return
        comm = None
        try:
            if place == self._agent.worker.address:
                answer: dict[str, Any] = {"network": _network(), "address": self._agent.actors[key].share()}
            elif place == "":
                answer = {"ended": "it has ended"}
            else:
                comm = await private_names.connect(place, self._agent.worker.security)
                await comm.write({"op": RELAY, "key": key, "network": _network()})
                answer = await comm.read()
            if "ended" in answer:
                connection.send_bytes(_ENDED + b" " + answer["ended"].encode())
            elif "address" in answer:
                connection.send_bytes(_HERE + b" " + answer["address"].encode())
            else:
                connection.send_bytes(_RELAYED + b" " + place.encode())
                assert comm is not None
                end = socket.socket(fileno=above_standard(os.dup(connection.fileno())))
                await _Relay(comm, end, is_caller=True).run()
        finally:
            if comm is not None:
                comm.abort()

    async def _find(self, key: str, connection: Connection | None) -> str | None:
        """Return the address of an actor's worker; "" if the actor has ended, None if the caller has ended."""
        worker = self._agent.worker
        start = time.monotonic()
        gone, pause = 0.0, _SOON
        while True:
            if key in self._agent.actors:
                return str(worker.address)
            place, known = await private_names.place_of(worker, key)
            if place and place != worker.address:
                return place
            if known:
                gone = 0.0
            else:
                gone = gone or time.monotonic()
                if time.monotonic() - gone > _GONE:
                    return ""
            if connection is not None and connection.poll():
                return None  # a caller that waits sends nothing
            if pause == _LATE:
                self._agent.secede(time.monotonic() - start)
            await asyncio.sleep(pause)
            pause = min(_LATE, 2 * pause)

    async def _kill(self, key: str) -> None:
        place = await self._find(key, None)
        if place == self._agent.worker.address:
            self._agent.actors[key].kill()
        elif place:
            comm = await private_names.connect(place, self._agent.worker.security)
            try:
                await comm.write({"op": RELAY, "key": key, "network": "", "kills": True})
                await comm.read()
            finally:
                comm.abort()

    async def serve(self, comm: Any, key: str, network: str, kills: bool = False) -> Any:
        """
        Connect a process of another agent with an actor of this one.

        Parameters
        ----------
        comm : distributed.comm.Comm
        key : str
        network : str
            Tells whether the process can connect itself.
        kills : bool
            Whether to end the actor instead.
        """
        end = None
        try:
            hosted = self._agent.actors.get(key)
            if hosted is None:
                await comm.write({"ended": "it has ended"})
            elif kills:
                hosted.kill()
                await comm.write({"status": "OK"})
            elif network == _network():
                await comm.write({"address": hosted.share()})
            else:
                try:
                    peer, pipe = await asyncio.to_thread(remote_handles.connect_here, hosted.share())
                except ConnectionRefusedError:
                    await comm.write({"ended": "it has ended"})
                    return private_names.closed_reply()
                peer.reap()
                end = socket.socket(fileno=above_standard(os.dup(pipe.fileno())))
                pipe.close()
                await comm.write({"status": "OK"})
                await _Relay(comm, end, is_caller=False).run()
        except (OSError, EOFError) as error:
            _log.debug("a process of another host cannot use actor %s: %s", key, error)
        finally:
            comm.abort()
            if end is not None:
                end.close()
        return private_names.closed_reply()


class _Relay:
    """
    Passes the messages between a local process and another agent.

    Parameters
    ----------
    comm : distributed.comm.Comm
    end : socket.socket
        The connection with the local process; it is closed at the end.
    is_caller : bool
        Whether the local process is the caller. Otherwise it is the actor.
    """

    def __init__(self, comm: Any, end: socket.socket, is_caller: bool) -> None:
        self._comm = comm
        self._end = end
        self._is_caller = is_caller
        # The number of a call -> the copies that its receiver does not hold yet.
        self._copies: dict[int, deque[ObjectRef[Any]]] = {}

    async def run(self) -> None:
        """Pass messages until one of the two has ended."""
        reader, writer = await asyncio.open_unix_connection(sock=self._end)
        ways = [asyncio.ensure_future(self._from_process(reader)), asyncio.ensure_future(self._to_process(writer))]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                error = way.exception()
                if error is not None and not isinstance(error, (OSError, EOFError)):
                    _log.debug("the connection with an actor has ended: %r", error)
        finally:
            for way in ways:
                way.cancel()
            with suppress(OSError):
                await self._comm.close()
            writer.close()

    async def _from_process(self, reader: asyncio.StreamReader) -> None:
        """Send the frames of the process to the other agent, until the process has ended."""
        buffer = bytearray()
        while data := await reader.read(1 << 18):
            buffer += data
            frames = list(_cut(buffer))
            for frame in frames:
                self._note(frame)
            if frames:
                await self._comm.write(frames)

    def _note(self, frame: bytes) -> None:
        """Release copies that the process holds now, or does not need any more."""
        kind, number, _ = protocol.read(frame)
        if self._is_caller and kind == protocol.ACK:
            waiting = self._copies.get(number)
            if waiting:
                waiting.popleft()
                if not waiting:
                    del self._copies[number]
        elif not self._is_caller and kind in _ENDS:
            self._copies.pop(number, None)

    async def _to_process(self, writer: asyncio.StreamWriter) -> None:
        """Pass the frames of the other agent to the process."""
        while True:
            for frame in await self._comm.read():
                found = await self._with_copy(frame)
                if found is not None:
                    writer.write(_length.pack(len(found)) + found)
            await writer.drain()

    async def _with_copy(self, frame: bytes) -> bytes | None:
        """Return a frame whose object, if any, is in the store of this host; None if the frame must not be passed on."""
        kind, number, payload = protocol.read(frame)
        if kind not in (_ANSWERS if self._is_caller else _CALLS) or not payload or payload[0] != ord("r"):
            return frame
        try:
            ref = load_ref(bytes(payload[1:]))
            if not _core.is_foreign(ref):
                return frame
            copy: ObjectRef[Any] = await asyncio.wrap_future(foreign.arrival(ref))
        except (PyraySerError, RuntimeError, OSError) as error:
            failure, _ = protocol.encode(tuple(describe(error, "copying a value from another host")))
            failed = protocol.write(protocol.FAILURE, number, failure)
            if self._is_caller:
                # The actor holds the object until the end of the connection.
                return failed
            # The actor must not run the call.
            await self._comm.write([failed])
            return None
        self._copies.setdefault(number, deque()).append(copy)
        return protocol.write(kind, number, b"r" + copy.travel(0, b"")[0])


def _cut(buffer: bytearray) -> Any:
    """Remove the complete frames from a buffer and yield them."""
    at = 0
    while len(buffer) - at >= 4:
        (size,) = _length.unpack_from(buffer, at)
        if len(buffer) - at - 4 < size:
            break
        yield bytes(buffer[at + 4 : at + 4 + size])
        at += 4 + size
    del buffer[:at]


@lru_cache(maxsize=1)
def _network() -> str:
    """Return a string that is equal in agents whose processes can connect to each other's actors."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        text = f"{file.read()} {os.readlink('/proc/self/ns/net')} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    return hmac.new(bytes(multiprocessing.current_process().authkey), text.encode(), "sha256").hexdigest()
