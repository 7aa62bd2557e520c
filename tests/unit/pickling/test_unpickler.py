"""Test properties of our unpickler that the standard library's tests do not cover."""

import collections
import copyreg
import datetime
import enum
import gc
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import weakref

import pytest

from pyray_ser import _unpickle
from pyray_ser._unpickle import Unpickler, UnpicklingError, load, loads


class Plain:
    def __init__(self, *values):
        for name, value in zip("abcdefgh", values):
            setattr(self, name, value)


class Slots:
    __slots__ = ("x", "y")


class Hidden:
    @property
    def value(self):
        return "the property"


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


Point = collections.namedtuple("Point", "x y")


# ---- states of instances ------------------------------------------------------------------------------------------------


def _alike(value, protocol=5):
    data = pickle.dumps(value, protocol)
    for _ in range(3):  # the first load caches a plan for the class, later loads use the plan
        ours, theirs = loads(data), pickle.loads(data)
    return ours, theirs


@pytest.mark.parametrize("protocol", range(2, 6))
def test_state_dict_that_is_shared_is_another_dict_with_the_same_items(protocol):
    one = Plain(1, [2], "x")
    (obj, state), theirs = _alike([one, one.__dict__], protocol)
    assert state == obj.__dict__ == theirs[1]
    assert state is not obj.__dict__
    assert state["b"] is obj.b
    assert list(state) == list(theirs[1])


@pytest.mark.parametrize("protocol", range(2, 6))
def test_state_dict_is_not_changed_by_what_a_hook_does_to_the_instance_later(protocol):
    one = Plain(1, 2)
    meddler = Meddler(one)
    (obj, _, state), theirs = _alike([one, meddler, one.__dict__], protocol)
    assert obj.a == theirs[0].a == "meddled"
    assert state == theirs[2] == {"a": 1, "b": 2}


class Meddler:
    def __init__(self, other):
        self.other = other

    def __setstate__(self, state):
        self.other = state["other"]
        self.other.a = "meddled"


def test_state_that_contains_its_instance_and_itself():
    one = Plain(1, 2)
    one.a = one
    one.b = one.__dict__
    obj, _ = _alike(one)
    assert obj.a is obj
    assert obj.b["a"] is obj and obj.b["b"] is obj.b


def test_second_build_on_the_same_instance():
    # A tuple of an instance and its state; the opcodes of the state contain another BUILD of the same instance.
    data = (
        b"\x80\x05\x8c" + bytes([len(__name__)]) + __name__.encode() + b"\x8c\x05Plain\x93)\x81\x94}\x94("
        b"\x8c\x01a" + b"h\x00}\x8c\x01zK\x07sb" + b"\x8c\x01bK\x02ubh\x01\x86."
    )
    for _ in range(3):
        ours, theirs = loads(data), pickle.loads(data)
        assert list(ours[0].__dict__) == list(theirs[0].__dict__)
        assert list(ours[1]) == list(theirs[1]) == ["a", "b"]
        assert ours[0].a is ours[0]


def test_property_does_not_stand_in_the_way_of_a_state():
    one = Hidden()
    one.__dict__["value"] = 5
    obj, theirs = _alike([one] * 2 + [Hidden() for _ in range(3)])
    assert obj[0].__dict__ == theirs[0].__dict__ == {"value": 5}
    assert obj[0].value == "the property"


def test_names_of_attributes_are_interned():
    name = "".join(["attri", "bute_of_test"])
    one = Plain()
    one.__dict__[name] = 1
    for obj in (loads(pickle.dumps(one)), loads(pickle.dumps([one, one]))[1]):
        assert next(iter(obj.__dict__)) is sys.intern(name)


def test_instances_of_one_class_with_different_attributes():
    instances = [Plain(*range(i % 7)) for i in range(50)]
    for i, one in enumerate(instances):
        if i % 3 == 0:
            setattr(one, f"extra{i}", i)
    ours, theirs = _alike(instances)
    assert [list(o.__dict__.items()) for o in ours] == [list(o.__dict__.items()) for o in theirs]


def test_class_that_changes_between_loads():
    class Local:
        pass

    Local.__qualname__ = "Changing"
    globals()["Changing"] = Local
    try:
        one = Local()
        one.a, one.b = 1, 2
        data = pickle.dumps([one, one.__dict__])
        for _ in range(3):
            assert loads(data)[0].a == 1
        seen = []
        Local.__setstate__ = lambda self, state: seen.append(state)
        assert not loads(data)[0].__dict__
        assert seen == [{"a": 1, "b": 2}]
        del Local.__setstate__
        assert loads(data)[0].__dict__ == {"a": 1, "b": 2}
        Local.__new__ = lambda cls: seen.append("new") or object.__new__(cls)
        loads(data)
        assert seen[-1] == "new"
    finally:
        del globals()["Changing"]


def test_slots_that_change_their_meaning_between_loads():
    class Local:
        __slots__ = ("x", "y")

    Local.__qualname__ = "Changing"
    globals()["Changing"] = Local
    try:
        one = Local()
        one.x, one.y = 1, [2]
        data = pickle.dumps([one, one])
        for _ in range(3):
            assert loads(data)[0].y == [2]
        set_ = []
        slot = Local.x
        Local.x = property(lambda self: 0, lambda self, value: set_.append(value))
        assert loads(data)[0].x == 0 and set_ == [1]
        Local.x = slot
        Local.__setattr__ = lambda self, name, value: set_.append(name)
        loads(data)
        assert set_[1:] == ["x", "y"]
    finally:
        del globals()["Changing"]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_slots_with_shared_values_and_cycles(protocol):
    one, other = Slots(), Slots()
    one.x, one.y = other, [1]
    other.x, other.y = one, one.y
    (a, b), _ = _alike([one, other], protocol)
    assert a.x is b and b.x is a and a.y is b.y


def test_no_reference_is_left_on_what_was_read():
    for value in ([Plain(1, [2]) for _ in range(3)], [Slots(), Slots()], Plain(Plain(1)), [Colour.RED]):
        data = pickle.dumps(value)
        for _ in range(3):
            result = loads(data)
        first = result if isinstance(result, Plain) else result[0]
        if not isinstance(first, Colour):
            ref = weakref.ref(first) if isinstance(first, Plain) else None
            gc.disable()
            try:
                del result, first
                assert ref is None or ref() is None
            finally:
                gc.enable()


# ---- shortcuts respect the definitions of classes ----------------------------------------------------------------------------


def test_enum_whose_lookup_is_changed():
    class Local(enum.Enum):
        A = 1

        @classmethod
        def _missing_(cls, value):
            return cls.A

    Local.__qualname__ = "ChangingEnum"
    globals()["ChangingEnum"] = Local
    try:
        data = pickle.dumps(Local.A)
        assert loads(data) is Local.A
        name = b"\x8c" + bytes([len(__name__)]) + __name__.encode() + b"\x8c\x0cChangingEnum\x93"
        assert loads(b"\x80\x05" + name + b"K\x63\x85R.") is Local.A
        with pytest.raises(ValueError):
            loads(b"\x80\x05" + name.replace(b"\x0cChangingEnum", b"\x06Colour") + b"K\x63\x85R.")
    finally:
        del globals()["ChangingEnum"]


def test_namedtuple_whose_new_is_replaced():
    Local = collections.namedtuple("ChangingTuple", "x y")
    Local.__module__ = __name__
    globals()["ChangingTuple"] = Local
    try:
        data = pickle.dumps(Local(1, 2))
        assert loads(data) == (1, 2)
        calls = []
        generated = Local.__new__

        def new(cls, x, y):
            calls.append((x, y))
            return generated(cls, x, y)

        Local.__new__ = new
        assert loads(data) == (1, 2) and calls == [(1, 2)]
        Local.__new__ = generated
        assert loads(data) == (1, 2) and len(calls) == 1
        generated.__code__ = (lambda _cls, x, y: _tuple_new(_cls, (y, x))).__code__  # noqa: F821
        assert loads(data) == (2, 1)
    finally:
        del globals()["ChangingTuple"]


@pytest.mark.parametrize(
    "arguments",
    [
        (b"\xff" * 10,),
        (bytes([7, 0xE8, 13, 1, 0, 0, 0, 0, 0, 0]),),
        (bytes([7, 0xE8, 2, 31, 0, 0, 0, 0, 0, 0]),),
        (bytes([7, 0xE8, 2, 3, 4, 5, 6, 0, 0, 9]), None),
        (bytes([7, 0xE8, 0x82, 3, 4, 5, 6, 0, 0, 9]), datetime.UTC),
        (bytes([7, 0xE8, 2, 3, 4, 5, 6, 0, 0, 9]), "no zone"),
        (bytes(9),),
        (2020, 1, 2),
        (2020, 13, 2),
        ("x" * 10,),
    ],
    ids=repr,
)
def test_datetime_from_any_arguments(arguments):
    data = pickle.dumps(Call(datetime.datetime, arguments))

    def outcome(read):
        try:
            value = read(data)
            return value, value.fold, value.tzinfo
        except Exception as error:
            return type(error), str(error)

    assert outcome(loads) == outcome(pickle.loads)


class Call:
    def __init__(self, function, arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# ---- the collector and other threads --------------------------------------------------------------------------------------


def test_collector_is_left_as_it_was():
    data = pickle.dumps([[Plain(i, str(i))] for i in range(2000)])
    assert gc.isenabled()
    loads(data)
    assert gc.isenabled()
    gc.disable()
    try:
        loads(data)
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(UnpicklingError):
        loads(data[:-100])
    assert gc.isenabled()


class Watcher:
    seen = []

    def __init__(self, switch=None):
        self.switch = switch

    def __setstate__(self, state):
        self.seen.append(gc.isenabled())
        if state["switch"]:
            gc.disable()


def test_hooks_find_the_collector_on_and_may_switch_it_off():
    many = [[i] for i in range(2000)]
    Watcher.seen.clear()
    loads(pickle.dumps([many, Watcher(), many[:], Watcher()]))
    assert Watcher.seen == [True, True] and gc.isenabled()
    try:
        loads(pickle.dumps([many, Watcher(True), many[:], Watcher()]))
        assert not gc.isenabled()
        assert Watcher.seen == [True, True, True, False]
    finally:
        gc.enable()


def test_threads_load_at_the_same_time():
    data = pickle.dumps([Plain(i, [i], {"k": i}) for i in range(300)])
    failures = []

    def work():
        for _ in range(20):
            if [o.a for o in loads(data)] != list(range(300)):
                failures.append("wrong")
            if len(load(io.BytesIO(data))) != 300:
                failures.append("wrong")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_two_hundred_thousand_nested_lists_on_a_small_thread_stack():
    depth = 200_000
    data = b"\x80\x05" + b"]" * depth + b"a" * (depth - 1) + b"."
    lengths = []

    def work():
        value = loads(data)
        length = 0
        while value:
            value, length = value[0], length + 1
        lengths.append(length + 1)

    old = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(old)
    assert lengths == [depth]


# ---- globals: audit, overrides, safe mode ----------------------------------------------------------------------------------


def test_audit_event_for_every_global_cached_or_not():
    script = """
import pickle, sys, copyreg, collections
from pyray_ser._unpickle import loads
events = []
sys.addaudithook(lambda event, args: events.append(args) if event == "pickle.find_class" else None)
data = pickle.dumps(collections.OrderedDict)
for _ in range(3):
    loads(data)
assert events == [("collections", "OrderedDict")] * 3, events
events.clear()
loads(pickle.dumps(collections.OrderedDict, 2)); loads(b"c__builtin__\\nlong\\n.")
assert events == [("collections", "OrderedDict"), ("__builtin__", "long")], events
copyreg.add_extension("collections", "OrderedDict", 77)
events.clear()
for _ in range(3):
    loads(b"\\x80\\x02\\x82\\x4d.")
assert events == [("collections", "OrderedDict")] * 3, events
def refuse(event, args):
    if event == "pickle.find_class":
        raise RuntimeError("refused")
sys.addaudithook(refuse)
try:
    loads(data)
except RuntimeError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.stdout == "refused\n", done.stderr


class Overriding(Unpickler):
    asked = ()

    def find_class(self, module, name):
        self.asked += ((module, name),)
        return super().find_class(module, name)


def test_overridden_find_class_is_asked_for_every_global():
    copyreg.add_extension("collections", "deque", 78)
    try:
        data = pickle.dumps([collections.OrderedDict, collections.Counter, Plain(1), collections.deque], 2)
        for _ in range(2):
            unpickler = Overriding(io.BytesIO(data))
            unpickler.load()
            assert {n for _, n in unpickler.asked} >= {"OrderedDict", "Counter", "Plain", "deque"}
    finally:
        copyreg.remove_extension("collections", "deque", 78)


def test_find_class_of_an_instance():
    class Sub(Unpickler):
        pass

    unpickler = Sub(io.BytesIO(pickle.dumps(Plain)))
    unpickler.find_class = lambda module, name: (module, name)
    assert unpickler.load() == (__name__, "Plain")


def test_replaced_global_is_seen_by_the_next_load():
    data = pickle.dumps(Plain)
    assert loads(data) is Plain
    kept = Plain
    try:
        globals()["Plain"] = "other"
        assert loads(data) == "other"
        del globals()["Plain"]
        with pytest.raises(AttributeError):
            loads(data)
    finally:
        globals()["Plain"] = kept
    assert loads(data) is kept


def _everywhere(data, allow):
    yield lambda: loads(data, allow=allow)
    yield lambda: load(io.BytesIO(data), allow=allow)
    yield lambda: Unpickler(io.BytesIO(data), allow=allow).load()
    yield lambda: Overriding(io.BytesIO(data), allow=allow).load()


@pytest.mark.parametrize("protocol", range(6))
def test_allowed_names_are_read_and_others_refused_by_name(protocol):
    data = pickle.dumps([Plain(1), Point(1, 2)], protocol)
    names = {f"{__name__}:Plain", f"{__name__}:Point", "copyreg:_reconstructor", "builtins:object", "builtins:tuple"}
    for allow in (names, frozenset(names), list(names), lambda module, name: f"{module}:{name}" in names):
        for read in _everywhere(data, allow):
            assert read()[1] == (1, 2)
    for allow in (names - {f"{__name__}:Point"}, (), lambda module, name: name != "Point"):
        for read in _everywhere(data, allow):
            with pytest.raises(UnpicklingError, match=r"is not allowed; hint: .* allow=") as caught:
                read()
            if len(list(allow) if not callable(allow) else [1]) > 0:
                assert f"{__name__}:Point" in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name", "hint"),
    [
        ("cloudpickle.cloudpickle", "_make_function", "move it into a module that the reader can import"),
        ("posix", "system", "never allow it"),
        ("os", "system", "never allow it"),
        ("nt", "system", "never allow it"),
        ("subprocess", "Popen", "never allow it"),
        ("builtins", "eval", "never allow it"),
        ("builtins", "getattr", "never allow it"),
        ("builtins", "__import__", "never allow it"),
        ("builtins", "eval.__call__", "never allow it"),
        ("importlib._bootstrap", "_load", "never allow it"),
        ("types", "CodeType", "never allow it"),
        ("builtins", "complex", "add it to allow="),
        ("builtins", "ev", "add it to allow="),
        ("builtins", "", "add it to allow="),
        ("types", "SimpleNamespace", "add it to allow="),
        ("posixpath", "join", "add it to allow="),
        ("sysconfig", "x", "add it to allow="),
        ("cloudpickler", "x", "add it to allow="),
        ("", "", "add it to allow="),
    ],
)
def test_hint_for_a_refused_name_depends_on_its_module(module, name, hint):
    data = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93."
    for read in _everywhere(data, {"a:b"}):
        with pytest.raises(
            UnpicklingError, match=f"^global '{module}:{name}' is not allowed; hint: .*{hint}"
        ) as caught:
            read()
        assert ("allow=" in str(caught.value)) is (hint == "add it to allow=")


def test_hint_for_a_refused_name_with_a_lone_surrogate():
    for module in (b"\xed\xb2\x80", b"os"):
        data = b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c\x03\xed\xb2\x80\x93."
        with pytest.raises(UnpicklingError, match="is not allowed; hint: "):
            loads(data, allow={"a:b"})


def test_allow_is_asked_before_anything_is_imported():
    sys.modules.pop("this", None)
    for read in _everywhere(b"cthis\ns\n.", {"this:d"}):
        with pytest.raises(UnpicklingError, match="this:s"):
            read()
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("data", "allow"),
    [
        (b"\x80\x04\x8c\x02os\x8c\x0bpath.isfile\x93.", {"os:path"}),
        (b"\x80\x04\x8c\x02os\x8c\x0bpath.isfile\x93.", {"os.path:isfile"}),
        (b"\x80\x04\x8c\x02os\x8c\x04path\x93.", {"os:path.isfile"}),
        (b"\x80\x02cos\npath\n.", {"os:path."}),
        (b"\x80\x04\x8c\x03a:b\x8c\x01c\x93.", {"a:b:c"}),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", {"builtins:eva", "builtins:evall", "eval"}),
        (b"\x80\x02c__builtin__\nunicode\n.", {"__builtin__:unicode"}),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", {"os"}),
    ],
)
def test_names_are_compared_whole(data, allow):
    for read in _everywhere(data, allow):
        with pytest.raises(UnpicklingError, match="is not allowed"):
            read()


def test_names_are_compared_after_renaming():
    for read in _everywhere(b"\x80\x02c__builtin__\nunicode\n.", {"builtins:str"}):
        assert read() is str


def test_dotted_name_is_allowed_as_it_is():
    for read in _everywhere(b"\x80\x04\x8c\x02os\x8c\x0bpath.isfile\x93.", {"os:path.isfile"}):
        assert read() is os.path.isfile


def test_extension_codes_pass_the_same_check():
    copyreg.add_extension("os", "system", 79)
    try:
        loads(b"\x80\x02\x82\x4f.")  # this load puts the object into copyreg's cache
        for read in _everywhere(b"\x80\x02\x82\x4f.", {"os:path"}):
            with pytest.raises(UnpicklingError, match="os:system"):
                read()
        for read in _everywhere(b"\x80\x02\x82\x4f.", {"os:system"}):
            assert read() is os.system
    finally:
        copyreg.remove_extension("os", "system", 79)
        copyreg.clear_extension_cache()


def test_safe_mode_does_not_let_a_stream_change_what_it_may_name():
    name = b"\x8c" + bytes([len(__name__)]) + __name__.encode() + b"\x8c\x05Plain\x93"
    data = b"\x80\x05" + name + b"N}\x8c\x05stuckK\x01s\x86b."
    for read in _everywhere(data, {f"{__name__}:Plain"}):
        with pytest.raises(UnpicklingError, match="safe mode"):
            read()
    assert not hasattr(Plain, "stuck")


def test_errors_of_a_predicate_come_through():
    def predicate(module, name):
        raise LookupError("asked too much")

    for read in _everywhere(pickle.dumps(Plain), predicate):
        with pytest.raises(LookupError):
            read()


def test_allow_as_a_single_string_is_a_mistake():
    with pytest.raises(TypeError, match="not one string"):
        loads(b"N.", allow="os:path")


# ---- the Unpickler object ---------------------------------------------------------------------------------------------------


def test_unpickler_refuses_to_be_used_inside_its_own_load():
    seen = []

    class Sub(Unpickler):
        def persistent_load(self, pid):
            for use in (
                self.load,
                lambda: self.__init__(io.BytesIO()),
                lambda: setattr(self, "memo", {}),
                self.memo.clear,
            ):
                with pytest.raises(RuntimeError):
                    use()
                seen.append(pid)
            return self.memo.copy()

    memo = Sub(io.BytesIO(b"\x80\x05]\x94(K\x01]\x94(\x8c\x01aQe0h\x00e.")).load()
    assert seen == ["a"] * 4
    del memo


def test_memo_seen_from_a_hook_holds_the_containers_under_way():
    class Sub(Unpickler):
        def persistent_load(self, pid):
            return self.memo.copy()

    outer = Sub(io.BytesIO(b"\x80\x05]\x94(K\x01}\x94(K\x05\x8c\x01aQue.")).load()
    memo = outer[1][5]
    assert memo[0] is outer and memo[1] is outer[1]


def test_memo_after_a_load_holds_the_objects():
    one = Plain(1, 2)
    unpickler = Unpickler(io.BytesIO(pickle.dumps([one, Slots()], 4)))
    for _ in range(2):
        unpickler = Unpickler(io.BytesIO(pickle.dumps(one, 4)))
        unpickler.load()
    memo = unpickler.memo.copy()
    assert {"a": 1, "b": 2} in memo.values()
    again = Unpickler(io.BytesIO(b"\x80\x04h\x00."))
    again.memo = unpickler.memo
    assert again.load() == memo[0]


def test_memo_after_a_failed_load_holds_no_promises():
    unpickler = Unpickler(io.BytesIO(b"\x80\x05]\x94(K\x01}\x94(K\x05\xff."))
    with pytest.raises(UnpicklingError):
        unpickler.load()
    assert all(type(v) in (list, dict) for v in unpickler.memo.copy().values())
    assert unpickler.memo.__reduce__()[0] is dict


def test_unpickler_in_a_cycle_is_collected():
    class File(io.BytesIO):
        pass

    file = File(b"\x80\x05]\x94.")
    file.unpickler = Unpickler(file)
    file.unpickler.load().append(file)
    ref = weakref.ref(file)
    del file
    gc.collect()
    assert ref() is None


def test_several_pickles_in_one_file():
    file = io.BytesIO(b"".join(pickle.dumps(i, i % 6) for i in range(40)) + b"rest")
    for wrap in (lambda f: f, io.BufferedReader):
        file.seek(0)
        reader = wrap(file)
        assert [load(reader) for _ in range(40)] == list(range(40))
        assert reader.read() == b"rest"


def test_uninitialised_unpickler():
    with pytest.raises(UnpicklingError, match="__init__"):
        Unpickler.__new__(Unpickler).load()


# ---- hostile input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"px\n.", b"p1\n.", b"p-1\n.", b"N(p\n.", b"Npx\n.", b"Np-1\n.", b"p", b"Np"], ids=repr
)
def test_put_is_refused_like_the_standard_library_does(data):
    with pytest.raises(Exception) as theirs:
        pickle.loads(data)
    for read in (loads, lambda d: load(io.BytesIO(d))):
        with pytest.raises(theirs.type):
            read(data)


@pytest.mark.skipif("PYRAY_SER_UNDER_SANITIZER" in os.environ, reason="a sanitizer needs the address space itself")
@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05Nr\xff\xff\xff\x7f.",
        b"\x80\x05Np9999999999\n.",
        b"N" + b"".join(b"r" + struct.pack("<I", 2**31 - i) for i in range(50)) + b".",
        b"\x80\x05\x8e\xff\xff\xff\xff\x01\0\0\0",
        b"\x80\x05\x96\xff\xff\xff\xff\x01\0\0\0",
        b"\x80\x05\x8d\xff\xff\xff\xff\x01\0\0\0",
        b"\x80\x05\x95\xff\xff\xff\xff\x01\0\0\0",
        b"B\xff\xff\xff\xff",
        b"X\xff\xff\xff\xff",
        b"T\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
    ],
    ids=repr,
)
def test_five_bytes_do_not_ask_for_gigabytes(data):
    script = f"""
import io, resource
from pyray_ser._unpickle import load, loads
resource.setrlimit(resource.RLIMIT_AS, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (1 << 28),) * 2)
for read in (loads, lambda d: load(io.BytesIO(d)), lambda d: load(io.BufferedReader(io.BytesIO(d)))):
    try:
        read({data!r})
    except MemoryError:
        print("MemoryError")
    except Exception:
        pass
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, env=os.environ)
    assert (done.stdout, done.stderr) == ("", "")


def test_sparse_memo_indices_are_kept():
    data = b"\x80\x04" + b"".join(
        b"K" + bytes([i]) + b"r" + struct.pack("<I", i * 10_000_000) + b"0" for i in range(200)
    )
    data += b"(" + b"".join(b"j" + struct.pack("<I", i * 10_000_000) for i in range(200)) + b"l."
    assert loads(data) == list(range(200))


# ---- in-place loading, as in the store ---------------------------------------------------------------------------------------


class TestInPlace:
    np = pytest.importorskip("numpy")

    def _put(self, value):
        buffers = []
        return pickle.dumps(value, 5, buffer_callback=buffers.append), [bytes(b.raw()) for b in buffers]

    def _check_sealed(self, array):
        assert not array.flags.writeable
        with pytest.raises(ValueError):
            array.setflags(write=True)
        base = array.base
        while isinstance(base, self.np.ndarray):
            with pytest.raises(ValueError):
                base.setflags(write=True)
            base = base.base

    @pytest.mark.parametrize("protocol", range(2, 6))
    @pytest.mark.parametrize("out_of_band", [False, True])
    def test_every_array_is_read_only_for_good(self, protocol, out_of_band):
        np = self.np
        arrays = [
            np.arange(10.0), np.arange(2000), np.asfortranarray(np.ones((30, 40))), np.zeros((0, 3)), np.array(5),
            np.zeros(300, "i4,f8"), np.arange(2000)[::2], np.array(["a", "bb"]), np.ones(3).view(np.matrix),
            np.rec.array([(1, 2.0)], dtype="i4,f8"), np.arange(20, dtype=">i4"), np.array(["2020", "NaT"], "M8[ns]"),
        ]  # fmt: skip
        buffers = []
        if out_of_band and protocol == 5:
            data = pickle.dumps({"deep": [arrays]}, 5, buffer_callback=buffers.append)
            buffers = [bytearray(b.raw()) for b in buffers]
        else:
            data = pickle.dumps({"deep": [arrays]}, protocol)
        again = _unpickle.loads_in_place(data, buffers)["deep"][0]
        # numpy converts in-band bytes to its native order
        for one, other in zip(pickle.loads(data, buffers=buffers)["deep"][0], again):
            assert type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
            assert one.tobytes() == other.tobytes()
            self._check_sealed(other)

    def test_arrays_of_objects_stay_writable(self):
        array = _unpickle.loads_in_place(pickle.dumps(self.np.array([1, "x", None], object)), [])
        array[0] = 2

    def test_array_lies_over_its_buffer_and_keeps_it(self):
        buffer = bytearray(80)
        data, _ = self._put(self.np.zeros(10))
        array = _unpickle.loads_in_place(data, [buffer])
        buffer[0:8] = struct.pack("<d", 7.0)
        assert array[0] == 7
        with pytest.raises(BufferError):
            buffer.clear()
        del array
        buffer.clear()

    def test_writable_when_asked(self):
        buffer = bytearray(80)
        array = _unpickle.loads_in_place(self._put(self.np.zeros(10))[0], [buffer], writable=True)
        array[1] = 1
        assert bytes(buffer[8:16]) == struct.pack("<d", 1)

    def test_other_consumers_get_a_buffer(self):
        data = pickle.dumps([pickle.PickleBuffer(b"abcd"), pickle.PickleBuffer(b"")], 5, buffer_callback=lambda b: None)
        one, empty = _unpickle.loads_in_place(data, [b"abcd", b""])
        assert bytes(one) == b"abcd" and memoryview(one).readonly and len(one) == 4 and bytes(empty) == b""
        kept = memoryview(one)[1:]
        del one
        assert bytes(kept) == b"bcd"
        with pytest.raises(TypeError):
            type(empty)()

    def test_missing_and_too_short_buffers(self):
        data, buffers = self._put(self.np.zeros(10))
        with pytest.raises(UnpicklingError, match="not enough"):
            _unpickle.loads_in_place(data, [])
        with pytest.raises((ValueError, TypeError)):
            _unpickle.loads_in_place(data, [buffers[0][:-1]])

    def test_many_buffers_come_and_go(self):
        data = pickle.dumps([pickle.PickleBuffer(bytes([i])) for i in range(200)], 5, buffer_callback=lambda b: None)
        for _ in range(20):
            found = _unpickle.loads_in_place(data, [bytes([i]) for i in range(200)])
            assert [bytes(b) for b in found] == [bytes([i]) for i in range(200)]


def test_the_signatures_of_the_classes_are_known():
    import inspect

    from pyray_ser import Pickler

    expected = '(file, *, fix_imports=True, encoding="ASCII", errors="strict", buffers=(), allow=None)'.replace(
        '"', "'"
    )
    assert str(inspect.signature(Unpickler)) == expected
    assert str(inspect.signature(Pickler)) == "(file, protocol=None, *, fix_imports=True, buffer_callback=None)"
    assert Unpickler.__doc__.lstrip().startswith("Reads pickles")
