"""Test the inspector with deep and large structures: no recursion, linear time, and each byte counted only once."""

import html
import io
import json
import threading

import numpy as np
import pytest
from isolated import run

import pyray_ser
from pyray_ser.inspection import inspect, inspect_size


class Node:
    def __init__(self, following, content=None):
        self.following, self.content = following, content


def chain(n, content=lambda i: "x" * 20 + str(i)):
    node = None
    for i in range(n):
        node = Node(node, content(i))
    return node


def nested(n, inner=None):
    made = [inner]
    for _ in range(n):
        made = [made]
    return made


@pytest.mark.parametrize("make", [chain, nested, lambda n: chain(n, lambda i: "y" * 1500 + str(i))])
@pytest.mark.parametrize("n", [200, 3000, 8000])
def test_sizes_of_deep_structures_are_shown(make, n):
    value = make(n)
    sizes = inspect_size(value, "value")
    assert len(pyray_ser.dumps(value)) <= sizes.total < 1.6 * len(pyray_ser.dumps(value))
    assert len(sizes.to_text()) < 30_000
    assert json.loads(sizes.to_json())["sizes"]["total"] == sizes.total
    assert "</html>" in sizes.to_html()
    deepest = list(sizes)[-1]
    assert sizes[deepest.path] is deepest


def test_the_way_from_the_top_to_the_bytes_is_found_however_deep_they_are():
    array = np.zeros(100_000)
    sizes = inspect_size(nested(2000, array), "value")
    (found,) = [size for size in sizes if size.type == "numpy.ndarray"]
    assert found.path == "value" + "[0]" * 2001 and found.zero_copy == array.nbytes
    text = sizes.to_text()
    assert "levels of the same kind" in text and "numpy.ndarray" in text and len(text.splitlines()) < 30
    assert json.loads(sizes.to_json())["sizes"]["children"]


def test_the_work_grows_as_the_structure_does():
    """The test counts the steps of the walk and the parts of paths instead of measuring seconds."""
    from pyray_ser.inspection import path

    counted = []
    groups = path._groups

    def counting(steps):
        counted.append(len(steps))
        return groups(steps)

    path._groups = counting
    try:
        work = []
        for n in (2000, 4000):
            counted.clear()
            inspect_size(chain(n, lambda i: "y" * 1500 + str(i)))
            work.append(sum(counted))
    finally:
        path._groups = groups
    assert work[1] < 2.2 * work[0] < 2.2 * 2000 * 100


def test_put_explains_deep_structures():
    run("""
        import pyray_ser
        class Node:
            def __init__(self, following): self.following, self.text = following, "x" * 20
        node = None
        for _ in range(5000):
            node = Node(node)
        ref, explanation = pyray_ser.put(node, explain=True)
        assert abs(explanation.total / ref.size - 1) < 0.1
        value, n = pyray_ser.get(ref), 0
        while value is not None:
            value, n = value.following, n + 1
        assert n == 5000
    """)


def test_offenders_at_great_depth_are_named_in_short():
    value = chain(20_000, lambda i: threading.Lock() if i % 10 == 0 else i)
    file = io.StringIO()
    ok, failures = pyray_ser.util.inspect_serializability(value, print_file=file)
    assert not ok and len(failures) == 1000
    assert all(len(failure.path) < 2000 for failure in failures)
    assert all(failure.name == "content" and type(failure.parent) is Node for failure in failures)
    with pytest.raises(TypeError) as caught:
        pyray_ser.put(nested(3000, threading.Lock()))
    assert "[0] -> ... -> [0]" in str(caught.value) and len(str(caught.value)) < 1000


def test_overlapping_views_count_once():
    table = np.arange(100_000)
    value = {"all": table, "train": table[:80_000], "test": table[80_000:]}
    assert inspect_size(value).zero_copy == table.nbytes
    value = {"early": table[:60_000], "late": table[40_000:], "middle": table[30_000:70_000]}
    assert inspect_size(value).zero_copy == table.nbytes
    value = [table[i : i + 1000] for i in range(0, 99_000, 500)]
    assert inspect_size(value).zero_copy == (98_500 + 1000) * table.itemsize
    apart = [table[:1000], table[5000:6000], table[2000:3000]]
    assert inspect_size(apart).zero_copy == 3 * 8000
    touching = [table[:1000], table[1000:2000]]
    assert inspect_size(touching).zero_copy == 2 * 8000


def test_what_is_counted_is_what_the_object_takes():
    run("""
        import numpy as np, pyray_ser
        table = np.arange(100_000)
        value = {"all": table, "train": table[:80_000], "test": table[80_000:]}
        ref, explanation = pyray_ser.put(value, explain=True)
        assert explanation.zero_copy <= ref.size < explanation.zero_copy * 1.02
    """)


def test_the_repr_is_the_tree():
    sizes = inspect_size({"weights": np.zeros(10_000), "<b>": "x" * 5000}, "value")
    assert repr(sizes) == str(sizes) and "['weights']" in repr(sizes)
    notebook = sizes._repr_html_()
    assert "<svg" in notebook and f"<pre>{html.escape(str(sizes))}</pre>" in notebook
    assert "&lt;b&gt;" in notebook and "<b>" not in notebook and "<style" not in notebook
    assert "['weights']" in repr(inspect({"weights": np.zeros(10_000)}))
    assert "weights" in inspect({"weights": np.zeros(10_000)})._repr_html_()
    assert repr(sizes["value['weights']"]).startswith("<Size of value['weights']: 80.1 kB (80 kB zero-copy")
