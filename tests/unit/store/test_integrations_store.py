"""Test values of other libraries in a store: two gets return the same write-protected bytes."""

import os
import pickle

import numpy as np
import pytest

import pyray_ser
from pyray_ser import _core

N = 50_000


@pytest.fixture(scope="module", autouse=True)
def store():
    pyray_ser.init(capacity=256 << 20)
    yield
    pyray_ser.shutdown()


def address(array):
    return array.__array_interface__["data"][0]


def twice(value):
    ref = pyray_ser.put(value)
    return pyray_ser.get(ref), pyray_ser.get(ref)


def arrow_addresses(array):
    chunks = array.chunks if hasattr(array, "chunks") else [array]
    return [
        buffer.address for chunk in chunks for buffer in chunk.buffers() if buffer is not None and buffer.size > 4096
    ]


@pytest.mark.parametrize(
    "value",
    [
        np.arange(N)[::2],
        np.arange(N).reshape(500, 100)[:, :10],
        np.arange(N).astype("M8[s]"),
        np.zeros(N, [("a", "i4"), ("b", "f8")]),
        np.zeros(N, [("a", "i4"), ("b", "f8")]).view(np.recarray),
        np.broadcast_to(np.arange(N), (100, N)),
        np.arange(N).astype(">i8"),
    ],
    ids=["strided", "column", "datetime64", "structured", "recarray", "broadcast", "big-endian"],
)
def test_numpy(value):
    one, two = twice(value)
    assert type(one) is type(value) and one.dtype == value.dtype
    assert address(one) == address(two)
    assert (one == value).all()
    with pytest.raises(ValueError):
        one.flags.writeable = True


def test_masked_array():
    value = np.ma.MaskedArray(np.arange(N), np.arange(N) % 3 == 0)
    one, two = twice([value])
    assert address(one[0].data) == address(two[0].data)
    assert address(one[0].mask) == address(two[0].mask)
    assert (one[0] == value).all()


def test_memoryview_is_in_place_and_array_is_a_copy():
    from array import array

    one, two = twice({"view": memoryview(bytes(N)), "array": array("d", range(N))})
    assert address(np.asarray(one["view"])) == address(np.asarray(two["view"]))
    assert one["view"].readonly
    one["array"][0] = 7
    assert two["array"][0] == 0


def test_pandas():
    pd = pytest.importorskip("pandas")
    value = pd.DataFrame(
        {
            "a": np.arange(N),
            "b": np.arange(N) * 1.5,
            "c": pd.date_range("2000", periods=N, freq="s"),
            "d": pd.date_range("2000", periods=N, freq="s", tz="UTC"),
            "e": pd.Categorical(["x", "y"] * (N // 2)),
            "f": pd.Series([f"text {i}" for i in range(N)], dtype="string[pyarrow]"),
        }
    )
    one, two = twice(value)
    pd.testing.assert_frame_equal(one, value)
    for column in "ab":
        assert address(one[column].to_numpy()) == address(two[column].to_numpy())
    assert address(one["c"].array._ndarray) == address(two["c"].array._ndarray)
    assert address(one["d"].array._ndarray) == address(two["d"].array._ndarray)
    assert address(one["e"].array._codes) == address(two["e"].array._codes)
    assert arrow_addresses(one["f"].array.__arrow_array__()) == arrow_addresses(two["f"].array.__arrow_array__())


def test_pyarrow():
    pa = pytest.importorskip("pyarrow")
    value = pa.table({"a": np.arange(N), "b": [str(i) for i in range(N)]})
    one, two = twice(value)
    assert one.equals(value)
    for name in ("a", "b"):
        assert arrow_addresses(one[name]) == arrow_addresses(two[name]) != []
        assert not any(set(arrow_addresses(one[name])) & set(arrow_addresses(value[name])))


def test_pyarrow_slice_takes_the_room_of_a_slice():
    pa = pytest.importorskip("pyarrow")
    value = pa.array(np.arange(N * 20)).slice(1000, 1000)
    assert pyray_ser.get(pyray_ser.put(value)).equals(value)
    assert len(pyray_ser.serialize(value)) < 20_000


def test_polars():
    pl = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    value = pl.DataFrame({"a": np.arange(N), "b": [f"a longer text {i}" for i in range(N)]})
    one, two = twice(value)
    assert one.equals(value)
    newest = pl.CompatLevel.newest()
    for name in ("a", "b"):
        first, second = (arrow_addresses(frame[name].to_arrow(compat_level=newest)) for frame in (one, two))
        assert first == second != []


def test_scipy():
    sparse = pytest.importorskip("scipy.sparse")
    value = sparse.random(2000, 2000, 0.01, "csr", random_state=5)
    one, two = twice(value)
    assert (one != value).nnz == 0
    assert address(one.data) == address(two.data)
    assert address(one.indices) == address(two.indices)
    assert ((one @ np.ones(2000)) == (value @ np.ones(2000))).all()


def test_explain_tells_the_same_story():
    from pyray_ser.inspection import explain

    value = {"strided": np.arange(N)[::2], "dates": np.arange(N).astype("M8[s]"), "raw": bytes(N), "text": "x" * N}
    explanation = explain(value, "value")
    found = {child.path: child for child in explanation.root.children}
    assert found["value['strided']"].zero_copy == N * 4
    assert found["value['dates']"].zero_copy == N * 8
    assert found["value['raw']"].copied == N
    assert found["value['text']"].in_band > N
    assert abs(explanation.total - len(pyray_ser.serialize(value))) < 4000


# ---- put(explain=True) ---------------------------------------------------------------------------


def explained(value, **options):
    ref, explanation = pyray_ser.put(value, explain=True, **options)
    assert isinstance(ref, pyray_ser.ObjectRef)
    assert isinstance(explanation, pyray_ser.inspection.Explanation)
    return ref, explanation


def test_put_explains_by_path():
    value = {"w": np.arange(N), "raw": bytes(N), "text": "x" * N, "deep": [{"v": np.arange(N)[::2]}]}
    ref, explanation = explained(value)
    assert (pyray_ser.get(ref)["w"] == value["w"]).all()
    assert explanation["['w']"].kinds == {"zero-copy": 8 * N, "copied": 0, "referenced": 0, "in-band": 91}
    assert explanation["['raw']"].copied == N
    assert explanation["['text']"].in_band == pytest.approx(N, abs=20)
    assert explanation["['deep'][0]['v']"].zero_copy == 4 * N
    assert "in all" in str(explanation) and "zero-copy" in str(explanation)
    with pytest.raises(KeyError):
        explanation["['absent']"]


def test_what_is_in_the_store_already_is_referenced():
    array = pyray_ser.get(pyray_ser.put(np.arange(N)))
    other = np.arange(N)
    before = pyray_ser.stats()["used"]
    ref, explanation = explained([array, other])
    assert (pyray_ser.get(ref)[0] == other).all()
    assert explanation["[0]"].referenced == 8 * N and explanation["[0]"].zero_copy == 0
    assert explanation["[1]"].zero_copy == 8 * N and explanation["[1]"].referenced == 0
    assert explanation.referenced == explanation.zero_copy == 8 * N
    assert "400 kB referenced" in explanation.to_text()
    # As the explanation says, `put` copied only one of the two arrays.
    assert pyray_ser.stats()["used"] - before < 12 * N
    assert explained(array)[1].referenced == 8 * N
    # A reference would keep the whole object alive. `put` copies the slice instead, because the slice is small.
    assert explained([array[:100]])[1].referenced == 0


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (bytes(N), "copied"),
        (bytearray(N), "copied"),
        (memoryview(bytes(N)), "zero-copy"),
        (np.zeros(N, "u1"), "zero-copy"),
        ("x" * N, "in-band"),
        (bytes(100), "in-band"),
    ],
    ids=["bytes", "bytearray", "memoryview", "array", "str", "few bytes"],
)
def test_values_of_one_piece_are_explained(value, kind):
    _, explanation = explained(value)
    assert explanation.root.kinds[kind] == pytest.approx(len(value), abs=30)
    assert explanation.total - explanation.root.kinds[kind] < 120


def test_what_readers_copy_is_told_so():
    from array import array

    _, explanation = explained([array("d", range(N)), (np.ctypeslib.as_ctypes(np.zeros(N)))])
    assert explanation["[0]"].copied == explanation["[1]"].copied == 8 * N and explanation.zero_copy == 0


def test_explaining_a_reference_holds_nothing():
    inner = pyray_ser.put(np.arange(N))
    before = pyray_ser.stats()
    outer, explanation = explained([inner])
    assert explanation.total < 200
    pyray_ser.util.inspect_size([inner])
    assert pyray_ser.stats()["in_flight"] == before["in_flight"]
    del inner, outer
    assert pyray_ser.stats()["objects"] == before["objects"] - 1


def test_explained_and_named_and_refused():
    ref, explanation = explained([1], name="explained")
    assert pyray_ser.get_by_name("explained") == [1] and explanation.total < 20
    pyray_ser.free(ref)
    with pytest.raises(TypeError, match=r"lock.*\(at \[0\]\)"):
        pyray_ser.put([__import__("threading").Lock()], explain=True)
    assert isinstance(pyray_ser.put([1], explain=False), pyray_ser.ObjectRef)


def test_polars_without_pyarrow_is_explained_as_copied_or_in_band(monkeypatch):
    pl = pytest.importorskip("polars")
    from pyray_ser.pickling import reducers

    frame = pl.DataFrame({"a": np.arange(N)})
    assert explained(frame)[1].zero_copy >= 8 * N
    # Simulate what `install()` does if pyarrow is missing.
    monkeypatch.delitem(reducers.reducers, pl.DataFrame)
    _, explanation = explained([frame])
    assert explanation.zero_copy == 0 and explanation.copied + explanation.in_band >= 8 * N


# ---- twins: the same bytes, copy-on-write --------------------------------------------------------


class Twins:
    """A fake library that needs writable memory: readers get twins (private copy-on-write mappings) of its buffers."""

    def __init__(self, *arrays):
        self.arrays = arrays

    def __reduce__(self):
        return take_twins, tuple(pickle.PickleBuffer(array) for array in self.arrays)


def take_twins(*buffers):
    return [_core.writable_twin(buffer) for buffer in buffers]


def private_maps():
    with open("/proc/self/maps") as file:
        return sum("pyray_ser" in line and line.split()[1] == "rw-p" for line in file)


@pytest.mark.parametrize("n", [500, N], ids=["copied", "mapped"])
def test_twins_of_one_get_share_one_memory_and_reach_nobody(n):
    ref = pyray_ser.put(Twins(np.arange(n), np.arange(n) + 5))
    before = private_maps()
    one, two = pyray_ser.get(ref)
    assert private_maps() == before + (n == N)
    first, second = (np.frombuffer(twin, np.int64) for twin in (one, two))
    assert first.flags.writeable and (first == np.arange(n)).all() and (second == np.arange(n) + 5).all()
    first[:] = -1
    assert second[0] == 5
    other, _ = pyray_ser.get(ref)
    assert np.frombuffer(other, np.int64)[3] == 3
    del one, two, first, other, _
    assert private_maps() == before + (n == N)  # only the mapping of `second` is left
    assert second[4] == 9
    del second
    assert private_maps() == before


def test_twins_in_an_object_that_refers_to_others():
    stored = [pyray_ser.get(pyray_ser.put(np.arange(N) + i)) for i in range(3)]
    ref, explanation = explained([Twins(*stored, np.arange(7 * 200)), np.arange(N)])
    assert explanation.referenced == 3 * 8 * N
    twins, array = pyray_ser.get(ref)
    for i, twin in enumerate(twins[:3]):
        values = np.frombuffer(twin, np.int64)
        assert (values == np.arange(N) + i).all()
        values[:] = 0
    assert all((array == np.arange(N) + i).all() for i, array in enumerate(stored))
    with pytest.raises(ValueError):
        array.flags.writeable = True


def test_a_twin_outlives_its_reference_and_its_store_holds_the_bytes():
    before = pyray_ser.stats()["objects"]
    (twin,) = pyray_ser.get(pyray_ser.put(Twins(np.arange(N))))
    assert pyray_ser.stats()["objects"] == before + 1  # unwritten pages of the twin belong to the object
    filler = [pyray_ser.put(np.zeros(N)) for _ in range(20)]
    assert (np.frombuffer(twin, np.int64) == np.arange(N)).all()
    del twin, filler
    assert pyray_ser.stats()["objects"] == before


def test_what_is_in_no_store_has_no_twin():
    value = Twins(np.arange(N))
    assert pyray_ser.deserialize(pyray_ser.serialize(value)) == [None]
    assert pyray_ser.get(pyray_ser.put(value), mmap_mode="c") == [None]  # already private, so without a twin
    for foreign in (b"abc", memoryview(b"abc"), np.arange(3)):
        assert _core.writable_twin(foreign) is None
    with pytest.raises(TypeError):
        _core.writable_twin(5)


def test_a_twin_in_a_forked_child_is_its_own():
    (twin,) = pyray_ser.get(pyray_ser.put(Twins(np.arange(N))))
    values = np.frombuffer(twin, np.int64)
    values[0] = 11
    pid = os.fork()
    if not pid:
        good = values[0] == 11 and values[5] == 5
        values[5] = 77
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert values[5] == 5
