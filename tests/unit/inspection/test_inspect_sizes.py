"""Test sizes by path: sums that match the pickler's, kinds of bytes, captured values, and output formats."""

import html.parser
import json
import pickle
import random
import re
import string

import numpy as np
import pytest

from pyray_ser.inspection import explain, inspect, inspect_size
from pyray_ser.inspection.html import _shortened
from pyray_ser.inspection.text import size_text


class Holder:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def documents():
    rng = random.Random(5)

    def text():
        return "".join(rng.choices(string.ascii_letters + "äöü漢😀", k=rng.randrange(60)))

    return {
        "ints": [rng.randrange(-(2**k), 2**k) for k in range(80) for _ in range(5)],
        "floats": [rng.random() for _ in range(1000)],
        "strings": [text() for _ in range(1000)],
        "same string": ["same"] * 1000,
        "bytes": [rng.randbytes(rng.randrange(600)) for _ in range(200)],
        "nested": [{text(): (i, [text()], {i}, frozenset({i}))} for i in range(500)],
        "long tuples": [tuple(range(n)) for n in range(100)],
        "instances": [Holder(a=i, b=text(), c=None) for i in range(500)],
        "atoms": [None, True, False, ..., NotImplemented, (), "", b"", 0, -1, 1 << 31, -(1 << 31), 1 << 2040],
    }


@pytest.mark.parametrize("kind", documents())
def test_in_band_bytes_agree_with_the_pickler(kind):
    value = documents()[kind]
    sizes = inspect_size(value, threshold=1 << 60)
    assert sizes.copied == sizes.zero_copy == 0
    written = len(pickle.dumps(value, 5))
    assert abs(sizes.in_band - written) <= written * 0.01 + 30


def test_the_three_kinds_by_path():
    array = np.arange(100_000.0)
    value = {"w": array, "again": [array], "raw": bytes(50_000), "text": "x" * 40_000, "small": list(range(50))}
    sizes = inspect_size(value, "value")
    assert sizes.zero_copy == array.nbytes
    assert sizes.copied == 50_000
    assert 40_000 < sizes.in_band < 42_000
    found = {child.path: child for child in sizes.root.children}
    assert found["value['w']"].zero_copy == array.nbytes
    assert found["value['raw']"].copied == 50_000
    assert found["value['text']"].in_band == pytest.approx(40_000, abs=20)
    assert "value['again']" not in found  # the inspector counts the array once, under the first path
    assert [child.total for child in sizes.root.children] == sorted(
        (child.total for child in sizes.root.children), reverse=True
    )


def test_two_views_of_the_same_bytes_count_once():
    array = np.arange(10_000.0)
    assert inspect_size([array[:], array[:]]).zero_copy == array.nbytes


def test_captures_of_functions_largest_first():
    big, small = np.zeros(100_000), np.zeros(1_000)

    def task(a=small):
        return big

    captures = inspect_size(task).captures
    assert [capture.path for capture in captures] == ["task -> closure 'big'", "task -> default 'a'"]
    assert captures[0].zero_copy == big.nbytes


def test_unpicklable_parts_count_nothing_and_the_rest_is_measured():
    sizes = inspect_size([(x for x in ()), "x" * 10_000])
    assert sizes.total == pytest.approx(10_000, abs=50)


def test_many_parts_are_summed_up():
    value = ["x" * 1500 + str(i) for i in range(5000)]
    sizes = inspect_size(value)
    assert sizes.total == pytest.approx(5000 * 1510, rel=0.01)
    assert len(sizes.root.children) <= 256
    assert sizes.root.others + len(sizes.root.children) == 5000
    assert len(str(sizes)) < 20_000
    assert len(sizes.to_json()) < 200_000


def test_text():
    text = str(inspect_size(Holder(model=Holder(weights=np.zeros(125_000)), name="n" * 20_000)))
    assert "1 MB" in text and ".model" in text and ".weights" in text and "zero-copy" in text
    assert text.index(".weights") < text.index(".name")


def test_json():
    found = json.loads(inspect({"w": np.zeros(1000), "l": (x for x in ())}, "value").to_json())
    assert found["serializable"] is False
    assert found["failures"][0]["path"] == "value['l']"
    assert found["sizes"]["zero_copy"] == 8000
    assert found["sizes"]["children"][0]["path"] == "value['w']"


class Checker(html.parser.HTMLParser):
    """An HTML parser that records external resources of a page, and its rectangles with their areas."""

    def __init__(self):
        super().__init__()
        self.outside, self.rectangles = [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "link", "img", "iframe") or "src" in attrs or "href" in attrs:
            self.outside.append(tag)
        if tag == "rect":
            box = [float(attrs[name]) for name in ("x", "y", "width", "height")]
            self.rectangles.append((box, attrs["fill"]))


def test_html_is_self_contained_and_escaped_and_areas_are_in_proportion():
    value = {
        "<script>alert(1)</script>": np.zeros(30_000),
        "b": np.zeros(10_000),
        "raw": bytes(80_000),
        "s": "x" * 80_000,
    }
    page = inspect(value, "value").to_html()
    _, narrow = re.findall("<svg.*?</svg>", page, re.DOTALL)
    checker = Checker()
    checker.feed(page.replace(narrow, ""))
    assert not checker.outside
    assert "<script>" not in page and "&lt;script&gt;" in page
    _, *inner = checker.rectangles
    areas = sorted((box[2] * box[3] for box, _ in inner), reverse=True)
    assert len(areas) == 4
    assert areas[0] / areas[1] == pytest.approx(3, rel=0.02)
    assert len({fill for _, fill in inner}) == 3
    for box, _ in inner:
        assert box[0] >= 0 and box[1] >= 0 and box[0] + box[2] <= 960.5 and box[1] + box[3] <= 540.5
    for i, (a, _) in enumerate(inner):
        for b, _ in inner[:i]:
            assert (
                a[0] + a[2] <= b[0] + 0.2
                or b[0] + b[2] <= a[0] + 0.2
                or a[1] + a[3] <= b[1] + 0.2
                or b[1] + b[3] <= a[1] + 0.2
            )


def test_labels_of_the_treemap_never_cut_a_number():
    sizes = inspect_size({f"layer_{i:06}": np.zeros(3000 + 800 * i) for i in range(40)}, "value")
    labels = re.findall("<text[^>]*>(.*?)</text>", sizes.to_html())
    whole = {f"[&#x27;layer_{i:06}&#x27;]" for i in range(40)}
    numbers = {size_text(size.total) for size in sizes}
    cut = [label for label in labels if "\N{HORIZONTAL ELLIPSIS}" in label]
    assert cut and not [label for label in cut if re.search(r"_\d{1,5}\N{HORIZONTAL ELLIPSIS}", label)]
    for label in set(labels) - set(cut):
        name, _, number = label.partition(" ")
        assert label in whole or label in numbers or (name in {*whole, "value"} and number in numbers)


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [
        ("weights", 7, "weights"),
        ("weights", 6, "weigh\N{HORIZONTAL ELLIPSIS}"),
        ("x1234", 4, ""),
        ("['weights']", 3, ""),
        ("['a1234']", 6, "['a\N{HORIZONTAL ELLIPSIS}"),
        ("[12][345]", 7, "[12][\N{HORIZONTAL ELLIPSIS}"),
        ("\u5c42\u5c42\u5c42", 5, "\u5c42\u5c42\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_a_label_is_shortened_before_a_number(text, room, shown):
    assert _shortened(text, room) == shown


def test_html_lists_the_offenders():
    page = inspect({"l": (x for x in ())}, "value").to_html()
    assert "cannot pickle &#x27;generator&#x27; object" in page


def test_explain_is_the_same_view():
    explanation = explain({"w": np.zeros(1000)})
    assert explanation.zero_copy == 8000


def test_atoms_have_sizes_too():
    assert inspect_size(None).total == 1
    assert "int" in str(inspect_size(5))
