"""Handles of actors in processes other than the actor's owner.

A process that pickles a handle announces the handle to the actor. The actor then listens at its address and stays alive
for a while, even if all other handles have been released. A process that loads the handle connects and sends the token
of the announcement.

Loading a handle never waits for the actor or fails because of it: a thread connects, and calls made meanwhile are
queued. If the actor has ended, these calls fail. If the actor's process has died and is restarted, the thread connects
to the new process.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
import weakref
from collections import deque
from typing import Any

from .. import _core
from .._calls import Descriptor
from .._descriptors import above_standard, socket_above_standard
from ..exceptions import WorkerDiedError
from . import protocol
from .actor import ActorHandle, Client, Grip
from .channel import Channel
from .listener import WELCOME, leave_word

__all__ = ["reduce"]

# The clients of this process's handles, by the address of the actor.
_grips: dict[str, weakref.ref[Grip]] = {}


def reduce(handle: ActorHandle) -> tuple[Any, ...]:
    """Reduce a handle."""
    client = handle._client
    if client.spans_hosts:
        raise TypeError(
            f"the handle of actor {handle._name} cannot be sent, because the actor runs on a cluster; hint: send the results "
            "of its methods"
        )
    token = secrets.randbits(63)
    client.channel.send(protocol.write(protocol.EXPECT, token))
    _grips[client.address] = weakref.ref(handle._grip)
    return load, (handle._name, handle._methods, client.address, client.pid, _core.start_time(client.pid), token)


def load(name: str, methods: dict[str, bool], address: str, pid: int, start: int, token: int) -> ActorHandle:
    """Load a handle, in any process."""
    known = _grips.get(address)
    grip = None if known is None else known()
    if grip is None or grip.client.channel.dead:
        for stale in [address for address, known in list(_grips.items()) if known() is None]:
            _grips.pop(stale, None)
        grip = Grip(Visitor(name, address, pid, start))
        _grips[address] = weakref.ref(grip)
    client = grip.client
    if isinstance(client, Visitor):
        client.hello(token)
    else:
        client.channel.send(protocol.write(protocol.HELLO, token))
    return ActorHandle(grip, name, methods)


class _Remote:
    """The peer of a `Channel` for an actor that another process made."""

    def __init__(self, pid: int, start: int) -> None:
        self.pid = pid
        self.ready = True
        self.watch = Descriptor()
        try:
            watch = Descriptor(os.pidfd_open(pid))
        except (ProcessLookupError, AttributeError, NotImplementedError):
            return
        if _core.start_time(pid) == start:
            self.watch = watch

    def kill(self) -> None:
        try:
            signal.pidfd_send_signal(self.watch.fileno(), signal.SIGKILL)
        except (ProcessLookupError, ValueError, OSError):
            return  # the process has ended

    def died(self, task: str | None) -> WorkerDiedError:
        # Only the actor's owner knows how the process ended.
        return WorkerDiedError(pid=self.pid, task=task)

    def reap(self) -> None:
        """Stop watching the process, which its owner reaps."""
        self.watch.close()

    def second_watch(self) -> Descriptor:
        """Return another descriptor that is readable once the process has ended."""
        fd = self.watch.fileno()
        return Descriptor() if fd < 0 else Descriptor(os.dup(fd))


class Visitor(Client):
    """The client of an actor that another process made."""

    def __init__(self, name: str, address: str, pid: int, start: int) -> None:
        super().__init__(name)
        self.address = address
        self.pid = pid
        # Announcements to send after the connection is made.
        self._tokens: deque[int] = deque()
        self.channel = Channel(_Remote(pid, start), None, self.lost)
        self.replace_later()

    def hello(self, token: int) -> None:
        """Report to the actor that a handle has arrived."""
        self._tokens.append(token)
        self._greet()

    def _greet(self) -> None:
        calls = self.channel.calls
        while self._tokens and not calls.dead:
            try:
                token = self._tokens.popleft()
            except IndexError:
                return
            self.channel.send(protocol.write(protocol.HELLO, token))

    def replace(self) -> None:
        """Fail the calls that were sent, and connect to the process in which the actor runs now, if any."""
        self.channel.fail_sent()
        while not self.channel.dead:
            try:
                process, pipe = _call_on(self.address)
            except ConnectionRefusedError:
                self._end(self._gone("it has ended"))
                return
            except (OSError, EOFError) as error:
                # The actor has ended meanwhile and may be restarted. If it is not restarted, its owner closes the
                # address.
                if not _is_passing(error):
                    self._end(self._gone(f"it does not answer: {error}"))
                    return
                time.sleep(0.02)
                continue
            except Exception as error:
                self._end(self._gone(f"it refuses this process: {error}"))
                return
            if self.killed:
                process.kill()
            self.pid = process.pid
            if self.channel.revive(process, pipe, []):
                self._greet()
                self._watch(process)
            return

    def replace_without_thread(self, error: RuntimeError) -> None:
        """Give up, because connecting may wait, and this may be a finalizer."""
        self._end(self._gone(f"this process cannot start a thread that connects to it: {error}"))

    def _gone(self, why: str) -> WorkerDiedError:
        return WorkerDiedError(f"the actor of this handle ({self.name}, process {self.pid}): {why}", pid=self.pid)

    def _ended_error(self, task: str) -> WorkerDiedError:
        if self.killed or self.ended is None:
            return super()._ended_error(task)
        return WorkerDiedError(f"{self.ended}, so {task} has no result", pid=self.pid, task=task)

    def kill(self) -> None:
        """End the actor immediately, without a restart."""
        self.killed = True
        # The owner must not restart the actor.
        leave_word(self.address)
        self.channel.process.kill()
        self._end(WorkerDiedError(pid=self.pid))


def _is_passing(error: Exception) -> bool:
    return isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError, ProcessLookupError))


def _call_on(address: str) -> tuple[_Remote, Descriptor]:
    """Connect to an actor; return its process and the pipe."""
    import multiprocessing
    from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

    end = socket_above_standard(socket.socket(socket.AF_UNIX))
    try:
        end.connect(address)
        connection = Connection(above_standard(os.dup(end.fileno())))
        try:
            key = bytes(multiprocessing.current_process().authkey)
            # This blocking read returns when the actor answers or ends.
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
            pid, start = WELCOME.unpack(connection.recv_bytes(WELCOME.size))
        finally:
            connection.close()
        return _Remote(pid, start), Descriptor(end.detach())
    finally:
        end.close()


os.register_at_fork(after_in_child=_grips.clear)
