"""Test the registry: immediate effect, replacement, inheritance, rejected types, entry points, threads, fork."""

import copyreg
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from types import FunctionType

import pytest

from pyray_ser.pickling import registry


class Locked:
    def __init__(self, value):
        self.value, self.lock = value, threading.Lock()


class Below(Locked):
    pass


class WithReduce(Locked):
    def __reduce__(self):
        return WithReduce, (self.value * 100,)


class BelowWithReduce(WithReduce):
    pass


def serialize(obj):
    return obj.value


@pytest.fixture(autouse=True)
def clean_tables():
    assert not registry.serializers and not registry.inherited
    yield
    registry.serializers.clear()
    registry.inherited.clear()


class Pickler(pickle.Pickler):
    """A pickler that consults the registry in the same order as the real picklers."""

    def reducer_override(self, obj):
        reducer = registry.find(type(obj))
        return NotImplemented if reducer is None else reducer(obj)


def round_trip(obj):
    file = io.BytesIO()
    Pickler(file, 5).dump(obj)
    return pickle.loads(file.getvalue())


def register(cls=Locked, deserializer=None, **options):
    registry.register_serializer(cls, serializer=serialize, deserializer=deserializer or cls, **options)


def test_fails_before_works_after_fails_again_and_a_second_deregistration_is_nothing():
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        round_trip(Locked(5))
    register()
    assert round_trip([Locked(5)])[0].value == 5
    registry.deregister_serializer(Locked)
    with pytest.raises(TypeError):
        round_trip(Locked(5))
    registry.deregister_serializer(Locked)


def test_the_reader_needs_no_registration():
    register()
    file = io.BytesIO()
    Pickler(file, 5).dump(Locked(5))
    registry.deregister_serializer(Locked)
    assert pickle.loads(file.getvalue()).value == 5


def test_the_stream_does_not_name_pyray_ser():
    register()
    file = io.BytesIO()
    Pickler(file, 5).dump(Locked(5))
    assert b"pyray_ser" not in file.getvalue()


def test_registering_again_replaces():
    register()
    registry.register_serializer(Locked, serializer=lambda obj: obj.value + 1, deserializer=Locked)
    assert round_trip(Locked(5)).value == 6


def test_same_object_twice_is_one_object():
    register()
    one = Locked(1)
    back = round_trip([one, one])
    assert back[0] is back[1]


def test_decorator_returns_the_class():
    @registry.register_serializer(serializer=serialize, deserializer=Locked)
    class Decorated(Locked):
        pass

    assert isinstance(Decorated, type)
    assert type(round_trip(Decorated(2))) is Locked


def test_version_grows_with_each_change_and_only_then():
    before = registry.version[0]
    register()
    assert registry.version[0] == before + 1
    registry.deregister_serializer(Locked)
    assert registry.version[0] == before + 2
    registry.deregister_serializer(Locked)
    assert registry.version[0] == before + 2


def test_subclasses_are_left_alone_unless_asked():
    register()
    with pytest.raises(TypeError):
        round_trip(Below(1))
    register(subclasses=True, deserializer=lambda value: Locked(value))
    assert registry.find(Below) is registry.find(Locked)
    register()  # this replaces the registration of the base class
    assert registry.find(Below) is None


def test_nearest_registered_base_wins():
    class Lower(Below):
        pass

    register(subclasses=True)
    register(Below, subclasses=True)
    assert registry.find(Lower) is registry.find(Below) is not registry.find(Locked)


def test_exact_registration_of_a_base_is_no_obstacle():
    class Lower(Below):
        pass

    register(subclasses=True)
    register(Below)
    assert registry.find(Lower) is registry.find(Locked)


def test_own_reduce_beats_an_inherited_registration():
    register(subclasses=True)
    assert registry.find(WithReduce) is None
    assert registry.find(BelowWithReduce) is None
    assert round_trip(WithReduce(1)).value == 100


def test_reduce_of_the_registered_class_itself_does_not_count():
    register(WithReduce, subclasses=True)
    assert registry.find(BelowWithReduce) is registry.find(WithReduce) is not None


def test_copyreg_entry_beats_an_inherited_registration_but_not_an_exact_one():
    register(subclasses=True)
    copyreg.pickle(Below, lambda obj: (Below, (obj.value,)))
    try:
        assert registry.find(Below) is None
        register(Below)
        assert registry.find(Below) is not None
    finally:
        del copyreg.dispatch_table[Below]


@pytest.mark.parametrize(
    "cls",
    [int, str, bytes, bytearray, float, bool, list, tuple, dict, set, frozenset, type, FunctionType, type(None)],
)
@pytest.mark.parametrize("subclasses", [False, True])
def test_unreachable_builtins_raise_at_registration(cls, subclasses):
    with pytest.raises(TypeError, match=cls.__name__):
        register(cls, subclasses=subclasses)
    assert not registry.serializers


@pytest.mark.parametrize("cls", [complex, slice, range, type(threading.Lock()), io.StringIO])
def test_reachable_builtins_are_accepted(cls):
    register(cls)
    assert registry.find(cls)


def test_metaclass_can_be_registered():
    class Meta(type):
        pass

    class Class(metaclass=Meta):
        value = 3

    registry.register_serializer(Meta, serializer=lambda cls: cls.value, deserializer=int)
    assert round_trip(Class) == 3


@pytest.mark.parametrize("bad", [None, 1, "f"])
def test_arguments_are_checked(bad):
    with pytest.raises(TypeError, match="must be callable"):
        registry.register_serializer(Locked, serializer=bad, deserializer=Locked)
    with pytest.raises(TypeError, match="must be callable"):
        registry.register_serializer(Locked, serializer=serialize, deserializer=bad)
    with pytest.raises(TypeError, match="for a class"):
        registry.register_serializer(Locked(1), serializer=serialize, deserializer=Locked)
    with pytest.raises(TypeError, match="reserves"):
        registry.register_serializer(Locked, serializer=serialize, deserializer=copyreg.__newobj__)


def test_a_serializer_that_returns_its_argument_is_named():
    registry.register_serializer(Locked, serializer=lambda obj: obj, deserializer=Locked)
    with pytest.raises(TypeError, match=r"Locked returned the object itself"):
        round_trip(Locked(1))


def test_a_class_whose_metaclass_lies_about_its_mro():
    class Meta(type):
        @property
        def __mro__(cls):
            raise RuntimeError("no")

    class Class(Locked, metaclass=Meta):
        pass

    register(subclasses=True)
    assert registry.find(Class) is registry.find(Locked)


def test_many_threads():
    classes = [type(f"C{i}", (Locked,), {}) for i in range(8)]
    barrier = threading.Barrier(len(classes))
    failures = []

    def work(cls):
        barrier.wait()
        try:
            for _ in range(300):
                register(cls, subclasses=True)
                assert registry.find(cls) is registry.serializers[cls]
                registry.deregister_serializer(cls)
                assert registry.find(cls) is None
        except BaseException as error:
            failures.append(error)

    before = registry.version[0]
    threads = [threading.Thread(target=work, args=(cls,)) for cls in classes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert registry.version[0] == before + 600 * len(classes)
    assert not registry.serializers


def test_fork_while_another_thread_holds_the_lock():
    with registry._lock:
        pid = os.fork()
        if pid == 0:
            register()
            os._exit(0 if registry.find(Locked) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def package_with_entry_point(folder, body):
    (folder / "thirdparty").mkdir()
    (folder / "thirdparty" / "__init__.py").write_text(
        textwrap.dedent(
            """
            import threading
            class Thing:
                def __init__(self, value):
                    self.value, self.lock = value, threading.Lock()
            """
        )
    )
    (folder / "thirdparty" / "reducers.py").write_text(textwrap.dedent(body))
    info = folder / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyray_ser.reducers]\nthirdparty = thirdparty.reducers:register\n")


def run(folder, code):
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_entry_point_is_loaded_when_a_class_of_its_package_is_met(tmp_path):
    package_with_entry_point(
        tmp_path,
        """
        from pyray_ser.pickling import registry
        import thirdparty
        def register():
            registry.register_serializer(
                thirdparty.Thing, serializer=lambda thing: thing.value, deserializer=thirdparty.Thing)
        """,
    )
    done = run(
        tmp_path,
        """
        import sys
        from pyray_ser.pickling import registry
        import thirdparty
        registry.find(int)
        assert "thirdparty.reducers" not in sys.modules and "importlib.metadata" not in sys.modules
        assert registry.find(thirdparty.Thing)(thirdparty.Thing(4)) == (thirdparty.Thing, (4,))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_put_finds_the_entry_point(tmp_path):
    package_with_entry_point(
        tmp_path,
        """
        from pyray_ser.pickling import registry
        import thirdparty
        def register():
            registry.register_serializer(
                thirdparty.Thing, serializer=lambda thing: thing.value * 10, deserializer=thirdparty.Thing)
        """,
    )
    for debug in ("0", "2"):
        done = run(
            tmp_path,
            f"""
            import os
            os.environ["PYRAY_SER_PICKLE_VERBOSE_DEBUG"] = "{debug}"
            import pyray_ser, thirdparty
            assert pyray_ser.get(pyray_ser.put([thirdparty.Thing(4)]))[0].value == 40
            assert pyray_ser.loads(pyray_ser.dumps(thirdparty.Thing(4))).value == 40
            """,
        )
        assert done.returncode == 0, done.stderr


def test_broken_entry_point_warns_and_pickling_goes_on(tmp_path):
    package_with_entry_point(tmp_path, "raise KeyError('gone')")
    done = run(
        tmp_path,
        """
        from pyray_ser.pickling import registry
        import thirdparty
        assert registry.find(thirdparty.Thing) is None
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning" in done.stderr and "thirdparty.reducers:register" in done.stderr


def test_without_entry_points_the_metadata_machinery_stays_out(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "__init__.py").write_text("class Thing: pass")
    done = run(
        tmp_path,
        """
        import sys
        from pyray_ser.pickling import registry
        import plain
        assert registry.find(plain.Thing) is None
        assert "importlib.metadata" not in sys.modules
        """,
    )
    assert done.returncode == 0, done.stderr


def first_of(payload):
    return ("made by the deserializer", payload)


@pytest.mark.parametrize("kind", ["ndarray", "memoryview", "array"])
@pytest.mark.parametrize("how", ["class", "copyreg"])
def test_a_serializer_applies_to_arrays_and_memoryviews_that_are_put(kind, how):
    import array
    import copyreg

    import numpy as np

    import pyray_ser

    value = {
        "ndarray": np.arange(500.0),
        "memoryview": memoryview(b"abc" * 900),
        "array": array.array("d", range(500)),
    }[kind]
    cls = type(value)
    assert not isinstance(pyray_ser.get(pyray_ser.put(value)), tuple)
    if how == "copyreg":
        copyreg.pickle(cls, lambda obj: (first_of, (len(obj),)))
    else:
        registry.register_serializer(cls, serializer=len, deserializer=first_of)
    try:
        want = first_of(len(value))
        assert pyray_ser.get(pyray_ser.put(value)) == want
        assert pyray_ser.get(pyray_ser.put([value])) == [want]
        assert pyray_ser.deserialize(pyray_ser.serialize(value)) == want
    finally:
        copyreg.dispatch_table.pop(cls, None)
        registry.deregister_serializer(cls)
    assert not isinstance(pyray_ser.get(pyray_ser.put(value)), tuple)
