"""Test that the advice in the inspector's hints works."""

import itertools
import select
import threading
import zlib

import numpy as np
import pytest

from pyray_ser.inspection.hints import hint


class Own:
    pass


@pytest.mark.parametrize(
    "value",
    [zlib.compressobj(), select.poll(), itertools.count(), np.random.default_rng(), np.nditer([1]), threading.local()],
    ids=lambda value: type(value).__name__,
)
def test_nobody_is_asked_to_change_a_compiled_class(value):
    assert "__reduce__" not in hint(value)


def test_nobody_is_asked_to_change_an_installed_class():
    pandas = pytest.importorskip("pandas")
    grouped = pandas.DataFrame({"a": [1]}).groupby("a")
    assert "__reduce__" not in hint(grouped) and "register_serializer(DataFrameGroupBy" in hint(grouped)


def test_the_owner_of_a_class_is_told_both_ways():
    assert "give Own a __reduce__" in hint(Own()) and "register_serializer(Own" in hint(Own())


def test_no_serializer_is_proposed_for_what_none_can_be_registered():
    assert "register_serializer" not in hint([]) and "register_serializer" not in hint(len.__class__.__class__)
