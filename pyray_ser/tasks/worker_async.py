"""The server of an actor with coroutines: calls start in order, and while one call waits, others can run."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Iterable
from typing import Any

from ..exceptions import TaskCancelledError
from . import protocol
from .backpressure import Flow
from .worker import EachMethod, Peer, Server, exactly, resolve

__all__ = ["run"]


def run(server: Server) -> None:
    """Serve until no caller is left."""
    asyncio.run(_Loop(server).run())


class _Loop:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.tasks: dict[tuple[Peer, int], asyncio.Task[None]] = {}

    async def run(self) -> None:
        server = self.server
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        # The descriptors of all callers that the event loop watches.
        watched: set[int] = set()
        server.cancel = self.cancel
        while True:
            wanted = set(server.peers) | ({server.visitors.fd} if server.visitors is not None else set())
            for fd in watched - wanted:
                loop.remove_reader(fd)
            for fd in wanted - watched:
                loop.add_reader(fd, readable.set)
            watched = wanted
            while server.inbox:
                peer, kind, number, payload = server.inbox.popleft()
                if kind in (protocol.CALL, protocol.EACH):
                    # Run the call to its first await immediately, so that calls start in the order in which they
                    # came.
                    each = kind == protocol.EACH
                    task = loop.create_task(self.call(peer, number, payload, each))
                    self.tasks[peer, number] = task
                    task.add_done_callback(functools.partial(self.forget, peer, number))
                    if each:
                        # The task makes other tasks, which must also start before the next call.
                        await asyncio.sleep(0)
                else:
                    server.handle(peer, kind, number, payload)
                del peer, payload
            if not self.tasks and server.finished():
                return
            try:
                async with asyncio.timeout(None if server.peers else 0.1):
                    await readable.wait()
            except TimeoutError:
                continue
            readable.clear()
            # Remove a closed descriptor from the event loop before its number is reused.
            before = dict(server.peers)
            server.look(0)
            for fd, peer in before.items():
                if server.peers.get(fd) is not peer:
                    loop.remove_reader(fd)
                    watched.discard(fd)

    def forget(self, peer: Peer, number: int, _: asyncio.Task[None]) -> None:
        self.tasks.pop((peer, number), None)

    def cancel(self, peer: Peer, number: int) -> None:
        task = self.tasks.get((peer, number))
        if task is not None:
            task.cancel()

    async def call(self, peer: Peer, number: int, payload: memoryview, each: bool) -> None:
        server = self.server
        name = "call"
        try:
            which, args, kwargs, several = protocol.load(payload)
            del payload
            name = server.name_of(which)
            function = server.target(which)
            args, kwargs = resolve(args, kwargs, server.arguments.pop((peer, number), ()))
            if each:
                function, several = EachMethod(function, several).concurrently, False
            result = function(*args, **kwargs)
            del args, kwargs
            if inspect.isawaitable(result):
                result = await result
            if several is False:
                server.answer(peer, protocol.RESULT, number, result)
                return
            if several is True:
                await self.stream(peer, number, result)
            else:
                for item in exactly(several, result, name):
                    server.answer(peer, protocol.ITEM, number, item)
            server.answer(peer, protocol.END, number, None)
        except asyncio.CancelledError:
            server.fail(peer, number, TaskCancelledError(task=name), name)
        except BaseException as error:
            server.fail(peer, number, error, name)

    async def stream(self, peer: Peer, number: int, result: Any) -> None:
        server = self.server
        moved = asyncio.Event()
        flow = server.flows[peer, number] = Flow(moved.set)
        items = result if hasattr(result, "__aiter__") else _each(result)
        try:
            async for item in items:
                flow.sent(server.answer(peer, protocol.ITEM, number, item))
                del item
                # Yield to the event loop, because a generator that never waits must not block other callers.
                await asyncio.sleep(0)
                while flow.full():
                    moved.clear()
                    await moved.wait()
                if flow.stopped:
                    break
        finally:
            server.flows.pop((peer, number), None)
            if hasattr(items, "aclose"):
                await items.aclose()


async def _each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item
