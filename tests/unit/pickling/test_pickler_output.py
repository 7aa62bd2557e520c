"""Test that the pickler writes large results directly into the final bytes object, even while other code runs."""

import os
import pickle
import sys
import tracemalloc

import pytest
from isolated import run
from pickler_classes import Locked, Reentrant

from pyray_ser import _pickle

SIZES = [0, 1_000, 7_000, 7_280, 7_290, 14_000, 15_000, 30_000, 60_000, 120_000, 500_000, 20_000, 600_000, 5]


@pytest.mark.parametrize("sizes", [SIZES, SIZES[::-1]], ids=["up", "down"])
def test_results_of_all_sizes_one_after_the_other(sizes):
    for n in sizes:
        for obj in (
            [1.5] * n,
            [1.5] * n + [b"x" * 100_000] + [2.5] * n,  # the large bytes are copied only once, into the result
            ["x" * 50_000, [1.5] * n, "y" * 200_000],
        ):
            stream = _pickle.dumps(obj)
            assert type(stream) is bytes and sys.getsizeof(stream) == len(stream) + sys.getsizeof(b"")
            assert hash(stream) == hash(bytes(memoryview(stream)))
            assert pickle.loads(stream) == obj


def test_large_dumps_that_start_over_nest_or_fail():
    class Inside:
        def __reduce__(self):
            return list, (_pickle.dumps([1.5] * 40_000),)

    many = [2.5] * 50_000
    for _ in range(3):
        got = pickle.loads(_pickle.dumps([many, Inside(), many]))
        assert got[0] == many and got[0] is got[2] and pickle.loads(bytes(got[1])) == [1.5] * 40_000
        assert pickle.loads(_pickle.dumps([many, Reentrant(many, _pickle.dumps), many]))[2] == many
        with pytest.raises(TypeError):
            _pickle.dumps([many, Locked()])
        with pytest.raises(ZeroDivisionError):
            _pickle.dumps([many, b"x" * 70_000, Failing()])


class Failing:
    def __reduce__(self):
        raise ZeroDivisionError


def test_nothing_is_kept_of_a_large_result():
    obj = [1.5] * 1_000_000
    _pickle.dumps(obj)
    tracemalloc.start()
    try:
        for _ in range(3):
            stream = _pickle.dumps(obj)
            with pytest.raises(ZeroDivisionError):
                _pickle.dumps([obj, Failing()])
        assert tracemalloc.get_traced_memory()[0] < len(stream) + 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif("PYRAY_SER_UNDER_SANITIZER" in os.environ, reason="a sanitizer needs the address space itself")
def test_out_of_memory_in_the_middle_of_a_large_result():
    run("""
        import pickle, resource
        from pyray_ser import _pickle
        obj = [1.5] * 8_000_000
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (40 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for n in 8_000_000, 1_000, 100_000, 8_000_000, 300_000:
            try:
                stream = _pickle.dumps(obj[:n] if n < 8_000_000 else obj)
            except MemoryError:
                assert n == 8_000_000
            else:
                assert n < 8_000_000 and pickle.loads(stream) == obj[:n]
        """)
