"""Test that loads leak no memory, also of streams that fail midway.

One test loads a small value a million times; the others load less often.

Each case runs in a fresh interpreter and compares the exact number of allocated blocks before and after.
"""

import os
import subprocess
import sys

import pytest

FUZZ = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "fuzz")

PRELUDE = """
import collections, gc, io, pickle, random, sys
sys.path.insert(0, sys.argv[1])
import unpickler_seeds as seeds
from unpickler_mutate import mutate
from pyray_ser import _unpickle
from pyray_ser._unpickle import Unpickler, load, loads

def grown(work, rounds, warm_up):
    for _ in range(warm_up):
        work()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(rounds):
        work()
    gc.collect()
    return sys.getallocatedblocks() - before

def check(work, rounds, warm_up=2000, slack=20):
    # A leak grows every time; caches fill once, at a moment of their own.
    growth = [grown(work, rounds, warm_up)]
    while growth[-1] > slack and len(growth) < 3:
        growth.append(grown(work, rounds, 0))
    assert min(growth) <= slack, (growth, rounds)
"""

CASES = {
    "a million small dicts": """
data = pickle.dumps({"a": 1, "b": "x", "c": 2.0}, 5)
def work():
    for _ in range(1000):
        loads(data)
check(work, 1000, 10)
""",
    "every seed with every way to read": """
for data in seeds.seeds():
    def work():
        loads(data)
        load(io.BytesIO(data))
        load(io.BufferedReader(io.BytesIO(data)))
        unpickler = Unpickler(io.BytesIO(data))
        unpickler.load()
        unpickler.memo.copy()
    # One block per load would be 400; the caches, which are bounded, may still be filling.
    check(work, 400, 10, slack=200)
""",
    "truncated everywhere": """
pool = seeds.seeds()[::4]
def work():
    for data in pool:
        for end in range(0, len(data), 3):
            for read in (loads, lambda d: Unpickler(io.BytesIO(d)).load()):
                try:
                    read(data[:end])
                except Exception:
                    pass
check(work, 8, 4, slack=1000)
""",
    "changed at random": """
pool = seeds.seeds()
def work():
    rng = random.Random(5)
    for _ in range(3000):
        data = mutate(rng.choice(pool), rng, pool)
        try:
            loads(data, allow=seeds.allowed)
        except Exception:
            pass
check(work, 6, 3, slack=1000)
""",
    "classes that come and go": """
def work():
    class Local:
        pass
    class Slotted:
        __slots__ = ("x",)
    Point = collections.namedtuple("Point", "x y")
    for cls in (Local, Slotted, Point):
        cls.__module__, cls.__qualname__ = "seeds_of_today", cls.__name__
    module = type(sys)("seeds_of_today")
    module.Local, module.Slotted, module.Point = Local, Slotted, Point
    sys.modules["seeds_of_today"] = module
    one, other = Local(), Slotted()
    one.a = other.x = 1
    for _ in range(3):
        loads(pickle.dumps([one, other, Point(1, 2)]))
# Plans of dead classes stay in their table until another class takes the place: bounded, not growing.
check(work, 3000, 3000, slack=3000)
""",
    "arrays in place": """
import numpy as np
buffers = []
values = [np.arange(10.0), np.zeros((3, 4), order="F"), np.ones(3, ">i4"), np.zeros(5, "i4,f8"), np.float64(2),
          np.ones((2, 2)).view(np.matrix), np.array([1, "x"], object)]
data = pickle.dumps(values, 5, buffer_callback=buffers.append)
in_band = pickle.dumps(values, 4)
buffers = [bytes(b.raw()) for b in buffers]
def work():
    loads(data, buffers=buffers)
    _unpickle.loads_in_place(data, buffers)
    _unpickle.loads_in_place(in_band, [])
    try:
        _unpickle.loads_in_place(data, buffers[:1])
    except pickle.UnpicklingError:
        pass
check(work, 5000, 200, slack=500)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_behind(case):
    if "np." in CASES[case]:
        pytest.importorskip("numpy")
    done = subprocess.run(
        [sys.executable, "-P", "-c", PRELUDE + CASES[case], FUZZ], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif("PYRAY_SER_UNDER_SANITIZER" in os.environ, reason="a sanitizer keeps what was freed")
def test_resident_memory_is_flat_over_a_million_loads():
    script = (
        PRELUDE
        + """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4
data = [pickle.dumps(v, 5) for v in ([1, 2, 3], {"a": [1.5, "x"]}, seeds.Plain(1, "b"), seeds.Point(1, 2, 3))]
def work(rounds):
    for _ in range(rounds):
        for d in data:
            loads(d)
work(20_000)
before = resident()
work(250_000)
assert resident() - before < 512, resident() - before
"""
    )
    done = subprocess.run([sys.executable, "-P", "-c", script, FUZZ], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
