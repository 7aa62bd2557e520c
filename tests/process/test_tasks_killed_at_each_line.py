"""Kill the worker or the caller at the n-th line of our code; a caller that survives gets an error within a second.

From a known moment on, a trace function counts the lines of the package that a process runs, and kills the process at
one of them. This tests every step of submit, receive, run and reply. After each test file, conftest.py checks that
nothing is left in /dev/shm.
"""

from __future__ import annotations

import textwrap

import pytest
from isolated import run

COMMON = """
import gc, itertools, os, random, signal, sys, threading, time
import numpy as np
import pyray_ser as ray
from pyray_ser.exceptions import ObjectLostError, TaskError, WorkerDiedError

HERE = os.path.dirname(ray.__file__)
# The file into which a process writes the time at which it dies.
DEATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "death")

class Killer:
    # Trace function: ends the process at the n-th line of the package.
    def __init__(self, n):
        self.n = n
        # Forked processes inherit the trace function, but must not be killed.
        self.pid = os.getpid()
        # Several threads count lines.
        self.lines = itertools.count(1)
    def __call__(self, frame, event, arg):
        if os.getpid() != self.pid or not frame.f_code.co_filename.startswith(HERE):
            return None
        if event == "line":
            if next(self.lines) == self.n:
                with open(DEATH, "w") as file:
                    file.write(repr(time.monotonic()))
                os.kill(os.getpid(), signal.SIGKILL)
        return self

def arm(n):
    sys.settrace(Killer(n))
def disarm():
    killer = sys.gettrace()
    sys.settrace(None)
    return None if killer is None else "armed"

def same(value):
    return value
def several(value):
    return value, value
def fail(value):
    raise KeyError("as it should be")
def stream(value):
    for _ in range(3):
        yield value
def nested(value):
    return ray.get(ray.remote(same).remote(value))
def takes_its_time(value):
    time.sleep(0.02)
    return value

small, large = 7, np.arange(200_000)
def equal(one, other):
    return bool(np.all(one == other))
"""

# This script kills the worker or the actor and measures the time from its death until the caller notices.
WORKERS = (
    COMMON
    + """
class Does:
    def arm(self, n): arm(n)
    def disarm(self): return disarm()
    def same(self, value): return value
    def several(self, value): return value, value
    def fail(self, value): raise KeyError("as it should be")
    def stream(self, value): yield from stream(value)
    def nested(self, value): return nested(value)

class Awaits:
    def arm(self, n): arm(n)
    def disarm(self): return disarm()
    async def same(self, value): return value
    async def stream(self, value):
        for item in stream(value): yield item

class Pool:
    # The one worker; the functions look like an actor's methods.
    def __init__(self):
        self.functions = {}
    def __getattr__(self, name):
        function = self.functions.get(name)
        if function is None:
            function = self.functions[name] = ray.remote(globals()[name])
        return function

def collect(method, how, value):
    if how == "stream":
        return [equal(ray.get(ref), value) for ref in method.options(stream=True).remote(value)] == [True, True, True]
    if how == "several":
        return all(equal(part, value) for part in ray.get(method.options(num_returns=2).remote(value)))
    if how == "fail":
        try:
            ray.get(method.remote(value))
        except KeyError:
            return True
        return False
    if how == "pending":
        return equal(ray.get(method.remote(slow.remote(value))), value)
    return equal(ray.get(method.remote(value)), value)

def case(of, how, value, n):
    # True if the process died.
    side = of()
    method = getattr(side, "same" if how == "pending" else how)
    try:
        # It knows the function by then, but for every other case.
        if n % 2:
            collect(method, how, value)
        ray.get(side.arm.remote(n))
        try:
            assert collect(method, how, value), (how, n)
        except WorkerDiedError as error:
            with open(DEATH) as file:
                took = time.monotonic() - float(file.read())
            assert error.exitcode == -signal.SIGKILL, error
            assert took < 60, (how, n, took)
            return True
        # No killer: it has died since the answer, and this is another one.
        return ray.get(side.disarm.remote()) is None
    except WorkerDiedError as error:
        # Later than the answer, or before the call: while it answered arm().
        assert error.exitcode == -signal.SIGKILL, error
        return True

def sweep(of, hows, values, step):
    done = died = 0
    for how in hows:
        for value in values:
            # Ends with the first n that the process survives.
            n = random.randint(1, step)
            while True:
                done += 1
                if not case(of, how, value, n):
                    break
                died += 1
                n += random.randint(1, 2 * step - 1)
    return done, died

if __name__ == "__main__":
    random.seed({seed})
    ray.init(num_workers={workers})
    slow = ray.remote(takes_its_time)
    done, died = sweep({of}, {hows}, (small, large), {step})
    ray.get(ray.remote(same).remote(1))
    # A forked worker holds what this process had in view when it was forked, as long as it lives.
    ray.tasks.shutdown()
    end = time.monotonic() + 240
    while (ray.stats()["objects"] or ray.stats()["in_flight"]) and time.monotonic() < end:
        # An error and the frame that caught it hold each other, and the arguments.
        gc.collect()
        time.sleep(0.05)
    stats = ray.stats()
    if stats["objects"]:
        print(ray.objects(), file=sys.stderr)
    from pyray_ser import _core
    _core.default().check()
    ray.shutdown()
    import multiprocessing
    assert not multiprocessing.active_children()
    print(stats["objects"], stats["in_flight"], stats["unsealed"], done, died)
"""
)


@pytest.mark.parametrize(
    "of, hows, workers, step, least",
    [
        ("Pool", ("same", "fail", "several", "stream"), 1, 9, 60),
        ("Pool", ("nested", "pending"), 2, 12, 25),
        ("ray.remote(Does).remote", ("same", "fail", "several", "stream"), 1, 12, 40),
        ("ray.remote(Does).remote", ("nested",), 1, 16, 10),
        ("ray.remote(Awaits).remote", ("same", "stream"), 1, 12, 15),
    ],
)
def test_a_worker_dies_at_each_line(of, hows, workers, step, least):
    values = {"of": of, "hows": repr(hows), "workers": workers, "step": step, "seed": 1}
    script = WORKERS
    for key, value in values.items():
        script = script.replace("{" + key + "}", str(value))
    objects, in_flight, unsealed, done, died = map(int, run(script, timeout=120).split())
    assert (objects, in_flight, unsealed) == (0, 0, 0)
    assert done >= least and died >= done - 2 * len(hows), (done, died)


# In this script the driver is a child of the observer, which becomes the parent of any process that the driver leaves.
DRIVERS = (
    COMMON
    + """
import ctypes, traceback

class Actor:
    def same(self, value): return value
    def nested(self, value): return nested(value)
    def stream(self, value): yield from stream(value)

def tasks(value):
    refs = [ray.remote(same).remote(value), ray.remote(nested).remote(value)]
    ray.get(ray.remote(same).remote(refs[0]))
    ray.get(refs)
def streams(value):
    for ref in ray.remote(stream).remote(value):
        ray.get(ref)
def actors(value):
    actor = ray.remote(Actor).remote()
    other = ray.remote(Actor).remote()
    ray.get([actor.same.remote(value), actor.nested.remote(value), other.same.remote(actor.same.remote(value))])
    for ref in actor.stream.remote(value):
        ray.get(ref)

def drive(work, value, n, everywhere):
    ray.init(num_workers=2)
    killer = Killer(n)
    if everywhere:
        threading.settrace(killer)
    sys.settrace(killer)
    work(value)
    sys.settrace(None)
    threading.settrace(None)
    survived = next(killer.lines) <= killer.n
    ray.shutdown()
    os._exit(0 if survived else 3)

def case(work, value, n, everywhere):
    # True if it died.
    child = os.fork()
    if not child:
        try:
            drive(work, value, n, everywhere)
        except BaseException:
            traceback.print_exc()
        os._exit(4)
    _, status = os.waitpid(child, 0)
    # What it has started is ours now: all of it must end, soon.
    end = time.monotonic() + 240
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not pid:
            assert time.monotonic() < end, ("left", work, n, everywhere)
            time.sleep(0.002)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return True
    assert os.WEXITSTATUS(status) == 0, status
    return False

if __name__ == "__main__":
    random.seed(2)
    PR_SET_CHILD_SUBREAPER = 36
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    done = died = 0
    for work in (tasks, streams, actors):
        for value in (small, large):
            for everywhere in (False, True):
                n = random.randint(1, {step})
                while True:
                    done += 1
                    if not case(work, value, n, everywhere):
                        break
                    died += 1
                    n += random.randint(1, 2 * {step} - 1)
    print(done, died)
"""
)


def test_a_driver_dies_at_each_line():
    done, died = map(int, run(textwrap.dedent(DRIVERS.replace("{step}", "150")), timeout=200).split())
    assert done >= 36 and died == done - 12, (done, died)
