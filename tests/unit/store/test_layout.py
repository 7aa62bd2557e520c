"""Test that the store writes each part of a value at its own offset, for any mix of sizes, strides and copies."""

import layouts
import numpy as np
import pytest
from isolated import run
from layouts import MAKERS, SIZES, assert_same, mix

import pyray_ser
from pyray_ser import _core


@pytest.mark.parametrize("seed", range(150))
def test_mixes_come_back_through_store_and_bytes(seed):
    value = mix(seed)
    assert_same(value, pyray_ser.get(pyray_ser.put(value)))
    blob = pyray_ser.serialize(value)
    assert_same(value, pyray_ser.deserialize(blob))
    assert blob == pyray_ser.serialize(value)
    assert_same(value, pyray_ser.loads_frames([bytes(frame) for frame in pyray_ser.dumps_frames(value)]))
    assert_same(value, pyray_ser.loads(pyray_ser.dumps(value)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", MAKERS)
def test_one_value_of_each_size_comes_back(make, size):
    value = make(size, 7)
    assert_same([value], [pyray_ser.get(pyray_ser.put(value))])


def test_a_small_strided_array_between_others_is_not_overwritten_by_padding():
    value = [np.ones(200), np.arange(400.0)[::2], np.zeros(10_000)]
    assert_same(value, pyray_ser.get(pyray_ser.put(value)))


def test_mixes_come_back_from_spill_files():
    code = f"""
    import os, sys, tempfile
    sys.path.insert(0, {layouts.__file__.rpartition("/")[0]!r})
    import layouts, pyray_ser
    with tempfile.TemporaryDirectory(prefix="pyray_ser-spill-", dir=os.environ.get("PYRAY_SER_TEST_DISK", "/var/tmp")) as spill:
        pyray_ser.init(capacity=4 << 20, spill_dir=spill)
        kept = [(layouts.mix(seed), pyray_ser.put(layouts.mix(seed))) for seed in range(40)]
        assert pyray_ser.stats()["spilled"] > 10
        for value, ref in kept:
            layouts.assert_same(value, pyray_ser.get(ref))
        del kept, ref
        pyray_ser.shutdown()
    print("same")
    """
    assert run(code, timeout=120) == "same"


def test_the_ledger_finds_bytes_written_twice_or_not_at_all():
    _core.check_spans(10, [(4, 6), (0, 4)])
    for spans in ([(0, 5), (4, 6)], [(0, 4), (5, 5)], [(0, 9)], [(0, 11)], []):
        with pytest.raises(SystemError, match="of a new object of 10 bytes"):
            _core.check_spans(10, spans)
