"""Test how the stored form of an object gets from one store to another: export, create_stored, seal."""

import random
import struct
import sys

import numpy as np
import pytest
from isolated import run

import pyray_ser
from pyray_ser import exceptions as exc
from pyray_ser.store.foreign import create_stored, export

# The header has the fields magic, version, flags, total, stream_len, nbuffers, reserved.
# An entry has the fields off, len, serial, slot, generation.
HEAD = struct.Struct("<IHHQQII")
ENTRY = struct.Struct("<QQQII")


def import_(data) -> pyray_ser.ObjectRef:
    view = create_stored(len(data))
    view[:] = data
    return pyray_ser.seal(view)


def exported(ref) -> bytes:
    return b"".join(export(ref))


def values():
    array = np.arange(30_000)
    return {
        "number": 5,
        "text": "text" * 100,
        "bytes": b"x" * 5000,
        "array": array,
        "strided": array[::3],
        "two arrays": [array, array + 1],
        "overlapping": [array[:20_000], array[10_000:]],
        "empty": [np.empty(0), b"", np.empty((0, 3))],
        "many": {str(i): np.full(i, i) for i in range(50)},
        "large": np.zeros(1 << 20, dtype="u1"),
        "none": None,
    }


def same(one, other) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return one == other


class TestRoundTrip:
    @pytest.mark.parametrize("name", list(values()))
    def test_values(self, name):
        ref = pyray_ser.put(values()[name])
        views = export(ref)
        assert all(type(view) is memoryview and view.readonly and view.ndim == 1 for view in views)
        assert len(views) == 1 and views[0].nbytes == ref.size
        copy = import_(b"".join(views))
        assert copy != ref and same(pyray_ser.get(copy), values()[name])
        assert same(pyray_ser.get(copy, mmap_mode="c"), values()[name])
        assert exported(copy) == exported(ref)

    def test_buffers_in_other_objects_are_included(self):
        base = pyray_ser.get(pyray_ser.put(np.arange(200_000)))
        other = pyray_ser.get(pyray_ser.put(np.arange(100_000, dtype="i2")))
        own = np.arange(40_000)
        value = [own, base[100:150_000], other[7:], base[90_000:], own[::2], base[:0], base[3:20_000]]
        ref = pyray_ser.put(value)
        assert ref.size < 1_000_000 and pyray_ser.stats()["edges"] >= 2
        views = export(ref)
        data = b"".join(views)
        copy = import_(data)
        assert HEAD.unpack_from(data)[3] == len(data) == copy.size
        # The ranges of `base` overlap, so the form contains their common bytes only once.
        assert len(data) < ref.size + base.nbytes + other.nbytes + 2 * 4096
        del ref, base, other, views
        got = pyray_ser.get(copy)
        expected = [
            own, np.arange(100, 150_000), np.arange(7, 100_000, dtype="i2"), np.arange(90_000, 200_000), own[::2],
            np.arange(0), np.arange(3, 20_000),
        ]  # fmt: skip
        assert same(got, expected)
        assert all(array.flags.aligned for array in got)
        assert np.shares_memory(got[1], got[3]) and np.shares_memory(got[1], got[6])

    def test_one_buffer_in_another_object(self):
        base = pyray_ser.get(pyray_ser.put(np.arange(200_000)))
        ref = pyray_ser.put(base[5:100_000])
        assert ref.size < 1000
        copy = import_(exported(ref))
        assert same(pyray_ser.get(copy), np.arange(5, 100_000)) and copy.size > 799_000

    def test_views_pin_the_objects(self):
        before = pyray_ser.stats()["objects"]
        base = pyray_ser.get(pyray_ser.put(np.arange(200_000)))
        ref = pyray_ser.put([base[1:], b"own" * 10_000])
        views = export(ref)
        pyray_ser.free(ref)
        del base, ref
        assert same(pyray_ser.get(import_(b"".join(views))), [np.arange(1, 200_000), b"own" * 10_000])
        del views
        assert pyray_ser.stats()["objects"] == before

    def test_a_reference_inside_stays_a_reference(self):
        inner = pyray_ser.put("inner")
        copy = import_(exported(pyray_ser.put([inner])))
        assert pyray_ser.get(copy) == [inner]

    def test_waits_like_get(self):
        window = pyray_ser.create(3)
        with pytest.raises(exc.GetTimeoutError):
            export(window.obj.ref, timeout=0)
        pyray_ser.abort(window)
        with pytest.raises(exc.ObjectLostError):
            export(pyray_ser.ObjectRef.from_hex("ab" * 24))
        with pytest.raises(ValueError):
            export([])

    def test_between_two_stores_and_a_spilled_object(self, tmp_path):
        script = f"""
            import numpy as np
            import pyray_ser
            from pyray_ser import _core
            from pyray_ser.store.foreign import create_stored, export

            first = pyray_ser.init(capacity="8M", spill_dir={str(tmp_path)!r}, spill_checksum=False)
            ref = pyray_ser.put([np.arange(200_000), "text"])
            more = [pyray_ser.put(np.zeros(700_000, "u1") + i) for i in range(12)]
            assert first.stats()["spilled"]
            second = _core.create_store(capacity=64 << 20)
            _core.set_default(second)
            views = export(ref)
            target = create_stored(sum(map(len, views)))
            at = 0
            for view in views:
                target[at : at + len(view)] = view
                at += len(view)
            waiting = target.obj.ref
            copy = pyray_ser.seal(target)
            assert copy == waiting and copy.store_id == second.id
            got = pyray_ser.get(copy)
            assert (got[0] == np.arange(200_000)).all() and got[1] == "text"
            first.check(), second.check()
            print("done")
        """
        assert run(script) == "done"


class TestWindow:
    def test_is_sealed_whole(self):
        data = exported(pyray_ser.put(5))
        view = create_stored(len(data))
        view[:] = data
        with pytest.raises(ValueError, match="whole"):
            pyray_ser.seal(view[1:])
        with pytest.raises(ValueError, match="whole"):
            pyray_ser.seal(np.frombuffer(view, "u1")[:-1])
        assert pyray_ser.get(pyray_ser.seal(view)) == 5
        with pytest.raises(ValueError, match="sealed"):
            pyray_ser.seal(view)

    def test_can_be_aborted(self):
        before = pyray_ser.stats()["unsealed"]
        view = create_stored(1000)
        ref = view.obj.ref
        assert ref.state == "creating"
        pyray_ser.abort(view)
        assert ref.state == "lost"
        view = create_stored(1000)
        del view
        assert pyray_ser.stats()["unsealed"] == before

    @pytest.mark.parametrize("size", [-1, 0, 31, 1 << 63])
    def test_impossible_sizes(self, size):
        with pytest.raises(ValueError):
            create_stored(size)

    def test_a_full_store(self):
        with pytest.raises(exc.ObjectStoreFullError):
            create_stored(1 << 50)


class TestDamage:
    @pytest.mark.parametrize(
        "change",
        [
            {"magic": 0}, {"version": 2}, {"flags": 1}, {"reserved": 1}, {"total": 1}, {"total": -1}, {"total": 0},
            {"total": (1 << 64) - 1}, {"stream_len": (1 << 64) - 1}, {"stream_len": 1 << 40}, {"nbuffers": 0xFFFFFFFF},
            {"nbuffers": 1 << 20},
        ],
    )  # fmt: skip
    def test_of_the_header(self, change):
        data = bytearray(exported(pyray_ser.put([np.arange(10_000), np.arange(5)])))
        names = ("magic", "version", "flags", "total", "stream_len", "nbuffers", "reserved")
        old = dict(zip(names, HEAD.unpack_from(data), strict=True))
        new = {**old, **change}
        if "total" in change and change["total"] in (1, -1):
            new["total"] = old["total"] + change["total"]
        HEAD.pack_into(data, 0, *new.values())
        view = create_stored(len(data))
        view[:] = data
        with pytest.raises(exc.CorruptObjectError):
            pyray_ser.seal(view)
        assert view.obj.ref.state == "creating"
        pyray_ser.abort(view)

    @pytest.mark.parametrize("field", ["off", "len", "serial", "slot", "generation"])
    def test_of_an_entry(self, field):
        data = exported(pyray_ser.put([np.arange(10_000), np.arange(5)]))
        names = ("off", "len", "serial", "slot", "generation")
        old = dict(zip(names, ENTRY.unpack_from(data, HEAD.size), strict=True))
        for value in (1 << 20, 1 << 31, 0xFFFFFFFE, 1 << 40, (1 << 63) + 5, (1 << 64) - 1):
            if field in ("slot", "generation"):
                value &= 0xFFFFFFFE
            if value == 0:
                continue
            changed = bytearray(data)
            ENTRY.pack_into(changed, HEAD.size, *{**old, field: value}.values())
            view = create_stored(len(changed))
            view[:] = changed
            with pytest.raises(exc.CorruptObjectError):
                pyray_ser.seal(view)
            pyray_ser.abort(view)

    def test_an_entry_that_names_an_object_of_this_store(self):
        """`seal` must refuse such an entry, because the new object would not keep the named object alive."""
        inner = pyray_ser.put(np.arange(10_000))
        form = bytearray(exported(inner))
        slot, generation = struct.unpack_from("<II", inner.binary(), 16)
        ENTRY.pack_into(form, HEAD.size, 128, 80_000, inner.serial, slot, generation)
        view = create_stored(len(form))
        view[:] = form
        with pytest.raises(exc.CorruptObjectError, match="another store"):
            pyray_ser.seal(view)

    def test_random(self):
        fuzz(3000, seed=1)

    def test_random_in_the_debug_build(self, debug_build):
        script = f"""
            import sys
            sys.path.insert(0, {debug_build!r})
            sys.path[1:1] = {sys.path!r}
            from unit.store.test_export import fuzz
            from pyray_ser import _core
            assert _core.__file__.startswith({debug_build!r})
            fuzz(2000, seed=2)
            _core.default().check()
            print("done")
        """
        assert run(script) == "done"


BOUNDARIES = [
    0,
    1,
    31,
    32,
    33,
    63,
    64,
    65,
    4095,
    4096,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Return the form with damage in one to four places, mostly in the header and the table."""
    out = bytearray(data)
    nbuffers = HEAD.unpack_from(data)[5]
    for _ in range(dice.randint(1, 4)):
        kind = dice.random()
        if kind < 0.3:  # change a byte of header, table or stream
            at = dice.randrange(min(len(out), 32 + 32 * nbuffers + 200))
            out[at] = dice.randrange(256)
        elif kind < 0.7:  # change a field
            at = 8 * dice.randrange(max(1, min(len(out), 32 + 32 * nbuffers) // 8 - 1))
            value = dice.choice([*BOUNDARIES, len(out), len(out) - 1, len(out) + 1])
            out[at : at + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")
        elif kind < 0.8:  # cut off the end; usually set the total to the new length
            del out[dice.randrange(32, len(out) + 1) :]
            if dice.random() < 0.7:
                out[8:16] = len(out).to_bytes(8, "little")
        elif kind < 0.9:
            out += bytes(dice.randrange(100))
            if dice.random() < 0.7:
                out[8:16] = len(out).to_bytes(8, "little")
        else:
            other = out[:]
            dice.shuffle(at := list(range(0, len(other) - 8, 8))[:8])
            for one, two in zip(at[::2], at[1::2], strict=False):
                out[one : one + 8] = other[two : two + 8]
        if len(out) < 32:
            break
    return bytes(out)


def all_buffers(ref) -> list[memoryview]:
    found = pyray_ser.get_buffer(ref)
    return found if isinstance(found, list) else [found]


def fuzz(count: int, seed: int) -> None:
    """Import damaged forms: `seal` refuses the form, or a load of the new object returns a value or raises an error."""
    dice = random.Random(seed)
    forms = [exported(pyray_ser.put(value)) for name, value in values().items() if name != "large"]
    allow = ["numpy:ndarray", "numpy:dtype", "builtins:bytes", "numpy._core.numeric:_frombuffer"]
    accepted = 0
    for _ in range(count):
        data = damaged(dice.choice(forms), dice)
        if len(data) < 32:
            continue
        view = create_stored(len(data))
        view[:] = data
        try:
            ref = pyray_ser.seal(view)
        except exc.CorruptObjectError:
            pyray_ser.abort(view)
            continue
        accepted += 1
        for read in (
            lambda ref=ref: pyray_ser.get(ref, allow=allow),
            lambda ref=ref: pyray_ser.get(ref, mmap_mode="c", allow=allow),
            lambda ref=ref: b"".join(all_buffers(ref)),
            lambda ref=ref: exported(ref),
        ):
            try:
                read()
            except Exception as error:
                assert not isinstance(error, SystemError), error
    assert 0 < accepted < count
