"""Test the texts and tables that the interactive interpreter and notebooks show for references and other objects."""

from __future__ import annotations

import html.parser
import json
import time

import numpy as np
import pytest
from isolated import run

import pyray_ser
from pyray_ser.util import inspect_size


@pytest.fixture(autouse=True, scope="module")
def store():
    pyray_ser.init(num_workers=1)
    yield
    pyray_ser.shutdown()


class Page(html.parser.HTMLParser):
    """Checks that all elements are closed, and collects text and attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.attributes = [], "", []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def shown(thing):
    """Return the text of an object's table; it must have no colours, which would fail in light or dark themes."""
    page = Page(thing._repr_html_())
    assert not [value for name, value in page.attributes if name != "style" or value != "text-align:left"]
    return page.text


class Loud:
    """A class whose methods must not be called to show a reference."""

    def __repr__(self):
        raise AssertionError

    __str__ = _repr_html_ = __repr__


def nothing():
    return None


def refuse():
    raise ValueError("no")


def large():
    return np.zeros(100_000)


def test_a_reference():
    ref = pyray_ser.put([np.zeros(100_000), Loud()])
    assert "KiB" in repr(ref) and ref.hex() in shown(ref) and "sealed" in shown(ref)


def test_a_reference_after_shutdown():
    print(
        run("""
        import pyray_ser
        ref = pyray_ser.put(b"x" * 5000)
        pyray_ser.shutdown()
        assert ref.hex() in repr(ref) and ref.hex() in ref._repr_html_()
        """)
    )


def test_a_task_reference_in_each_state():
    ref = pyray_ser.remote(time.sleep).options(name="<i>nap</i>").remote(1000)
    assert repr(ref) == "TaskRef(<i>nap</i>, pending)" and "<i>nap</i>" in shown(ref) and "pending" in shown(ref)
    pyray_ser.cancel(ref, force=True)
    pyray_ser.wait([ref])
    assert "cancelled" in repr(ref) and "cancelled" in shown(ref)
    ref = pyray_ser.remote(refuse).remote()
    pyray_ser.wait([ref])
    assert repr(ref) == "TaskRef(refuse, failed: ValueError)" and "failed: ValueError" in shown(ref)
    ref = pyray_ser.remote(nothing).remote()
    pyray_ser.wait([ref])
    assert "bytes" in repr(ref) and "bytes" in shown(ref)
    ref = pyray_ser.remote(large).remote()
    pyray_ser.wait([ref])
    assert "TaskRef(large, ObjectRef(" in repr(ref) and "KiB" in shown(ref) and "ready" in shown(ref)


def test_a_stream():
    @pyray_ser.remote
    def numbers():
        yield 1

    stream = numbers.remote()
    for _ in stream:
        pass
    assert "numbers" in shown(stream) and "ended" in repr(stream)


def test_a_named_object():
    ref = pyray_ser.put(np.zeros(10_000), name="<b>weights")
    (found,) = pyray_ser.names(details=True).values()
    assert "version" in shown(found) and ref.hex() in shown(found) and "version=" in repr(found)
    pyray_ser.free(ref)
    assert "freed" in shown(found)


def test_stats_are_a_dict_that_is_shown_as_a_table():
    stats = pyray_ser.stats()
    assert isinstance(stats, dict) and json.loads(json.dumps(stats)) == stats and repr(stats) == repr(dict(stats))
    assert f"{stats['capacity']:,}" in shown(stats)


def test_sizes_and_explanations():
    value = {"<b>": np.zeros(10_000), "loud": Loud()}
    sizes = inspect_size(value)
    _, explanation = pyray_ser.put(value, explain=True)
    # Pictures: their texts have the colour of the page, or white on a dark colour.
    colours = {"currentColor", "#fff", "#2c7a4b", "#926400", "#b3402a"}
    for thing in (sizes, explanation):
        page = Page(thing._repr_html_())
        assert "80" in repr(thing) and "<b>" in page.text
        assert {value for name, value in page.attributes if name == "fill"} <= colours
