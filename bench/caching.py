#!/usr/bin/env python3
"""Measure values that processes share by name: `cached` beside other caches, `get_or_put`, and replaced objects.

    python -P bench/caching.py [--rounds N] [ROW ...]

The rows are ``hit``, ``miss``, ``memory``, ``once`` and ``replace``. Other caches take part if they are installed:
joblib, diskcache, and a Redis client whose server this program starts. The contenders take turns in each round; a time
is the lower quartile of its rounds.
"""

from __future__ import annotations

import argparse
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
from measuring.memory import pss
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


def print_rows(title: str, rows: dict[str, float], unit: str, factor: float) -> None:
    print(title)
    best = min(rows.values())
    for name, value in rows.items():
        print(f"  {name:22} {value * factor:12.2f} {unit}   {value / best:10.1f}x")


def hit(rounds: int) -> None:
    with ExitStack() as stack:
        found = caches(stack)
        for call in found.values():
            assert call(1)[-1] == call(1)[-1] == 1
        times = interleaved(rounds, {name: Loop("call(1)", {"call": call}) for name, call in found.items()})
    print_rows("hit: a result of 100 MB", {name: typical(taken) for name, taken in times.items()}, "us", 1e6)


def miss(rounds: int) -> None:
    with ExitStack() as stack:
        found = {**caches(stack), "the function alone": make}
        numbers = itertools.count(100)
        rows = {name: timing.once(lambda call=call: call(next(numbers))) for name, call in found.items()}
        times = interleaved(rounds, rows)
    print_rows("miss: compute and keep 100 MB", {name: typical(taken) for name, taken in times.items()}, "ms", 1e3)


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


def memory(rounds: int) -> None:
    """Print the memory of eight processes that have one result, less that of processes that have none."""
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
            rows[name] = float(sum(end.recv() for end in ends))
            for end in ends:
                end.send(None)
            for process in processes:
                process.join()
    print_rows("memory of 8 processes that have one result of 100 MB (PSS)", rows, "MB", 1e-6)


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


def once(rounds: int, processes: int = 64, elements: int = 25_000_000) -> None:
    """Print how long after the first one the others have a value that one of 64 processes computes."""
    pyray_ser.init()
    delays = []
    for _ in range(rounds):
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
        for child in children:
            child.join()
        assert runs == 1, runs
        times.sort()
        delays.append(times[-1] - times[0])
        pyray_ser.free(pyray_ser.names()["once"])
    print(f"once: {processes} processes, one result of {elements * 8 // 10**6} MB, the factory ran once")
    print(
        f"  the last process had it {typical(delays) * 1e3:.1f} ms after the first one (worst {max(delays) * 1e3:.1f} ms)"
    )


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


def replace(rounds: int, versions: int = 100) -> None:
    """Print how many versions of 100 MB per second a publisher replaces while eight readers follow."""
    pyray_ser.init()
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
    print("replace: one publisher of 100 MB, 8 readers that follow")
    print(f"  {versions / spent:.0f} versions per second, {spent / versions / copy:.2f} x the time of a copy")
    print(
        f"  readers saw {min(seen)} to {max(seen)} of {versions} versions, none torn; at most {most / 100e6:.2f} copies"
    )


ROWS = {"hit": hit, "miss": miss, "memory": memory, "once": once, "replace": replace}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}")
    pyray_ser.init(capacity="2G")
    for name in options.rows or ROWS:
        # Each row has its own process and its own store.
        if os.fork() == 0:
            try:
                pyray_ser.shutdown()
                pyray_ser.init(capacity="3G")
                ROWS[name](options.rounds)
                pyray_ser.shutdown()
                sys.stdout.flush()
                os._exit(0)
            finally:
                os._exit(1)
        if os.wait()[1]:
            raise SystemExit(f"row {name} failed")


if __name__ == "__main__":
    main()
