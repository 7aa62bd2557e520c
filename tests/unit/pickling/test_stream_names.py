"""Test that names that occur in pickled streams never move, so that streams of this version stay loadable."""

import importlib
import pickle

import pytest

import pyray_ser
from pyray_ser import reconstruct

# module -> names that a stream may contain. Add names to this table, but never remove one.
FROZEN = {
    "pyray_ser": ["_load_ref"],
    "pyray_ser.reconstruct": [
        "array_of_bytes",
        "bytes_io",
        "cached_function",
        "ctypes_array",
        "ctypes_data",
        "load_stream",
        "masked_array",
        "memory",
        "memory_of_array",
        "pandas_arrow_column",
        "polars_frame",
        "polars_series",
        "strings",
        "type_parameter",
        "view",
    ],
    "pyray_ser.reconstruct.polars": ["frame", "series"],
    "pyray_ser.reconstruct.torch": ["Memory", "storage", "tensor", "view", "whole"],
}
NAMES = [(module, name) for module, names in FROZEN.items() for name in names]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module}.{name}" for module, name in NAMES])
def test_a_name_that_stands_in_streams_can_be_found(module, name):
    needed = module.rpartition(".")[2]
    if needed in ("polars", "torch"):
        pytest.importorskip(needed)
    assert callable(getattr(importlib.import_module(module), name))


def test_every_function_that_rebuilds_is_frozen():
    """Nobody may ever rename a function that is in the table."""
    functions = [name for name in reconstruct.__all__ if callable(getattr(reconstruct, name))]
    assert sorted(functions) == FROZEN["pyray_ser.reconstruct"]


def test_a_reference_is_written_under_its_frozen_name():
    ref = pyray_ser.put([1, 2])
    stream = pickle.dumps(ref)
    assert b"pyray_ser" in stream and b"_load_ref" in stream
    assert pyray_ser.get(pickle.loads(stream)) == [1, 2]
