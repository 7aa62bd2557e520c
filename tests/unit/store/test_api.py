"""Test the public functions: values, arguments, errors."""

import array
import decimal
import enum
import io
import pickle
import random
import threading
import time

import numpy as np
import pytest
from isolated import run

import pyray_ser
from pyray_ser import exceptions as exc


class Plain:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __eq__(self, other):
        return type(other) is Plain and other.__dict__ == self.__dict__

    __hash__ = None


class Colour(enum.Enum):
    RED = 1


INTS = [
    0,
    1,
    -1,
    127,
    128,
    255,
    256,
    65535,
    65536,
    -128,
    -129,
    2**31 - 1,
    2**31,
    -(2**31),
    -(2**31) - 1,
    2**32,
    2**47,
    -(2**47),
]
INTS += [2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**64, 10**100, -(10**3000)]
VALUES = [
    None, True, False, ..., NotImplemented, *INTS,
    0.0, 1.5, -1e300, float("inf"), 5e-324, 1 + 2j,
    "", "a", "ascii" * 51, "x" * 255, "x" * 256, "\u00e4", "\U0001f600", "\ud800", "nul\0", "x" * 100_000,
    b"", b"a", b"x" * 1023, b"x" * 100_000, bytearray(b""), bytearray(b"abc"), bytearray(200_000),
    (), (1,), [], [1, [2, [3]]], {}, {"a": {"b": (1, 2)}}, {1, 2}, frozenset({3}), range(5), slice(1, 2, 3),
    decimal.Decimal("1.10"), Colour.RED, Plain(a=1, b=[2]), int, len, Plain, np.float64(2.5), np.dtype("<f4"), np.int8,
    array.array("d", [1.5, 2.5]), array.array("b"), array.array("Q", [2**64 - 1]),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__} {repr(value)[:20]}")
def test_round_trip(value):
    ref = pyray_ser.put(value)
    got = pyray_ser.get(ref)
    assert type(got) is type(value)
    assert got == value
    (nested,) = pyray_ser.get(pyray_ser.put([value]))
    assert type(nested) is type(value)
    assert nested == value
    copy = pyray_ser.get(ref, mmap_mode="c")
    assert type(copy) is type(value) and copy == value
    assert pyray_ser.deserialize(pyray_ser.serialize(value)) == value
    frames = pyray_ser.dumps_frames(value)
    assert pyray_ser.loads_frames(frames) == value
    assert pyray_ser.loads_frames([bytes(frame) for frame in frames]) == value
    assert pickle.loads(frames[1], buffers=frames[2:]) == value


def test_float_bits():
    for value in (-0.0, float("nan")):
        got = pyray_ser.get(pyray_ser.put(value))
        assert repr(got) == repr(value)


def test_every_length_of_int():
    for bits in range(70):
        for value in (2**bits, 2**bits - 1, -(2**bits), -(2**bits) - 1):
            assert pyray_ser.get(pyray_ser.put(value)) == value


def test_subclasses_are_not_taken_for_their_bases():
    class Int(int):
        pass

    class Bytes(bytes):
        pass

    class Array(array.array):
        pass

    for value in (Int(5), Bytes(b"x"), Array("i", [1])):
        got = pyray_ser.get(pyray_ser.put(value))
        assert got == value and type(got).__name__ == type(value).__name__ and type(got) is not type(value).__mro__[1]


@pytest.mark.parametrize("text", ["a" * 200, "\u00e4", "\U0001f600" * 3])
def test_array_of_characters(text):
    value = array.array("u", text)
    got = pyray_ser.get(pyray_ser.put(value))
    assert got == value and got.typecode == "u"


class TestMemoryview:
    @pytest.mark.parametrize(
        "view",
        [
            memoryview(b""),
            memoryview(b"abc"),
            memoryview(b"abcdefgh")[::2],
            memoryview(bytearray(100_000)),
            memoryview(array.array("d", [1, 2, 3])),
            memoryview(array.array("d", range(100)))[::-3],
            memoryview(array.array("d", [])),
            memoryview(np.arange(6.0).reshape(2, 3)),
            memoryview(np.asfortranarray(np.arange(6).reshape(2, 3))),
            memoryview(np.zeros((0, 2))),
            memoryview(np.array(5.0)),
            memoryview(np.arange(3, dtype=">i4")),
            memoryview(b"xyz").cast("c"),
            memoryview(np.array([True, False])),
        ],
        ids=lambda view: f"{view.format} {view.shape}",
    )
    def test_round_trip(self, view):
        got = pyray_ser.get(pyray_ser.put(view))
        assert type(got) is memoryview
        assert (got.format, got.shape, got.tobytes()) == (view.format, view.shape, view.tobytes())
        assert got.readonly

    def test_is_over_the_store(self):
        ref = pyray_ser.put(memoryview(bytes(100_000)))
        first, second = np.frombuffer(pyray_ser.get(ref), "u1"), np.frombuffer(pyray_ser.get(ref), "u1")
        assert first.ctypes.data == second.ctypes.data

    def test_released(self):
        view = memoryview(b"x")
        view.release()
        with pytest.raises(ValueError, match="released"):
            pyray_ser.put(view)


def test_lambda_and_local_class():
    captured = np.arange(5000.0)

    class Local:
        def total(self):
            return captured.sum()

    add, made = pyray_ser.get(pyray_ser.put((lambda x: x + captured[2], Local)))
    assert add(1) == 3.0
    assert made().total() == captured.sum()


def test_identity_inside_one_object():
    inner = [1]
    outer = [inner] * 9
    outer.append(outer)
    got = pyray_ser.get(pyray_ser.put(outer))
    assert got[0] is got[8] and got[9] is got


class TestArguments:
    def test_put_of_a_ref(self):
        ref = pyray_ser.put(1)
        with pytest.raises(TypeError, match=r"wrap it in a list"):
            pyray_ser.put(ref)
        assert pyray_ser.get(pyray_ser.get(pyray_ser.put([ref]))) == [1]

    def test_get_of_a_tuple(self):
        ref = pyray_ser.put(1)
        with pytest.raises(ValueError, match="list"):
            pyray_ser.get((ref, ref))
        with pytest.raises(ValueError, match="hint: iterate over it"):
            pyray_ser.get(iter([ref]))

    @pytest.mark.parametrize("value", [5, None, "ref", {1: 2}, object()])
    def test_get_of_something_else(self, value):
        with pytest.raises(ValueError, match="ObjectRef"):
            pyray_ser.get(value)

    def test_get_of_a_list_with_something_else(self):
        with pytest.raises(TypeError, match="int"):
            pyray_ser.get([pyray_ser.put(1), 5])

    def test_get_of_lists(self):
        first, second = pyray_ser.put(1), pyray_ser.put("b")
        assert pyray_ser.get([]) == []
        assert pyray_ser.get([second, first, second]) == ["b", 1, "b"]

    @pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
    def test_negative_timeouts(self, timeout):
        ref = pyray_ser.put(1)
        for call in (
            lambda: pyray_ser.put(1, timeout=timeout),
            lambda: pyray_ser.get(ref, timeout=timeout),
            lambda: pyray_ser.wait([ref], timeout=timeout),
            lambda: pyray_ser.get_buffer(ref, timeout=timeout),
            lambda: pyray_ser.create(10, timeout=timeout),
        ):
            with pytest.raises(ValueError, match="timeout"):
                call()

    def test_timeouts_of_other_types(self):
        with pytest.raises(TypeError):
            pyray_ser.get(pyray_ser.put(1), timeout="1")

    def test_modes(self):
        ref = pyray_ser.put(1)
        assert pyray_ser.get(ref, mmap_mode="".join(["r"])) == 1
        for mode in ("w", "r+", None, 5):
            with pytest.raises(ValueError, match="mmap_mode"):
                pyray_ser.get(ref, mmap_mode=mode)

    def test_exceptions_are_values(self):
        got = pyray_ser.get(pyray_ser.put(KeyError("k")))
        assert type(got) is KeyError and got.args == ("k",)

    def test_wait(self):
        refs = [pyray_ser.put(i) for i in range(4)]
        assert pyray_ser.wait(refs) == (refs[:1], refs[1:])
        assert pyray_ser.wait(refs, num_returns=4) == (refs, [])
        assert pyray_ser.wait(refs, num_returns=3, timeout=0) == (refs[:3], refs[3:])
        for arguments, error in (
            (dict(refs=tuple(refs)), TypeError),
            (dict(refs=refs[0]), TypeError),
            (dict(refs=[*refs, 1]), TypeError),
            (dict(refs=[*refs, refs[0]]), ValueError),
            (dict(refs=refs, num_returns=0), ValueError),
            (dict(refs=refs, num_returns=5), ValueError),
            (dict(refs=[]), ValueError),
        ):
            with pytest.raises(error):
                pyray_ser.wait(arguments.pop("refs"), **arguments)

    def test_free_and_contains_of_something_else(self):
        with pytest.raises(ValueError):
            pyray_ser.free((pyray_ser.put(1),))
        with pytest.raises(TypeError):
            pyray_ser.free([1])
        with pytest.raises(TypeError):
            pyray_ser.contains("x")


class TestFree:
    def test_ends_the_object(self):
        ref = pyray_ser.put(np.arange(5))
        assert pyray_ser.contains(ref)
        pyray_ser.free(ref)
        assert not pyray_ser.contains(ref)
        with pytest.raises(exc.ObjectFreedError):
            pyray_ser.get(ref)
        pyray_ser.free([ref, ref])

    def test_views_stay(self):
        ref = pyray_ser.put(np.arange(100_000))
        view = pyray_ser.get(ref)
        pyray_ser.free(ref)
        others = [pyray_ser.put(np.zeros(100_000, "i8")) for _ in range(3)]
        assert (view == np.arange(100_000)).all()
        del others

    def test_memory_returns(self):
        before = pyray_ser.stats()
        refs = [pyray_ser.put(np.zeros(50_000)) for _ in range(10)]
        assert pyray_ser.stats()["used"] >= before["used"] + 10 * 400_000
        pyray_ser.free(refs)
        assert pyray_ser.stats()["used"] <= before["used"]
        assert pyray_ser.stats()["objects"] == before["objects"]


class TestUnpicklable:
    def test_names_the_path(self):
        value = {"model": Plain(cache={"k": [0, threading.Lock()]})}
        with pytest.raises(TypeError, match=r"cannot pickle '_thread.lock' object") as caught:
            pyray_ser.put(value)
        assert "cache['k'][1]" in str(caught.value)
        assert isinstance(caught.value, exc.SerializationError)
        assert isinstance(caught.value.__cause__, TypeError)

    def test_serialize_too(self):
        for function in (pyray_ser.serialize, pyray_ser.dumps_frames):
            with pytest.raises(TypeError, match=r"cannot pickle '_thread.lock' object \(at \[1\]\)"):
                function([1, threading.Lock()])

    def test_errors_of_the_value_pass(self):
        class Breaks:
            def __reduce__(self):
                raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine"):
            pyray_ser.put([Breaks()])

    def test_leaves_nothing(self):
        before = pyray_ser.stats()["objects"]
        for _ in range(5):
            with pytest.raises(TypeError):
                pyray_ser.put([np.zeros(10_000), threading.Lock()])
        assert pyray_ser.stats()["objects"] == before
        assert pyray_ser.get(pyray_ser.put([1])) == [1]

    def test_interrupt_passes(self):
        class Interrupts:
            def __reduce__(self):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pyray_ser.put([Interrupts()])


class PutsInside:
    """An object whose reduction, which runs during a `put`, itself calls `put`, `get` and `serialize`."""

    def __reduce__(self):
        inner = pyray_ser.put({"inner": np.arange(5000)})
        assert pyray_ser.get(inner)["inner"][7] == 7
        assert pyray_ser.deserialize(pyray_ser.serialize([inner]))[0] == inner
        return (list, ([inner, 5],))


def test_put_inside_put():
    got = pyray_ser.get(pyray_ser.put([PutsInside(), np.arange(3000)]))
    assert pyray_ser.get(got[0][0])["inner"].tolist() == list(range(5000))
    assert (got[1] == np.arange(3000)).all()


class TestBuffers:
    def test_of_bytes(self):
        view = pyray_ser.get_buffer(pyray_ser.put(b"abc" * 1000))
        assert view == b"abc" * 1000 and view.readonly

    def test_of_an_array(self):
        data = np.arange(1000.0)
        assert pyray_ser.get_buffer(pyray_ser.put(data)) == data.tobytes()

    def test_of_a_list(self):
        data = np.arange(1000.0)
        stream, buffer = pyray_ser.get_buffer(pyray_ser.put([data, 5]))
        assert buffer == data.tobytes()
        assert pickle.loads(stream, buffers=[buffer])[1] == 5

    def test_keeps_the_object(self):
        ref = pyray_ser.put(b"x" * 100_000)
        view = pyray_ser.get_buffer(ref)
        pyray_ser.free(ref)
        del ref
        pyray_ser.put(b"y" * 100_000)
        assert view == b"x" * 100_000


class TestFrames:
    def test_are_the_value_itself(self):
        data = np.arange(10_000.0)
        frames = pyray_ser.dumps_frames({"a": data})
        assert all(type(frame) is memoryview for frame in frames)
        assert np.shares_memory(np.frombuffer(frames[2], "f8"), data)

    def test_an_array_that_they_lie_over_cannot_be_resized(self):
        data = np.arange(10_000.0)
        frames = pyray_ser.dumps_frames([data])
        with pytest.raises(ValueError):
            data.resize(10)
        del frames
        data.resize(10)

    @pytest.mark.parametrize("data", [array.array("d", range(10_000)), bytearray(80_000)], ids=["array", "bytearray"])
    def test_a_buffer_that_they_lie_over_cannot_be_resized(self, data):
        frames = pyray_ser.dumps_frames([data])
        with pytest.raises(BufferError):
            data.append(1)
        del frames
        data.append(1)

    def test_loaded_arrays_lie_over_the_frames(self):
        frames = [bytearray(frame) for frame in pyray_ser.dumps_frames(np.arange(10_000.0))]
        got = pyray_ser.loads_frames(frames)
        assert np.shares_memory(got, np.frombuffer(frames[2], "f8"))
        assert not got.flags.writeable
        with pytest.raises(ValueError):
            got.setflags(write=True)

    def test_blob_is_kept_alive(self):
        got = pyray_ser.deserialize(bytes(pyray_ser.serialize(np.arange(100_000))))
        junk = [bytes(800_000) for _ in range(5)]
        assert (got == np.arange(100_000)).all()
        del junk

    def test_exported_blob_cannot_be_resized(self):
        blob = bytearray(pyray_ser.serialize(np.arange(1000.0)))
        got = pyray_ser.deserialize(blob)
        with pytest.raises(BufferError):
            blob.extend(b"x")
        del got
        blob.extend(b"x")

    def test_equal_values_give_equal_bytes(self):
        value = {"a": np.arange(1001, dtype="u1"), "b": [np.arange(3000, dtype="u1")]}
        assert len({pyray_ser.serialize(value) for _ in range(5)}) == 1

    def test_self_contained(self):
        stored = pyray_ser.get(pyray_ser.put(np.arange(100_000)))
        blob = pyray_ser.serialize([stored])
        assert len(blob) > stored.nbytes

    @pytest.mark.parametrize("seed", range(5))
    def test_damage_is_an_error(self, seed):
        rng = random.Random(seed)
        value = [np.arange(2000, dtype="u1"), "x", np.arange(3000, dtype="u1")]
        good = pyray_ser.serialize(value)
        for _ in range(400):
            blob = bytearray(good)
            for _ in range(rng.randint(1, 3)):
                blob[rng.randrange(96)] = rng.randrange(256)
            if rng.random() < 0.3:
                del blob[rng.randrange(len(blob)) :]
            if blob == good:
                continue
            try:
                got = pyray_ser.deserialize(blob)
            except (exc.CorruptObjectError, pickle.UnpicklingError):
                continue
            except (TypeError, ValueError) as error:
                # If a buffer is too short, numpy raises its own message.
                assert "buffer" in str(error)
                continue
            # `deserialize` misses one kind of damage: an entry of the buffer table that points elsewhere in the object.
            assert len(got) == 3

    @pytest.mark.parametrize("cut", [0, 1, 31, 32, 63, 64, 100])
    def test_cut_short(self, cut):
        blob = pyray_ser.serialize(np.arange(2000))
        with pytest.raises(exc.CorruptObjectError):
            pyray_ser.deserialize(blob[:cut])
        with pytest.raises(exc.CorruptObjectError):
            pyray_ser.deserialize(blob + b"x")

    def test_wrong_frames(self):
        frames = pyray_ser.dumps_frames([np.arange(2000), 1])
        for wrong in ([], frames[:1], frames[:2], [*frames, b""], [frames[0], frames[1], b"x"], [b"", *frames[1:]]):
            with pytest.raises(exc.CorruptObjectError):
                pyray_ser.loads_frames(wrong)


class TestAllow:
    """Every way of loading accepts only allowed names, even a way that runs no unpickler."""

    ARRAY = frozenset({"numpy:ndarray", "numpy:dtype"})

    def loaders(self, value):
        ref, blob, frames = pyray_ser.put(value), pyray_ser.serialize(value), pyray_ser.dumps_frames(value)
        yield lambda allow: pyray_ser.get(ref, allow=allow)
        yield lambda allow: pyray_ser.get([ref], allow=allow)[0]
        yield lambda allow: pyray_ser.get(ref, allow=allow, mmap_mode="c")
        yield lambda allow: pyray_ser.deserialize(blob, allow=allow)
        yield lambda allow: pyray_ser.loads_frames(frames, allow=allow)

    @pytest.mark.parametrize("value", [5, "text", None, [1, {"a": (2.5,)}]])
    def test_values_without_globals(self, value):
        for load in self.loaders(value):
            assert load(()) == value

    @pytest.mark.parametrize("value", [np.arange(10.0), [np.arange(1000.0)]], ids=["alone", "nested"])
    def test_arrays(self, value):
        for load in self.loaders(value):
            got = load(self.ARRAY)
            assert (np.asarray(got) == np.asarray(value)).all()
            with pytest.raises(pickle.UnpicklingError, match="numpy"):
                load({"builtins:list"})

    @pytest.mark.parametrize("value", [bytearray(b"x" * 2000), array.array("d", [1.0]), decimal.Decimal("1.5")])
    def test_others(self, value):
        for load in self.loaders(value):
            assert load(lambda module, name: True) == value
            with pytest.raises(pickle.UnpicklingError):
                load(lambda module, name: False)


class TestExtremes:
    def test_many_buffers(self):
        values = [np.full(200, i, "u8") for i in range(3000)]
        got = pyray_ser.get(pyray_ser.put(values))
        assert all((a == b).all() for a, b in zip(got, values, strict=True))

    @pytest.mark.parametrize("size", [5, 200, 3000])
    def test_many_buffers_in_any_order_of_their_addresses(self, size):
        shared = np.arange(3 * size, dtype="u8")
        values = [np.full(size, i, "u8") for i in range(2000)]
        values += [shared[start : start + size] for start in range(0, 2 * size, max(1, size // 7))]
        for seed in range(5):
            random.Random(seed).shuffle(values)
            got = pyray_ser.get(pyray_ser.put(values))
            assert all((a == b).all() for a, b in zip(got, values, strict=True))
            got = pyray_ser.deserialize(pyray_ser.serialize(values))
            assert all((a == b).all() for a, b in zip(got, values, strict=True))
            got = pyray_ser.loads_frames(pyray_ser.dumps_frames(values))
            assert all((a == b).all() for a, b in zip(got, values, strict=True))

    def test_large_stream_and_buffers_mixed(self):
        values = [
            "text" * 20_000,
            np.arange(50_000),
            b"z" * 300_000,
            [np.arange(5000) for _ in range(50)],
            list(range(100_000)),
        ]
        got = pyray_ser.get(pyray_ser.put(values))
        assert got[0] == values[0] and got[2] == values[2] and got[4] == values[4]
        assert (got[1] == values[1]).all() and all((a == np.arange(5000)).all() for a in got[3])

    def test_threads(self):
        errors = []

        def work(seed):
            rng = random.Random(seed)
            try:
                for _ in range(200):
                    size = rng.choice([1, 10, 1000, 20_000])
                    ref = pyray_ser.put([np.full(size, seed), io.BytesIO, {"k": seed}])
                    got = pyray_ser.get(ref)
                    assert (got[0] == seed).all() and got[2] == {"k": seed}
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors

    def test_full(self):
        script = """
import numpy as np, pyray_ser, time
from pyray_ser.exceptions import ObjectStoreFullError
pyray_ser.init(capacity=16 << 20)
held = [pyray_ser.put(np.zeros(1 << 20, 'u1')) for _ in range(8)]
try:
    pyray_ser.put(np.zeros(12 << 20, 'u1'))
except ObjectStoreFullError as error:
    assert isinstance(error, MemoryError) and error.size > 12 << 20 and error.used > 8 << 20, (error.size, error.used)
    assert 'object' in str(error)
else:
    raise SystemExit('no error')
start = time.monotonic()
try:
    pyray_ser.put(np.zeros(12 << 20, 'u1'), timeout=0.3)
except ObjectStoreFullError:
    assert time.monotonic() - start > 0.25
import threading
threading.Timer(0.2, held.clear).start()
assert pyray_ser.get(pyray_ser.put(np.ones(12 << 20, 'u1'), timeout=240)).all()
print('done')
"""
        assert run(script) == "done"


class TestImport:
    def test_is_light(self):
        script = """
import sys
before = set(sys.modules)
import pyray_ser
heavy = {'numpy', 'cloudpickle', 'multiprocessing', 'asyncio', 'pandas', 'concurrent.futures', 'inspect', 'typing', 're'}
print(sorted(heavy & (set(sys.modules) - before)))
assert pyray_ser.get(pyray_ser.put({'a': 1})) == {'a': 1}
print(sorted({'numpy', 'cloudpickle', 'multiprocessing'} & set(sys.modules)))
"""
        assert run(script).split("\n") == ["[]", "[]"]

    def test_everything_is_reachable(self):
        script = """
import pyray_ser
pyray_ser.util.inspect_serializability
pyray_ser.exceptions.CorruptObjectError
pyray_ser.serialize, pyray_ser.deserialize, pyray_ser.dumps_frames, pyray_ser.loads_frames
for name in pyray_ser.__all__:
    assert name in dir(pyray_ser), name
    getattr(pyray_ser, name)
assert pyray_ser.__all__ == sorted(pyray_ser.__all__)
try:
    pyray_ser.nothing
except AttributeError as error:
    print(error)
"""
        assert run(script) == "module 'pyray_ser' has no attribute 'nothing'"

    def test_cold_start(self):
        script = """
import time
start = time.process_time()
import numpy
middle = time.process_time()
import pyray_ser
pyray_ser.get(pyray_ser.put(numpy.arange(10)))
print((time.process_time() - middle) / (middle - start))
"""
        # The benchmark limits this time to 0.04 s. The machine may be busy here, so this test compares the CPU time
        # with that of importing numpy.
        assert min(float(run(script)) for _ in range(3)) < 3


def test_objects_and_stats():
    ref = pyray_ser.put(np.arange(10_000))
    view = pyray_ser.get(ref)
    (record,) = [record for record in pyray_ser.objects() if record["id"] == ref.hex()]
    assert record["size"] == ref.size and record["state"] == "sealed"
    assert record["ref_holders"] == 1 and record["pin_holders"] == 1
    assert abs(record["created"] - time.time()) < 100
    stats = pyray_ser.stats()
    assert {"capacity", "used", "objects", "clients", "in_flight"} <= set(stats)
    assert all(type(value) is int for value in stats.values())
    del view


def test_a_call_that_waits_while_the_store_is_renewed_leaves_the_handle_that_it_used():
    run("""
        import threading, time
        import pyray_ser
        from pyray_ser import _core
        store = pyray_ser.init(capacity=8 << 20)
        for _ in range(5):
            waiting = threading.Thread(target=_core.wait_epoch, args=(store, _core.epoch(store), 1.0))
            waiting.start()
            time.sleep(0.02)
            assert store.renew()
            waiting.join()
        assert store.stats()["clients"] == 1  # the old handle is closed by its last user
        store.close()
    """)
