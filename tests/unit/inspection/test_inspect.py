"""Test that the inspector finds each object that cannot be pickled, never raises, and evaluates no property.

The inspector reports the exact path, name and parent of each such object.
"""

import asyncio
import collections
import contextvars
import functools
import io
import os
import pickle
import queue
import socket
import sqlite3
import sys
import threading
import time
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from pyray_ser.inspection import FailureTuple, explain_failure, inspect_serializability, serialization_error

LOCK = threading.Lock()


class Box:
    """An object with attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slots:
    __slots__ = ("__weakref__", "a", "b", "unset")

    def __init__(self, a, b):
        self.a, self.b = a, b


class SlotsAndDict(Slots):
    pass


@dataclass(slots=True)
class SlotsData:
    x: int
    held: object


class Pair(NamedTuple):
    left: object
    right: object


def inspect(obj, name=None, **options):
    out = io.StringIO()
    ok, failures = inspect_serializability(obj, name, print_file=out, **options)
    assert ok == (not failures)
    assert len(out.getvalue()) < 20_000
    assert "Checking Serializability of" in out.getvalue()
    assert ok == ("!!! FAIL serialization:" not in out.getvalue())
    return failures


def only(obj, name=None):
    failures = inspect(obj, name)
    assert len(failures) == 1, failures
    return next(iter(failures))


# ---- containers --------------------------------------------------------------------------------

SEVEN = [{"a": (Box(b=[{"c": [LOCK]}]),)}]


@pytest.mark.parametrize(
    ("obj", "path", "name", "parent"),
    [
        ([0, LOCK], "[1]", "1", lambda obj: obj),
        ((0, [1, LOCK]), "[1][1]", "1", lambda obj: obj[1]),
        ({"k": LOCK}, "['k']", "k", lambda obj: obj),
        ({3: LOCK}, "[3]", "3", lambda obj: obj),
        ({(1, LOCK): 2}, "key (1, <_thread.lock>) -> [1]", "1", lambda obj: next(iter(obj))),
        ({LOCK}, "element <_thread.lock>", "element <_thread.lock>", lambda obj: obj),
        (frozenset({LOCK}), "element <_thread.lock>", "element <_thread.lock>", lambda obj: obj),
        (Box(held=LOCK), ".held", "held", lambda obj: obj),
        (Slots(1, LOCK), ".b", "b", lambda obj: obj),
        (SlotsAndDict(LOCK, 1), ".a", "a", lambda obj: obj),
        (SlotsData(1, LOCK), ".held", "held", lambda obj: obj),
        (Pair(1, LOCK), ".right", "right", lambda obj: obj),
        (collections.deque([0, LOCK]), "[1]", "1", lambda obj: obj),
        (collections.OrderedDict(k=LOCK), "['k']", "k", lambda obj: obj),
        (collections.defaultdict(list, k=LOCK), "['k']", "k", lambda obj: obj),
        (collections.Counter({"k": LOCK}), "['k']", "k", lambda obj: obj),
        (collections.UserDict(k=LOCK), ".data['k']", "k", lambda obj: obj.data),
        (types.SimpleNamespace(held=LOCK), ".held", "held", lambda obj: obj),
        (types.MappingProxyType({"k": LOCK}), "['k']", "k", lambda obj: obj),
        (functools.partial(print, LOCK), ".args[0]", "0", lambda obj: obj.args),
        (functools.partial(print, file=LOCK), ".keywords['file']", "file", lambda obj: obj.keywords),
        (ValueError("no", LOCK), ".args[1]", "1", lambda obj: obj),
        (Box(held=LOCK).__init__, ".__self__.held", "held", lambda obj: obj.__self__),
        (LOCK.acquire, ".__self__", "__self__", lambda obj: obj),
        (SEVEN, "[0]['a'][0].b[0]['c'][0]", "0", lambda obj: obj[0]["a"][0].b[0]["c"]),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_lock_in_containers_and_instances(obj, path, name, parent):
    failure = only(obj)
    assert failure.obj is LOCK
    assert failure.path == path
    assert failure.name == name
    assert failure.parent is parent(obj) or failure.parent == parent(obj)
    assert "__getstate__" in failure.hint
    assert only(obj, "thing").path == (f"thing{path}" if path[0] in ".[" else f"thing -> {path}")


def test_subclasses_of_containers():
    class List(list):
        pass

    class Dict(dict):
        pass

    class Set(set):
        pass

    class Tuple(tuple):
        pass

    for cls, path in ((List, "[0]"), (Tuple, "[0]"), (Set, "element <_thread.lock>")):
        obj = cls([LOCK])
        failure = only(obj)
        assert (failure.obj, failure.path, type(failure.parent)) == (LOCK, path, cls)
    failure = only(Dict(k=LOCK))
    assert (failure.path, type(failure.parent)) == ("['k']", Dict)


def test_top_level_has_no_parent():
    failure = only(LOCK)
    assert failure.obj is LOCK
    assert failure.parent is None
    assert only(LOCK, "mine").name == "mine"


def test_two_offenders_at_once_and_each_once():
    generator = (x for x in ())
    obj = Box(a=[LOCK], b={"g": generator}, again=LOCK)
    failures = inspect(obj)
    assert {(id(f.obj), f.path) for f in failures} == {(id(LOCK), ".a[0]"), (id(generator), ".b['g']")}


def test_what_is_fine_is_fine():
    out = io.StringIO()
    assert inspect_serializability({"a": [1, (2.0, None)]}, print_file=out) == (True, set())
    assert "FAIL" not in out.getvalue()


# ---- functions ---------------------------------------------------------------------------------


def make_task(cfg):
    def task():
        return cfg

    return task


def test_closure():
    cfg = Box(model=Box(cache={"k": [0, LOCK]}))
    task = make_task(cfg)
    failure = only(task)
    assert failure.path == "task -> closure 'cfg' -> .model.cache['k'][1]"
    assert failure.parent is cfg.model.cache["k"]
    direct = only(make_task(LOCK))
    assert (direct.path, direct.name) == ("task -> closure 'cfg'", "cfg")


def test_parent_of_a_captured_variable_is_the_function():
    task = make_task(LOCK)
    assert only(task).parent is task


def test_global_default_keyword_default_attribute_annotation():
    namespace = {"lock": LOCK}
    exec("def reads_global():\n return lock", namespace)
    function = namespace["reads_global"]
    failure = only(function)
    assert (failure.path, failure.name, failure.parent) == ("reads_global -> global 'lock'", "lock", function)

    def with_default(a, b=LOCK):
        pass

    def with_keyword(a, *, b=LOCK):
        pass

    def with_attribute():
        pass

    with_attribute.lock = LOCK

    def with_annotation(a: LOCK):
        pass

    for function, edge in (
        (with_default, "default 'b'"),
        (with_keyword, "default 'b'"),
        (with_attribute, ".lock"),
        (with_annotation, "annotation 'a'"),
    ):
        failure = only(function)
        assert failure.path == f"{function.__name__}{'' if edge[0] == '.' else ' -> '}{edge}"
        assert failure.parent is function


def test_function_called_by_a_function():
    helper = make_task(LOCK)

    def outer():
        return helper()

    failure = only(outer)
    assert failure.path == "outer -> closure 'helper' -> closure 'cfg'"
    assert failure.parent is helper


def test_lambda_and_nested_class():
    class Local:
        shared = LOCK

        def method(self):
            return 1

    failure = only(Local, "Local")
    assert (failure.path, failure.parent) == ("Local.shared", Local)
    failure = only([Local()])
    assert failure.path.endswith("class Local.shared")
    assert failure.parent is Local


# ---- hooks -------------------------------------------------------------------------------------


class Reduces:
    def __init__(self, connection):
        self.connection = connection

    def __reduce__(self):
        return Reduces, (self.connection,)


class ReducesFresh:
    def __reduce__(self):
        return ReducesFresh, ({"fresh": threading.Lock()},)


class ReduceRaises:
    def __reduce__(self):
        raise RuntimeError("will not")


class State:
    def __init__(self):
        self.held = LOCK

    def __getstate__(self):
        return {"renamed": self.held}


class StateTuple(State):
    def __getstate__(self):
        return (1, self.held)


class StateItself(State):
    def __getstate__(self):
        return self.held


def test_reduce_argument_is_named_by_the_attribute_it_is():
    obj = Reduces(LOCK)
    failure = only(obj)
    assert (failure.path, failure.name, failure.parent) == (".connection", "connection", obj)


def test_reduce_argument_made_on_the_fly():
    failure = only(ReducesFresh())
    assert failure.path == "__reduce__ argument 0 -> ['fresh']"
    assert type(failure.obj) is type(LOCK)


def test_reduce_that_raises_is_the_offender():
    obj = ReduceRaises()
    failure = only([obj])
    assert failure.obj is obj
    assert failure.error == "will not"


def test_getstate():
    for cls, path in ((State, ".renamed"), (StateTuple, ".held"), (StateItself, ".held")):
        obj = cls()
        failure = only(obj)
        assert (failure.path, failure.parent) == (path, obj), cls


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1,), "2 through 6"),
        (5, "string or tuple"),
        ((1, ()), "callable"),
        ((int, []), "must be a tuple"),
        ((int, (), None, 5), "iterator"),
        ("no_such_name", "no_such_name"),
    ],
)
def test_malformed_reductions(value, message):
    class Bad:
        def __reduce__(self):
            return value

    assert message in only(Bad()).error


def test_items_that_raise_half_way():
    class Bad(list):
        def __reduce_ex__(self, protocol):
            return list, (), None, self.items()

        def items(self):
            yield 1
            raise OSError("gone")

    obj = Bad()
    failure = only({"x": obj})
    assert failure.obj is obj
    assert failure.error == "gone"


def test_dictionary_that_grows_under_the_walk():
    grown = {}

    class Grows:
        def __reduce__(self):
            grown[len(grown)] = 1
            return int, ()

    grown["a"] = Grows()
    failure = only([grown])
    assert failure.obj is grown
    assert "changed size" in failure.error


def test_endless_reductions_end():
    class Itself:
        def __reduce__(self):
            return Itself, (self,)

    class Fresh:
        def __reduce__(self):
            return Fresh, (Fresh(),)

    assert only(Itself()).error_type == "RecursionError"
    assert only(Fresh()).error_type == "RecursionError"


# ---- objects with misleading attributes --------------------------------------------------------


def test_properties_are_not_fired():
    fired = []

    class Trap:
        @property
        def trap(self):
            fired.append("trap")
            raise RuntimeError("a property was read")

        def __repr__(self):
            return f"{self.trap}"

        def __len__(self):
            return self.trap

        def __eq__(self, other):
            return self.trap

        def __hash__(self):
            return self.trap

        @property
        def __class__(self):
            fired.append("__class__")
            return dict

        def __dir__(self):
            return self.trap

    obj = Trap()
    obj.held = LOCK
    lying, failure = sorted(inspect([obj, obj]), key=lambda failure: failure.obj is LOCK)
    assert lying.obj is obj and "wrong class" in lying.error
    assert failure.obj is LOCK
    assert failure.parent is obj
    repr(failure), hash(failure)
    # pickle itself reads __class__ (in copyreg's object protocol); no other code may read it.
    assert "trap" not in fired


def test_getattr_that_lies():
    class Liar:
        def __getattr__(self, name):
            return lambda *args: 42

    class Raiser:
        def __getattr__(self, name):
            raise RuntimeError(name)

    # The pickler looks hooks up on the class, not on the instance, so neither attribute has an effect.
    assert not inspect([Liar(), Raiser()])
    liar, raiser = Liar(), Raiser()
    liar.held = raiser.held = LOCK
    assert only([liar]).path == only([raiser]).path == "[0].held"


def test_metaclass_that_lies():
    class Meta(type):
        @property
        def __module__(cls):
            raise RuntimeError("no")

        def __repr__(cls):
            raise RuntimeError("no")

        @property
        def __mro__(cls):
            raise RuntimeError("no")

    class Class(metaclass=Meta):
        pass

    obj = Class()
    obj.held = LOCK
    assert inspect([obj])


def test_error_without_text():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    class Bad:
        def __reduce__(self):
            raise Mute

    assert "Mute" in only(Bad()).error


def test_recursive_objects():
    a = [LOCK]
    a.append(a)
    assert only(a).path == "[0]"
    box = Box()
    box.me, box.held = box, LOCK
    assert only(box).path == ".held"
    inner = []
    t = (inner, LOCK)
    inner.append(t)
    assert only(t).obj is LOCK
    d = {}
    d["d"] = d
    assert not inspect(d)


def test_depth_is_no_limit():
    obj = [LOCK]
    for _ in range(200_000):
        obj = [obj]
    failure = only(obj)
    assert failure.obj is LOCK
    linked = Box(next=None, held=LOCK)
    for _ in range(20_000):
        linked = Box(next=linked)
    assert only(linked).obj is LOCK
    while obj is not LOCK:  # take the chain apart from outside in: freeing it as a whole would recurse too deeply
        obj = obj[0]


# ---- the zoo -----------------------------------------------------------------------------------


async def coroutine():
    pass


def zoo():
    async def generator():
        yield 1

    loop = asyncio.new_event_loop()
    running = coroutine()
    task_coroutine = coroutine()
    future = loop.create_future()
    task = loop.create_task(task_coroutine)
    sock = socket.socket()
    pool = ThreadPoolExecutor(1)
    file = open(os.devnull, "wb")
    text = open(os.devnull, "w")
    connection = sqlite3.connect(":memory:")
    referent = Box()

    def clean():
        task.cancel()
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        running.close()
        loop.close()
        sock.close()
        pool.shutdown()
        file.close()
        text.close()
        connection.close()

    return {
        "socket": sock,
        "generator": (x for x in ()),
        "async generator": generator(),
        "coroutine": running,
        "future": future,
        "task": task,
        "loop": loop,
        "timer": threading.Timer(1, print),
        "barrier": threading.Barrier(2),
        "pool": pool,
        "file": file,
        "text file": text,
        "connection": connection,
        "cursor": connection.cursor(),
        "event": threading.Event(),
        "condition": threading.Condition(),
        "semaphore": threading.Semaphore(),
        "rlock": threading.RLock(),
        "thread": threading.Thread(target=print),
        "local": threading.local(),
        "queue": queue.Queue(),
        "simple queue": queue.SimpleQueue(),
        "weakref": weakref.ref(referent),
        "weak dict": weakref.WeakValueDictionary(a=referent),
        "frame": sys._getframe(),
        "context": contextvars.copy_context(),
        "context variable": contextvars.ContextVar("v"),
        "handler": __import__("logging").StreamHandler(),
    }, clean


def test_the_zoo_is_named_by_the_animals_and_not_by_their_innards():
    animals, clean = zoo()
    try:
        for kind, animal in animals.items():
            holder = Box(it=[animal])
            failure = only(holder)
            assert failure.obj is animal, kind
            assert failure.path == ".it[0]", kind
            assert failure.parent is holder.it, kind
            assert failure.hint, kind
            if kind != "handler" and kind != "weak dict":
                assert "register_serializer(" not in failure.hint, kind  # not the general hint
        assert {f.obj for f in inspect(list(animals.values())) if f.obj is animals["socket"]}
        assert len(inspect(list(animals.values()))) == len(animals)
    finally:
        clean()


def test_an_asyncio_lock_that_belongs_to_a_loop_and_not_the_loop():
    lock = asyncio.Lock()

    async def contend():
        async def hold():
            async with lock:
                await asyncio.sleep(0)

        await asyncio.gather(hold(), hold())

    asyncio.run(contend())
    failure = only(Box(it=[lock]))
    assert failure.obj is lock and failure.path == ".it[0]" and "event loop" in failure.hint


def test_a_socket_and_not_one_of_its_methods():
    with socket.socket() as sock:
        failure = only(lambda: sock.send(b""))
        assert failure.obj is sock
        assert failure.name == "sock"


def test_a_user_class_that_is_a_thread_is_named_whole_but_a_good_getstate_is_respected():
    class Worker(threading.Thread):
        pass

    worker = Worker()
    assert only([worker]).obj is worker

    class Clean(threading.Thread):
        def __getstate__(self):
            return {"held": LOCK}

    clean = Clean()
    assert only([clean]).obj is LOCK


def test_modules_go_by_name():
    assert not inspect([os, types])


def test_weak_proxy():
    class Referent:
        pass

    dead = weakref.proxy(Referent())
    failure = only([dead])
    assert failure.error_type == "ReferenceError"


class Proxy:
    """A proxy like those of many libraries: it forwards every attribute, including __class__, to the wrapped object."""

    def __init__(self, behind):
        object.__setattr__(self, "_behind", behind)

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "_behind"), name)

    @property
    def __class__(self):
        return type(object.__getattribute__(self, "_behind"))


def test_proxy_that_gives_itself_out_as_another_class():
    """The inspector reports the proxy, which no pickler can pickle, and also any lock inside the wrapped object."""
    import pyray_ser

    for behind, paths in (Box(), ["[0]"]), (Box(lock=LOCK), ["[0]", "[0]._behind.lock"]):
        proxy = Proxy(behind)
        failures = sorted(inspect([proxy]), key=lambda failure: failure.path)
        assert [failure.path for failure in failures] == paths
        assert failures[0].obj is proxy and "wrong class" in failures[0].error
        for write in (pickle.dumps, pyray_ser.dumps):
            # The pickler of Python 3.14 words the message differently.
            with pytest.raises(pickle.PicklingError, match=r"wrong class|must be <class '.*Box'>"):
                write([proxy])
        with pytest.raises(TypeError, match=r"wrong class \(at \[0\]\)"):
            pyray_ser.put([proxy])


def test_an_error_that_passes_put_as_it_is_is_not_its_own_cause():
    import pyray_ser

    class Fails:
        def __reduce__(self):
            raise RuntimeError("will not")

    with pytest.raises(RuntimeError, match="will not") as caught:
        pyray_ser.put([Fails()])
    assert caught.value.__cause__ is None
    assert caught.value.__notes__ == ["at [0] of the object being put"]


def test_class_that_has_vanished_from_its_module_goes_by_value():
    module = types.ModuleType("vanishing_module")
    exec("class Gone:\n    def __init__(self):\n        self.x = 1", module.__dict__)
    sys.modules["vanishing_module"] = module
    try:
        obj = module.Gone()
        del module.Gone
        assert not inspect(obj)
        obj.x = LOCK
        assert only(obj).path == ".x"
    finally:
        del sys.modules["vanishing_module"]


def test_class_redefined_as_in_a_notebook():
    module = types.ModuleType("__notebook__")
    sys.modules["__notebook__"] = module
    try:
        exec("class Cell:\n    held = None", module.__dict__)
        old = module.Cell()
        exec("class Cell:\n    held = None", module.__dict__)
        old.lock = LOCK
        failure = only(old)
        assert (failure.path, failure.parent) == (".lock", old)
    finally:
        del sys.modules["__notebook__"]


def test_global_that_is_something_else():
    class Named:
        def __reduce__(self):
            return "LOCK"

    obj = Named()
    failure = only([obj])
    assert failure.obj is obj
    assert "not the same object" in failure.error


# ---- the result --------------------------------------------------------------------------------


def test_failure_tuple():
    one, same, other = FailureTuple(LOCK, "a", None), FailureTuple(LOCK, "a", None), FailureTuple(LOCK, "b", None)
    assert one == same and hash(one) == hash(same) and one != other
    assert len({one, same, other}) == 2
    obj, name, parent = one
    assert (obj, name, parent) == (LOCK, "a", None)
    assert repr(one).startswith("FailTuple(a [obj=<unlocked _thread.lock object")
    assert repr(one).endswith("parent=None])")


def test_report_has_the_shape_ray_users_know(capsys):
    task = make_task(LOCK)
    ok, failures = inspect_serializability(task, name="test")
    lines = capsys.readouterr().out.splitlines()
    assert not ok
    assert set(lines[0]) == {"="} and lines[0] == lines[2]
    assert lines[1].startswith("Checking Serializability of <function make_task.<locals>.task at 0x")
    assert lines[3] == "!!! FAIL serialization: cannot pickle '_thread.lock' object"
    assert lines[4] == "Detected 1 nonlocal variable. Checking serializability..."
    assert lines[5].startswith("    Serializing 'cfg' <unlocked _thread.lock object")
    assert lines[6] == "    !!! FAIL serialization: cannot pickle '_thread.lock' object"
    assert f"    {next(iter(failures))!r}" in lines
    assert "without it, the rest can be serialized." in " ".join(lines)
    assert lines[-1] == lines[0]


def test_standard_output_is_looked_up_at_the_call(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    inspect_serializability(1)
    assert "Checking" in out.getvalue()


def test_depth_limits_what_is_printed_not_what_is_found():
    first = make_task(LOCK)
    for _ in range(6):
        first = make_task(first)
    out = io.StringIO()
    _, failures = inspect_serializability(first, depth=2, print_file=out)
    (failure,) = failures
    assert failure.path.count("closure 'cfg'") == 7
    assert "task -> ... -> closure 'cfg' -> closure 'cfg'" in out.getvalue()


def test_many_offenders_are_counted_and_the_report_stays_short():
    out = io.StringIO()
    ok, failures = inspect_serializability([threading.Lock() for _ in range(5000)], print_file=out)
    assert not ok
    assert len(failures) == 1000
    assert "5000 times" in out.getvalue()
    assert len(out.getvalue()) < 20_000


def test_huge_names_and_keys_are_cut():
    out = io.StringIO()
    key = "k" * 100_000
    _, failures = inspect_serializability({key: {key: LOCK}}, "n" * 100_000, print_file=out)
    assert len(out.getvalue()) < 20_000
    assert next(iter(failures)).name == key


@pytest.mark.parametrize("kind", ["ints", "strings", "pairs"])
def test_two_million_elements(kind):
    make = {
        "ints": lambda: list(range(2_000_000)),
        "strings": lambda: [str(i) for i in range(2_000_000)],
        "pairs": lambda: [(i, i) for i in range(700_000)],
    }[kind]
    obj = make()
    obj.insert(len(obj) // 2, None)
    ratios = []
    for _ in range(3):
        start = time.process_time()
        pickle.dumps(obj, 5)
        middle = time.process_time()
        obj[len(obj) // 2] = LOCK
        failure = only(obj)
        end = time.process_time()
        assert failure.obj is LOCK and failure.path == f"[{len(obj) // 2}]"
        obj[len(obj) // 2] = None
        ratios.append((end - middle) / (middle - start))
    assert min(ratios) < 2


# ---- the error messages of put and dumps -------------------------------------------------------


def test_explain_failure_gives_the_path():
    obj = Box(model=Box(cache={"k": [0, LOCK]}))
    with pytest.raises(TypeError) as caught:
        pickle.dumps(obj)
    assert explain_failure(obj, caught.value) == ".model.cache['k'][1]"
    assert explain_failure(obj, caught.value, put=False) == ".model.cache['k'][1]"
    assert explain_failure(LOCK, caught.value) == ""
    assert explain_failure([1], caught.value) == ""


def test_explain_failure_chooses_the_offender_that_raised():
    obj = [(x for x in ()), LOCK]
    assert explain_failure(obj, TypeError("cannot pickle '_thread.lock' object")) == "[1]"


def test_serialization_error():
    obj = {"a": LOCK, "b": (x for x in ())}
    with pytest.raises(TypeError) as caught:
        pickle.dumps(obj)
    error = serialization_error(obj, caught.value)
    assert isinstance(error, TypeError)
    assert str(error) == "cannot pickle '_thread.lock' object (at ['a'])"
    assert error.path == "['a']"
    assert [failure.path for failure in error.failures] == ["['a']", "['b']"]
    assert any(note.startswith("hint: ") for note in error.__notes__)
    assert any("['b']" in note for note in error.__notes__)


def test_serialization_error_gives_the_path_once():
    task = make_task(Box(cache=[LOCK]))
    error = serialization_error(
        task, TypeError("cannot pickle '_thread.lock' object (at .__closure__[0].__reduce__()[0].cache[0])")
    )
    assert str(error) == "cannot pickle '_thread.lock' object (at task -> closure 'cfg' -> .cache[0])"
    # If the inspector finds nothing wrong with the object, the error keeps the message of the pickler.
    error = serialization_error([1], TypeError("cannot pickle '_thread.lock' object (at [3])"))
    assert str(error) == "cannot pickle '_thread.lock' object (at [3])"
    assert error.path == "[3]"


def test_put_raises_it():
    import pyray_ser

    with pytest.raises(TypeError) as caught:
        pyray_ser.put({"k": Box(held=[LOCK])})
    assert str(caught.value) == "cannot pickle '_thread.lock' object (at ['k'].held[0])"
    assert isinstance(caught.value.__cause__, TypeError)
    assert caught.value.failures[0].obj is LOCK


def test_a_walk_leaves_no_references():
    obj = Box(held=[LOCK, Box()])
    reference = weakref.ref(obj)
    before = sys.getrefcount(LOCK)
    inspect(obj)
    assert sys.getrefcount(LOCK) == before
    del obj
    assert reference() is None


def test_agrees_with_put_on_what_can_be_pickled():
    import pyray_ser

    def function():
        return 1

    async def coroutine_function():
        pass

    values = [
        os, types, {}.keys(), {"a": 1}.items(), types.MappingProxyType({"a": 1}), function, coroutine_function,
        function.__code__, property(function), staticmethod(function), classmethod(function), Box().__init__,
        weakref.WeakSet(), io.StringIO("x"), io.BytesIO(b"x"), open, len, int, type, types.CodeType, type(None),
        types.FunctionType, NotImplemented, sys.stdout, iter([1]), iter({1: 2}), zip([1]), map(str, [1]), range(3),
        memoryview(b"x"), types.SimpleNamespace(), threading.current_thread(), __import__("re").compile("x"),
        __import__("logging").getLogger("x"), __import__("random").Random(5), __import__("decimal").Context(),
        __import__("itertools").count(), (lambda: (yield)), contextvars.ContextVar("v"), __import__("uuid").uuid4(),
        __import__("ipaddress").ip_address("1.1.1.1"), functools.lru_cache(function), types.GenericAlias(list, int),
        list[int] | None, __import__("typing").TypeVar("T"), __import__("ast").parse("x"), __import__("array").array("i", [1]),
    ]  # fmt: skip
    for value in values:
        ok, failures = inspect_serializability([value], print_file=io.StringIO())
        try:
            pyray_ser.serialize([value])
        except Exception as error:
            assert not ok, (value, error)
        else:
            assert ok, (value, failures)
