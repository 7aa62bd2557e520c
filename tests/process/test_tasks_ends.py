"""Test calls to ended actors, from every process with a handle, and waits that end with an error or a timeout."""

from __future__ import annotations

import textwrap

import pytest
from isolated import run

COMMON = """
import asyncio, atexit, os, sys, time, weakref
import pyray_ser as ray
from pyray_ser.exceptions import *

folder = os.path.dirname(os.path.abspath(__file__))
go, begun = os.path.join(folder, "go"), os.path.join(folder, "begun")

def touch(path):
    open(path, "w").close()

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)

@ray.remote
def late(size):
    wait_for(go)
    return bytes(size)

@ray.remote
class Actor:
    def pid(self): return os.getpid()
    def end(self): os._exit(3)
    def late(self, size):
        wait_for(go)
        return bytes(size)

def dies(actor):
    try:
        return ray.get(actor.pid.remote(), timeout=60)
    except WorkerDiedError:
        return "died"

@ray.remote
def dies_elsewhere(actor): return dies(actor)
"""


def result(main: str) -> str:
    return run(COMMON + 'if __name__ == "__main__":\n' + textwrap.indent(textwrap.dedent(main), "    "))


@pytest.mark.parametrize("how", ["kill", "end"])
def test_a_call_on_a_dead_actor_fails_in_every_process(how):
    main = f"""
    actor = Actor.remote()
    assert ray.get(dies_elsewhere.remote(actor)) == dies(actor) != "died"
    if {how!r} == "kill":
        ray.kill(actor)
    else:
        try:
            ray.get(actor.end.remote())
        except WorkerDiedError as error:
            assert error.exitcode == 3
    print([dies(actor), dies(actor), ray.get(dies_elsewhere.remote(actor))])
    """
    assert result(main) == "['died', 'died', 'died']"


def test_an_actor_that_dies_of_a_call_from_elsewhere_is_started_again_for_everyone():
    main = """
    @ray.remote
    def end(actor):
        first = dies(actor)
        try:
            ray.get(actor.end.remote(), timeout=60)
        except WorkerDiedError:
            return first, dies(actor)
    actor = Actor.options(max_restarts=1).remote()
    here = ray.get(actor.pid.remote())
    first, second = ray.get(end.remote(actor))
    print(first == here, second == dies(actor), second not in (first, "died"))
    """
    assert result(main) == "True True True"


def test_a_kill_from_elsewhere_keeps_the_actor_from_being_started_again():
    main = """
    @ray.remote
    def kill(actor): ray.kill(actor)
    actor = Actor.options(max_restarts=-1).remote()
    assert dies(actor) != "died"
    ray.get(kill.remote(actor))
    print([dies(actor), dies(actor), ray.get(dies_elsewhere.remote(actor))])
    """
    assert result(main) == "['died', 'died', 'died']"


def test_an_actor_is_finalized_when_its_last_handle_is_gone():
    main = """
    @ray.remote
    class Finalized:
        def __init__(self):
            weakref.finalize(self, touch, go + "-finalize")
            atexit.register(touch, go + "-atexit")
        def same(self, value): return value
        def __del__(self): touch(go + "-del")
    actor = Finalized.remote()
    other = actor
    assert ray.get(actor.same.remote(1)) == 1
    last = other.same.remote(2)
    del actor
    assert not os.path.exists(go + "-del") and ray.get(other.same.remote(3)) == 3
    del other
    for name in ("del", "finalize", "atexit"):
        wait_for(go + "-" + name)
    print(ray.get(last))
    """
    assert result(main) == "2"


def test_who_waits_for_a_result_that_does_not_fit_the_full_store_gets_the_error():
    main = """
    @ray.remote
    def take(refs):
        touch(begun)
        try:
            return len(ray.get(refs[0], timeout=60))
        except ObjectStoreFullError:
            return "full"
    ray.init(capacity=16 << 20, num_workers=2)
    # Too long for the promise itself, short enough for the pipe.
    ref = late.remote(20_000)
    taken = take.remote([ref])
    wait_for(begun)
    kept, size = [], 1 << 20
    while size > 64:
        try:
            kept.append(ray.put(bytes(size)))
        except ObjectStoreFullError:
            size //= 2
    touch(go)
    print(ray.get(taken), len(ray.get(ref)))
    """
    assert result(main) == "full 20000"


def test_an_exception_whose_args_raise_reaches_the_caller():
    main = """
    class Odd(Exception):
        @property
        def args(self): raise RuntimeError("no args")
    @ray.remote
    def fail(): raise Odd("seven")
    try:
        ray.get(fail.remote())
    except TaskError as error:
        print(isinstance(error, Odd) or "Odd" in str(error))
    """
    assert result(main) == "True"


@pytest.mark.parametrize("of", ["late", "Actor.remote().late"])
def test_an_async_wait_that_times_out_loses_no_result(of):
    main = f"""
    call = {of}
    async def main():
        ref = call.remote(5)
        for _ in range(3):
            try:
                await asyncio.wait_for(ref, 0.01)
            except TimeoutError:
                continue
            raise AssertionError("it was there before its time")
        touch(go)
        return await asyncio.wait_for(ref, 60)
    print(asyncio.run(main()))
    """
    assert result(main) == repr(bytes(5))
