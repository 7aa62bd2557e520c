"""Test the pure-Python pickler: streams equal to those of the compiled picklers, full API, log, notes, depth."""

import collections
import copyreg
import datetime
import enum
import functools
import io
import logging
import os
import pickle
import pickletools
import random
import subprocess
import sys
import threading
from dataclasses import dataclass
from decimal import Decimal

import cloudpickle
import numpy as np
import pytest
from strategies_graphs import graph, rich_graph

import pyray_ser
from pyray_ser.inspection import debug_pickler
from pyray_ser.inspection.debug_pickler import Pickler, dumps
from pyray_ser.pickling import registry

LOCK = threading.Lock()


class Plain:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __eq__(self, other):
        return type(other) is Plain and self.__dict__ == other.__dict__

    __hash__ = None


@dataclass(slots=True)
class Slots:
    a: object
    b: object


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


Point = collections.namedtuple("Point", "x y")


class NewArgs:
    def __new__(cls, a, *, b):
        self = super().__new__(cls)
        self.a, self.b = a, b
        return self

    def __getnewargs_ex__(self):
        return (self.a,), {"b": self.b}

    def __eq__(self, other):
        return (self.a, self.b) == (other.a, other.b)

    __hash__ = None


class Dict(dict):
    pass


class List(list):
    pass


def set_state(obj, state):
    obj.__dict__.update(state)


class WithSetter(Plain):
    def __reduce__(self):
        return Plain, (), self.__dict__, None, None, set_state


class Singleton:
    def __reduce__(self):
        return "SINGLETON"


SINGLETON = Singleton()


def recursive():
    a = []
    t = (a, {"a": a})
    a.append(t)
    p = Plain()
    p.me, p.t = p, t
    return [p, a, t, a]


def values():
    shared = ["shared"]
    rng = random.Random(3)
    return {
        "atoms": [None, True, False, ..., NotImplemented, 0, 255, 256, 65536, -1, 2**40, -(2**80), 1.5, 1j, (), "", b""],
        "text": ["äöü", "\ud800", "x" * 300, "y" * 70_000, "same", "same"],
        "bytes": [b"b" * 300, b"c" * 70_000, bytearray(b"d" * 300)],
        "tuples": [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((),)],
        "sets": [set(), {1}, frozenset(), frozenset({1, 2})],
        "shared": [shared, shared, {"a": shared}],
        "recursive": recursive(),
        "instances": [Plain(a=1, b=[Plain(a=2)]), Slots(1, [2]), Point(1, 2), Colour.RED, Colour.BLUE, Colour.RED],
        "containers": [Dict(a=1), Dict({i: i for i in range(1001)}), List(range(1001)), List([1])],
        "collections": [
            collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), collections.deque([1, 2], 5),
            collections.Counter("hello"),
        ],
        "standard": [
            datetime.datetime(2020, 1, 2, 3, 4, 5, 6, datetime.UTC), Decimal("1.5"), range(5), slice(1, 2), len,
            functools.partial(int, base=2), "x".join, ValueError("no", 3), type(None), type(...), int, Plain,
        ],
        "new arguments": [NewArgs(1, b=[2])],
        "state setter": [WithSetter(a=1)],
        "global": [SINGLETON, SINGLETON],
        "random": [rng.choice([i, str(i), float(i), (i, [i])]) for i in range(3000)],
        **{f"list of {n}": list(range(n)) for n in (0, 1, 2, 999, 1000, 1001, 2000, 2001)},
        **{f"dict of {n}": {i: str(i) for i in range(n)} for n in (0, 1, 2, 999, 1000, 1001, 2000)},
        **{f"set of {n}": set(range(n)) for n in (0, 1, 2, 999, 1000, 1001, 2000)},
        "numpy": [np.arange(5), np.float64(1.5), np.arange(10)[::2], np.array(["a", None], object)],
    }  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", values())
def test_streams_equal_the_compiled_pickler(kind, protocol):
    value = values()[kind]
    if kind == "instances" and protocol < 2:
        value = [item for item in value if type(item) is not Slots]  # these protocols cannot pickle such instances
    mine = dumps(value, protocol)
    theirs = pickle.dumps(value, protocol)
    assert pickletools.optimize(mine) == pickletools.optimize(theirs)


def test_protocol_defaults_to_5():
    assert dumps([1])[:2] == b"\x80\x05"
    with pytest.raises(ValueError):
        dumps([1], 6)


def outer(x):
    def inner(y=2):
        return x + y

    return inner


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("make", [lambda: lambda x: x + 1, lambda: outer(5), lambda: [outer(1), outer(2)]])
def test_functions_by_value_equal_cloudpickle(make, protocol):
    value = make()
    mine = dumps(value, protocol)
    assert pickletools.optimize(mine) == pickletools.optimize(cloudpickle.dumps(value, protocol))


@pytest.mark.parametrize("kind", values())
def test_streams_equal_our_compiled_pickler(kind):
    value = values()[kind]
    assert pickletools.optimize(dumps(value)) == pickletools.optimize(pyray_ser.dumps(value))


def optimized(function, value):
    """Return the stream without unused memo entries, or the type of the error."""
    try:
        stream = function(value)
    except Exception as error:
        return type(error)
    return pickletools.optimize(stream)


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_streams_of_random_graphs_equal_both_compiled_picklers(start):
    for seed in range(start, start + 50):
        value = graph(seed)
        mine = optimized(dumps, value)
        assert mine == optimized(pyray_ser.dumps, value), seed
        assert mine == optimized(lambda value: pickle.dumps(value, 5), value), seed


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_streams_of_random_graphs_of_arrays_and_functions_equal_our_compiled_pickler(start):
    for seed in range(start, start + 50):
        value = rich_graph(seed)
        assert optimized(dumps, value) == optimized(pyray_ser.dumps, value), seed


def test_streams_of_arrays_equal_both_compiled_picklers():
    letters = ["C", "F", "<", "|", "numpy", "dtype", np.dtype, np.ndarray]
    arrays = [np.ones(shape, kind, order) for shape in ((), 3, (2, 3), (1, 2, 3, 4)) for kind in ("f8", "u1", ">i2", "f4", "?")
              for order in "CF"]  # fmt: skip
    scalars = [np.float64(1), np.uint8(2), np.float32(3), np.bool_(True), np.float64(4)]
    for value in (arrays, scalars, [*arrays, *scalars, *letters], [*letters, *scalars, *arrays], arrays[:1], scalars[:1],
                  [{"a": np.arange(3)}, {"a": np.arange(3.0)}], [np.dtype("f8"), np.arange(3.0), np.dtype("f8")]):  # fmt: skip
        mine = pickletools.optimize(dumps(value))
        assert mine == pickletools.optimize(pyray_ser.dumps(value))
        assert mine == pickletools.optimize(pickle.dumps(value, 5))
        buffers = [], [], []
        streams = [function(value, **protocol, buffer_callback=taken.append)
                   for function, protocol, taken in zip((dumps, pyray_ser.dumps, pickle.dumps), ({}, {}, {"protocol": 5}), buffers)]  # fmt: skip
        assert len({pickletools.optimize(stream) for stream in streams}) == 1
        assert [[bytes(b.raw()) for b in taken] for taken in buffers][1:] == [
            [bytes(b.raw()) for b in taken] for taken in buffers
        ][:-1]


@pytest.mark.parametrize(
    "make", [lambda: lambda x: x + 1, lambda: outer(5), lambda: [outer(1), outer(2)], lambda: [len, outer]]
)
def test_functions_equal_our_compiled_pickler(make):
    value = make()
    assert pickletools.optimize(dumps(value)) == pickletools.optimize(pyray_ser.dumps(value))


def test_classes_by_value():
    class Local:
        def method(self):
            return 7

    assert pickle.loads(dumps(Local))().method() == 7
    assert pickle.loads(dumps([Local(), Local]))[0].method() == 7


def test_buffers_out_of_band():
    array = np.arange(1000)
    mine, theirs = [], []
    stream = dumps([array, array], buffer_callback=mine.append)
    reference = pickle.dumps([array, array], 5, buffer_callback=theirs.append)
    assert pickletools.optimize(stream) == pickletools.optimize(reference)
    assert len(mine) == len(theirs) == 1
    back = pickle.loads(stream, buffers=mine)
    assert back[0] is back[1] and (back[0] == array).all()


# ---- hooks ---------------------------------------------------------------------------------------


def test_hooks_and_their_order():
    class Hooked(Pickler):
        dispatch_table = copyreg.dispatch_table | {Plain: lambda obj: (str, ("table",))}

        def reducer_override(self, obj):
            if type(obj) is Slots:
                return str, ("override",)
            assert type(obj) not in (int, str, list, dict, tuple)
            return NotImplemented

        def persistent_id(self, obj):
            return "pid" if obj == "away" else None

    class Reader(pickle.Unpickler):
        def persistent_load(self, pid):
            return f"loaded {pid}"

    file = io.BytesIO()
    Hooked(file).dump([Plain(), Slots(1, 2), "away", {"k": "away"}])
    assert Reader(io.BytesIO(file.getvalue())).load() == ["table", "override", "loaded pid", {"k": "loaded pid"}]


def test_registered_serializer_comes_first():
    registry.register_serializer(Plain, serializer=lambda obj: "registered", deserializer=str)
    try:
        assert pickle.loads(dumps(Plain(a=LOCK))) == "registered"
    finally:
        registry.deregister_serializer(Plain)


def test_memo_lasts_between_dumps_and_can_be_cleared():
    file = io.BytesIO()
    pickler = Pickler(file)
    shared = ["s"]
    pickler.dump(shared)
    first = file.tell()
    pickler.dump(shared)
    assert file.tell() - first < first
    reader = pickle.Unpickler(io.BytesIO(file.getvalue()))
    assert reader.load() is reader.load()
    pickler.clear_memo()
    before = file.tell()
    pickler.dump(shared)
    assert file.tell() - before == first


# ---- errors, depth -------------------------------------------------------------------------------


def test_errors_keep_their_words_and_gain_the_path():
    with pytest.raises(TypeError) as caught:
        dumps(Plain(model=Plain(cache={"k": [0, LOCK]})))
    assert str(caught.value) == "cannot pickle '_thread.lock' object"
    assert caught.value.__notes__ == ["at .model.cache['k'][1] of the object being pickled"]


@pytest.mark.parametrize("value", [(1,), 5, (1, ()), (int, []), (int, (), None, 5), (int, (), 1, None, None, 5)])
def test_malformed_reductions(value):
    class Bad:
        def __reduce__(self):
            return value

    with pytest.raises(pickle.PicklingError):
        dumps(Bad())
    with pytest.raises(Exception):
        pickle.dumps(Bad())


def test_deep_nesting():
    limit = sys.getrecursionlimit()
    nested = []
    for _ in range(100_000):
        nested = [nested]
    stream = dumps(nested)
    assert len(pickletools.optimize(stream)) > 200_000
    linked = None
    for _ in range(50_000):
        linked = Plain(next=linked)
    dumps(linked)
    assert sys.getrecursionlimit() == limit
    while nested:
        nested = nested.pop()
    while linked is not None:
        linked = linked.__dict__.pop("next")


def reach(most):
    """Return how many nested calls this thread can still make, at most `most`."""
    try:
        return 1 + reach(most - 1) if most else 0
    except RecursionError:
        return 0


class WhileWriting:
    """A file that calls a function at its first write, which happens in the middle of a dump."""

    def __init__(self, function):
        self.function = function

    def write(self, data):
        function, self.function = self.function, None
        if function:
            function()


def test_other_threads_keep_the_recursion_limit_while_it_writes():
    limit = sys.getrecursionlimit()
    found = []

    def elsewhere():
        found.append((reach(2 * limit) < limit, sys.getrecursionlimit()))

    def run_thread():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    Pickler(WhileWriting(run_thread)).dump(1)
    assert found == [(True, limit)]


def test_dumps_that_overlap_leave_the_recursion_limit():
    limit = sys.getrecursionlimit()
    inside, ended = threading.Event(), threading.Event()

    def wait():
        inside.set()
        ended.wait(60)

    thread = threading.Thread(target=lambda: Pickler(WhileWriting(wait)).dump(1))

    def start():
        thread.start()
        inside.wait(60)

    Pickler(WhileWriting(start)).dump(1)
    ended.set()
    thread.join()
    assert sys.getrecursionlimit() == limit
    assert reach(2 * limit) < limit


def test_foreign_code_may_nest_as_many_calls_at_any_depth():
    limit = sys.getrecursionlimit()
    found = []

    class Reaches:
        def __reduce__(self):
            found.append(reach(2 * limit))
            return int, ()

    nested = Reaches()
    for _ in range(5_000):
        nested = [nested]
    dumps([Reaches(), nested])
    shallow, deep = found
    assert shallow == deep
    assert limit // 2 < shallow < limit
    while type(nested) is list:
        nested = nested.pop()


def test_a_recursion_limit_that_foreign_code_sets_stays():
    limit = sys.getrecursionlimit()

    class Sets:
        def __reduce__(self):
            sys.setrecursionlimit(limit + 500)
            return int, ()

    before = reach(2 * limit)
    dumps(Sets())
    try:
        assert sys.getrecursionlimit() == limit + 500
        assert reach(2 * limit) == before + 500
    finally:
        sys.setrecursionlimit(limit)
    assert reach(2 * limit) == before


def test_endless_foreign_code_is_an_error_at_any_depth():
    class Endless:
        def __getattr__(self, name):
            return getattr(self, name + "_")  # each call goes through C code, so it uses the C stack

        def __reduce__(self):
            return self.nothing

    class Fresh:
        def __reduce__(self):
            return Fresh, (Fresh(),)

    nested = Endless()
    for _ in range(20_000):
        nested = [nested]
    for value in (Endless(), nested, Fresh()):
        with pytest.raises(RecursionError) as caught:
            dumps(value)
        assert isinstance(caught.value, pickle.PicklingError)
        assert "deep recursion" in str(caught.value)
    while type(nested) is list:
        nested = nested.pop()


def test_the_compiled_picklers_suite_of_objects_is_read_back():
    for kind, value in values().items():
        if kind not in ("recursive", "standard", "numpy", "state setter", "instances"):
            assert pickle.loads(dumps(value)) == value, kind


# ---- log -----------------------------------------------------------------------------------------


def logged(value, log_level, caplog):
    caplog.set_level(logging.DEBUG, "pyray_ser.pickle")
    caplog.clear()
    Pickler(io.BytesIO(), log_level=log_level).dump(value)
    return [record.getMessage() for record in caplog.records]


def test_level_1_logs_path_type_and_reducer_of_what_has_one(caplog):
    lines = logged({"a": [Plain(x=Colour.RED)]}, 1, caplog)
    assert any(line.startswith("['a'][0] ") and "Plain: __reduce_ex__" in line for line in lines)
    assert any(line.startswith("['a'][0].x ") and "Colour" in line for line in lines)
    assert not any("built-in" in line for line in lines)


def test_level_2_logs_everything(caplog):
    lines = logged({"a": [1, "text"]}, 2, caplog)
    assert lines[0].startswith("(root) dict: built-in")
    assert any(line.startswith("['a'][1] str: built-in 'text'") for line in lines)


def test_level_0_is_silent(caplog):
    assert logged([Plain()], 0, caplog) == []


@pytest.mark.parametrize("name", ["PYRAY_SER_PICKLE_VERBOSE_DEBUG", "RAY_PICKLE_VERBOSE_DEBUG"])
def test_environment(name, monkeypatch):
    assert debug_pickler.level() == 0
    monkeypatch.setenv(name, "2")
    assert debug_pickler.level() == 2
    monkeypatch.setenv(name, "7")
    assert debug_pickler.level() == 2
    monkeypatch.setenv(name, "loud")
    with pytest.raises(ValueError, match=name):
        debug_pickler.level()


def test_log_is_seen_without_any_configuration():
    code = "from pyray_ser.inspection import debug_pickler as v\nv.dumps([object()])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYRAY_SER_PICKLE_VERBOSE_DEBUG": "1"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pyray_ser.pickle: [0] object: __reduce_ex__" in done.stderr


def test_a_tracer_steps_into_it():
    """A debugger sees one Python frame of `save` for each level of the data."""
    depths = []

    def trace(frame, event, arg):
        if event == "call" and frame.f_code is Pickler.save.__code__:
            depth, above = 0, frame
            while above:
                depth += above.f_code is Pickler.save.__code__
                above = above.f_back
            depths.append(depth)

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        dumps([[["x"]]])
    finally:
        sys.settrace(old)
    assert depths == [1, 2, 3, 4]


# ---- in use --------------------------------------------------------------------------------------

IN_USE = """
import sys
import numpy as np
import pyray_ser
from pyray_ser.inspection import debug_pickler

entered = []
def trace(frame, event, arg):
    if event == "call" and frame.f_code is debug_pickler.Pickler.save.__code__:
        entered.append(type(frame.f_locals["obj"]))

def check(write):
    entered.clear()
    sys.settrace(trace)
    try:
        result = write()
    finally:
        sys.settrace(None)
    assert dict in entered, entered
    return result

inner = pyray_ser.put([1])
value = {"a": np.arange(5000), "b": [np.arange(5000)[::2], "text"], "ref": inner}
ref = check(lambda: pyray_ser.put(value))
back = pyray_ser.get(ref)
assert (back["a"] == value["a"]).all() and (back["b"][0] == value["b"][0]).all()
assert not back["a"].flags.writeable
del inner, value
assert pyray_ser.get(back["ref"]) == [1]
again = pyray_ser.get(ref)
assert again["a"].__array_interface__["data"] == back["a"].__array_interface__["data"]
blob = check(lambda: pyray_ser.serialize({"k": 1}))
assert pyray_ser.deserialize(blob) == {"k": 1}
frames = check(lambda: pyray_ser.dumps_frames({"k": 1}))
assert pyray_ser.loads_frames(frames) == {"k": 1}
stream = check(lambda: pyray_ser.pickling.serialization.dumps({"k": 1}))
import pickle
assert pickle.loads(stream) == {"k": 1}
import threading
try:
    pyray_ser.put({"k": [threading.Lock()]})
except TypeError as error:
    assert str(error) == "cannot pickle '_thread.lock' object (at ['k'][0])", error
else:
    raise AssertionError
try:
    pyray_ser.put(ref)
except TypeError as error:
    assert "list" in str(error)
pyray_ser.shutdown()
print("done")
"""


@pytest.mark.parametrize("name", ["PYRAY_SER_PICKLE_VERBOSE_DEBUG", "RAY_PICKLE_VERBOSE_DEBUG"])
def test_the_whole_package_writes_by_it_when_the_environment_says_so(name):
    done = subprocess.run(
        [sys.executable, "-c", IN_USE],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), name: "2"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"
    assert "pyray_ser.pickle: ['b'][1] str: built-in 'text'" in done.stderr
