"""Test that the comparison of object graphs detects each kind of difference; tests with random graphs rely on it."""

import copy
import datetime
import os
import sys

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import graphs_classes as classes
import graphs_layouts
import graphs_make
import graphs_same
import graphs_ways

SHARED = ["shared"]


def holder(**attributes):
    made = classes.Plain()
    made.__dict__.update(attributes)
    return made


DIFFERENT = {
    "type": ([1], (1,)),
    "bool is no int": ([1], [True]),
    "value": ([1, 2], [1, 3]),
    "length": ([1, 2], [1, 2, 3]),
    "negative zero": ([0.0], [-0.0]),
    "sharing is lost": ([SHARED, SHARED], [["shared"], ["shared"]]),
    "sharing is made up": ([["shared"], ["shared"]], [SHARED, SHARED]),
    "order of a dict": ({1: 1, 2: 2}, {2: 2, 1: 1}),
    "element of a set": ({1, 2}, {1, 3}),
    "name of an attribute": (holder(alpha=1), holder(beta=1)),
    "value of an attribute": (holder(alpha=1), holder(alpha=2)),
    "missing attribute": (holder(alpha=1, beta=2), holder(alpha=1)),
    "class": (classes.Plain(), classes.WithMeta()),
    "fold": (datetime.time(1, fold=1), datetime.time(1)),
    "element of an array": (np.arange(3), np.array([0, 1, 3])),
    "zeros instead of a strided array": (np.arange(1.0, 400)[::2], np.zeros(200)),
    "dtype": (np.arange(3), np.arange(3, dtype="i4")),
    "byte order": (np.arange(3, dtype=">i4"), np.arange(3, dtype="<i4")),
    "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "order of an array": (np.zeros((2, 3), order="F"), np.zeros((2, 3))),
    "element of an object array": (np.array([1, None], object), np.array([1, 2], object)),
    "maxlen": (__import__("collections").deque((), 3), __import__("collections").deque((), 4)),
    "default of a function": (lambda x=1: x, lambda x=2: x),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_difference_is_seen(kind):
    original, changed = DIFFERENT[kind]
    assert graphs_same.difference(original, changed) is not None


def test_a_cycle_is_compared_once():
    def cycle():
        made = [1]
        made.append({"up": made})
        return made

    assert graphs_same.difference(cycle(), cycle()) is None
    broken = cycle()
    broken[1]["up"] = cycle()
    assert graphs_same.difference(cycle(), broken) is not None


def test_the_path_of_a_difference_is_named():
    assert "[1]/alpha" in graphs_same.difference([0, holder(alpha=1)], [0, holder(alpha=2)])


def test_writable_arrays_over_one_memory_are_seen():
    base = np.arange(10)
    assert graphs_same.overlapping([base[:6], {"a": base[5:]}]) is not None
    assert graphs_same.overlapping([base[:5], {"a": base[5:]}]) is None


def test_there_are_enough_kinds_of_makers():
    assert len(graphs_make.MAKERS) >= 100


@pytest.mark.parametrize("name", graphs_make.MAKERS)
def test_what_a_maker_makes_is_isomorphic_to_what_the_standard_library_copies(name):
    for seed in range(5):
        builder = graphs_make.Builder(seed)
        made = graphs_make.MAKERS[name](builder)
        assert graphs_same.difference(made, made) is None
        if builder.views or name in ("int_subclass", "text_subclass"):
            continue
        difference = graphs_same.difference(made, graphs_ways.standard_copy(made))
        # The comparison must accept that the standard library reads some strided arrays in the machine's byte order.
        assert difference is None, (seed, difference)


def test_a_seed_makes_the_same_graph_again():
    for seed in range(50):
        assert graphs_same.difference(graphs_make.graph(seed).root, graphs_make.graph(seed).root) is None


def test_layouts_have_sizes_on_both_sides_of_each_threshold():
    sizes = [graphs_layouts.size(__import__("random").Random(seed), 0.1) for seed in range(4000)]
    for threshold in (*graphs_layouts.THRESHOLDS, *graphs_layouts.LARGE_THRESHOLDS):
        assert any(threshold - 64 <= n < threshold for n in sizes), threshold
        assert any(threshold <= n <= threshold + 64 for n in sizes), threshold


def test_layouts_copied_by_the_copy_module_are_the_same():
    for seed in range(60):
        made = graphs_layouts.layout(seed, memory_views=False, frames=False)
        assert graphs_same.difference(made, copy.deepcopy(made)) is None, seed
