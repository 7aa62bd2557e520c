"""Test that `install` only adds a path to errors about objects that cannot be pickled, and changes nothing else."""

from __future__ import annotations

import textwrap

import pytest
from isolated import run

# `told` returns the type and text of an error, and the paths in its notes.
HEAD = """
import collections, functools, multiprocessing as mp, os, pickle, sys, threading
import pyray_ser

def told(function, *args):
    try:
        function(*args)
    except Exception as error:
        notes = [note for note in getattr(error, "__notes__", ()) if "of the object being pickled" in note]
        return type(error), str(error), [note.removeprefix("at ").partition(" of the object")[0] for note in notes]
    raise SystemExit("it was pickled")

class Plain:
    def __init__(self, **attributes):
        vars(self).update(attributes)
    def method(self, *args):
        return args

class Slots:
    __slots__ = ("inner",)

class Stateful(Plain):
    calls = 0
    def __getstate__(self):
        Stateful.calls += 1
        return vars(self)

class WithoutLock(Plain):
    def __getstate__(self):
        return {}

class Reduced(Plain):
    calls = 0
    def __reduce__(self):
        Reduced.calls += 1
        return Plain, ()

class Raises(Plain):
    def __reduce__(self):
        raise ZeroDivisionError("not today")

Pair = collections.namedtuple("Pair", "left right")
lock = threading.Lock()

def slots(inner):
    made = Slots()
    made.inner = inner
    return made

def local():
    return lambda: None

class Items(list):
    def __iter__(self):
        return super().__iter__()

class Word(str):
    pass
"""

# Pairs of an expression and the path to the object in it that cannot be pickled. The path is "" for the value itself
# and None for an error without a path.
CASES = [
    ("[1, {'a': lock}]", "[1]['a']"),
    ("Plain(inner=[1, Plain(lock=lock)])", ".inner[1].lock"),
    ("slots((1, lock))", ".inner[1]"),
    ("Pair(1, {'key': lock})", ".right['key']"),
    ("{Word('a'): collections.deque([1, lock])}", "[<__main__.Word>][1]"),
    ("Items([5, lock])", "[1]"),
    ("collections.OrderedDict(a=[lock])", "['a'][0]"),
    ("Plain(lock=lock).method", ".__self__.lock"),
    ("functools.partial(print, 1, lock)", ".args[1]"),
    ("Stateful(inner=Plain(file=sys.stdout))", ".inner.file"),
    ("[Plain(call=local())]", "[0].call"),
    ("[Plain(inner=[Raises()])]", "[0].inner[0]"),
    ("[WithoutLock(lock=lock), Reduced(lock=lock), {'x': lock}]", "[2]['x']"),
    ("[WithoutLock(lock=threading.Lock()), Stateful(lock=lock)]", None),
    ("lock", None),
    ("[Plain(g=(i for i in ()))]", "[0].g"),
]


def script(body: str) -> str:
    return HEAD + textwrap.dedent(body)


def test_an_error_of_a_pipe_has_the_path_and_is_otherwise_as_without():
    body = f"""
    if __name__ == "__main__":
        end, other = mp.Pipe()
        cases = {CASES!r}
        values = [eval(expression) for expression, _ in cases]
        without = [told(end.send, value) for value in values]
        calls = Stateful.calls, Reduced.calls
        pyray_ser.install()
        for (expression, path), value, before in zip(cases, values, without):
            kind, text, paths = told(end.send, value)
            assert (kind, text) == before[:2], (expression, before, kind, text)
            assert paths == ([path] if path else []), (expression, text, paths)
        # What the program wrote to be called while it pickles was called as often as without.
        assert (Stateful.calls, Reduced.calls) == (2 * calls[0], 2 * calls[1]), (Stateful.calls, Reduced.calls, calls)
        end.send(5)
        print(other.recv())
    """
    assert run(script(body)) == "5"


def test_an_error_of_a_connection_to_a_socket_has_the_path():
    body = """
    from multiprocessing.connection import Client, Listener
    if __name__ == "__main__":
        pyray_ser.install()
        with Listener(family="AF_INET") as listener:
            thread = threading.Thread(target=lambda: listener.accept().close())
            thread.start()
            with Client(listener.address) as end:
                print(told(end.send, [1, lock])[2])
            thread.join()
    """
    assert run(script(body)) == "['[1]']"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_errors_of_pools_and_executors_have_the_path(method):
    body = f"""
    from concurrent.futures import ProcessPoolExecutor
    def give_lock():
        return {{"deep": [lock]}}
    if __name__ == "__main__":
        pyray_ser.install()
        context = mp.get_context("{method}")
        with context.Pool(1) as pool:
            kind, text, paths = told(pool.apply, print, (Plain(inner=lock),))
            assert kind is TypeError and [path.endswith("[0].inner") for path in paths] == [True], (text, paths)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            kind, text, paths = told(lambda: pool.submit(print, 1, Plain(inner=lock)).result())
            assert kind is TypeError and paths == [".args[1].inner"], (text, paths)
            kind, text, paths = told(lambda: pool.submit(give_lock).result())
            assert kind is TypeError and paths == [".result['deep'][0]"], (text, paths)
        print("done")
    """
    assert run(script(body)) == "done"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_error_of_a_process_that_is_started_has_the_path(method):
    body = f"""
    if __name__ == "__main__":
        pyray_ser.install()
        process = mp.get_context("{method}").Process(target=print, args=(1, Plain(inner=lock)))
        print(told(process.start)[2])
    """
    assert run(script(body), errors=True) == "['._args[1].inner']"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_error_of_a_result_of_a_pool_has_the_path(method):
    body = f"""
    def give():
        return {{"a": [1, lock]}}
    def tell():
        with mp.get_context("{method}").Pool(1) as pool:
            return told(pool.apply, give)
    if __name__ == "__main__":
        plain = tell()
        with pyray_ser.install():
            found = tell()
        print(found[0] is plain[0] is mp.pool.MaybeEncodingError, found[1].partition(" at 0x")[0] == plain[1].partition(" at 0x")[0])
        print(plain[2], found[2])
    """
    assert run(script(body), errors=True).splitlines() == ["True True", """[] ["[2][1]['a'][1]"]"""]


def test_an_error_in_the_thread_of_a_queue_has_the_path():
    body = """
    from multiprocessing import queues
    class Queue(queues.Queue):
        @staticmethod
        def _on_queue_feeder_error(error, obj):
            print(type(error).__name__, error.__notes__)
    if __name__ == "__main__":
        pyray_ser.install()
        queue = Queue(ctx=mp.get_context("fork"))
        queue.put({"a": (1, lock)})
        queue.put("next")
        print(queue.get())
    """
    assert run(script(body)).splitlines() == [
        """TypeError ["at ['a'][1] of the object being pickled"]""",
        "next",
    ]


def test_the_cause_of_lokys_error_has_the_path():
    pytest.importorskip("loky")
    body = """
    import loky
    def outer():
        held = {"lock": lock}
        return lambda: held
    if __name__ == "__main__":
        pyray_ser.install()
        with loky.ProcessPoolExecutor(1) as pool:
            for argument in (Plain(inner=lock), outer()):
                try:
                    pool.submit(print, argument).result()
                except pickle.PicklingError as error:
                    print(next(line for line in str(error.__cause__).splitlines() if line.startswith("at ")))
    """
    assert run(script(body), errors=True).splitlines() == [
        "at .args[0].inner of the object being pickled",
        "at .args[0] -> closure 'held' -> ['lock'] of the object being pickled",
    ]
