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
from . import engine, protocol
from .actor import ActorHandle, Client, Grip
from .channel import Channel
from .listener import WELCOME, leave_word

__all__ = ["CLUSTER", "EndedError", "connect_here", "introduce", "reduce", "set_connector"]

# The beginning of the address of an actor that a cluster's program made; its key follows.
CLUSTER = "cluster:"
# How to connect to such an actor, under the key "connector".
_connectors: dict[str, Any] = {}

# The clients of this process's handles, by the address of the actor.
_grips: dict[str, weakref.ref[Grip]] = {}


def reduce(handle: ActorHandle) -> tuple[Any, ...]:
    """Reduce a handle."""
    client = handle._client
    token = secrets.randbits(63)
    client.announce(token, handle._grip)
    _grips[client.address] = weakref.ref(handle._grip)
    pid = 0 if client.address.startswith(CLUSTER) else client.pid
    return load, (handle._name, handle._methods, client.address, pid, _core.start_time(pid) if pid else 0, token)


def load(name: str, methods: dict[str, bool], address: str, pid: int, start: int, token: int) -> ActorHandle:
    """Load a handle, in any process."""
    known = _grips.get(address)
    grip = None if known is None else known()
    if grip is None or grip.client.is_over:
        for stale in [address for address, known in list(_grips.items()) if known() is None]:
            _grips.pop(stale, None)
        grip = Grip(Visitor(name, address, pid, start))
        _grips[address] = weakref.ref(grip)
    grip.client.hello(token)
    return ActorHandle(grip, name, methods)


class _Remote:
    """The peer of a `Channel` for an actor that another process made."""

    def __init__(self, pid: int, start: int) -> None:
        self.pid = pid
        self.ready = True
        self.watch = Descriptor()
        if pid == 0:
            return  # an actor of a cluster, which this process has not found yet
        try:
            watch = Descriptor(os.pidfd_open(pid))
        except (OSError, AttributeError, NotImplementedError):
            return  # the process has ended, its id is one of a thread, or the kernel has no such descriptors
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
        # The actor's own address if it runs on this host.
        self._here = "" if address.startswith(CLUSTER) else address
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
                process, pipe = self._connect()
            except ConnectionRefusedError as error:
                self._end(self._gone(str(error) if isinstance(error, EndedError) else _why_refused()))
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

    def _connect(self) -> tuple[Any, Descriptor]:
        if not self.address.startswith(CLUSTER):
            return connect_here(self.address)
        connector = _connectors.get("connector")
        if connector is None:
            raise RuntimeError(
                "it was made by a program on a cluster, and this process was not started by a worker of the cluster; hint: "
                "call its methods in a task"
            )
        process, pipe, self._here = connector.connect(self.address.removeprefix(CLUSTER), self.name)
        return process, pipe

    def replace_without_thread(self, error: RuntimeError) -> None:
        """Give up, because connecting may wait, and this may be a finalizer."""
        self._end(self._gone(f"this process cannot start a thread that connects to it: {error}"))

    def _gone(self, why: str) -> WorkerDiedError:
        process = f", process {self.pid}" if self.pid else ""
        return WorkerDiedError(f"the actor of this handle ({self.name}{process}): {why}", pid=self.pid or None)

    def _ended_error(self, task: str) -> WorkerDiedError:
        if self.killed or self.ended is None:
            return super()._ended_error(task)
        return WorkerDiedError(f"{self.ended}, so {task} has no result", pid=self.pid, task=task)

    def kill(self) -> None:
        """End the actor immediately, without a restart."""
        self.killed = True
        # The owner must not restart the actor.
        if self._here:
            leave_word(self._here)
        self.channel.process.kill()
        self._end(WorkerDiedError(pid=self.pid))


def _why_refused() -> str:
    """Return why no process listens at the address of an actor of this host."""
    if _connectors or engine.cluster() is not None:
        return (
            "it has ended, or a task has made it on another host; hint: make actors that several hosts use in the program "
            "that called init(address=...)"
        )
    return "it has ended"


def _is_passing(error: Exception) -> bool:
    return isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError, ProcessLookupError))


class EndedError(ConnectionRefusedError):
    """Says why no process can connect to an actor any more."""


def set_connector(connector: Any) -> None:
    """
    Set how this process connects to actors of its cluster.

    Parameters
    ----------
    connector : object
        Its method ``connect(key, name)`` returns the peer of the channel, the pipe, and the address of the actor if it
        runs on this host, otherwise an empty string. It raises ConnectionRefusedError if the actor has ended.
    """
    _connectors["connector"] = connector


def connect_here(address: str) -> tuple[_Remote, Descriptor]:
    """Connect to an actor of this host; return its process and the pipe."""
    end, pid, start = introduce(address)
    return _Remote(pid, start), Descriptor(end.detach())


def introduce(address: str) -> tuple[socket.socket, int, int]:
    """Connect to an address of this host; return the socket, and the process and start time of the process there."""
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
    except BaseException:
        end.close()
        raise
    return end, pid, start


os.register_at_fork(after_in_child=_grips.clear)
