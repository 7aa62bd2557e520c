"""The code of a worker process: a loop that reads calls, runs them one after another, and answers them.

The same loop is used for workers of the pool, which receive functions, and for actors, which receive a class and then
method names. Actors whose methods are coroutines use `worker_async`.
"""

from __future__ import annotations

import inspect
import select
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .._core import ObjectRef, get
from ..exceptions import SerializationError, TaskCancelledError
from . import finalizing, process, protocol
from .backpressure import Flow
from .errors import INITIALIZER, Failure, describe
from .refs import TaskRef

if TYPE_CHECKING:
    import socket
    from multiprocessing.connection import Connection

    from .listener import Visitors

__all__ = ["Server", "main"]


def main(
    ends: list[socket.socket],
    owner: tuple[int, int],
    settings: dict[str, Any],
    initializer: process.Initializer | None = None,
) -> None:
    """
    Serve calls until the last caller has disconnected. This function is the target of a worker process.

    Parameters
    ----------
    ends : list of socket.socket
        The pipe to the owner, and for an actor also the socket for other callers.
    owner : tuple of (int, int)
        Process id and start time.
    settings : dict
    initializer : tuple, optional
        A function and its arguments. If the function raises an error, all calls fail with this error.
    """
    from multiprocessing.connection import Connection

    process.ignore_interrupts()
    process.end_with(owner)
    from . import settings as own

    own.inherit(settings)
    process.let_go_of_inherited()
    finalizing.forget_inherited()
    own.set_up()
    connection = Connection(ends[0].detach())
    with suppress(OSError):  # the owner has ended, which the server will notice
        connection.send_bytes(protocol.write(protocol.READY, 0))
    server = Server(connection, ends[1] if len(ends) > 1 else None)
    try:
        if initializer is not None:
            server.initialize(*initializer)
            del initializer
        server.run()
    finally:
        # Release the program's objects first, while tasks and the store still work. An interpreter does the same when
        # it shuts down.
        server.close()
        finalizing.run()
        from . import end

        end()


class Peer:
    """A caller: the owner, or another process that received the actor's handle."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.fd = connection.fileno()
        # Results in the store, until the caller holds them: (number of the call, index) -> reference
        self.held: dict[int, deque[ObjectRef[Any]]] = {}

    def send(self, frame: bytes) -> None:
        try:
            self.connection.send_bytes(frame)
        except OSError:
            # The caller has ended; the next read of the pipe notices it.
            self.held.clear()


class Server:
    """
    The state of a worker process.

    Parameters
    ----------
    connection : multiprocessing.connection.Connection
        The pipe to the owner.
    listener : socket.socket or None
        The socket of an actor for other callers.
    """

    def __init__(self, connection: Connection, listener: socket.socket | None = None) -> None:
        self.functions: dict[int, Callable[..., Any] | _Unloadable] = {}
        # Settled arguments of a call, which the caller sends before the call: (caller, number of the call) -> list
        self.arguments: dict[tuple[Peer, int], list[Any]] = {}
        # Running streams: (caller, number of the call) -> the counts that tell how many items the reader has not taken
        # yet
        self.flows: dict[tuple[Peer, int], Flow] = {}
        self.actor: Any = None
        self.actor_name = ""
        self.is_async = False
        # The function that handles CANCEL frames. In an event loop, it can also cancel a running call.
        self.cancel: Callable[[Peer, int], None] = self.cancel_queued
        # The error that the actor's `__init__` or the initializer raised, if any.
        self.broken: Failure | None = None
        self.inbox: deque[tuple[Peer, int, int, memoryview]] = deque()
        # Calls of other processes that arrived before the actor was made, while an argument of its constructor was
        # still pending.
        self.unmade = listener is not None
        self.early: list[tuple[Peer, int, int, memoryview]] = []
        self.peers: dict[int, Peer] = {}
        self.poller = select.poll()
        self.add_peer(connection)
        # Handles in flight to processes that have not connected yet: token -> time of the announcement
        self.expected: dict[int, float] = {}
        self.arrived: set[int] = set()
        self.visitors: Visitors | None = None
        if listener is not None:
            from .listener import Visitors

            self.visitors = Visitors(listener)
            self.poller.register(self.visitors.fd, select.POLLIN)

    def close(self) -> None:
        """Release the actor and the functions, so that their finalizers run."""
        self.actor = None
        # Break a reference cycle: the hook is a method of this server, or of the event loop's object that refers to
        # this server.
        self.cancel = _nothing
        self.functions.clear()
        self.arguments.clear()
        for peer in list(self.peers.values()):
            peer.held.clear()

    # ---- callers

    def add_peer(self, connection: Connection) -> Peer:
        peer = Peer(connection)
        self.peers[peer.fd] = peer
        self.poller.register(peer.fd, select.POLLIN)
        return peer

    def drop_peer(self, peer: Peer) -> None:
        self.poller.unregister(peer.fd)
        del self.peers[peer.fd]
        peer.connection.close()
        peer.held.clear()
        for (reader, _), flow in self.flows.items():
            if reader is peer:
                flow.stop()

    def receive(self, peer: Peer) -> None:
        """Read one frame; frames other than calls take effect immediately."""
        try:
            frame = peer.connection.recv_bytes()
        except (EOFError, OSError):
            self.drop_peer(peer)
            return
        kind, number, payload = protocol.read(frame)
        if kind == protocol.ACK:
            waiting = peer.held.get(number)
            if waiting:
                waiting.popleft()
                if not waiting:
                    del peer.held[number]
        elif kind == protocol.CANCEL:
            self.cancel(peer, number)
        elif kind == protocol.TAKEN:
            flow = self.flows.get((peer, number))
            if flow is not None:
                flow.take(payload)
        elif kind == protocol.EXPECT:
            self.expect(number)
        elif kind == protocol.HELLO:
            self.hello(number)
        else:
            self.inbox.append((peer, kind, number, payload))

    def cancel_queued(self, peer: Peer, number: int) -> None:
        """Cancel a call that has not begun."""
        for queue in (self.early, self.inbox):
            for entry in queue:
                if entry[0] is peer and entry[2] == number and entry[1] in (protocol.CALL, protocol.EACH):
                    queue.remove(entry)
                    self.fail(peer, number, TaskCancelledError(), "call")
                    return

    def expect(self, token: int) -> None:
        # The handle may have been loaded before its announcement was read.
        if token in self.arrived:
            self.arrived.discard(token)
        else:
            self.expected[token] = time.monotonic()

    def hello(self, token: int) -> None:
        if self.expected.pop(token, None) is None:
            self.arrived.add(token)

    def look(self, patience: float | None) -> None:
        """Read the available frames; wait at most `patience` milliseconds for one, without limit if None."""
        while True:
            events = self.poller.poll(patience)
            if not events:
                return
            for fd, _ in events:
                peer = self.peers.get(fd)
                if peer is not None:
                    self.receive(peer)
                elif self.visitors is not None and fd == self.visitors.fd:
                    for connection in self.visitors.take():
                        self.add_peer(connection)
            patience = 0

    def finished(self) -> bool:
        """Return whether no process can send any more calls."""
        if self.peers or self.inbox:
            return False
        if self.visitors is not None and self.visitors.waiting():
            return False
        # If the message that contains a handle was lost, the handle must not keep the actor alive. A receiver would
        # have connected within this time.
        now = time.monotonic()
        self.expected = {token: since for token, since in self.expected.items() if now - since < protocol.GRACE}
        return not self.expected

    # ---- calls

    def run(self) -> None:
        """Serve until no caller is left."""
        while True:
            if self.inbox:
                self.look(0)
            elif self.finished():
                return
            else:
                self.look(None if self.peers else 100)
            if self.inbox:
                peer, kind, number, payload = self.inbox.popleft()
                self.handle(peer, kind, number, payload)
                # Keep no reference to the call, because its arguments may be large.
                del peer, payload
            if self.is_async:
                from .worker_async import run

                run(self)
                return

    def handle(self, peer: Peer, kind: int, number: int, payload: memoryview) -> None:
        """Handle one frame."""
        is_call = kind in (protocol.CALL, protocol.EACH)
        if is_call and self.unmade:
            self.early.append((peer, kind, number, payload))
        elif is_call:
            self.call(peer, number, payload, kind == protocol.EACH)
        elif kind == protocol.FUNCTION:
            try:
                self.functions[number] = protocol.load(payload)
            except BaseException as error:
                self.functions[number] = _Unloadable(describe(error, "loading the function"))
        elif kind == protocol.ARGUMENTS:
            self.arguments[peer, number] = protocol.load(payload)
        elif kind == protocol.CREATE:
            self.create(peer, number, payload)
            self.unmade = False
            self.inbox.extendleft(reversed(self.early))
            self.early.clear()

    def create(self, peer: Peer, number: int, payload: memoryview) -> None:
        name = "the actor"
        try:
            cls, args, kwargs = protocol.load(payload)
            name = cls.__qualname__
            self.actor_name = name
            args, kwargs = resolve(args, kwargs, self.arguments.pop((peer, number), ()))
            self.actor = cls(*args, **kwargs)
            self.is_async = has_coroutines(type(self.actor))
        except BaseException as error:
            self.broken = describe(error, f"{name}.__init__")
            self.answer(peer, protocol.FAILURE, number, tuple(self.broken))
        else:
            self.answer(peer, protocol.RESULT, number, None)

    def initialize(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        """Call the initializer of a worker."""
        try:
            function(*arguments)
        except BaseException as error:
            self.broken = describe(error, INITIALIZER)

    def target(self, which: int | str) -> Callable[..., Any]:
        """Return the callable of a call."""
        if self.broken is not None:
            raise _Unloadable(self.broken)
        if isinstance(which, int):
            function = self.functions[which]
            if isinstance(function, _Unloadable):
                raise function
            return function
        method: Callable[..., Any] = getattr(self.actor, which)
        return method

    def name_of(self, which: int | str) -> str:
        """Return the name of a call for errors."""
        if isinstance(which, int):
            function = self.functions.get(which)
            return getattr(function, "__qualname__", None) or repr(function)
        return f"{self.actor_name}.{which}"

    def call(self, peer: Peer, number: int, payload: memoryview, each: bool = False) -> None:
        name = "call"
        try:
            which, args, kwargs, stream = protocol.load(payload)
            del payload
            name = self.name_of(which)
            function = self.target(which)
            if each:
                function, stream = EachMethod(function, stream), False
            args, kwargs = resolve(args, kwargs, self.arguments.pop((peer, number), ()))
            result = _run(function(*args, **kwargs))
            del args, kwargs
            if stream is False:
                self.answer(peer, protocol.RESULT, number, result)
                return
            if stream is True:
                self.stream(peer, number, result)
            else:
                for item in exactly(stream, result, name):
                    self.answer(peer, protocol.ITEM, number, item)
            self.answer(peer, protocol.END, number, None)
        except BaseException as error:
            self.fail(peer, number, error, name)

    def stream(self, peer: Peer, number: int, result: Any) -> None:
        """Send the items of a result as fast as the caller takes them."""
        flow = self.flows[peer, number] = Flow()
        items = iter_anything(result)
        try:
            for item in items:
                flow.sent(self.answer(peer, protocol.ITEM, number, item))
                del item
                # Check at each item whether the caller has dropped the stream. If so, the stream must end.
                self.look(0)
                while flow.full():
                    self.look(None)
                if flow.stopped:
                    break
        finally:
            del self.flows[peer, number]
            items.close()

    def answer(self, peer: Peer, kind: int, number: int, value: object) -> int:
        """Send a value to a caller; return its size."""
        try:
            payload, held = protocol.encode(value)
        except SerializationError as error:
            raise result_error(error, value) from error.__cause__
        size = len(payload)
        if held is not None:
            size = held.size or 0
            # A caller that has ended will not acknowledge the result.
            if self.peers.get(peer.fd) is peer:
                peer.held.setdefault(number, deque()).append(held)
        peer.send(protocol.write(kind, number, payload))
        return size

    def fail(self, peer: Peer, number: int, error: BaseException, name: str) -> None:
        """Send an error to a caller."""
        failure = error.args[0] if type(error) is _Unloadable else describe(error, name)
        try:
            self.answer(peer, protocol.FAILURE, number, tuple(failure))
        except Exception as second:
            failure = failure._replace(
                pickled=b"", text=f"{failure.text:.2000}", traceback=f"{failure.traceback:.20000}"
            )
            failure = failure._replace(
                traceback=f"{failure.traceback}\n(the exception itself could not be sent: {second})"
            )
            self.answer(peer, protocol.FAILURE, number, tuple(failure))


def has_coroutines(cls: type) -> bool:
    """Return whether an actor's methods run in an event loop."""
    return any(
        inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)
        for base in cls.__mro__
        for value in vars(base).values()
    )


def _nothing(peer: Peer, number: int) -> None:
    """Do nothing, because no call is left to cancel."""


class _Unloadable(Exception):
    """An exception that carries the Failure of a function or class that could not be loaded here."""


def result_error(error: SerializationError, value: object) -> SerializationError:
    """Return the error for a result that cannot be pickled."""
    made = SerializationError(f"the result cannot be returned: {error}", path=error.path)
    for note in getattr(error, "__notes__", ()):
        made.add_note(note)
    if inspect.isgenerator(value):
        made.add_note("a function that returns a generator it did not write itself: call it with .options(stream=True)")
    return made


def resolve(args: tuple[Any, ...], kwargs: dict[str, Any], pending: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Replace arguments that are references by their values; references inside other values stay."""

    def value(arg: Any) -> Any:
        if type(arg) is protocol.Placeholder:
            arg = pending[arg.index]
        return get(arg) if type(arg) is ObjectRef or type(arg) is TaskRef else arg

    return [value(arg) for arg in args], {key: value(arg) for key, arg in kwargs.items()}


def exactly(count: int, result: Any, name: str) -> tuple[Any, ...]:
    """Return the results of a call with ``num_returns=count``."""
    items = tuple(result)
    if len(items) != count:
        raise ValueError(f"{name} was to return {count} values (num_returns), but returned {len(items)}")
    return items


def iter_anything(result: Any) -> Generator[Any, None, None]:
    """Iterate over the result of a streaming call."""
    if hasattr(result, "__aiter__"):
        import asyncio

        with asyncio.Runner() as runner:
            items = aiter(result)
            try:
                while True:
                    try:
                        item = runner.run(_next(items))
                    except StopAsyncIteration:
                        return
                    yield item
                    del item
            finally:
                if hasattr(items, "aclose"):
                    runner.run(items.aclose())
    yield from result


class Each:
    """Calls a function for several items; this is the function of a worker for `RemoteFunction.map` with a chunk size."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.__qualname__ = name

    def __call__(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        return [self._one(args) for args in calls]

    def _one(self, given: tuple[Any, ...]) -> Any:
        args, _ = resolve(given, {}, ())
        return _run(self.function(*args))


class EachMethod:
    """Calls a method of an actor several times; this is the method of a call by `ActorMethod.map` with a chunk size."""

    def __init__(self, method: Callable[..., Any], width: int) -> None:
        self.method = method
        self.width = width

    def _calls(self, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return [args[start : start + self.width] for start in range(0, len(args), self.width)]

    def __call__(self, *args: Any) -> list[Any]:
        return [_run(self.method(*some)) for some in self._calls(args)]

    async def concurrently(self, *args: Any) -> list[Any]:
        """Start the calls in order, and return their results. If one fails, the others are cancelled."""
        import asyncio

        results: list[Any] = []
        begun: dict[int, asyncio.Future[Any]] = {}
        try:
            for index, some in enumerate(self._calls(args)):
                results.append(self.method(*some))
                if inspect.isawaitable(results[index]):
                    begun[index] = asyncio.ensure_future(results[index])
            await asyncio.gather(*begun.values())
        finally:
            for future in begun.values():
                future.cancel()
        for index, future in begun.items():
            results[index] = future.result()
        return results


async def _next(items: Any) -> Any:
    return await anext(items)


def _run(result: Any) -> Any:
    """Return the result of a call; if it is a coroutine, run it."""
    if not inspect.iscoroutine(result):
        return result
    import asyncio

    return asyncio.run(_whole(result))


async def _whole(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine
