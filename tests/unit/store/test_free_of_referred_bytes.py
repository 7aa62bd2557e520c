"""Test that the bytes of a freed object stay alive as long as another object refers to them."""

import gc
import subprocess
import sys

import numpy as np
import pytest

import pyray_ser
from pyray_ser.exceptions import ObjectFreedError

N = 100_000


@pytest.fixture(autouse=True)
def store():
    pyray_ser.shutdown()
    pyray_ser.init(capacity=64 << 20)
    yield
    pyray_ser.shutdown()


def stored():
    return pyray_ser.put(np.arange(N))


def check_empty():
    gc.collect()
    counts = pyray_ser.stats()
    assert (counts["objects"], counts["edges"], counts["used"]) == (0, 0, 0)


WAYS = {
    "the array": lambda a: a,
    "a slice": lambda a: a[10:-10],
    "a two-dimensional view": lambda a: a[: N // 10 * 10].reshape(10, -1),
    "a memoryview": memoryview,
    "a container": lambda a: {"result": a, "other": [1, 2]},
    "two views": lambda a: [a[: N // 2], a[N // 4 :]],
    "a view and other arrays": lambda a: [np.ones(300), a, np.zeros(N), a[::2]],
}


def total(value):
    if isinstance(value, dict):
        return total(list(value.values()))
    if isinstance(value, list):
        return sum(total(one) for one in value)
    return int(np.asarray(value).sum())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [None, "referring"])
def test_free_leaves_bytes_that_another_object_refers_to(way, name):
    first = stored()
    value = WAYS[way](pyray_ser.get(first))
    expected = total(value)
    second = pyray_ser.put(value, name=name)
    assert pyray_ser.stats()["edges"] == 1
    del value
    pyray_ser.free(first)
    for _ in range(20):
        pyray_ser.put(np.full(N, -1))
    assert total(pyray_ser.get(second)) == expected
    assert total(pyray_ser.get(second, mmap_mode="c")) == expected
    with pytest.raises(ObjectFreedError):
        pyray_ser.get(first)
    pyray_ser.free(second)
    check_empty()


def test_values_outlive_free_of_both_objects():
    first = stored()
    second = pyray_ser.put([pyray_ser.get(first)])
    pyray_ser.free(first)
    value = pyray_ser.get(second)
    pyray_ser.free(second)
    for _ in range(20):
        pyray_ser.put(np.full(N, -1))
    assert total(value) == N * (N - 1) // 2
    del value
    check_empty()


def test_freed_bytes_can_be_put_again_from_a_value():
    first = stored()
    second = pyray_ser.put([pyray_ser.get(first)])
    pyray_ser.free(first)
    third = pyray_ser.put(pyray_ser.get(second))
    pyray_ser.free(second)
    assert total(pyray_ser.get(third)) == N * (N - 1) // 2
    pyray_ser.free(third)
    check_empty()


def test_a_message_carries_what_refers_to_freed_bytes():
    first = stored()
    second = pyray_ser.put([pyray_ser.get(first)])
    message = second.to_message()
    pyray_ser.free(first)
    del second
    gc.collect()
    program = (
        "import sys, numpy, pyray_ser\n"
        "ref = pyray_ser.ObjectRef.from_message(bytes.fromhex(sys.argv[1]))\n"
        "print(int(pyray_ser.get(ref)[0].sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, message.hex()], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == [str(N * (N - 1) // 2)], done.stderr
    check_empty()


def test_a_reference_in_an_object_does_not_keep_freed_bytes():
    first = stored()
    second = pyray_ser.put([first])
    pyray_ser.free(first)
    assert pyray_ser.stats()["used"] < 8 * N
    with pytest.raises(ObjectFreedError):
        pyray_ser.get(pyray_ser.get(second)[0])


@pytest.mark.parametrize("options", [{}, {"spill_checksum": True}])
def test_bytes_that_an_object_refers_to_are_spilled_and_freed(tmp_path_factory, options):
    pyray_ser.shutdown()
    if options:
        pytest.importorskip("xxhash")
    directory = tmp_path_factory.mktemp("spill", numbered=True)
    try:
        pyray_ser.init(capacity=16 << 20, spill_dir=directory, **options)
    except ValueError as error:
        pytest.skip(str(error))  # the directory is on a file system in memory
    first = stored()
    second = pyray_ser.put([pyray_ser.get(first), "x"])
    gc.collect()
    pyray_ser.free(first)
    fillers = [pyray_ser.put(np.full(1 << 18, i)) for i in range(16)]
    assert pyray_ser.stats()["spilled"]
    for filler in fillers[8:]:
        pyray_ser.get(filler)
    assert total(pyray_ser.get(second)[0]) == N * (N - 1) // 2
    del fillers, filler
    pyray_ser.free(second)
    check_empty()
