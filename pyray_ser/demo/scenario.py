"""Run the same steps for both methods: distribute the value, ask questions, kill one worker, and replace it."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from . import measuring
from .queries import fingerprint
from .report import Progress
from .ways import Way
from .workers import SILENCE, Replacement, Worker

# Number of questions that a worker has at a time: the one that it is answering and the next one, so that it never has
# to wait.
DEPTH = 2


@dataclass
class Outcome:
    """All measurements of one method. Times are in seconds, sizes in bytes."""

    publish: float = 0.0
    hand_over: float = 0.0
    again: float | None = None
    memory: int = 0
    own: int = 0
    fingerprints: set[int] = field(default_factory=set)
    asking: float = 0.0
    answers: dict[int, Any] = field(default_factory=dict)
    killed_pid: int = 0
    asked_again: int = 0
    noticed: float = 0.0
    replaced: float = 0.0
    slowest_before: float = 0.0
    slowest_after: float = 0.0
    fingerprints_after: set[int] = field(default_factory=set)


class Scenario:
    """A run of one method with its workers.

    Parameters
    ----------
    way : StoreWay or PipeWay
    workers : int
        Number of processes that answer questions.
    """

    def __init__(self, way: Way, workers: int) -> None:
        self.way = way
        self.count = workers
        self.outcome = Outcome()
        self.workers: list[Worker] = []
        self.payload: Any = None

    def publish(self, value: dict[str, Any]) -> None:
        """Prepare the value for sending; with the store, this is the only copy."""
        with Progress(f"{self.way.name}: publishing", 1) as progress:
            start = time.perf_counter()
            self.payload = self.way.publish(value)
            self.outcome.publish = time.perf_counter() - start
            progress.advance()

    def hand_over(self) -> None:
        """Start the workers, and measure the time from the first byte sent until all workers have the value."""
        with Progress(f"{self.way.name}: starting {self.count} workers", self.count) as progress:
            # Append each worker to the list immediately, so that `close` finds it after an error.
            for _ in range(self.count):
                self.workers.append(Worker(self.way, self.payload))
            for worker in self.workers:
                worker.await_hello()
                progress.advance()
        with Progress(f"{self.way.name}: handing over", self.count) as progress:
            start = time.perf_counter()
            for worker in self.workers:
                worker.hand_over()
                progress.advance()
            for worker in self.workers:
                worker.await_ready()
            self.outcome.hand_over = time.perf_counter() - start

    def read_everything(self) -> set[int]:
        """Have every worker read every byte and return its checksum."""
        seen = set()
        with Progress(f"{self.way.name}: reading every byte in every worker", len(self.workers)) as progress:
            for worker in self.workers:
                worker.ask(-1, ("fingerprint", ()), 0.0)
            for worker in self.workers:
                seen.add(worker.receive()[2])
                worker.outstanding.clear()
                progress.advance()
        return seen

    def measure_memory(self) -> None:
        pids = [worker.pid for worker in self.workers]
        self.outcome.memory = measuring.total([os.getpid(), *pids])
        self.outcome.own = max(measuring.memory(pid).own for pid in pids)

    def measure_again(self, key: str) -> None:
        """Measure how long a worker takes to get an item of the value a second time."""
        self.workers[0].connection.send(("again", key, 1000))
        self.outcome.again = self.workers[0].receive()[1]

    def ask(self, questions: list[tuple[str, tuple[Any, ...]]]) -> None:
        """Ask all questions; kill one worker when half of them are answered, and replace it meanwhile."""
        outcome = self.outcome
        todo = deque(range(len(questions)))
        replacement: Replacement | None = None
        victim: Worker | None = None
        killed_at = 0.0
        start = time.perf_counter()
        with Progress(f"{self.way.name}: asking, and killing a worker in the middle", len(questions)) as progress:
            # With little data, all questions may be answered before the death is noticed. Wait until it is noticed.
            while len(outcome.answers) < len(questions) or victim in self.workers:
                now = time.perf_counter()
                if replacement and replacement.worker and replacement.worker not in self.workers:
                    outcome.replaced = now - killed_at
                    self.workers.append(replacement.worker)
                for worker in self.workers:
                    while todo and worker is not victim and len(worker.outstanding) < DEPTH:
                        number = todo.popleft()
                        worker.ask(number, questions[number], now)
                if victim is None and len(outcome.answers) >= len(questions) // 2:
                    victim = max(self.workers, key=lambda worker: len(worker.outstanding))
                    outcome.killed_pid = victim.pid
                    killed_at = time.perf_counter()
                    victim.kill()
                by_connection = {worker.connection: worker for worker in self.workers}
                readable = wait(by_connection, timeout=0.02 if replacement else SILENCE)
                if not readable and time.perf_counter() - now > SILENCE:
                    raise TimeoutError("no worker answers")
                for connection in readable:
                    worker = by_connection[connection]  # type: ignore[index]
                    try:
                        _, number, answer = worker.connection.recv()
                    except (EOFError, OSError):
                        if worker is not victim:
                            raise
                        # The worker has died and its pipe has been read to the end: other workers get its unanswered
                        # questions.
                        outcome.noticed = time.perf_counter() - killed_at
                        outcome.asked_again = len(worker.outstanding)
                        todo.extendleft(worker.outstanding)
                        self.workers.remove(worker)
                        worker.discard()
                        replacement = Replacement(self.way, self.payload)
                        replacement.start()
                        continue
                    self._took(worker, number, killed_at)
                    answer = self.way.unwrap(answer)
                    outcome.answers[number] = fingerprint(answer) if isinstance(answer, np.ndarray) else answer
                    progress.advance()
            outcome.asking = time.perf_counter() - start
        if replacement:
            replacement.join(SILENCE)
            if replacement.worker is None:
                raise TimeoutError("the killed worker's replacement did not start")
            if replacement.worker not in self.workers:
                outcome.replaced = time.perf_counter() - killed_at
                self.workers.append(replacement.worker)

    def _took(self, worker: Worker, number: int, killed_at: float) -> None:
        taken = time.perf_counter() - worker.outstanding.pop(number)
        if killed_at:
            self.outcome.slowest_after = max(self.outcome.slowest_after, taken)
        else:
            self.outcome.slowest_before = max(self.outcome.slowest_before, taken)

    def close(self) -> None:
        """End every worker and release the published value."""
        for worker in self.workers:
            worker.stop()
        self.workers.clear()
        self.payload = None
