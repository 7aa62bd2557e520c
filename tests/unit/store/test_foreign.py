"""Test references whose store this process cannot reach, and the resolver that finds copies of their objects."""

import asyncio
import gc
import pickle
import threading
import time
from importlib.util import find_spec

import numpy as np
import pytest
from isolated import run

import pyray_ser
from pyray_ser import ObjectRef
from pyray_ser import exceptions as exc
from pyray_ser.store.foreign import set_resolver


def foreign_message(serial: int, node: bytes = b"elsewhere") -> bytes:
    """Return the message of a reference to an object of another machine."""
    ref = pyray_ser.put(1)
    with pyray_ser.scope():
        message = ref.__reduce__()[1][0]
    return b"\x02" * 8 + serial.to_bytes(8, "little") + b"\x01\x00\x00\x00" * 2 + message[24:56] + node


def foreign(serial: int, node: bytes = b"elsewhere") -> ObjectRef:
    return ObjectRef.from_message(foreign_message(serial, node))


@pytest.fixture
def resolver():
    """Register resolvers for one test."""
    yield set_resolver
    set_resolver(None)


class Asked:
    """A resolver that looks up the serial number of a reference in `values`, returns the copy, and records the call."""

    def __init__(self, values, wait=None):
        self.values = values
        self.calls = []
        self.threads = []
        self.wait = wait

    def __call__(self, ref):
        self.calls.append(ref.serial)
        self.threads.append(threading.get_ident())
        if self.wait is not None:
            assert self.wait.wait(60)
        found = self.values.get(ref.serial)
        if isinstance(found, BaseException):
            raise found
        return found


class TestTokenize:
    def test_is_the_same_for_each_reference_to_an_object(self):
        ref = pyray_ser.put([1])
        before = pyray_ser.stats()["in_flight"]
        token = ref.__dask_tokenize__()
        assert token == ObjectRef.from_hex(ref.hex()).__dask_tokenize__()
        assert token != pyray_ser.put([1]).__dask_tokenize__() and ref.hex() in token
        assert pyray_ser.stats()["in_flight"] == before

    def test_dask_uses_it(self):
        if find_spec("dask") is None:
            pytest.skip("dask is not installed")
        # Importing dask would change how the test process pickles exceptions.
        script = """
        import pyray_ser
        from dask.tokenize import tokenize
        from pyray_ser import ObjectRef
        ref, other = pyray_ser.put([1]), pyray_ser.put([1])
        assert tokenize(ref) == tokenize(ObjectRef.from_hex(ref.hex())) != tokenize(other)
        print(pyray_ser.stats()["in_flight"])
        """
        assert run(script) == "0"

    def test_of_a_foreign_reference(self):
        assert foreign(3).__dask_tokenize__() == foreign(3).__dask_tokenize__() != foreign(4).__dask_tokenize__()


class TestTravel:
    def test_every_reference_keeps_its_own_message(self):
        one, other = foreign_message(5), foreign_message(5)
        other = other[:40] + bytes(16) + other[56:]
        refs = [ObjectRef.from_message(one), ObjectRef.from_message(other)]
        assert refs[0] == refs[1]
        assert [ref.to_message() for ref in refs] == [one, other]
        assert [pickle.loads(pickle.dumps(ref)).to_message() for ref in refs] == [one, other]
        assert pickle.loads(pickle.dumps(refs))[1].travel(2, b"here") == (other, (0, 0))

    def test_an_instance_that_was_never_loaded(self):
        empty = ObjectRef.__new__(ObjectRef)
        for use in (pickle.dumps, pyray_ser.get, pyray_ser.get_buffer, ObjectRef.to_message, lambda ref: ref.size):
            with pytest.raises(exc.CorruptObjectError):
                use(empty)
        assert hash(empty) == hash(ObjectRef.__new__(ObjectRef))


class TestResolver:
    def test_get_asks_once(self, resolver):
        asked = Asked({7: pyray_ser.put(np.arange(10))})
        resolver(asked)
        ref, again = foreign(7), foreign(7)
        assert pyray_ser.get(ref)[9] == 9 and pyray_ser.get(again)[9] == 9
        assert pyray_ser.get([ref, again], timeout=60)[1][9] == 9
        assert (pyray_ser.get(ref, mmap_mode="c") == np.arange(10)).all()
        assert bytes(pyray_ser.get_buffer(again)[:8]) == bytes(8)
        assert ref.size == asked.values[7].size and ref.state == "sealed" and pyray_ser.contains(again)
        assert pyray_ser.wait([ref]) == ([ref], [])
        assert asked.calls == [7] and asked.threads == [threading.get_ident()]
        assert ref.to_message()[:8] == b"\x02" * 8 and ref.to_message()[56:] == b"elsewhere"

    def test_the_copy_lives_as_long_as_a_reference(self, resolver):
        before = pyray_ser.stats()["objects"]

        def pull(ref):
            return pyray_ser.put([ref.serial])

        resolver(pull)
        ref, again = foreign(8), foreign(8)
        assert pyray_ser.get(ref) == [8]
        del ref
        gc.collect()
        assert pyray_ser.stats()["objects"] == before + 1
        resolver(None)
        assert pyray_ser.get(again) == [8]
        del again
        assert pyray_ser.stats()["objects"] == before

    def test_asks_again_after_the_copy_was_freed(self, resolver):
        copies = []

        def pull(ref):
            copies.append(pyray_ser.put(len(copies)))
            return copies[-1]

        resolver(pull)
        ref = foreign(9)
        assert pyray_ser.get(ref) == 0
        pyray_ser.free(copies[0])
        assert ref.state == "foreign"
        assert pyray_ser.get(ref) == 1

    def test_several_threads_ask_once(self, resolver):
        go = threading.Event()
        asked = Asked({10: pyray_ser.put("value")}, wait=go)
        resolver(asked)
        refs = [foreign(10) for _ in range(8)]
        got = []
        threads = [threading.Thread(target=lambda ref=ref: got.append(pyray_ser.get(ref))) for ref in refs]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 60
        while not asked.calls and time.monotonic() < until:
            time.sleep(0.001)
        with pytest.raises(exc.GetTimeoutError):
            pyray_ser.get(refs[0], timeout=0.01)
        go.set()
        for thread in threads:
            thread.join()
        assert got == ["value"] * 8 and asked.calls == [10]

    def test_unknown_object(self, resolver):
        asked = Asked({})
        resolver(asked)
        with pytest.raises(exc.ForeignStoreError, match="elsewhere"):
            pyray_ser.get(foreign(11))
        with pytest.raises(exc.ObjectLostError):
            pyray_ser.get_buffer(ObjectRef.from_hex("ab" * 24))
        assert len(asked.calls) == 2

    def test_an_error_reaches_every_caller(self, resolver):
        resolver(Asked({12: exc.ObjectLostError(reason="host h7 is down")}))
        ref = foreign(12)

        async def awaited():
            await ref

        for read in (
            lambda: pyray_ser.get(ref), lambda: pyray_ser.get(ref, timeout=60), lambda: pyray_ser.get_buffer(ref),
            lambda: ref.future().result(60), lambda: asyncio.run(awaited()),
        ):  # fmt: skip
            with pytest.raises(exc.ObjectLostError, match="host h7 is down"):
                read()
        assert pyray_ser.wait([ref], timeout=60) == ([ref], [])

    @pytest.mark.parametrize("wrong", ["text", None])
    def test_a_wrong_result(self, resolver, wrong):
        resolver(lambda ref: wrong if wrong else foreign(99))
        with pytest.raises(TypeError, match="a resolver must return"):
            pyray_ser.get(foreign(13))

    def test_a_resolver_that_asks_for_its_own_object(self, resolver):
        resolver(lambda ref: pyray_ser.put(pyray_ser.get(foreign(ref.serial))))
        with pytest.raises(RuntimeError, match="resolver"):
            pyray_ser.get(foreign(14))

    def test_a_resolver_may_ask_for_other_objects(self, resolver):
        resolver(lambda ref: pyray_ser.put(1 if ref.serial == 0 else 1 + pyray_ser.get(foreign(ref.serial - 1))))
        assert pyray_ser.get(foreign(5)) == 6

    def test_an_object_that_is_not_sealed_yet(self, resolver):
        window = pyray_ser.create(3)
        resolver(Asked({15: window.obj.ref}))
        ref = foreign(15)
        with pytest.raises(exc.GetTimeoutError):
            pyray_ser.get(ref, timeout=0.01)
        assert ref.state == "creating" and ref.size is None
        assert pyray_ser.wait([ref], timeout=0) == ([], [ref])
        future = ref.future()
        threading.Timer(0.05, lambda: (window.__setitem__(slice(None), b"abc"), pyray_ser.seal(window))).start()
        assert pyray_ser.wait([ref], timeout=60) == ([ref], [])
        assert bytes(future.result(60)) == b"abc" == bytes(pyray_ser.get(ref))

    def test_wait_asks_for_all_in_other_threads(self, resolver):
        go = threading.Event()
        here = pyray_ser.put("here")
        asked = Asked({i: pyray_ser.put(i) for i in range(20, 40)}, wait=go)
        resolver(asked)
        refs = [foreign(i) for i in range(20, 40)]
        assert pyray_ser.wait([*refs, here], timeout=0.05) == ([here], refs)
        assert threading.get_ident() not in asked.threads
        go.set()
        assert pyray_ser.wait(refs, num_returns=20, timeout=60) == (refs, [])
        assert pyray_ser.get(refs) == list(range(20, 40)) and sorted(asked.calls) == list(range(20, 40))

    def test_wait_with_a_task(self, resolver):
        resolver(Asked({41: pyray_ser.put(41)}))
        task = pyray_ser.remote(abs).remote(-5)
        ref = foreign(41)
        assert pyray_ser.wait([ref, task], num_returns=2, timeout=60) == ([ref, task], [])
        assert pyray_ser.get([ref, task]) == [41, 5]

    def test_await_does_not_block_the_loop(self, resolver):
        go = threading.Event()
        asked = Asked({i: pyray_ser.put(i) for i in (42, 43)}, wait=go)
        resolver(asked)
        one, same, other = foreign(42), foreign(42), foreign(43)

        async def main():
            tasks = [asyncio.ensure_future(read(ref)) for ref in (one, same, other)]
            while len(asked.calls) < 2:
                await asyncio.sleep(0.001)
            go.set()
            return await asyncio.gather(*tasks)

        async def read(ref):
            return await ref

        assert asyncio.run(main()) == [42, 42, 43]
        assert sorted(asked.calls) == [42, 43] and threading.get_ident() not in asked.threads

    def test_a_cancelled_await_does_not_end_the_call(self, resolver):
        go = threading.Event()
        resolver(Asked({44: pyray_ser.put(44)}, wait=go))
        ref = foreign(44)

        async def main():
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(ref, 0.01)
            go.set()
            return await ref

        assert asyncio.run(main()) == 44

    def test_returns_the_previous_function(self, resolver):
        one = Asked({})
        assert resolver(one) is None
        assert resolver(None) is one


def test_ctrl_c_in_the_resolver_leaves_the_reference_usable():
    script = """
        import signal, threading
        import pyray_ser
        from pyray_ser.store.foreign import set_resolver

        calls = []

        def resolver(ref):
            calls.append(ref)
            if len(calls) == 1:
                signal.raise_signal(signal.SIGINT)
            return copy

        copy = pyray_ser.put("value")
        set_resolver(resolver)
        ref = pyray_ser.ObjectRef.from_hex("ab" * 24)
        try:
            pyray_ser.get(ref)
        except KeyboardInterrupt:
            pass
        assert pyray_ser.get(ref, timeout=60) == "value" and len(calls) == 2
        print("done")
    """
    assert run(script) == "done"


def test_a_forked_child_asks_itself():
    script = """
        import os, threading
        import pyray_ser
        from pyray_ser.store.foreign import set_resolver

        go, asked = threading.Event(), threading.Event()
        parent = os.getpid()

        def resolver(ref):
            asked.set()
            if os.getpid() == parent:
                go.wait(60)
            return pyray_ser.put(os.getpid())

        pyray_ser.init()
        set_resolver(resolver)
        ref = pyray_ser.ObjectRef.from_hex("ab" * 24)
        thread = threading.Thread(target=pyray_ser.get, args=(ref,))
        thread.start()
        asked.wait(60)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if pyray_ser.get(ref, timeout=60) == os.getpid() else 1)
        assert os.waitpid(pid, 0)[1] == 0
        go.set()
        thread.join()
        assert pyray_ser.get(ref) == parent
        pid = os.fork()
        if pid == 0:
            os._exit(0 if pyray_ser.get(ref, timeout=60) == parent else 1)
        assert os.waitpid(pid, 0)[1] == 0
        print("done")
    """
    assert run(script) == "done"


def test_no_destructor_asks():
    script = """
        import gc
        import pyray_ser
        from pyray_ser.store.foreign import set_resolver

        calls = []
        set_resolver(lambda ref: calls.append(ref))
        ref = pyray_ser.ObjectRef.from_hex("ab" * 24)
        cycle = [ref]
        cycle.append(cycle)
        del ref, cycle
        gc.collect()
        pyray_ser.put([pyray_ser.ObjectRef.from_hex("ab" * 24)])
        assert not calls
        print("done")
    """
    assert run(script) == "done"
