"""Handles of actors in other processes than the one that made them.

A handle that is pickled is announced to the actor, which from then on listens at its address and lives on, for a while, even
if all others let go of it. Whoever loads the handle connects, and says which announcement it came with.
"""

from __future__ import annotations

import os
import secrets
import select
import weakref
from _thread import RLock
from collections.abc import Callable
from typing import Any

from .. import _store
from ..exceptions import WorkerDiedError
from . import protocol
from .actor import ActorHandle, Client, Grip
from .channel import Channel, fail

__all__ = ["reduce"]

_lock = RLock()
# What the handles of this process hold, by the address of the actor.
_grips: weakref.WeakValueDictionary[str, Grip] = weakref.WeakValueDictionary()


def reduce(handle: ActorHandle) -> tuple[Any, ...]:
    """Reduce a handle."""
    client = handle._client
    token = secrets.randbits(63)
    client.channel.send(protocol.write(protocol.EXPECT, token))
    with _lock:
        _grips[client.address] = handle._grip
    return load, (handle._name, handle._methods, client.address, client.pid, _store.start_time(client.pid), token)


def load(name: str, methods: dict[str, bool], address: str, pid: int, start: int, token: int) -> ActorHandle:
    """Make a handle again, in whatever process."""
    with _lock:
        grip = _grips.get(address)
        if grip is None or grip.client.channel.dead:
            grip = _grips[address] = Grip(Visitor(name, address, pid, start))
        grip.client.channel.send(protocol.write(protocol.HELLO, token))
    return ActorHandle(grip, name, methods)


class _Remote:
    """The process of an actor that another process made, as a `Channel` sees it."""

    def __init__(self, address: str, pid: int, start: int) -> None:
        from multiprocessing.connection import Client as connect

        self.pid = pid
        self._start = start
        self.ready = True
        self.watch = -1
        try:
            self.watch = os.pidfd_open(pid)
            if _store.start_time(pid) != start:
                raise ProcessLookupError
        except ProcessLookupError:
            raise WorkerDiedError(f"the actor of this handle (process {pid}) has ended", pid=pid) from None
        import multiprocessing

        try:
            self.connection = connect(address, "AF_UNIX", authkey=multiprocessing.current_process().authkey)
        except OSError as error:
            raise WorkerDiedError(
                f"the actor of this handle (process {pid}) does not answer: {error}", pid=pid
            ) from error
        self.fd = self.connection.fileno()

    def __del__(self) -> None:
        self._close_watch()

    def _close_watch(self, close: Callable[[int], None] = os.close) -> None:
        # Bound here: at the end of the interpreter the module's names are gone.
        watch, self.watch = self.watch, -1
        if watch >= 0:
            close(watch)

    def poller(self) -> select.poll:
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        poller.register(self.watch, select.POLLIN)
        return poller

    def kill(self) -> None:
        import signal

        try:
            signal.pidfd_send_signal(self.watch, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has ended

    def died(self, task: str | None) -> WorkerDiedError:
        # Only its owner gets to know how.
        return WorkerDiedError(pid=self.pid, task=task)

    def reap(self) -> None:
        """Stop watching it; to reap it is its owner's to do."""
        self._close_watch()

    def close(self) -> None:
        self.connection.close()


class Visitor(Client):
    """The client of an actor that another process made."""

    def __init__(self, name: str, address: str, pid: int, start: int) -> None:
        super().__init__(name)
        self.address = address
        self.pid = pid
        self.channel = Channel(_Remote(address, pid, start), lambda channel, jobs: fail(jobs, channel.process.died))

    def kill(self) -> None:
        """End the process; its owner may start it again."""
        self.channel.process.kill()


def _after_fork_in_child() -> None:
    global _lock, _grips
    _lock = RLock()
    _grips = weakref.WeakValueDictionary()


os.register_at_fork(after_in_child=_after_fork_in_child)
