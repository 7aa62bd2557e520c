"""Test that Python code inside a load (finalizers, hooks, predicates, other threads) does not change the result.

While the unpickler keeps state (a class, a name, an incomplete container), such code may load other values, read the
memo, and start or disable the collector. Each test covers a case that once caused a crash, a wrong value or a
wrong class.
"""

import collections
import enum
import functools
import gc
import io
import pickle
import sys
import threading
import types

import pytest

from pyray_ser import Unpickler, dumps, loads
from pyray_ser._unpickle import UnpicklingError


@pytest.fixture
def zoo():
    """Yield a module to which a test adds classes."""
    module = sys.modules["reentrancy_zoo"] = types.ModuleType("reentrancy_zoo")
    yield module
    del sys.modules["reentrancy_zoo"]


def add(zoo, name, **body):
    cls = type(name, (), {"__module__": "reentrancy_zoo", **body})
    setattr(zoo, name, cls)
    return cls


def by_name(name, module="reentrancy_zoo"):
    return b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"


def make_many(zoo, n):
    """Return streams of instances of `n` classes, so that loading all of them fills every cache table."""
    for i in range(n):
        add(zoo, f"Other{i}")
    return [b"\x80\x04" + by_name(f"Other{i}") + b")\x81}\x8c\x01aK\x01sb." for i in range(n)]


def filled(cls, **attributes):
    instance = cls()
    instance.__dict__.update(attributes)
    return instance


def test_instances_of_classes_that_share_a_place_in_the_table_of_plans_load(zoo):
    places = collections.defaultdict(list)
    for i in range(3000):
        cls = add(zoo, f"Crowd{i}")
        places[(id(cls) >> 4 ^ id(cls) >> 12) % 256].append(cls)
    first, second, third = max(places.values(), key=len)[:3]
    learned = pickle.dumps([filled(first, x=1, y=2, z=3) for _ in range(3)])
    nested = pickle.dumps([filled(first, x=filled(second, a=1), y=third(), z=first())])
    for _ in range(3):
        loads(learned)
    for _ in range(3):
        outer = loads(nested)[0]
        assert list(vars(outer)) == ["x", "y", "z"]
        assert [type(value) for value in vars(outer).values()] == [second, third, first]
        assert vars(outer.x) == {"a": 1}


@pytest.mark.parametrize("kind", ["loads another name", "is refused another name"])
def test_a_predicate_that_loads_does_not_change_which_class_is_returned(zoo, kind):
    for i in range(1500):
        add(zoo, f"Name{i}")
    wanted = b"\x80\x05" + by_name("Name7") + b"."
    for i in range(1500):
        other = b"\x80\x05" + by_name(f"Name{i}") + b"."

        def allow(module, name, other=other):
            if kind == "loads another name":
                loads(other)
            else:
                with pytest.raises(UnpicklingError):
                    loads(other, allow=frozenset())
            return (module, name) == ("reentrancy_zoo", "Name7")

        assert loads(wanted, allow=allow) is zoo.Name7
        assert loads(other) is getattr(zoo, f"Name{i}")
        if i != 7:
            with pytest.raises(UnpicklingError):
                loads(other, allow=frozenset({"reentrancy_zoo:Name7"}))


class Cycle:
    """A garbage cycle whose finalizer runs a function when the collector finds it."""

    def __init__(self, action):
        self.me = self
        self.action = action

    def __del__(self):
        self.action()


def collecting(action, call):
    """Return the result of `call`; the collector runs `action` at the first allocation that can start a collection."""
    gc.collect()
    threshold = gc.get_threshold()
    gc.disable()
    Cycle(action)
    gc.set_threshold(1, 1, 1)
    gc.enable()
    try:
        return call()
    finally:
        gc.set_threshold(*threshold)


def test_a_finalizer_at_the_allocation_of_a_namedtuple_may_load_others(zoo):
    def named(name, n):
        cls = collections.namedtuple(name, [f"f{i}" for i in range(n)], module="reentrancy_zoo")
        setattr(zoo, name, cls)
        return cls

    small = pickle.dumps(named("Small", 2)(1, 2), 4)
    others = [pickle.dumps(named(f"Wide{i}", 100)(*range(100)), 4) for i in range(600)]
    for _ in range(3):
        loads(small)
    for _ in range(3):
        assert collecting(lambda: [loads(data) for data in others], lambda: loads(small)) == (1, 2)


VALUES = [
    {"a": [1, 2, {"b": (3, [4])}], "c": {5, 6}},
    [[], {}, [[]], {"x": {}}, ((), ([],))],
    collections.OrderedDict(a=[1], b={"c": 2}),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_collection_at_any_allocation_changes_nothing(zoo, value, protocol):
    add(zoo, "Plain")
    state = pickle.dumps([filled(zoo.Plain, x=value, y=[1]), filled(zoo.Plain, x=2, y=3)], protocol)
    others = make_many(zoo, 300)
    for data, check in (
        (pickle.dumps(value, protocol), lambda got: got == value),
        (state, lambda got: [vars(one) for one in got] == [{"x": value, "y": [1]}, {"x": 2, "y": 3}]),
    ):
        for _ in range(4):
            unpickler = Unpickler(io.BytesIO(data))
            assert check(collecting(lambda: [loads(other) for other in others], functools.partial(loads, data)))
            assert check(collecting(lambda unpickler=unpickler: unpickler.memo.copy(), unpickler.load))


def test_a_finalizer_may_load_other_classes_when_a_memo_index_is_used_again(zoo):
    others = make_many(zoo, 1500)
    first = add(zoo, "First")
    add(zoo, "Dying", __del__=lambda self: [loads(data) for data in others])
    plain = dumps(filled(first, x=1, y=2), protocol=2)
    again = (
        b"\x80\x02creentrancy_zoo\nDying\n)\x81q\x000creentrancy_zoo\nFirst\n)\x81q\x00"
        b"}(X\x01\x00\x00\x00xK\x01X\x01\x00\x00\x00yK\x02ub."
    )
    for _ in range(3):
        for _ in range(3):
            loads(plain)
        assert vars(loads(again)) == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [(b"]q\x00(K\x01K\x02e.", [1, 2]), (b"}q\x00(K\x01K\x02u.", {1: 2}), (b"K\x07q\x00.", 7)],
    ids=["list", "dict", "int"],
)
def test_the_memo_can_be_copied_by_a_finalizer_that_a_put_starts(zoo, body, wanted):
    copies = []
    add(zoo, "Dying", __del__=lambda self: copies.append(unpickler.memo.copy()))
    unpickler = Unpickler(io.BytesIO(b"\x80\x02creentrancy_zoo\nDying\n)\x81q\x000" + body))
    assert unpickler.load() == wanted
    assert [set(copy) for copy in copies] == [{0}]
    assert unpickler.memo.copy() == {0: wanted}


def test_a_state_that_was_never_a_dict_is_found_as_it_was(zoo):
    # A finalizer changes the instance between the opcodes BUILD and GET of its state.
    target = []
    add(zoo, "Dying", __del__=lambda self: setattr(target[0], "x", "changed"))
    plain = add(zoo, "Kept", __init__=lambda self: target.append(self))
    make = b"creentrancy_zoo\nKept\n)\x81"
    learned = b"\x80\x02" + make + b"}(X\x01\x00\x00\x00xK\x01ub."
    for _ in range(3):
        loads(learned)
    add(zoo, "remember", __new__=lambda cls, kept: target.append(kept) or kept)
    data = (
        b"\x80\x02creentrancy_zoo\nremember\n(" + make + b"q\x01}q\x02(X\x01\x00\x00\x00xK\x01ubt\x81"
        b"creentrancy_zoo\nDying\n)\x810h\x02\x86."
    )
    got, state = loads(data)
    assert type(got) is plain and got.x == "changed" and state == {"x": 1}


STREAMS = {
    "PUT": b"creentrancy_zoo\nDying\n)\x81q\x000]q\x00.",
    "POP": b"creentrancy_zoo\nDying\n)\x810].",
    "POP_MARK": b"(creentrancy_zoo\nDying\n)\x811].",
    "key met twice": b"}(X\x01\x00\x00\x00acreentrancy_zoo\nDying\n)\x81X\x01\x00\x00\x00aK\x01u.",
    "SETITEM": b"}X\x01\x00\x00\x00acreentrancy_zoo\nDying\n)\x81sX\x01\x00\x00\x00aK\x01s.",
    "PUT in the dict": b"creentrancy_zoo\nDying\n)\x81r\xff\xff\xff\x000]r\xff\xff\xff\x00.",
    "argument": b"cbuiltins\nid\ncreentrancy_zoo\nDying\n)\x81\x85R0].",
}


@pytest.mark.parametrize("after", [gc.disable, gc.enable])
@pytest.mark.parametrize("kind", STREAMS)
def test_an_object_that_dies_during_a_load_finds_the_collector_as_it_was(zoo, kind, after):
    seen = []

    def dying(self):
        seen.append(gc.isenabled())
        after()

    add(zoo, "Dying", __del__=dying)
    padding = b"X\x00\x08\x00\x00" + b"y" * 2048 + b"0"
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            found = []
            for read in (pickle.loads, loads):
                (gc.enable if before else gc.disable)()
                seen.clear()
                assert read(b"\x80\x02" + padding + STREAMS[kind]) in ([], {"a": 1})
                found.append((list(seen), gc.isenabled()))
            assert found[0] == found[1] == ([before], after is gc.enable)
        finally:
            gc.enable()


def test_a_module_that_another_thread_is_importing_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "reentrancy_slow.py").write_text(
        "import reentrancy_gate\n"
        "class Message:\n"
        "    def __setstate__(self, state): self.kind = KINDS[state['n']]\n"
        "reentrancy_gate.bound.set()\n"
        "reentrancy_gate.go_on.wait(60)\n"
        "KINDS = {1: 'one'}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    gate = types.ModuleType("reentrancy_gate")
    gate.bound, gate.go_on = threading.Event(), threading.Event()
    monkeypatch.setitem(sys.modules, "reentrancy_gate", gate)
    data = b"\x80\x05" + by_name("Message", "reentrancy_slow") + b")\x81}\x8c\x01nK\x01sb."
    found, asking = [], []

    def hook(event, args):
        if event == "pickle.find_class" and asking and args[0] == "reentrancy_slow":
            asking.pop()
            threading.Timer(0.2, gate.go_on.set).start()

    sys.addaudithook(hook)

    def load():
        try:
            found.append(loads(data).kind)
        except Exception as error:  # the test compares this text with the expected value
            found.append(repr(error))

    importer = threading.Thread(target=load)
    importer.start()
    assert gate.bound.wait(60)
    asking.append(True)
    readers = [threading.Thread(target=load) for _ in range(3)]
    for thread in readers:
        thread.start()
    for thread in (importer, *readers):
        thread.join(60)
    sys.modules.pop("reentrancy_slow", None)
    assert found == ["one"] * 4


def test_an_unpickler_cannot_be_used_inside_its_own_load_or_init(zoo):
    class File(io.BytesIO):
        armed = False

        def readinto(self, view):
            if self.armed:
                self.armed = False
                for use in (unpickler.load, unpickler.memo.clear, lambda: unpickler.__init__(self)):
                    with pytest.raises(RuntimeError):
                        use()
                with pytest.raises(RuntimeError):
                    unpickler.memo = {}
                tried.append(unpickler.memo.copy())
            return super().readinto(view)

    tried = []
    file = File(pickle.dumps([b"x" * 300_000, "y"]))
    unpickler = Unpickler(file)
    file.armed = True
    assert unpickler.load() == [b"x" * 300_000, "y"]
    assert len(tried) == 1

    class Attributes:
        def __getattr__(self, name):
            for use in (unpickler.load, lambda: unpickler.__init__(file)):
                with pytest.raises((RuntimeError, UnpicklingError)):
                    use()
            raise AttributeError(name)

    with pytest.raises(TypeError):
        unpickler.__init__(Attributes())


def test_a_view_of_what_is_read_stays_valid_when_the_file_keeps_it():
    class Keeping(io.BytesIO):
        def readinto(self, view):
            kept.append(view[:8])
            return super().readinto(view)

    kept = []
    with pytest.raises(BufferError):
        Unpickler(Keeping(pickle.dumps(bytearray(3_000_000)))).load()
    for view in kept:
        bytes(view)


def test_threads_that_load_at_the_same_time_read_what_they_would_alone(zoo):
    """The interpreter may switch threads wherever Python code runs inside a load."""
    for i in range(40):
        add(zoo, f"Busy{i}", __setstate__=lambda self, state: self.__dict__.update(state))
        add(zoo, f"Quiet{i}")
    values = [
        [
            filled(getattr(zoo, f"{kind}{(i + j) % 40}"), a=j, b=[i, j], **{f"n{j}": i})
            for j in range(12)
            for kind in ("Busy", "Quiet")
        ]
        for i in range(12)
    ]
    streams = [pickle.dumps(value, 4) for value in values]
    wanted = [[(type(one), vars(one)) for one in value] for value in values]
    wrong = []

    def work(start):
        for turn in range(60):
            i = (start + turn) % len(streams)
            got = [(type(one), vars(one)) for one in loads(streams[i])]
            if got != wanted[i]:
                wrong.append(got)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_loads_nest_as_deep_as_python_calls(zoo):
    def setstate(self, state):
        self.inner = loads(state)

    add(zoo, "Nested", __setstate__=setstate)
    data = b"\x80\x05K\x01."
    for _ in range(60):
        data = b"\x80\x05" + by_name("Nested") + b")\x81" + b"B" + len(data).to_bytes(4, "little") + data + b"b."
    value = loads(data)
    for _ in range(60):
        value = value.inner
    assert value == 1


class RaisesOnce:
    """A key that has the hash of 5 but equals no other object; its first comparison raises an exception."""

    error = None

    def __hash__(self):
        return hash(5)

    def __eq__(self, other):
        error, RaisesOnce.error = RaisesOnce.error, None
        if error:
            raise error
        return False


class WithOddValue(enum.Enum):
    ODD = RaisesOnce()
    FIVE = 5


@pytest.mark.parametrize("error", [ValueError, MemoryError, RecursionError, KeyboardInterrupt])
def test_a_comparison_that_raises_while_a_member_is_looked_up_is_not_asked_again(error):
    stream = dumps(WithOddValue.FIVE)
    assert loads(stream) is WithOddValue.FIVE
    RaisesOnce.error = error
    with pytest.raises(error):
        loads(stream)
    assert RaisesOnce.error is None
