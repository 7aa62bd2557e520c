#!/usr/bin/env python3
"""Measure values that processes share by name: `cached` beside other caches, `get_or_put`, and replaced objects.

    python -P bench/caching.py [ROW ...]

The rows are ``hit``, ``miss``, ``memory``, ``once`` and ``replace``. Other caches take part if they are installed:
joblib, diskcache, and a Redis client whose server this program starts. The contenders take turns in each round; a time
is the lower quartile of its rounds.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy
from measuring import timing
from measuring.claim import Claim, measured
from measuring.memory import pss
from measuring.program import main
from measuring.timing import Loop, interleaved, typical

import pyray_ser

ELEMENTS = 12_500_000  # 100 MB
PROCESSES = 8


def make(number: int) -> numpy.ndarray:
    return numpy.full(ELEMENTS, float(number))


@contextmanager
def redis_server() -> Iterator[object]:
    """Start a Redis server with a socket in a temporary folder, and yield a client."""
    import redis

    with tempfile.TemporaryDirectory() as folder:
        socket = os.path.join(folder, "socket")
        options = ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(unix_socket_path=socket)
            for _ in range(100):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            yield client
        finally:
            server.terminate()
            server.wait()


def redis_cache(client) -> Callable[[int], numpy.ndarray]:
    def call(number: int) -> numpy.ndarray:
        key = f"make {number}"
        found = client.get(key)
        if found is not None:
            return pickle.loads(found)
        value = make(number)
        client.set(key, pickle.dumps(value, protocol=5))
        return value

    return call


def caches(stack: ExitStack) -> dict[str, Callable[[int], numpy.ndarray]]:
    """Return the caches by name."""
    found: dict[str, Callable[[int], numpy.ndarray]] = {
        "pyray_ser.cached": pyray_ser.cached("1G")(make),
        "functools.lru_cache": functools.lru_cache(8)(make),
    }
    if importlib.util.find_spec("joblib"):
        from joblib import Memory

        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        found["joblib.Memory"] = Memory(folder, verbose=0).cache(make)
        found["joblib.Memory, mmap"] = Memory(folder + "/mapped", verbose=0, mmap_mode="r").cache(make)
    if importlib.util.find_spec("diskcache"):
        from diskcache import Cache

        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        cache = stack.enter_context(Cache(folder, size_limit=4 << 30))
        found["diskcache"] = cache.memoize()(make)
    if importlib.util.find_spec("redis") and shutil.which("redis-server"):
        found["Redis and pickle"] = redis_cache(stack.enter_context(redis_server()))
    return found


def compared(row: str, what: str, values: dict[str, float], unit: str) -> list[Claim]:
    """Return one figure for each contender, with its ratio to the smallest."""
    best = min(values.values())
    return [
        measured(row, f"{what}, {name}", value, unit, note=f"{value / best:.1f}x") for name, value in values.items()
    ]


def rounds_of(quick: bool) -> int:
    return 2 if quick else 8


def hit(quick: bool) -> list[Claim]:
    with ExitStack() as stack:
        found = caches(stack)
        for call in found.values():
            assert call(1)[-1] == call(1)[-1] == 1
        times = interleaved(rounds_of(quick), {name: Loop("call(1)", {"call": call}) for name, call in found.items()})
    return compared("hit", "a result of 100 MB", {name: typical(taken) * 1e6 for name, taken in times.items()}, "us")


def miss(quick: bool) -> list[Claim]:
    with ExitStack() as stack:
        found = {**caches(stack), "the function alone": make}
        numbers = itertools.count(100)
        rows = {name: timing.once(lambda call=call: call(next(numbers))) for name, call in found.items()}
        times = interleaved(rounds_of(quick), rows)
    return compared(
        "miss", "compute and keep 100 MB", {name: typical(taken) * 1e3 for name, taken in times.items()}, "ms"
    )


def _reader(name: str, connection) -> None:
    with ExitStack() as stack:
        call = caches_by_name[name] if name in caches_by_name else caches(stack)[name]
        array = call(1)
        assert array.sum() == ELEMENTS
        connection.send("read")
        connection.recv()
        connection.send(pss())
        connection.recv()


caches_by_name: dict[str, Callable[[int], numpy.ndarray]] = {}


def memory(quick: bool) -> list[Claim]:
    """Measure the memory of eight processes that have one result, less that of processes that have none."""
    rows = {}
    with ExitStack() as stack:
        caches_by_name.update(caches(stack))
        for name in [*caches_by_name]:
            caches_by_name[name](1)
            caches_by_name["functools.lru_cache"].cache_clear()
            context = multiprocessing.get_context("fork")
            pairs = [context.Pipe() for _ in range(PROCESSES)]
            processes = [context.Process(target=_reader, args=(name, pair[1])) for pair in pairs]
            for process in processes:
                process.start()
            ends = [pair[0] for pair in pairs]
            assert [end.recv() for end in ends] == ["read"] * PROCESSES
            for end in ends:
                end.send(None)
            rows[name] = sum(end.recv() for end in ends) / 2**20
            for end in ends:
                end.send(None)
            for process in processes:
                process.join()
    return compared("memory", "8 processes that have one result of 100 MB (PSS)", rows, "MiB")


def _once(connection, elements: int) -> None:
    def factory() -> numpy.ndarray:
        connection.send("runs")
        time.sleep(0.5)
        return numpy.arange(float(elements))

    connection.recv()
    value = pyray_ser.get_or_put("once", factory)
    done = time.monotonic()
    assert value[-1] == elements - 1
    connection.send(done)
    # The end of a process takes longer than what is measured, and others may still be waiting for a processor.
    connection.recv()


def once(quick: bool, elements: int = 25_000_000) -> list[Claim]:
    """Measure how long after the first process the last one has a value that one of 64 processes computes."""
    processes = 8 if quick else 64
    delays = []
    for _ in range(rounds_of(quick)):
        context = multiprocessing.get_context("fork")
        pairs = [context.Pipe() for _ in range(processes)]
        children = [context.Process(target=_once, args=(pair[1], elements)) for pair in pairs]
        for child in children:
            child.start()
        for end, _ in pairs:
            end.send(None)
        times, runs = [], 0
        for end, _ in pairs:
            while (found := end.recv()) == "runs":
                runs += 1
            times.append(found)
        for end, _ in pairs:
            end.send(None)
        for child in children:
            child.join()
        assert runs == 1, runs
        times.sort()
        delays.append(times[-1] - times[0])
        pyray_ser.free(pyray_ser.names()["once"])
    what = f"{processes} processes, one result of {elements * 8 // 10**6} MB: from the first to the last that has it"
    return [measured("once", what, typical(delays) * 1e3, "ms", note=f"worst {max(delays) * 1e3:.1f} ms")]


def _follower(connection, last: int) -> None:
    seen, before = 0, -1
    connection.send("ready")
    for value in pyray_ser.watch("weights", timeout=60):
        number = int(value[0])
        assert number > before and value[-1] == number
        before, seen = number, seen + 1
        if number == last:
            break
    connection.send(seen)


def replace(quick: bool) -> list[Claim]:
    """Compare a replacement of 100 MB, which eight readers follow, with a copy."""
    versions = 10 if quick else 100
    array = numpy.zeros(ELEMENTS)
    target = numpy.zeros(ELEMENTS)
    pyray_ser.put(array, name="weights")
    context = multiprocessing.get_context("fork")
    pairs = [context.Pipe() for _ in range(PROCESSES)]
    children = [context.Process(target=_follower, args=(pair[1], versions)) for pair in pairs]
    for child in children:
        child.start()
    assert [end.recv() for end, _ in pairs] == ["ready"] * PROCESSES
    spent, most = 0.0, 0
    for number in range(1, versions + 1):
        array[0] = array[-1] = number
        began = time.perf_counter()
        pyray_ser.put(array, name="weights", replace=True)
        spent += time.perf_counter() - began
        most = max(most, pyray_ser.stats()["used"])
    seen = [end.recv() for end, _ in pairs]
    for child in children:
        child.join()
    began = time.perf_counter()
    for _ in range(20):
        numpy.copyto(target, array)
    copy = (time.perf_counter() - began) / 20
    note = f"{versions / spent:.0f} versions per second; readers saw {min(seen)} to {max(seen)} of {versions}"
    return [
        measured(
            "replace", "put of 100 MB that 8 readers follow, over a copy", spent / versions / copy, "x", note=note
        ),
        measured("replace", "most memory, in versions", most / 100e6, "x"),
    ]


def in_large_store(row: Callable[[bool], list[Claim]]) -> Callable[[bool], list[Claim]]:
    def measure(quick: bool) -> list[Claim]:
        pyray_ser.init(capacity="3G")
        return row(quick)

    return measure


if __name__ == "__main__":
    rows = {row.__name__: in_large_store(row) for row in (hit, miss, memory, once, replace)}
    sys.exit(main(__file__, __doc__, rows, packages=("joblib", "diskcache", "redis")))
