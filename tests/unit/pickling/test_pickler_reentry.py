"""Test that a dump stays correct while other dumps of the same classes run inside it and in other threads."""

import argparse
import collections
import gc
import io
import os
import pickle
import sys
import threading
import types

import numpy as np
import pytest
from isolated import run

import pyray_ser
from pyray_ser import _pickle


class Event:
    def __init__(self, n):
        self.queue = collections.deque([n])
        self.second = n + 1
        self.third = n + 2


class Slotted:
    __slots__ = ("first", "second", "third")

    def __init__(self, n):
        self.first = collections.deque([n])
        self.second = [n]
        self.third = n


class Cycle:
    """A garbage cycle whose finalizer runs `action` when the collector finds it."""

    def __init__(self, action):
        self.me = self
        self.action = action

    def __del__(self):
        self.action()


def collected_while(action, work):
    """Return the result of `work()`; at its first allocation, the collector runs `action` in a finalizer."""
    old = gc.get_threshold()
    gc.collect()
    gc.disable()
    Cycle(action)
    gc.set_threshold(1, 1, 1)
    gc.enable()
    try:
        return work()
    finally:
        gc.set_threshold(*old)


WAYS = {
    "dumps": (pyray_ser.dumps, pickle.loads),
    "serialize": (pyray_ser.serialize, pyray_ser.deserialize),
    "put": (pyray_ser.put, pyray_ser.get),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", [Event, Slotted])
def test_attribute_names_survive_a_dump_inside_a_finalizer(way, cls):
    dump, load = WAYS[way]
    names = ["".join([name[:1], name[1:]]) for name in ("alpha", "beta", "gamma")]
    for i in range(20):
        value = [*names, *names, cls(i)]
        back = load(collected_while(lambda: pyray_ser.dumps(cls(0)), lambda value=value: dump(value)))[-1]
        got = [getattr(back, name) for name in ("queue", "second", "third") if hasattr(back, name)]
        want = [getattr(value[-1], name) for name in ("queue", "second", "third") if hasattr(value[-1], name)]
        assert got == want


@pytest.mark.parametrize("cls", [Event, Slotted])
def test_a_class_that_changes_inside_a_finalizer_does_no_harm(cls):
    made = type("Changing", (cls,), {"__slots__": ("more",)} if cls is Slotted else {})
    made.__module__, made.__qualname__ = __name__, "Changing"
    globals()["Changing"] = made

    def change():
        made.marker = object()
        pyray_ser.dumps(made(1))

    value = [made(i) for i in range(3)]
    back = pickle.loads(collected_while(change, lambda: pyray_ser.dumps(value)))
    assert [item.third for item in back] == [item.third for item in value]


def test_an_instance_that_changes_its_attributes_inside_a_finalizer_does_no_harm():
    value = Event(1)

    def change():
        value.__dict__ = {"queue": 1}

    try:
        pickle.loads(collected_while(change, lambda: pyray_ser.dumps([value])))
    except RuntimeError:
        pass  # raising an error is also correct


def test_an_instance_that_changes_its_class_inside_a_finalizer_does_no_harm():
    value = Event(1)

    def change():
        value.__class__ = argparse.Namespace

    try:
        pickle.loads(collected_while(change, lambda: pyray_ser.dumps([value])))
    except RuntimeError:
        pass


def test_a_list_that_shrinks_inside_a_finalizer_does_no_harm():
    value = [[i, collections.deque([i])] for i in range(100)]
    pickle.loads(collected_while(value.clear, lambda: pyray_ser.dumps(value)))


def test_a_bytearray_keeps_its_bytes_while_it_is_pickled():
    data = bytearray(b"x" * 100_000)
    refused = []

    def change():
        try:
            data.clear()
        except BufferError:
            refused.append(True)

    back = pickle.loads(collected_while(change, lambda: pyray_ser.dumps([data, collections.deque([1])])))
    assert back[0] in (b"x" * 100_000, b"")


def test_a_hook_that_dumps_the_same_class_sees_its_own_numbers():
    inner = []

    class Nesting(_pickle.Pickler):
        def reducer_override(self, obj):
            if type(obj) is Event:
                inner.append(pickle.loads(pyray_ser.dumps([obj, obj])))
            return NotImplemented

    file = io.BytesIO()
    value = [Event(1), Event(2), "second", "third"]
    Nesting(file, 5).dump(value)
    back = pickle.loads(file.getvalue())
    assert [item.third for item in back[:2]] == [3, 4]
    assert [pair[0].third for pair in inner] == [3, 4] and all(pair[0] is pair[1] for pair in inner)


def test_a_pickler_whose_memo_is_cleared_while_it_is_copied_does_no_harm():
    pickler = _pickle.Pickler(io.BytesIO(), 5)
    pickler.dump([[i, str(i)] for i in range(2000)])
    collected_while(pickler.clear_memo, pickler.memo.copy)


def test_four_threads_dump_one_class_while_cloudpickle_is_loaded():
    code = """
    import argparse, pickle, sys, threading
    import cloudpickle, pyray_ser
    value = argparse.Namespace(alpha=1, beta=[2])
    bad = []
    sys.setswitchinterval(1e-5)

    def work():
        for _ in range(15_000):
            back = pickle.loads(pyray_ser.dumps([value, value.beta]))
            if vars(back[0]) != {"alpha": 1, "beta": [2]} or back[0].beta is not back[1]:
                bad.append(back)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(len(bad))
    """
    assert run(code, timeout=240) == "0"


@pytest.mark.skipif("PYRAY_SER_UNDER_SANITIZER" in os.environ, reason="a sanitizer keeps freed memory")
def test_threads_that_dump_give_their_memory_back():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    value = [[str(i)] for i in range(50_000)]
    before = None
    for i in range(40):
        thread = threading.Thread(target=pyray_ser.dumps, args=(value,))
        thread.start()
        thread.join()
        if i == 10:
            before = resident()
    assert resident() - before < 30 << 20


def test_classes_come_and_go_while_others_are_dumped():
    for i in range(6000):
        cls = type(f"Passing{i % 7}", (), {"__module__": __name__})
        globals()[cls.__name__] = cls
        obj = cls()
        obj.a = i
        assert pickle.loads(pyray_ser.dumps(obj)).a == i
    del globals()["Passing0"]
    assert sys.getrefcount(cls) < 20


def test_an_array_that_is_resized_inside_a_hook_is_refused_or_whole():
    array = np.arange(100_000.0)

    class Resizing:
        def __reduce__(self):
            array.resize(10, refcheck=False)
            return list, ()

    for way in (pyray_ser.dumps, pyray_ser.serialize, pyray_ser.put):
        array.resize(100_000, refcheck=False)
        try:
            way([array, Resizing(), np.zeros(100_000)])
        except (RuntimeError, ValueError) as error:
            assert "while it was" in str(error)


def test_frames_of_an_array_that_is_resized_inside_a_hook_are_refused():
    array = np.arange(100_000.0)

    class Resizing:
        def __reduce__(self):
            array.resize(10, refcheck=False)
            return list, ()

    with pytest.raises(RuntimeError, match="an array was resized"):
        pyray_ser.dumps_frames([array, Resizing()])


def test_a_pickle_buffer_that_is_released_inside_a_finalizer_keeps_its_bytes():
    buffer = pickle.PickleBuffer(bytearray(b"y" * 100_000))
    try:
        back = pickle.loads(collected_while(buffer.release, lambda: pyray_ser.dumps([buffer, collections.deque([1])])))
    except ValueError:
        return  # the finalizer released the buffer before the pickler reached it
    assert back[0] == b"y" * 100_000


@pytest.mark.parametrize("error", [MemoryError, RecursionError, KeyboardInterrupt])
def test_what_looks_up_a_method_may_be_interrupted(error):
    class Holder:
        def __getattr__(self, name):
            if name == "method":
                raise error
            raise AttributeError(name)

    def method(self):
        pass

    with pytest.raises(error):
        pyray_ser.dumps(types.MethodType(method, Holder()))


@pytest.mark.parametrize("error", [MemoryError, RecursionError, KeyboardInterrupt])
def test_a_module_that_is_asked_for_a_name_may_be_interrupted(monkeypatch, error):
    def raise_error(name):
        raise error

    odd = types.ModuleType("odd")
    odd.__getattr__ = raise_error
    monkeypatch.setitem(sys.modules, "odd", odd)

    def function():
        pass

    function.__module__ = None
    with pytest.raises(error):
        pyray_ser.dumps(function)
