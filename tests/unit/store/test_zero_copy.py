"""Test that values are shared, write-protected by the page table, and alive as long as a view exists."""

import ctypes
import gc
import mmap
import signal
import weakref

import numpy as np
import pytest
from isolated import run

import pyray_ser

WRITE = """
    import ctypes, os, sys
    import numpy as np
    import pyray_ser
    from multiprocessing import Process, get_context

    def victim(ref):
        {how}

    if __name__ == "__main__":
        ref = pyray_ser.put({value})
        before = bytes(pyray_ser.get_buffer(ref)[-1] if isinstance(pyray_ser.get_buffer(ref), list) else pyray_ser.get_buffer(ref))
        child = get_context("spawn").Process(target=victim, args=(ref,))
        child.start()
        child.join()
        after = bytes(pyray_ser.get_buffer(ref)[-1] if isinstance(pyray_ser.get_buffer(ref), list) else pyray_ser.get_buffer(ref))
        assert before == after, "the object changed"
        print(child.exitcode)
"""
ARRAY_WRITES = {
    "memset": "a = pyray_ser.get(ref); ctypes.memset(a.ctypes.data, 0, 8)",
    "memset of a nested one": "a = pyray_ser.get(ref)['x'][0]; ctypes.memset(a.ctypes.data, 0, 8)",
    "memset of the base": "a = np.frombuffer(pyray_ser.get(ref).base, 'u1'); ctypes.memset(a.ctypes.data, 0, 8)",
}


@pytest.mark.parametrize("how", ARRAY_WRITES)
@pytest.mark.parametrize("count", [10, 1_000_000])
def test_writing_dies_and_leaves_the_object_intact(how, count):
    value = f"np.arange({count}.0) + 1"
    if "nested" in how:
        value = f"{{'x': [np.arange({max(count, 1000)}.0) + 1]}}"
    out = run(WRITE.format(how=ARRAY_WRITES[how], value=value), errors=True)
    assert int(out) == -signal.SIGSEGV


def test_the_mapping_cannot_be_made_writable():
    view = pyray_ser.get(pyray_ser.put(np.arange(100_000)))
    libc = ctypes.CDLL(None, use_errno=True)
    page = view.ctypes.data & ~(mmap.PAGESIZE - 1)
    assert libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == -1
    assert (view == np.arange(100_000)).all()


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_view_keeps_the_object(size):
    ref = pyray_ser.put(np.arange(size))
    view = pyray_ser.get(ref)
    part = view[size // 2 :]
    del ref, view
    gc.collect()
    others = [pyray_ser.put(np.full(size, -1)) for _ in range(20)]
    assert (part == np.arange(size)[size // 2 :]).all()
    del others


def test_memory_returns_with_the_last_view():
    before = pyray_ser.stats()["objects"]
    ref = pyray_ser.put({"a": np.arange(5000), "b": np.arange(5000)})
    first = pyray_ser.get(ref)
    second = pyray_ser.get(ref)["b"]
    del ref
    assert pyray_ser.stats()["objects"] == before + 1
    del first
    assert pyray_ser.stats()["objects"] == before + 1
    del second
    assert pyray_ser.stats()["objects"] == before


def test_values_without_buffers_hold_nothing():
    before = pyray_ser.stats()["objects"]
    ref = pyray_ser.put({"a": [1, "x" * 5000]})
    value = pyray_ser.get(ref)
    del ref
    assert pyray_ser.stats()["objects"] == before
    assert value["a"][1] == "x" * 5000


class TestCopyOnWrite:
    @pytest.mark.parametrize("count", [5, 30_000, 100_000])
    def test_is_private(self, count):
        ref = pyray_ser.put(np.arange(count))
        first, second = pyray_ser.get(ref, mmap_mode="c"), pyray_ser.get(ref, mmap_mode="c")
        first[:] = 7
        assert (second == np.arange(count)).all()
        assert (pyray_ser.get(ref) == np.arange(count)).all()

    def test_large_is_not_copied(self):
        ref = pyray_ser.put(np.zeros(4 << 20, "u1"))
        copy = pyray_ser.get(ref, mmap_mode="c")
        address = copy.ctypes.data
        assert address != pyray_ser.get(ref).ctypes.data
        copy[0] = 1
        assert copy[0] == 1 and copy[4096] == 0

    @pytest.mark.parametrize("count", [5, 100_000])
    def test_outlives_ref_and_free(self, count):
        ref = pyray_ser.put(np.arange(count))
        copy = pyray_ser.get(ref, mmap_mode="c")
        copy[0] = 99
        pyray_ser.free(ref)
        del ref
        others = [pyray_ser.put(np.full(count, -1)) for _ in range(5)]
        assert copy[0] == 99 and (copy[1:] == np.arange(1, count)).all()
        del others

    def test_views_share(self):
        base = np.arange(100_000.0)
        whole, part = pyray_ser.get(pyray_ser.put([base, base[5000:]]), mmap_mode="c")
        part[0] = -1
        assert whole[5000] == -1

    def test_large_one_keeps_its_pin_and_gives_it_back(self):
        before = pyray_ser.stats()["objects"]
        ref = pyray_ser.put(np.zeros(1 << 20))
        copy = pyray_ser.get(ref, mmap_mode="c")
        del ref
        assert pyray_ser.stats()["objects"] == before + 1
        del copy
        assert pyray_ser.stats()["objects"] == before


class TestReputByReference:
    """A put stores a reference to bytes that are already in the store, under certain conditions.

    If `put` ignored one of these conditions, a reader would see wrong bytes.
    """

    def large(self):
        ref = pyray_ser.put(np.arange(100_000.0))
        return ref, pyray_ser.get(ref)

    @pytest.mark.parametrize(
        "wrap", [lambda a: a, lambda a: [a], lambda a: {"x": (a, a[7:])}], ids=["alone", "list", "two"]
    )
    def test_is_referred_to(self, wrap):
        ref, view = self.large()
        again = pyray_ser.put(wrap(view))
        assert again.size < 2000
        del ref, view
        junk = [pyray_ser.put(np.full(100_000, -1.0)) for _ in range(5)]
        got = pyray_ser.get(again)
        for array in got["x"] if isinstance(got, dict) else [got[0] if isinstance(got, list) else got]:
            assert (array == np.arange(100_000.0)[-len(array) :]).all()
            assert not array.flags.writeable
        del junk

    def test_chain(self):
        before = pyray_ser.stats()["objects"]
        ref, view = self.large()
        for _ in range(5):
            ref = pyray_ser.put([view])
            (view,) = pyray_ser.get(ref)
        assert (view == np.arange(100_000.0)).all()
        del view
        assert (pyray_ser.get(ref)[0] == np.arange(100_000.0)).all()
        del ref
        assert pyray_ser.stats()["objects"] == before

    def test_slice(self):
        _, view = self.large()
        again = pyray_ser.put(view[50_000:])
        assert again.size < 2000
        assert (pyray_ser.get(again) == np.arange(50_000.0, 100_000.0)).all()
        copy = pyray_ser.get(again, mmap_mode="c")
        copy[0] = -1
        assert view[50_000] == 50_000

    def test_small_view_is_copied(self):
        _, view = self.large()
        assert pyray_ser.put(view[:8000]).size > 64_000  # copied, because the view is smaller than 64 KiB
        big = pyray_ser.get(pyray_ser.put(np.arange(2_000_000.0)))
        assert pyray_ser.put(big[:100_000]).size > 800_000  # copied: the view is smaller than 1/16 of the object

    def test_mode_c_is_copied(self):
        ref, _ = self.large()
        copy = pyray_ser.get(ref, mmap_mode="c")
        copy[:] = 5
        again = pyray_ser.put(copy)
        copy[:] = 6
        assert again.size > copy.nbytes
        assert (pyray_ser.get(again) == 5).all()

    def test_unsealed_is_copied(self):
        array = pyray_ser.empty(100_000)
        array[:] = 1
        again = pyray_ser.put(array)
        array[:] = 2
        assert again.size > array.nbytes
        assert (pyray_ser.get(again) == 1).all()
        pyray_ser.abort(array)
        assert (pyray_ser.get(again) == 1).all()

    def test_another_stores_is_copied(self):
        script = """
        import numpy as np, os, pyray_ser, sys
        from pyray_ser import _core
        ref = pyray_ser.put(np.arange(100_000.0))
        view = pyray_ser.get(ref)
        other = _core.create_store()
        first = _core.default()
        _core.set_default(other)
        again = pyray_ser.put([view, view])
        assert again.store_id == other.id != ref.store_id
        assert again.size > view.nbytes
        first.close()
        del view, ref
        assert (pyray_ser.get(again)[1] == np.arange(100_000.0)).all()
        other.check()
        print("done")
        """
        assert run(script) == "done"

    def test_holder_is_seen_in_stats(self):
        before = pyray_ser.stats()["edges"]
        _, view = self.large()
        again = pyray_ser.put([view, view, view[100:]])
        assert pyray_ser.stats()["edges"] == before + 1
        del again
        assert pyray_ser.stats()["edges"] == before


class TestWindows:
    def test_create(self):
        buffer = pyray_ser.create(100_000)
        assert type(buffer) is memoryview and not buffer.readonly and len(buffer) == 100_000
        buffer[:5] = b"hello"
        ref = pyray_ser.seal(buffer)
        assert pyray_ser.get(ref)[:5] == b"hello"
        assert pyray_ser.get_buffer(ref)[:5] == b"hello"
        assert ref.size > 100_000

    @pytest.mark.parametrize("size", [0, 1, 4096])
    def test_create_sizes(self, size):
        buffer = pyray_ser.create(size)
        buffer[:] = b"z" * size
        assert bytes(pyray_ser.get(pyray_ser.seal(buffer))) == b"z" * size
        with pytest.raises(ValueError):
            pyray_ser.create(-1)

    @pytest.mark.parametrize("shape", [(), 0, 5, (3, 4), (0, 3), (300, 400)])
    @pytest.mark.parametrize("dtype", ["f8", ">i2", "M8[ns]", "S3", "?"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_empty(self, shape, dtype, order):
        array = pyray_ser.empty(shape, dtype, order)
        assert array.flags.writeable and array.dtype == np.dtype(dtype)
        array[...] = np.ones(array.shape, "u1").astype(dtype)
        expected = array.copy(order="K")
        address = array.ctypes.data
        got = pyray_ser.get(pyray_ser.seal(array))
        assert got.tobytes() == expected.tobytes() and got.shape == expected.shape and got.dtype == expected.dtype
        assert got.flags.f_contiguous == expected.flags.f_contiguous
        assert array.ctypes.data == address and array.tobytes() == expected.tobytes()

    def test_writer_is_read_only_after_seal(self):
        array = pyray_ser.empty(1000)
        array[:] = 1
        pyray_ser.seal(array)
        assert not array.flags.writeable
        with pytest.raises(ValueError):
            array[0] = 5
        with pytest.raises(ValueError):
            array.setflags(write=True)
        buffer = pyray_ser.create(10)
        pyray_ser.seal(buffer)
        assert memoryview(buffer.obj).readonly

    def test_what_is_sealed_is_what_was_given(self):
        buffer = pyray_ser.create(80)
        buffer[:4] = b"\1\0\0\0"
        got = pyray_ser.get(pyray_ser.seal(buffer.cast("i", (4, 5))))
        assert (got.format, got.shape, got[0, 0]) == ("i", (4, 5), 1)
        for kind in (np.recarray, np.matrix):
            array = pyray_ser.empty((10, 10))
            array[:] = 2
            with pytest.raises(TypeError, match=r"view\(numpy.ndarray\)"):
                pyray_ser.seal(array.view(kind))
            assert (pyray_ser.get(pyray_ser.seal(array)) == 2).all()

    def test_sizes_that_make_no_sense(self):
        for size, error in ((1.5, TypeError), (-1, ValueError), (1 << 63, ValueError), (1 << 80, ValueError)):
            with pytest.raises(error):
                pyray_ser.create(size)
        with pytest.raises(ValueError, match="an object cannot have"):
            pyray_ser.empty((1 << 40, 1 << 40))

    def test_reshaped(self):
        array = pyray_ser.empty(12, "i4")
        array[:] = range(12)
        ref = pyray_ser.seal(array.reshape(3, 4))
        assert pyray_ser.get(ref).tolist() == np.arange(12).reshape(3, 4).tolist()
        assert not array.flags.writeable

    def test_not_the_whole(self):
        array = pyray_ser.empty(12)
        for part in (array[1:], array[:-1], array[::2], array[::-1]):
            with pytest.raises(ValueError, match="whole"):
                pyray_ser.seal(part)
        with pytest.raises(ValueError, match="whole"):
            pyray_ser.seal(pyray_ser.create(10)[1:])
        pyray_ser.seal(array)

    def test_not_a_window(self):
        for value in (np.zeros(3), memoryview(b"x"), b"x", None, pyray_ser.get(pyray_ser.put(np.zeros(3)))):
            with pytest.raises(ValueError, match="create"):
                pyray_ser.seal(value)
            with pytest.raises(ValueError, match="create"):
                pyray_ser.abort(value)

    def test_twice(self):
        array = pyray_ser.empty(3)
        pyray_ser.seal(array)
        with pytest.raises(ValueError, match="sealed"):
            pyray_ser.seal(array)
        with pytest.raises(ValueError, match="sealed"):
            pyray_ser.abort(array)

    def test_abort(self):
        before = pyray_ser.stats()["unsealed"]
        array = pyray_ser.empty(100_000)
        array[:] = 1
        pyray_ser.abort(array)
        assert pyray_ser.stats()["unsealed"] == before
        assert (array == 0).all()
        with pytest.raises(ValueError, match="aborted"):
            pyray_ser.seal(array)

    def test_view_made_after_the_abort(self):
        # A handler may shut the store down after create() has made the object and before it makes the view.
        window = pyray_ser.create(1000).obj
        pyray_ser.abort(window)
        view = memoryview(window)
        assert not view.readonly
        view[:] = b"1" * 1000
        window = pyray_ser.create(1000).obj
        memoryview(window)[:] = b"2" * 1000
        ref = pyray_ser.seal(window)
        assert memoryview(window).readonly
        assert bytes(pyray_ser.get(ref)) == b"2" * 1000

    def test_dropped(self):
        before = pyray_ser.stats()["unsealed"]
        array = pyray_ser.empty(1000)
        assert pyray_ser.stats()["unsealed"] == before + 1
        part = array[5:]
        del array
        part[:] = 1
        assert pyray_ser.stats()["unsealed"] == before + 1
        del part
        assert pyray_ser.stats()["unsealed"] == before

    def test_sealed_window_keeps_the_object(self):
        array = pyray_ser.empty(100_000)
        array[:] = 3
        pyray_ser.seal(array)
        junk = [pyray_ser.put(np.zeros(100_000)) for _ in range(5)]
        assert (array == 3).all()
        del junk

    def test_objects_are_refused(self):
        with pytest.raises(TypeError, match="object"):
            pyray_ser.empty(3, object)
        for wrong in (dict(shape=-1), dict(shape=3, order="K"), dict(shape="x")):
            with pytest.raises((ValueError, TypeError)):
                pyray_ser.empty(**wrong)

    def test_slice_taken_before_seal_is_protected_by_the_page_table(self):
        script = """
        import pyray_ser
        array = pyray_ser.empty(1000)
        array[:] = 1
        part = array[10:20]
        ref = pyray_ser.seal(array)
        part[0] = 5
        """
        run(script, status=-signal.SIGSEGV, errors=True)


def test_arrays_are_weakly_referenceable_and_collected():
    view = pyray_ser.get(pyray_ser.put(np.arange(10)))
    watch = weakref.ref(view)
    del view
    assert watch() is None
