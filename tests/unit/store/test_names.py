"""Test named objects: put(name=), get_by_name, names, free."""

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest
from isolated import run

import pyray_ser
from pyray_ser import api
from pyray_ser import exceptions as exc


@pytest.fixture
def name(request):
    """Yield a name for this test, and free the object that has the name afterwards."""
    made = f"{request.node.name}-{os.getpid()}"
    yield made
    for taken, ref in pyray_ser.names().items():
        if taken.startswith(made):
            pyray_ser.free(ref)


def test_a_named_object_needs_no_reference(name):
    array = np.arange(1000.0)
    identity = pyray_ser.put(array, name=name).hex()
    gc.collect()
    got = pyray_ser.get_by_name(name)
    assert (got == array).all() and not got.flags.writeable
    ref = pyray_ser.names()[name]
    assert ref.hex() == identity
    (record,) = [record for record in pyray_ser.objects() if record["id"] == identity]
    assert record["name"] == name and not record["spilled"]


@pytest.mark.parametrize(
    "value", [7, "text", b"bytes", [1, {"a": np.ones(3)}], np.zeros(100_000)], ids=lambda v: type(v).__name__
)
def test_every_way_of_put_takes_a_name(name, value):
    ref = pyray_ser.put(value, name=name)
    got = pyray_ser.get_by_name(name, mmap_mode="c")
    assert repr(got) == repr(value) and type(got) is type(value)
    del ref


def test_a_taken_name_is_refused_and_stays(name):
    first = pyray_ser.put("first", name=name)
    before = pyray_ser.stats()["objects"]
    with pytest.raises(exc.NameExistsError, match=name) as caught:
        pyray_ser.put(np.zeros(1000), name=name)
    assert isinstance(caught.value, FileExistsError) and caught.value.name == name
    assert pyray_ser.stats()["objects"] == before
    assert pyray_ser.get_by_name(name) == "first"
    pyray_ser.free(first)
    assert name not in pyray_ser.names()
    again = pyray_ser.put("second", name=name)
    assert pyray_ser.get_by_name(name) == "second" and pyray_ser.contains(again)


def test_not_waiting_for_a_name(name):
    with pytest.raises(FileNotFoundError, match=name) as caught:
        pyray_ser.get_by_name(name, timeout=0)
    assert isinstance(caught.value, exc.NameNotFoundError) and caught.value.name == name


def test_a_name_that_does_not_come_in_time(name):
    started = time.monotonic()
    with pytest.raises(exc.GetTimeoutError, match=name):
        pyray_ser.get_by_name(name, timeout=0.15)
    assert time.monotonic() - started >= 0.15


def test_waiting_for_a_name(name):
    threading.Timer(0.1, lambda: pyray_ser.put("late", name=name)).start()
    assert pyray_ser.get_by_name(name) == "late"
    threading.Timer(0.1, lambda: pyray_ser.put("later", name=name + "2")).start()
    assert pyray_ser.get_by_name(name + "2", timeout=60) == "later"


@pytest.mark.parametrize("timeout", [None, 60, 0])
def test_an_object_that_is_replaced_after_it_was_found_is_looked_for_again(name, timeout, monkeypatch):
    pyray_ser.put("old", name=name)
    found = replace_when_found(name, monkeypatch, lambda: pyray_ser.put("new", name=name))
    assert pyray_ser.get_by_name(name, timeout=timeout) == "new"
    assert found == ["old", "new"]


@pytest.mark.parametrize(("timeout", "error"), [(0, exc.NameNotFoundError), (0.1, exc.GetTimeoutError)])
def test_an_object_that_is_freed_after_it_was_found_counts_as_absent(name, timeout, error, monkeypatch):
    pyray_ser.put("old", name=name)
    replace_when_found(name, monkeypatch, lambda: None)
    with pytest.raises(error, match="named"):
        pyray_ser.get_by_name(name, timeout=timeout)


def replace_when_found(name, monkeypatch, put):
    """Free the first object that `get_by_name` finds, and call `put`, before the value is read; return all values."""
    found, wait_name = [], api._core.wait_name

    def finding(*arguments):
        entry = wait_name(*arguments)
        found.append(pyray_ser.get(entry[0]))
        if len(found) == 1:
            pyray_ser.free(entry[0])
            put()
        return entry

    monkeypatch.setattr(api._core, "wait_name", finding)
    return found


def test_readers_never_miss_an_object_that_others_replace(name):
    pyray_ser.put(-1, name=name)
    failed = []

    def read():
        try:
            while pyray_ser.get_by_name(name, timeout=60) < 99:
                pass
        except Exception as error:
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(100):
        pyray_ser.free(pyray_ser.names()[name])
        pyray_ser.put(i, name=name)
        time.sleep(0.002)
    for reader in readers:
        reader.join()
    assert not failed, failed


def test_a_signal_ends_the_wait(name):
    def handler(*_):
        raise ZeroDivisionError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(ZeroDivisionError):
            pyray_ser.get_by_name(name)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("wrong", ["", "x" * 216, "\u00e4" * 108, "nul\0", "\ud800"])
def test_names_that_cannot_be(wrong):
    before = pyray_ser.stats()["objects"]
    with pytest.raises(ValueError):
        pyray_ser.put(1, name=wrong)
    with pytest.raises(ValueError):
        pyray_ser.get_by_name(wrong, timeout=0)
    assert pyray_ser.stats()["objects"] == before


@pytest.mark.parametrize("wrong", [b"bytes", 3, ["list"]])
def test_names_that_are_not_str(wrong):
    with pytest.raises(TypeError):
        pyray_ser.put(1, name=wrong)


def test_the_longest_name_and_any_character(name):
    for text in ("x" * 215, "\u00e4\u2603\U0001f600", "a/b c:%s\n"):
        ref = pyray_ser.put(text, name=text)
        assert pyray_ser.get_by_name(text) == text and text in pyray_ser.names()
        pyray_ser.free(ref)


def test_many_threads_want_one_name(name):
    won, lost = [], []

    def want(i):
        try:
            pyray_ser.put(i, name=name)
            won.append(i)
        except exc.NameExistsError:
            lost.append(i)

    threads = [threading.Thread(target=want, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 7
    assert pyray_ser.get_by_name(name) == won[0]


def test_the_table_of_names_grows_and_fills():
    script = """
    import pyray_ser
    from pyray_ser.exceptions import StoreFullError
    store = pyray_ser.init(capacity=64 << 20, max_objects=70_000)
    for i in range(5000):
        pyray_ser.put(i, name=str(i))
    assert len(pyray_ser.names()) == 5000 and pyray_ser.get_by_name("4095") == 4095
    assert set(pyray_ser.names("49")) == {"49", *(str(i) for i in (*range(490, 500), *range(4900, 5000)))}
    ref = pyray_ser.put("many")
    try:
        for i in range(5000, 70_000):
            pyray_ser.put(None, name=str(i))
    except StoreFullError as error:
        print(i, error.table)
    pyray_ser.free(pyray_ser.names("17")["17"])
    pyray_ser.put("new", name="new")
    assert pyray_ser.get_by_name("new") == "new" and pyray_ser.get_by_name("65535") is None
    store.check()
    """
    assert run(script, timeout=200) == "65536 names"


def test_an_ephemeral_name_ends_with_the_last_holder(name):
    ref = pyray_ser.put([1], name=name, ephemeral=True)
    assert pyray_ser.get_by_name(name) == [1] and name in pyray_ser.names()
    with pytest.raises(exc.NameExistsError):
        pyray_ser.put([2], name=name)
    array = pyray_ser.put(np.arange(1000), name=f"{name}-array", ephemeral=True)
    view = pyray_ser.get_by_name(f"{name}-array")
    before = pyray_ser.stats()["objects"]
    del ref, array
    assert name not in pyray_ser.names() and pyray_ser.stats()["objects"] == before - 1
    assert f"{name}-array" in pyray_ser.names() and view[999] == 999
    del view
    assert pyray_ser.stats()["objects"] == before - 2
    with pytest.raises(exc.NameNotFoundError):
        pyray_ser.get_by_name(name, timeout=0)
    again, explanation = pyray_ser.put([3], name=name, ephemeral=True, explain=True)
    assert pyray_ser.get_by_name(name) == [3] and explanation
    pyray_ser.free(again)
    assert name not in pyray_ser.names()


def test_ephemeral_needs_a_name():
    with pytest.raises(ValueError, match="name"):
        pyray_ser.put(1, ephemeral=True)


def test_an_ephemeral_name_ends_with_a_killed_process():
    script = """
        import os, signal
        import pyray_ser
        from pyray_ser import exceptions as exc

        store = pyray_ser.init(capacity=16 << 20)
        told, tell = os.pipe()
        for turn in range(20):
            pid = os.fork()
            if pid == 0:
                window = pyray_ser.create(10)
                claim = pyray_ser.put([window.obj.ref], name="claim", ephemeral=True)
                os.write(tell, b"r")
                signal.pause()
            os.read(told, 1)
            try:
                pyray_ser.put([], name="claim", ephemeral=True)
            except exc.NameExistsError:
                pass
            else:
                raise AssertionError("the claim of a living process was ignored")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            # No other call reaps the killed process.
            mine = pyray_ser.put([turn], name="claim", ephemeral=True)
            assert pyray_ser.get_by_name("claim") == [turn]
            del mine
        assert not pyray_ser.names() and pyray_ser.stats()["objects"] == 0
        store.check()
        print("done")
    """
    assert run(script) == "done"
