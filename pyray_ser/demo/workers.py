"""A worker process, which receives the value once and then answers questions until its pipe closes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from . import queries
from .ways import Way

# Seconds. No step takes this long, so a worker that sends nothing for this time has a bug.
SILENCE = 300.0


def serve(connection: Connection, way: Way) -> None:
    """Run a worker until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end
    connection.send(("hello",))
    try:
        payload = connection.recv()
        value = way.receive(payload)
        connection.send(("ready",))
        while True:
            message = connection.recv()
            if message[0] == "ask":
                _, number, function, arguments = message
                answer = getattr(queries, function)(value, *arguments)
                connection.send(("answer", number, way.wrap(answer)))
            elif message[0] == "again":
                connection.send(("again", way.again(payload, *message[1:])))
            else:
                break
    except EOFError:
        pass  # the parent has ended
    way.close()


class Worker:
    """The parent's side of one worker."""

    def __init__(self, way: Way, payload: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=serve, args=(theirs, way), daemon=True)
        self.process.start()
        theirs.close()
        self.outstanding: dict[int, float] = {}
        self._payload = payload

    @property
    def pid(self) -> int:
        pid = self.process.pid
        assert pid is not None
        return pid

    def receive(self) -> Any:
        """Return the next message; raise EOFError if the worker is dead."""
        if not self.connection.poll(SILENCE):
            raise TimeoutError(f"worker {self.pid} says nothing")
        return self.connection.recv()

    def await_hello(self) -> None:
        """Wait until the interpreter has started and has imported numpy."""
        self.receive()

    def hand_over(self) -> None:
        """Send the payload that the way object has made from the value."""
        self.connection.send(self._payload)

    def await_ready(self) -> None:
        """Wait until the worker has received the value."""
        self.receive()

    def ask(self, number: int, question: tuple[str, Sequence[Any]], now: float) -> None:
        self.outstanding[number] = now
        self.connection.send(("ask", number, *question))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ask the worker to end, and wait for it."""
        try:
            self.connection.send(("stop",))
        except OSError:
            pass  # the worker is dead already
        self.process.join(30)
        self.discard()

    def discard(self) -> None:
        """Release the parent's side of a worker; end the worker if it still runs."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()


class Replacement(threading.Thread):
    """Starts a worker to replace a dead one, while the others continue."""

    def __init__(self, way: Way, payload: Any) -> None:
        super().__init__(daemon=True)
        self.worker: Worker | None = None
        self._way = way
        self._payload = payload

    def run(self) -> None:
        worker = Worker(self._way, self._payload)
        worker.await_hello()
        worker.hand_over()
        worker.await_ready()
        self.worker = worker
