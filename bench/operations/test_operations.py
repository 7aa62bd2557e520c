"""Measure single operations of this library with pytest-benchmark: run `make bench`, or pytest on this folder."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import pyray_ser

SIZES = {"80 B": 80, "8 KB": 8_000, "1 MB": 1_000_000, "100 MB": 100_000_000}
VALUES = {
    "none": None,
    "int": 7,
    "text": "a short text",
    "bytes 100 KB": bytes(100_000),
    "array 80 B": np.arange(10.0),
    "array 0-d": np.array(1.5),
    "array strided": np.arange(2000.0)[::2],
    "structured": np.zeros(100, [("a", "<i4"), ("b", "<f8")]),
    "dict of arrays": {f"column_{i}": np.arange(100.0) + i for i in range(10)},
    "nested": {"a": [1, 2, (3, {"b": "c"})], "d": [{"e": i} for i in range(20)]},
}


@pytest.fixture(scope="module", autouse=True)
def store():
    yield pyray_ser.init()
    pyray_ser.shutdown()


@pytest.fixture(params=VALUES)
def value(request):
    return VALUES[request.param]


@pytest.mark.benchmark(group="put and free")
def test_put(benchmark, value):
    benchmark(pyray_ser.put, value)


@pytest.mark.benchmark(group="get")
def test_get(benchmark, value):
    ref = pyray_ser.put(value)
    np.testing.assert_equal(pyray_ser.get(ref), value)
    benchmark(pyray_ser.get, ref)


@pytest.mark.benchmark(group="get an array by size")
@pytest.mark.parametrize("size", SIZES)
def test_get_size(benchmark, size):
    ref = pyray_ser.put(np.arange(SIZES[size] // 8, dtype=np.float64))
    benchmark(pyray_ser.get, ref)


@pytest.mark.benchmark(group="put an array by size, warm")
@pytest.mark.parametrize("size", SIZES)
def test_put_size(benchmark, size):
    benchmark(pyray_ser.put, np.arange(SIZES[size] // 8, dtype=np.float64))


@pytest.mark.benchmark(group='mode "c"')
@pytest.mark.parametrize("size", SIZES)
def test_writable(benchmark, size):
    ref = pyray_ser.put(np.arange(SIZES[size] // 8, dtype=np.float64))
    benchmark(pyray_ser.get, ref, mmap_mode="c")


@pytest.mark.benchmark(group="lists of references")
@pytest.mark.parametrize("count", [1, 10, 1000])
def test_get_list(benchmark, count):
    refs = [pyray_ser.put(i) for i in range(count)]
    assert pyray_ser.get(refs) == list(range(count))
    benchmark(pyray_ser.get, refs)


@pytest.mark.benchmark(group="lists of references")
def test_wait_for_ready(benchmark):
    refs = [pyray_ser.put(i) for i in range(100)]
    benchmark(pyray_ser.wait, refs, num_returns=100)


@pytest.mark.benchmark(group="raw")
def test_create_and_seal(benchmark):
    def fill():
        buffer = pyray_ser.create(1_000_000)
        return pyray_ser.seal(buffer)

    benchmark(fill)


@pytest.mark.benchmark(group="raw")
def test_empty_and_seal(benchmark):
    def fill():
        array = pyray_ser.empty((1000, 125), np.float64)
        return pyray_ser.seal(array)

    benchmark(fill)


@pytest.mark.benchmark(group="raw")
def test_get_buffer(benchmark):
    ref = pyray_ser.put(bytes(1000))
    benchmark(pyray_ser.get_buffer, ref)


@pytest.mark.benchmark(group="references")
def test_pickle_reference(benchmark):
    ref = pyray_ser.put(7)
    with pyray_ser.scope():
        benchmark(lambda: pickle.loads(pickle.dumps(ref)))


@pytest.mark.benchmark(group="without a store")
def test_serialize(benchmark, value):
    benchmark(pyray_ser.serialize, value)


@pytest.mark.benchmark(group="without a store")
def test_deserialize(benchmark, value):
    benchmark(pyray_ser.deserialize, pyray_ser.serialize(value))
