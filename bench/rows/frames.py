"""Compare tables of 1 GB with a copy of their bytes, and columns of objects with pickle; measure a torch state dict."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from measuring.claim import Claim, at_most
from measuring.copyrate import copy
from measuring.timing import interleaved, median, median_ratio, once, typical

import pyray_ser

ROW = "tables"


def _missing(what: str, error: ImportError) -> list[Claim]:
    return [Claim(ROW, what, None, "<=", 0, "x", {"skipped": str(error)})]


class _Bytes:
    """Copy all buffers of a value with memcpy, one after another, into memory that was used before."""

    def __init__(self, value: Any) -> None:
        _, stream, *buffers = pyray_ser.dumps_frames(value)
        self._arrays = [np.frombuffer(buffer, np.uint8) for buffer in (stream, *buffers) if buffer.nbytes]
        self.nbytes = sum(array.nbytes for array in self._arrays)
        self._into = np.ones(self.nbytes, np.uint8)

    def __call__(self) -> None:
        at = self._into.ctypes.data
        for array in self._arrays:
            copy(at, array.ctypes.data, array.nbytes, streaming=False, threads=1)
            at += array.nbytes


def _against_a_copy(what: str, value: Any, equal: Callable[[Any, Any], bool], rounds: int) -> list[Claim]:
    """Check that put takes at most 1.3 times as long as the copy, and get at most 1 ms."""
    copied = _Bytes(value)
    ref = pyray_ser.put(value)
    got = pyray_ser.get(ref)
    if not equal(got, value):
        raise AssertionError(f"{what}: what came back is not what went in")
    del got
    results = interleaved(rounds, {"put": once(lambda: pyray_ser.put(value)), "copy": once(copied)}, warm_up=2)
    gets = interleaved(7 * rounds, {"get": once(lambda: pyray_ser.get(ref))})["get"]
    name = f"{what}, {copied.nbytes / 1e9:.2f} GB"
    rate = copied.nbytes / median(results["put"]) / 1e9
    return [
        at_most(
            ROW,
            f"put of {name}, over a copy of its bytes",
            median_ratio(results["put"], results["copy"]),
            1.3,
            "x",
            note=f"{rate:.1f} GB/s",
            put_s=results["put"],
            copy_s=results["copy"],
        ),
        at_most(ROW, f"get of {name}", typical(gets) * 1e3, 1, "ms", fastest_ms=min(gets) * 1e3),
    ]


def _rows(quick: bool, large: int) -> int:
    return 200_000 if quick else large


def _texts(rows: int) -> Any:
    import pyarrow as pa

    return pa.array(np.arange(rows)).cast(pa.large_string())


def pandas(quick: bool) -> list[Claim]:
    """Measure a frame with seven kinds of columns."""
    try:
        import pandas as pd
        import pyarrow  # noqa: F401 - columns of text
    except ImportError as error:
        return _missing("pandas", error)
    rows = _rows(quick, 20_500_000)
    numbers = np.random.default_rng(5).random(rows)
    dates = pd.Series(np.arange(rows).astype("M8[s]"))
    frame = pd.DataFrame(
        {
            "int": np.arange(rows),
            "float": numbers,
            "bool": numbers > 0.5,
            "datetime": dates,
            "tz-aware": dates.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin"),
            "categorical": pd.Categorical.from_codes((numbers * 3).astype("i1"), ["red", "green", "blue"]),
            "text": pd.arrays.ArrowExtensionArray(_texts(rows)),
        }
    )
    return _against_a_copy("a pandas frame", frame, lambda got, value: got.equals(value), 3 if quick else 7)


def arrow(quick: bool) -> list[Claim]:
    """Measure a table of numbers, times and text."""
    try:
        import pyarrow as pa
    except ImportError as error:
        return _missing("pyarrow", error)
    rows = _rows(quick, 25_500_000)
    numbers = np.random.default_rng(5).random(rows)
    table = pa.table(
        {
            "int": np.arange(rows),
            "float": numbers,
            "bool": numbers > 0.5,
            "time": np.arange(rows).astype("M8[s]"),
            "text": _texts(rows),
        }
    )
    return _against_a_copy("an Arrow table", table, lambda got, value: got.equals(value), 3 if quick else 7)


def polars(quick: bool) -> list[Claim]:
    """Measure a frame of numbers, times and text."""
    try:
        import polars as pl
    except ImportError as error:
        return _missing("polars", error)
    rows = _rows(quick, 25_500_000)
    numbers = np.random.default_rng(5).random(rows)
    frame = pl.DataFrame(
        {
            "int": np.arange(rows),
            "float": numbers,
            "bool": numbers > 0.5,
            "time": np.arange(rows).astype("M8[us]"),
        }
    ).with_columns(text=pl.col("int").cast(pl.String))
    return _against_a_copy("a polars frame", frame, lambda got, value: got.equals(value), 3 if quick else 7)


def objects(quick: bool) -> list[Claim]:
    """Measure columns of Python objects: `put` cannot share their data, so `put` costs as much as pickling."""
    try:
        import pandas as pd
    except ImportError as error:
        return _missing("pandas objects", error)
    rows = 20_000 if quick else 300_000
    frame = pd.DataFrame(
        {
            "text": pd.Series([f"row {i}" for i in range(rows)], dtype=object),
            "pairs": pd.Series([(i, str(i)) for i in range(rows)], dtype=object),
        }
    )
    ref, stream = pyray_ser.put(frame), pickle.dumps(frame, 5)
    if not pyray_ser.get(ref).equals(frame):
        raise AssertionError("what came back is not what went in")
    results = interleaved(
        3 if quick else 9,
        {
            "put": once(lambda: pyray_ser.put(frame)),
            "dumps": once(lambda: pickle.dumps(frame, 5)),
            "get": once(lambda: pyray_ser.get(ref)),
            "loads": once(lambda: pickle.loads(stream)),
        },
    )
    return [
        at_most(ROW, "put of columns of objects, over pickle.dumps", median_ratio(results["put"], results["dumps"]), 1, "x"),
        at_most(ROW, "get of columns of objects, over pickle.loads", median_ratio(results["get"], results["loads"]), 1, "x"),
    ]  # fmt: skip


def state_dict(quick: bool) -> list[Claim]:
    """Measure a state dict of 500 MB in 1,000 tensors."""
    try:
        import torch
    except ImportError as error:
        return _missing("torch", error)
    width = 5 if quick else 500
    state = OrderedDict((f"layers.{i}.weight", torch.full((250, width), float(i))) for i in range(1000))
    ref = pyray_ser.put(state)
    got = pyray_ser.get(ref)
    if list(got) != list(state) or not all(torch.equal(got[key], state[key]) for key in state):
        raise AssertionError("what came back is not what went in")
    del got
    start = perf_counter()
    pyray_ser.get(ref)
    first = perf_counter() - start
    gets = interleaved(9 if quick else 41, {"get": once(lambda: pyray_ser.get(ref))})["get"]
    return [
        at_most(
            ROW,
            "get of a state dict of 500 MB in 1,000 tensors",
            typical(gets) * 1e3,
            4,
            "ms",
            fastest_ms=min(gets) * 1e3,
            first_ms=first * 1e3,
        )
    ]
