"""Stress-test tasks and actors: finalizers, signals, forks, kills and exceptions interfere at random lines.

Usage: python -P storm_tasks.py SECONDS SEED

A trace function counts the lines of `pyray_ser.tasks` that the main thread runs, and interferes at random lines. It
makes a call like a signal handler or finalizer, forks, kills a worker or an actor, or raises an exception like the
handler of a timeout. Each round checks that no result and no item is lost. A watchdog ends the program with a
traceback if a call takes too long. At the end no descriptor, thread or process may be left.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress

import pyray_ser as ray
from pyray_ser.exceptions import GetTimeoutError, TaskCancelledError, WorkerDiedError
from pyray_ser.tasks import channel, collector

HERE = os.path.join(os.path.dirname(os.path.abspath(ray.__file__)), "tasks")
# Maximum duration of a round in seconds, on a busy machine.
PATIENCE = 120
DIED = (WorkerDiedError, TaskCancelledError)


class Struck(Exception):
    """An exception that the trace function raises during a call, as a signal handler for a timeout would."""


@ray.remote
def same(value):
    return value


@ray.remote
def numbers(count):
    yield from range(count)


@ray.remote
class Actor:
    def same(self, value):
        return value

    def numbers(self, count):
        yield from range(count)


class Garbage:
    """An object whose finalizer calls a remote function."""

    def __init__(self, storm):
        self.cycle, self.storm = self, storm

    def __del__(self):
        self.storm.kept.append(same.remote(7))


class Storm:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.countdown = 0
        self.inside = False
        self.raises = False
        self.kept = []
        self.struck = dict.fromkeys(("call", "get", "garbage", "fork", "kill", "raise"), 0)
        self.pid = os.getpid()
        self.helper = Actor.remote()
        self.actor = Actor.options(max_restarts=-1).remote()

    def trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        if event == "line" and not self.inside and os.getpid() == self.pid:
            self.countdown -= 1
            if self.countdown <= 0:
                self.countdown = self.random.randint(1, 400)
                self.inside = True
                try:
                    self.strike()
                finally:
                    self.inside = False
        return self.trace

    def strike(self):
        kinds = ["call"] * 4 + ["get"] * 4 + ["garbage"] * 3 + ["fork", "kill"] + ["raise"] * (2 if self.raises else 0)
        kind = self.random.choice(kinds)
        self.struck[kind] += 1
        if kind == "call":
            self.kept.append(self.random.choice([same, self.helper.same]).remote(7))
        elif kind == "get":
            call = self.random.choice([same, self.helper.same])
            try:
                assert ray.get(call.remote(7), timeout=PATIENCE) == 7
            except WorkerDiedError:
                return  # an earlier event killed the worker of this call
        elif kind == "garbage":
            Garbage(self)
            gc.collect(0)
        elif kind == "fork":
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        elif kind == "kill":
            with suppress(ProcessLookupError):
                os.kill(self.actor._client.pid, signal.SIGKILL)
        else:
            raise Struck

    def settle(self):
        kept, self.kept = self.kept, []
        for ref in kept:
            try:
                assert ray.get(ref, timeout=PATIENCE) == 7
            except WorkerDiedError:
                continue

    # ---- rounds

    def round_calls(self):
        call = self.random.choice([same, self.helper.same])
        assert ray.get([call.remote(i) for i in range(20)], timeout=PATIENCE) == list(range(20))

    def round_pending(self):
        ref = same.remote(0)
        for _ in range(5):
            ref = self.helper.same.remote(same.remote(ref))
        assert ray.get(ref, timeout=PATIENCE) == 0

    def round_wait(self):
        refs = [same.remote(i) for i in range(10)]
        left = refs
        while left:
            _, left = ray.wait(left, num_returns=1, timeout=PATIENCE)
        assert ray.get(refs, timeout=PATIENCE) == list(range(10))

    def round_stream(self):
        stream = numbers.remote(40)
        got = []
        while True:
            try:
                got.append(ray.get(stream.next(timeout=self.random.choice([0, 0.001, PATIENCE])), timeout=PATIENCE))
            except GetTimeoutError:
                continue
            except StopIteration:
                break
        assert got == list(range(40)), got

    def round_async(self):
        async def read():
            stream, got = numbers.remote(30), []
            while True:
                try:
                    got.append(ray.get(await asyncio.wait_for(anext(stream), self.random.choice([0.001, PATIENCE]))))
                except TimeoutError:
                    continue
                except StopAsyncIteration:
                    return got

        got = asyncio.run(read())
        assert got == list(range(30)), got

    def round_drop(self):
        stream = numbers.remote(1 << 40)
        next(stream)
        del stream

    def round_cancel(self):
        refs = [same.remote(i) for i in range(10)]
        for ref in refs[::2]:
            ray.cancel(ref)
        for i, ref in enumerate(refs):
            try:
                assert ray.get(ref, timeout=PATIENCE) == i
            except TaskCancelledError:
                assert i % 2 == 0

    def round_kill(self):
        actor = Actor.remote()
        refs = [actor.same.remote(i) for i in range(5)]
        ray.kill(actor)
        for i, ref in enumerate(refs):
            try:
                assert ray.get(ref, timeout=PATIENCE) == i
            except DIED:
                continue

    def round_restarts(self):
        for i in range(5):
            try:
                assert ray.get(self.actor.same.remote(i), timeout=PATIENCE) == i
            except WorkerDiedError:
                continue

    def round_raises(self):
        self.raises = True
        try:
            ray.get([same.remote(i) for i in range(10)], timeout=PATIENCE)
        except Struck:
            return
        finally:
            self.raises = False

    def run(self, seconds):
        rounds = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("round_")]
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            act = self.random.choice(rounds)
            faulthandler.dump_traceback_later(float(os.environ.get("STORM_PATIENCE", 4 * PATIENCE)), exit=True)
            self.countdown = self.random.randint(1, 400)
            sys.settrace(self.trace)
            try:
                act()
            except Struck:
                pass
            finally:
                sys.settrace(None)
            self.settle()
            count += 1
        faulthandler.cancel_dump_traceback_later()
        return count


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


def show_state():
    """Print what each thread does, and the state of each channel, after a call that took too long."""
    sys.settrace(None)
    faulthandler.dump_traceback(all_threads=True)
    for found in list(channel._channels):
        calls = found.calls
        state = {name: getattr(calls, name) for name in ("reader", "busy", "pending", "blocked", "dead", "closed")}
        print(found, state, found._followed, found._collected, found._burying, calls.fileno(), file=sys.stderr)
        print([(job.number, job.ref) for job in calls.sent.values()], list(calls.queued), file=sys.stderr)


def show_descriptors():
    """Print the open descriptors, and what the collectors watch."""
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        with suppress(OSError):
            print(name, os.readlink(f"/proc/self/fd/{name}"), file=sys.stderr)
    for one in list(collector._all):
        print(one, one._ending, one.over, one._channels, one._watched, one._chores, file=sys.stderr)


def main():
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    ray.init(num_workers=2)
    # Before the first measurement, create all resources that stay until the process ends.
    ray.get(same.remote(0))
    ray.tasks.shutdown()
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count(), len(children())
    ray.tasks.settings.set_pool(2)
    storm = Storm(seed)
    try:
        count = storm.run(seconds)
    except GetTimeoutError:
        show_state()
        raise
    struck = storm.struck
    del storm
    gc.collect()
    ray.tasks.shutdown()
    gc.collect()
    end = time.monotonic() + 5
    while True:
        after = len(os.listdir("/proc/self/fd")), threading.active_count(), len(children())
        is_clean = all(late <= early for early, late in zip(before, after, strict=True))
        # A thread that has just ended may still be closing the descriptors that it owned.
        if is_clean or time.monotonic() > end:
            break
        time.sleep(0.01)
    if not is_clean:
        show_state()
        show_descriptors()
        raise AssertionError(f"left: {before} before, {after} after")
    print(f"fine after {count} rounds with seed {seed}: {struck}")


if __name__ == "__main__":
    main()
