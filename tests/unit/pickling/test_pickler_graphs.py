"""Test with random graphs that our Pickler writes the same opcodes as the standard one, and that copies are equal."""

import io
import pickle
import random
from functools import partial

import pytest
from strategies_graphs import Navigator, Plain, graph, shape

from pyray_ser import _pickle

SEEDS = range(240)


def outcome(function, *args, **options):
    """Return (result, None) or (None, the type of the exception)."""
    try:
        return function(*args, **options), None
    except RecursionError:
        return None, RecursionError
    except Exception as error:
        return None, type(error)


def written(pickler_class, obj, protocol):
    f = io.BytesIO()
    pickler_class(f, protocol).dump(obj)
    return f.getvalue()


class OurHooked(_pickle.Pickler):
    def reducer_override(self, obj):
        return NotImplemented


class StandardHooked(pickle.Pickler):
    def reducer_override(self, obj):
        return NotImplemented


@pytest.mark.parametrize(
    "ours, standard, protocol",
    [*((_pickle.Pickler, pickle.Pickler, protocol) for protocol in range(5)), (OurHooked, StandardHooked, 5)],
)
def test_a_pickler_below_protocol_5_or_with_a_hook_writes_what_the_standard_one_writes(ours, standard, protocol):
    for seed in SEEDS:
        obj = graph(seed)
        assert outcome(written, ours, obj, protocol) == outcome(written, standard, obj, protocol), seed


@pytest.mark.parametrize("ours", [_pickle.dumps, partial(written, _pickle.Pickler, protocol=5)])
def test_dumps_reads_back_as_the_standard_one(ours):
    for seed in SEEDS:
        obj = graph(seed)
        expected, refused = outcome(pickle.dumps, obj, 5)
        stream, error = outcome(ours, obj)
        assert error is refused, seed
        if error:
            continue
        assert len(stream) <= len(expected), seed
        value, error = outcome(pickle.loads, stream)
        expected, refused = outcome(pickle.loads, expected)
        assert error is refused, seed
        if not error:
            assert shape(value) == shape(expected), seed


def test_put_mode_reads_back_as_the_standard_one():
    for seed in SEEDS:
        obj = graph(seed)
        expected, refused = outcome(lambda x: pickle.loads(pickle.dumps(x, 5)), obj)
        if refused:
            continue
        stream, buffers = _pickle._put(obj)
        assert shape(pickle.loads(stream, buffers=buffers)) == shape(expected), seed


def test_dumps_below_protocol_5_is_to_the_letter():
    for seed in SEEDS[:40]:
        obj = graph(seed)
        for protocol in range(5):
            assert outcome(_pickle.dumps, obj, protocol) == outcome(pickle.dumps, obj, protocol), (seed, protocol)


def test_what_a_reduction_fetches_from_elsewhere_is_shared():
    """The pickler has already written the list when a reduction returns the same list again."""
    holder = Plain()
    holder.only = ["held"]
    copy = pickle.loads(_pickle.dumps([holder, Navigator(holder)]))
    assert copy[1].found is copy[0].only


def test_what_a_reduction_fetches_from_an_earlier_list_is_shared():
    holder = [["held"], 1, 2]
    copy = pickle.loads(_pickle.dumps([holder, "between", Navigator(holder)]))
    assert copy[2].found is copy[0][0]


# ---- runs of ints -------------------------------------------------------------------------------------------------------

INTS = {
    "bytes": lambda rng: rng.randrange(256),
    "two bytes": lambda rng: rng.randrange(256, 65536),
    "one digit": lambda rng: rng.randrange(-(2**30) + 1, 2**30),
    "32 bits": lambda rng: rng.randrange(-(2**31), 2**31),
    "edges": lambda rng: rng.choice(
        [s * (2**b) + d for b in (0, 8, 15, 16, 29, 30, 31, 32, 59, 60, 63, 64) for s in (1, -1) for d in (-1, 0, 1)]
    ),
    "any": lambda rng: rng.choice([0, 1, 255, 256, -1, 2**16, -(2**31), 2**31, 2**62, 10**30, 1.5, "x", None, True]),
}


@pytest.mark.parametrize("kind", INTS)
def test_runs_of_ints_byte_for_byte(kind):
    rng = random.Random(kind)
    for n in (*range(1, 40), 1000, 1001, 40_000):
        items = [INTS[kind](rng) for _ in range(n)]
        if n < 40 and kind == "32 bits":
            items[rng.randrange(n)] = rng.choice([2**40, "x", 1.5, 0])
        for obj in items, tuple(items):
            for protocol in range(2, 6) if n < 1000 else (2, 5):
                assert written(_pickle.Pickler, obj, protocol) == written(pickle.Pickler, obj, protocol)
            assert pickle.loads(_pickle.dumps(obj)) == obj
