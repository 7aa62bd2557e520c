"""Test properties of the pickler that the standard library's tests do not cover."""

import copyreg
import io
import pickle
import sys
import threading
import types

import numpy as np
import pickler_classes as classes
import pytest
from pickler_classes import Box, Changing, Colour, Endless, Locked, Nested, Node, Reentrant, SlottedNode, chain, unchain

from pyray_ser import _pickle
from pyray_ser.pickling import reducers, serialization  # noqa: F401 (serialization connects the pickler)


def to_file(obj, **options):
    f = io.BytesIO()
    _pickle.dump(obj, f, **options)
    return f.getvalue()


def by_object(obj):
    f = io.BytesIO()
    _pickle.Pickler(f).dump(obj)
    return f.getvalue()


EVERY_WAY = [_pickle.dumps, to_file, by_object, lambda obj: _pickle._put(obj)[0]]
WAYS = pytest.mark.parametrize("dumps", EVERY_WAY, ids=["dumps", "dump", "Pickler", "put"])


# ---- depth --------------------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: {1: x}], ids=["list", "tuple", "dict"])
def test_200000_nested_containers(dumps, wrap):
    obj = inner = wrap(7)
    for _ in range(200_000):
        obj = wrap(obj)
    stream = dumps(obj)
    opcode = {list: pickle.EMPTY_LIST, tuple: pickle.TUPLE1, dict: pickle.EMPTY_DICT}[type(inner)]
    assert 200_001 <= stream.count(opcode) < 200_050  # frame lengths may contain the same byte
    while not isinstance(obj, int):  # unpack without recursion
        obj = obj[1] if isinstance(obj, dict) else obj[0]


@WAYS
@pytest.mark.parametrize("cls", [Node, SlottedNode])
def test_100000_linked_instances(dumps, cls):
    head = chain(cls, 100_000)
    try:
        stream = dumps(head)
    finally:
        unchain(head)
    assert stream.count(pickle.EMPTY_TUPLE + pickle.NEWOBJ) == 100_000


def nested(depth):
    obj = None
    for _ in range(depth):
        obj = Nested(obj)
    return obj


def flatten(obj):
    while obj is not None:
        inner, obj.inner = obj.inner, None
        obj = inner


@WAYS
def test_nesting_through_reduce_ends_in_one_exception(dumps):
    with pytest.raises(_pickle.DeepRecursionError, match="deep recursion") as caught:
        dumps(Endless())
    assert isinstance(caught.value, pickle.PicklingError)
    assert isinstance(caught.value, RecursionError)


def test_nesting_through_reduce_is_bounded_by_the_stack_not_by_a_count():
    obj = nested(3000)
    assert len(_pickle.dumps(obj)) > 3000
    flatten(obj)


def test_a_small_thread_stack_is_enough_to_fail_properly():
    outcome = []

    def work():
        try:
            _pickle.dumps(Endless())
        except Exception as error:
            outcome.append(error)

    size = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(size)
    assert isinstance(outcome[0], _pickle.DeepRecursionError)


# ---- objects that cannot be pickled -------------------------------------------------------------------------------------


def test_the_path_to_the_culprit_is_a_note():
    obj = Box(model=Box(cache={"k": [1, threading.Lock()]}))
    with pytest.raises(TypeError, match=r"^cannot pickle '_thread.lock' object") as caught:
        _pickle.dumps(obj)
    assert caught.value.__notes__ == ["at .model.cache['k'][1] of the object being pickled"]


def test_the_path_to_the_culprit_is_in_the_message_of_put():
    obj = Box(model=Box(cache={"k": [1, threading.Lock()]}))
    with pytest.raises(TypeError) as caught:
        _pickle._put(obj)
    assert str(caught.value) == "cannot pickle '_thread.lock' object (at .model.cache['k'][1])"


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda lock: (0, lock), "[1]"),
        (lambda lock: {"a": 1, (1, 2): lock}, "[(1, 2)]"),
        (lambda lock: Node(lock), ".value"),
        (lambda lock: SlottedNode(lock), ".value"),
        (lambda lock: Nested([lock]), ".inner[0]"),
        (lambda lock: [{"x": Locked()}], "[0]['x'].lock"),
        (lambda lock: (lambda: lock), "<lambda> -> closure 'lock'"),
    ],
)
def test_paths(make, path):
    with pytest.raises(TypeError, match="cannot pickle") as caught:
        _pickle.dumps(make(threading.Lock()))
    assert caught.value.__notes__ == [f"at {path} of the object being pickled"]


def test_the_root_itself_has_no_path():
    with pytest.raises(TypeError) as caught:
        _pickle.dumps(threading.Lock())
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("make", [lambda: (x for x in ()), threading.Lock, lambda: open("/dev/null")])
def test_what_nobody_can_pickle_is_refused_in_pythons_words(make):
    obj = make()
    with pytest.raises(TypeError) as expected:
        pickle.dumps(obj)
    with pytest.raises(TypeError) as caught:
        _pickle.dumps(obj)
    assert str(caught.value) == str(expected.value)
    if hasattr(obj, "close"):
        obj.close()


def test_arguments():
    with pytest.raises(ValueError, match="protocol must be <= 5"):
        _pickle.dumps(1, 6)
    with pytest.raises(ValueError, match="buffer_callback needs protocol >= 5"):
        _pickle.dumps(1, 4, buffer_callback=print)
    with pytest.raises(TypeError, match="'write' attribute"):
        _pickle.dump(1, object())
    assert _pickle.dumps([1, 2], None) == _pickle.dumps([1, 2], 5) == _pickle.dumps([1, 2], -1)


# ---- foreign code in the middle of a dump -------------------------------------------------------------------------------


@WAYS
def test_a_reduction_may_pickle(dumps):
    obj = [Reentrant([1, ["a"]], dumps), "b", Reentrant(Reentrant(2, dumps), dumps)]
    copy = pickle.loads(dumps(obj))
    assert pickle.loads(copy[0]) == [1, ["a"]]
    assert copy[1] == "b"


@WAYS
def test_a_list_that_shrinks_under_its_dump(dumps):
    obj = [Changing(), *range(10)]
    obj[0].action = lambda: obj.__delitem__(slice(1, None))
    assert isinstance(pickle.loads(dumps(obj))[0], Changing)


@pytest.mark.parametrize("dumps", EVERY_WAY[:3])
def test_a_dict_that_grows_under_its_dump(dumps):
    obj = {i: Changing() for i in range(3)}
    obj[0].action = lambda: obj.__setitem__("new", 1)
    with pytest.raises(RuntimeError, match="changed size during iteration"):
        dumps(obj)


@WAYS
def test_an_object_dropped_by_a_hook_and_its_address_reused(dumps):
    """The memo keeps its objects alive: a new object at the address of a freed one would look like the freed one."""
    victims = [[object.__new__(Box)] for _ in range(50)]
    fresh = []

    def replace():
        for i in range(50):
            victims[i] = None
            fresh.append(["fresh", i])

    obj = [victims, Changing(replace), fresh]
    # The pickler memoizes each victim, because there is a second reference to it.
    extra = [*victims]
    obj.insert(1, extra)
    obj[2].action = lambda: (replace(), extra.clear())
    copy = pickle.loads(dumps(obj))
    assert copy[-1] == [["fresh", i] for i in range(50)]


def test_a_copyreg_reducer_added_in_the_middle_holds_at_once():
    class Late:
        pass

    Late.__module__, Late.__qualname__ = classes.__name__, "Late"
    classes.Late = Late

    def add():
        copyreg.pickle(Late, lambda obj: (classes.identity, ("late",)))

    try:
        copy = pickle.loads(_pickle.dumps([Late(), Changing(add), Late()]))
        assert type(copy[0]) is Late
        assert copy[2] == "late"
    finally:
        copyreg.dispatch_table.pop(Late, None)
        del classes.Late


def test_a_class_changed_between_dumps():
    class Shifting:
        pass

    Shifting.__module__, Shifting.__qualname__ = classes.__name__, "Shifting"
    classes.Shifting = Shifting
    try:
        obj = Shifting()
        obj.x = 1
        assert pickle.loads(_pickle.dumps(obj)).x == 1
        Shifting.__getstate__ = lambda self: {"x": 2}
        assert pickle.loads(_pickle.dumps(obj)).x == 2
        del Shifting.__getstate__
        assert pickle.loads(_pickle.dumps(obj)).x == 1
        Shifting.__reduce_ex__ = lambda self, protocol: (classes.identity, (3,))
        assert pickle.loads(_pickle.dumps(obj)) == 3
        del Shifting.__reduce_ex__
        obj.__reduce_ex__ = lambda protocol: (classes.identity, (4,))
        assert pickle.loads(_pickle.dumps(obj)) == 4
        del obj.__reduce_ex__
        obj.__class__ = Box
        assert type(pickle.loads(_pickle.dumps(obj))) is Box
    finally:
        del classes.Shifting


def test_a_pickler_refuses_to_be_used_twice_at_once():
    pickler = _pickle.Pickler(io.BytesIO())
    with pytest.raises(RuntimeError, match="while this Pickler is pickling"):
        pickler.dump(Changing(lambda: pickler.dump(1)))
    pickler.dump([1, 2])  # the pickler is usable afterwards


# ---- hooks --------------------------------------------------------------------------------------------------------------


def test_the_base_class_shows_no_hooks():
    assert not hasattr(_pickle.Pickler, "reducer_override")
    assert not hasattr(_pickle.Pickler, "dispatch_table")


def test_hooks_on_the_instance():
    f = io.BytesIO()
    pickler = _pickle.Pickler(f)
    pickler.reducer_override = lambda obj: (classes.identity, ("over",)) if isinstance(obj, Box) else NotImplemented
    pickler.dispatch_table = {Node: lambda obj: (classes.identity, ("table",))}
    pickler.persistent_id = lambda obj: "pid" if obj == "ask" else None
    pickler.dump([Box(), Node(), "ask"])

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid):
            return ("loaded", pid)

    f.seek(0)
    assert Unpickler(f).load() == ["over", "table", ("loaded", "pid")]


def test_super_persistent_id():
    class Asking(_pickle.Pickler):
        def persistent_id(self, obj):
            return super().persistent_id(obj)

    f = io.BytesIO()
    Asking(f).dump([1, "a"])
    assert pickle.loads(f.getvalue()) == [1, "a"]


def test_a_registered_serializer_goes_before_everything_else():
    from pyray_ser.pickling import registry

    registry.register_serializer(Locked, serializer=lambda obj: "locked", deserializer=classes.identity)
    try:
        assert pickle.loads(_pickle.dumps([Locked(), Locked()])) == ["locked", "locked"]
    finally:
        registry.deregister_serializer(Locked)
    with pytest.raises(TypeError, match="cannot pickle"):
        _pickle.dumps(Locked())


# ---- by value -----------------------------------------------------------------------------------------------------------


def make_class():
    factor = 3

    class Local:
        def times(self, x):
            return x * factor

    return Local


def test_lambdas_and_local_classes_go_by_value():
    offset = 5
    assert pickle.loads(_pickle.dumps(lambda x: x + offset))(2) == 7
    local = make_class()
    assert pickle.loads(_pickle.dumps(local())).times(2) == 6


def test_what_cloudpickle_reduces():
    for obj in (
        sys,
        types.ModuleType("made"),
        make_class.__code__,
        {1: 2}.keys(),
        memoryview(b"abc"),
        staticmethod(len),
    ):
        _pickle.dumps(obj)
    assert pickle.loads(_pickle.dumps(sys)) is sys


def test_an_interrupt_while_cloudpickle_is_asked_is_raised(monkeypatch):
    import cloudpickle

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cloudpickle.cloudpickle, "_PICKLE_BY_VALUE_MODULES", None)  # an unknown version of cloudpickle
    monkeypatch.setattr(cloudpickle, "list_registry_pickle_by_value", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _pickle.dumps(Box)


def test_register_pickle_by_value():
    import cloudpickle

    assert b"GENERATED" not in _pickle.dumps(Box)
    cloudpickle.register_pickle_by_value(classes)
    try:
        assert len(_pickle.dumps(Box)) > 4 * len(pickle.dumps(Box))
    finally:
        cloudpickle.unregister_pickle_by_value(classes)
    assert len(_pickle.dumps(Box)) <= len(pickle.dumps(Box))


def test_data_does_not_import_cloudpickle():
    from isolated import run

    assert (
        run("""
        import sys
        from pyray_ser import _pickle
        _pickle.dumps([1, {"a": print}, OSError, sys.intern])
        assert "cloudpickle" not in sys.modules
        _pickle.dumps(lambda: 1)
        assert "cloudpickle" in sys.modules
        """)
        == ""
    )


# ---- strings and memory -------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize(
    "text", ["\ud800", "a\udfff" * 40000, "é" * 70000, "日本" * 30000, "😀" * 20000, "x" * 200_000]
)
def test_strings(dumps, text):
    assert pickle.loads(dumps([text, text])) == [text, text]


def test_pickling_leaves_no_utf8_copy_in_a_string():
    text = "é" * 1000
    before = sys.getsizeof(text)
    _pickle.dumps(text)
    assert sys.getsizeof(text) == before


def test_shared_strings_are_written_once():
    text = "shared" * 10
    assert len(_pickle.dumps([text] * 100)) < 600


# ---- arrays -------------------------------------------------------------------------------------------------------------

ARRAYS = [
    np.arange(10.0),
    np.arange(1000, dtype=">i4").reshape(10, 100),
    np.arange(1000)[::2],
    np.arange(1000)[::-1],
    np.zeros((0, 3)),
    np.array(5),
    np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    np.asfortranarray(np.ones((40, 50))),
    np.broadcast_to(np.arange(3000.0), (100, 3000)),
    np.array([1, "a", None], dtype=object),
    np.array(["a", "bcd"]),
    np.array([(1, 2.0)] * 300, dtype="i4,f8"),
    np.arange(300).astype("M8[s]"),
    np.arange(10) > 3,
    np.arange(200, dtype=np.complex64),
    np.ones(3, np.float16),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
def test_arrays_hand_over_the_buffers_the_standard_pickler_does(array):
    ours, theirs = [], []
    stream = _pickle.dumps([array, array], buffer_callback=ours.append)
    pickle.dumps([array, array], 5, buffer_callback=theirs.append)
    assert [b.raw().tobytes() for b in ours] == [b.raw().tobytes() for b in theirs]
    assert b"pyray_ser" not in stream
    for copy in (pickle.loads(stream, buffers=ours), pickle.loads(_pickle.dumps([array, array]))):
        assert copy[0] is copy[1]
        assert copy[0].dtype == array.dtype
        assert np.array_equal(copy[0], array)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
@pytest.mark.parametrize("root", [True, False])
def test_arrays_in_put_mode(array, root):
    stream, buffers = _pickle._put(array if root else [array, array])
    copy = pickle.loads(stream, buffers=buffers)
    if not root:
        assert copy[0] is copy[1]
        copy = copy[0]
    assert copy.dtype == array.dtype
    assert np.array_equal(copy, array)
    if array.nbytes >= 1024 and not array.dtype.hasobject:
        assert len(stream) < 1024
    if array.dtype.names is None and not array.dtype.hasobject:
        assert not copy.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            copy.flags.writeable = True


def test_a_broadcast_array_is_sent_as_its_base_elements():
    _, buffers = _pickle._put(np.broadcast_to(np.arange(200.0), (10_000, 200)))
    assert [len(b) for b in buffers] == [1600]


def test_views_of_one_base_share_one_buffer():
    base = np.arange(1000.0)
    stream, buffers = _pickle._put([base, base[10:500], base[::2], base.reshape(10, -1)])
    assert [len(b) for b in buffers] == [8000, 4000]  # the strided view has gaps, so the pickler copies its elements
    copies = pickle.loads(stream, buffers=buffers)
    assert np.array_equal(copies[1], base[10:500])
    assert np.shares_memory(copies[0], copies[1])
    assert np.shares_memory(copies[0], copies[3])


@pytest.mark.parametrize(
    "scalar",
    [
        np.float64(3),
        np.int8(-1),
        np.bool_(True),
        np.str_("x"),
        np.datetime64(3, "s"),
        np.complex64(1j),
        np.longdouble(2),
    ],
    ids=lambda s: type(s).__name__,
)
def test_numpy_scalars(scalar):
    for stream in (_pickle.dumps([scalar, scalar]), _pickle._put([scalar, scalar])[0]):
        copy = pickle.loads(stream)
        assert copy[0] is copy[1]
        assert type(copy[0]) is type(scalar)
        assert copy[0] == scalar


# ---- put mode -----------------------------------------------------------------------------------------------------------


def test_large_bytes_leave_the_stream():
    obj = [b"a" * 5000, bytearray(b"b" * 1024), b"c" * 1023]
    stream, buffers = _pickle._put(obj)
    assert [len(b) for b in buffers] == [5000, 1024]
    copy = pickle.loads(stream, buffers=buffers)
    assert copy == obj
    assert [type(x) for x in copy] == [bytes, bytearray, bytes]


def test_a_single_array_is_the_template():
    from pyray_ser import _ndarray

    array = np.arange(1000.0)
    stream, buffers = _pickle._put(array)
    assert stream == _ndarray.template_put(array)[0]
    assert buffers == [array.tobytes()]
    small = np.arange(3.0)
    assert _pickle._put(small)[1] == []
    assert _pickle._put(small, 1)[1] == [small.tobytes()]


def test_put_reducers():
    seen = []

    def reduce(obj):
        seen.append(obj)
        return NotImplemented if obj.value is None else (classes.identity, ("put",))

    _pickle._set_put_reducers({Node: reduce})
    try:
        assert pickle.loads(_pickle._put([Node(1)])[0]) == ["put"]
        assert type(pickle.loads(_pickle._put(Node())[0])) is Node
        assert type(pickle.loads(_pickle.dumps(Node(1)))) is Node
        assert len(seen) == 2
    finally:
        _pickle._set_put_reducers(reducers.reducers)


# ---- files --------------------------------------------------------------------------------------------------------------


class Counting(io.RawIOBase):
    def __init__(self):
        self.sizes = []

    def writable(self):
        return True

    def write(self, data):
        self.sizes.append(len(data))
        return len(data)


def test_a_pickler_streams_frame_by_frame():
    f = Counting()
    _pickle.Pickler(f).dump([str(i) for i in range(100_000)])
    assert max(f.sizes) < 100_000


def test_enum_members_go_by_class_and_value():
    obj = [Colour.RED, Colour.GREEN, Colour.RED]
    copy = pickle.loads(_pickle.dumps(obj))
    assert all(a is b for a, b in zip(copy, obj, strict=True))


def test_the_garbage_collector_is_left_alone():
    import gc

    for state in (True, False):
        (gc.enable if state else gc.disable)()
        try:
            _pickle.dumps([Node(i) for i in range(2000)])
            assert gc.isenabled() is state
        finally:
            gc.enable()


def test_keys_seen_in_a_dump_before_the_memo_grew_are_forgotten():
    """The memo index of a key in one stream must not affect the next stream, even if the memo's table grew."""
    names, keys = [f"name {i}" for i in range(300_000)], ["first", "second", "third"]
    for count in (0, 300_000, 0, 200_000, 5, 100_000, 300_000):
        document = [dict.fromkeys(keys, 0), *names[:count], *(dict.fromkeys(keys, i) for i in range(3))]
        assert pickle.loads(_pickle.dumps(document, 5)) == document
    pickler = _pickle.Pickler(file := io.BytesIO())
    for count in (0, 200_000, 3):
        for clear in (False, True):
            document = [*names[:count], *(dict.fromkeys(keys, i) for i in range(3))]
            start = file.tell()
            if clear:
                pickler.clear_memo()
            pickler.dump(document)
            if clear:
                assert pickle.loads(file.getvalue()[start:]) == document
