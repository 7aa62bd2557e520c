"""Requests of a client to a worker over a connection of their own. Dask's ``Client.run`` goes through the scheduler.

The client tries once to connect to a worker. Until it has succeeded, and if it cannot reach the worker (for example
because the cluster is behind a gateway), requests go through the scheduler. Any number of requests can wait for their
answers on one connection.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
from typing import TYPE_CHECKING, Any

from .. import _log
from .._core import pack, unpack
from . import private_names

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["CONNECT", "Desk", "Direct", "token_of"]

# The name of the request that opens a connection.
CONNECT = "pyray_ser_direct"
# Seconds in which a worker must answer. Its address can be that of nothing, or of another machine, for this client.
_PATIENCE = 5.0


class _Writer:
    """
    Writes messages to a connection; those that are added meanwhile follow in one piece.

    Parameters
    ----------
    comm : distributed.comm.Comm
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._messages: list[tuple[int, Any]] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, message: tuple[int, Any]) -> None:
        """Write a message. If the connection fails, the reader of the connection reports it."""
        self._messages.append(message)
        if self._task is None:
            self._task = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        try:
            while self._messages:
                messages, self._messages = self._messages, []
                await self._comm.write(messages)
        except OSError as error:
            _log.debug("a direct connection has ended: %s", error)
            self._comm.abort()
        finally:
            self._task = None


class _Line:
    """
    The client's end of a connection.

    Parameters
    ----------
    comm : distributed.comm.Comm
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._writer = _Writer(comm)
        self._waiting: dict[int, asyncio.Future[tuple[bool, bytes]]] = {}
        self._count = 0
        self.reader = asyncio.ensure_future(self._read())

    async def run(self, request: bytes) -> Any:
        number, self._count = self._count, self._count + 1
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.add((number, request))
        try:
            succeeded, data = await answer
        finally:
            del self._waiting[number]
        if succeeded:
            return pickle.loads(data)
        error: BaseException = unpack(data)
        raise error

    async def _read(self) -> None:
        try:
            while True:
                for number, answer in await self._comm.read():
                    waiting = self._waiting.get(number)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(answer)
        except OSError as error:
            _log.debug("a direct connection has ended: %s", error)
        finally:
            self._comm.abort()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError("the worker has closed the connection"))


class Direct:
    """
    The connections of a client. All methods run in its event loop.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        # The address of a worker -> its line; None if there is none.
        self._lines: dict[str, asyncio.Task[_Line | None]] = {}

    async def run(self, address: str, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        """
        Run a coroutine function in a worker.

        Parameters
        ----------
        address : str
            Of the worker.
        function : callable
            Of this package. It has a parameter ``dask_worker``, as those of ``Client.run``.
        *args
            Small values.

        Returns
        -------
        object

        Raises
        ------
        OSError
            If the connection ends before the answer has arrived. The function may have run.
        Exception
            What the function raises.
        """
        opening = self._lines.get(address)
        if opening is None:
            opening = self._lines[address] = asyncio.ensure_future(self._open(address))
        line = opening.result() if opening.done() else None
        if line is not None and not line.reader.done():
            return await line.run(pickle.dumps((function, args), 5))
        answers = await self._client.run(function, *args, workers=[address])
        return answers[address]

    def close(self) -> None:
        """Close all connections."""
        for opening in self._lines.values():
            line = opening.result() if opening.done() else None
            if line is None:
                opening.cancel()
            else:
                line.reader.cancel()
        self._lines.clear()

    async def _open(self, address: str) -> _Line | None:
        client = self._client
        comm = None
        try:
            token = (await client.run(token_of, workers=[address]))[address]
            async with asyncio.timeout(_PATIENCE):
                comm = await private_names.connect(address, client.security, "client")
                await comm.write({"op": CONNECT, "token": token})
                answer = await comm.read()
            if answer.get("status") != "OK":
                raise ConnectionRefusedError("another machine has this address, too")
        except BaseException as error:
            if comm is not None:
                comm.abort()
            if not isinstance(error, Exception):
                raise
            _log.debug("requests to worker %s go through the scheduler: %r", address, error)
            return None
        line = _Line(comm)
        line.reader.add_done_callback(lambda _: self._lines.pop(address, None))
        return line


class Desk:
    """
    The worker's end of the connections.

    Parameters
    ----------
    worker : distributed.Worker
    """

    def __init__(self, worker: Any) -> None:
        self.token = secrets.token_hex(16)
        self._worker = worker
        self._tasks: set[asyncio.Task[None]] = set()
        worker.handlers[CONNECT] = self.serve

    def end(self) -> None:
        """Open no more connections."""
        self._worker.handlers.pop(CONNECT, None)

    async def serve(self, comm: Any, token: str) -> Any:
        """
        Answer the requests of a client until it closes the connection.

        Parameters
        ----------
        comm : distributed.comm.Comm
        token : str
            Proves that the client means this worker.
        """
        if not secrets.compare_digest(token, self.token):
            return {"status": "elsewhere"}
        writer = _Writer(comm)
        try:
            await comm.write({"status": "OK"})
            while True:
                for number, request in await comm.read():
                    task = asyncio.ensure_future(self._answer(writer, number, request))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        except OSError as error:
            _log.debug("a client has closed its direct connection: %s", error)
        finally:
            comm.abort()
        return private_names.closed_reply()

    async def _answer(self, writer: _Writer, number: int, request: bytes) -> None:
        try:
            function, args = pickle.loads(request)
            answer = True, pickle.dumps(await function(*args, dask_worker=self._worker), 5)
        except Exception as error:
            answer = False, pack(error)
        writer.add((number, answer))


async def token_of(dask_worker: Any = None) -> str:
    """Return what a client must send to a worker to open a connection."""
    from .agent import agent_of

    token: str = agent_of(dask_worker).desk.token
    return token
