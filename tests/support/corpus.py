"""Provide several hundred values of other libraries, made as users make them, with the libraries' own comparisons.

`light()` and `heavy()` return ``{name: (value, compare)}``; ``compare(got, value)`` raises if the two differ.
"""

from __future__ import annotations

import datetime
import decimal
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

Case = tuple[Any, Callable[[Any, Any], None]]
N = 700


# ---- numpy -------------------------------------------------------------------------------------------------------------


def same_array(got: Any, value: Any) -> None:
    assert type(got) is type(value) and got.dtype == value.dtype and got.shape == value.shape
    assert got.dtype.isnative == value.dtype.isnative
    assert got.flags.f_contiguous == value.flags.f_contiguous or not value.flags.forc
    np.testing.assert_array_equal(got, value, strict=True)
    if value.dtype.kind in "fc":
        np.testing.assert_array_equal(np.signbit(got.real), np.signbit(value.real))


def same_masked(got: Any, value: Any) -> None:
    assert type(got) is type(value) and got.dtype == value.dtype
    np.testing.assert_array_equal(np.ma.getmaskarray(got), np.ma.getmaskarray(value), strict=True)
    np.testing.assert_array_equal(got.filled(), value.filled(), strict=True)
    assert got.fill_value == value.fill_value or got.fill_value != got.fill_value


def numpy_cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    rng = np.random.default_rng(11)
    base = rng.integers(-100, 100, 2 * N * 3).reshape(2, N, 3)
    shapes = {
        "C": lambda a: a,
        "F": np.asfortranarray,
        "strided": lambda a: a[:, ::2],
        "reversed": lambda a: a[::-1, ::-1],
        "column": lambda a: a[:, :, 1],
        "permuted": lambda a: a.transpose(1, 2, 0),
        "broadcast": lambda a: np.broadcast_to(a[:1, :5], (4, 5, 3)),
        "zero size": lambda a: a[:, :0],
        "no dimension": lambda a: a[0, 0, 0:1].reshape(()),
    }
    dtypes = "bool i1 u2 <i4 >i4 u8 f2 f4 >f8 c8 c16 g S7 U5 V6 M8[ns] M8[D] m8[us]".split()
    for (name, change), dtype in itertools.product(shapes.items(), dtypes):
        if dtype in ("S7", "U5"):
            array = base.astype(dtype)
        elif dtype == "V6":
            array = base.astype("S6").view("V6")
        else:
            array = np.abs(base).astype(dtype) if dtype[0] in "Mm" else base.astype(dtype)
        found[f"numpy {dtype} {name}"] = (change(array), same_array)
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324] * 300)
    fields = np.dtype([("a", "i4"), ("b", ">f8", (2, 2)), ("c", [("d", "U3"), ("e", "M8[s]")])])
    record = np.zeros(N, fields)
    record["a"] = np.arange(N)
    record["c"]["d"] = "xyz"
    aligned = np.zeros(N, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    found |= {
        "numpy special floats": (special, same_array),
        "numpy not-a-time": (np.array(["NaT", "2000-01-01"] * N, "M8[s]"), same_array),
        "numpy structured": (record, same_array),
        "numpy field of structured": (record["b"], same_array),
        "numpy aligned": (aligned, same_array),
        "numpy recarray": (record.view(np.recarray), same_array),
        "numpy objects": (np.array([None, "a", 5, (1, 2)] * 50, object), same_array),
        "numpy chararray": (np.char.asarray(["abc", "d"] * N), same_array),
        "numpy StringDType": (np.array(["", "x", "ein längerer Text", "\U0001f600"] * 99, np.dtypes.StringDType()), same_array),
    }  # fmt: skip
    for dtype, mask in itertools.product(["i4", "f8", "M8[s]", "U4"], ["none", "some", "hard"]):
        value = np.ma.MaskedArray(np.arange(N).astype(dtype), np.arange(N) % 3 == 0 if mask != "none" else np.ma.nomask)
        if mask == "hard":
            value.harden_mask()
        found[f"numpy masked {dtype} {mask}"] = (value, same_masked)
    for kind in "b1 i8 u4 f2 f8 c16 M8[D] m8[h]".split():
        found[f"numpy scalar {kind}"] = (np.ones((), kind)[()], same_scalar)
    return found


def same_scalar(got: Any, value: Any) -> None:
    assert type(got) is type(value) and got.dtype == value.dtype and got == value


# ---- pandas ------------------------------------------------------------------------------------------------------------


def pandas_cases() -> dict[str, Case]:
    import pandas as pd
    from pandas.testing import assert_frame_equal, assert_index_equal, assert_series_equal

    def same_series(got: Any, value: Any) -> None:
        assert_series_equal(got, value, check_freq=True, check_flags=True)
        assert got.attrs == value.attrs

    def same_frame(got: Any, value: Any) -> None:
        assert_frame_equal(got, value, check_freq=True, check_flags=True)
        assert got.attrs == value.attrs

    def same_index(got: Any, value: Any) -> None:
        assert_index_equal(got, value, exact=True)
        assert getattr(got, "freq", None) == getattr(value, "freq", None)

    rng = np.random.default_rng(12)
    numbers = rng.random(N)
    hole = numbers > 0.3
    dates = pd.date_range("1999-12-31", periods=N, freq="h")
    texts = [f"text {i}" for i in range(N)]
    plain = {
        name: pd.Series(np.arange(N).astype(name))
        for name in "int8 int64 uint16 float32 float64 bool complex128".split()
    }
    nullable = {
        name: pd.Series(np.arange(N) % 2 if name == "boolean" else np.arange(N) % 100).astype(name).where(hole)
        for name in "Int8 Int32 Int64 UInt16 Float32 Float64 boolean".split()
    }
    arrow = {
        name: pd.Series(values, dtype=name).where(hole)
        for name, values in {
            "int32[pyarrow]": range(N), "double[pyarrow]": numbers, "bool[pyarrow]": hole,
            "timestamp[us][pyarrow]": dates, "string[pyarrow]": texts, "large_string[pyarrow]": texts,
        }.items()
    }  # fmt: skip
    other = {
        "datetime s": pd.Series(dates.as_unit("s")),
        "datetime ns": pd.Series(dates.as_unit("ns")),
        "tz": pd.Series(dates.tz_localize("UTC").tz_convert("America/New_York")),
        "fixed offset": pd.Series(dates.tz_localize(datetime.timezone(datetime.timedelta(hours=5)))),
        "timedelta": pd.Series(dates - dates[5]),
        "period": pd.Series(pd.period_range("2000", periods=N, freq="M")),
        "interval": pd.Series(pd.IntervalIndex.from_breaks(np.arange(N + 1), closed="left")),
        "categorical": pd.Series(pd.Categorical(np.array(list("abc"))[(numbers * 3).astype(int)])),
        "ordered": pd.Series(pd.Categorical((numbers * 9).astype(int), range(10), ordered=True)).where(hole),
        "sparse": pd.Series(pd.arrays.SparseArray(np.where(hole, 0, numbers), fill_value=0)),
        "objects": pd.Series([None, "a", 5, datetime.date(2000, 1, 1)] * (N // 4)),
        "text": pd.Series(texts),
        "named": pd.Series(numbers, name=("a", 5), index=pd.Index(texts, name="i")),
        "empty": pd.Series([], dtype="float64"),
        "sliced": pd.Series(numbers)[10:600:3],
    }
    series = plain | nullable | arrow | other
    found: dict[str, Case] = {f"pandas Series {name}": (value, same_series) for name, value in series.items()}
    indexes = {
        "range": pd.RangeIndex(3, 3 * N, 3), "int": pd.Index(rng.permutation(N)), "text": pd.Index(texts, name="t"),
        "dates": dates, "tz dates": dates.tz_localize("Europe/Berlin", nonexistent="NaT", ambiguous="NaT"),
        "no freq": dates[rng.permutation(N)], "deltas": pd.timedelta_range("1s", periods=N),
        "periods": pd.period_range("2000", periods=N, freq="D"),
        "intervals": pd.IntervalIndex.from_breaks(dates), "categories": pd.CategoricalIndex(texts),
        "multi": pd.MultiIndex.from_product([range(35), pd.date_range("2000", periods=20)], names=["a", None]),
    }  # fmt: skip
    found |= {f"pandas Index {name}": (value, same_index) for name, value in indexes.items()}
    mixed = pd.DataFrame({name: value.reset_index(drop=True) for name, value in series.items() if len(value) == N})
    wide = pd.DataFrame(rng.random((50, 40)), columns=pd.MultiIndex.from_product([range(4), list("abcdefghij")]))
    frames = {
        "mixed": mixed, "one kind": pd.DataFrame(rng.random((N, 5)), columns=list("abcde")), "wide": wide,
        "transposed": pd.DataFrame(rng.random((20, 90))).T, "no rows": mixed.iloc[:0], "no columns": mixed[[]],
        "rows": mixed.iloc[5:500:7], "columns": mixed[["tz", "int8"]], "repeated names": pd.concat([wide, wide], axis=1),
        "multi": mixed.set_index(["int64", "text"]), "grouped": mixed.groupby("ordered", observed=True)["float64"].describe(),
    }  # fmt: skip
    for name, index in indexes.items():
        frames[f"index {name}"] = pd.DataFrame({"x": np.arange(len(index))}, index=index)
    noted = frames["one kind"].copy()
    noted.attrs["unit"] = {"m": 1}
    frames["attrs"] = noted
    return found | {f"pandas DataFrame {name}": (value, same_frame) for name, value in frames.items()}


# ---- pyarrow -----------------------------------------------------------------------------------------------------------


def pyarrow_cases() -> dict[str, Case]:
    import pyarrow as pa

    def same(got: Any, value: Any) -> None:
        assert type(got) is type(value) and len(got) == len(value) and got.type == value.type
        got.validate(full=True)
        # In pyarrow, NaN is not equal to itself.
        assert got.equals(value) or got.to_pylist() == value.to_pylist() or "nan" in str(value)

    def same_table(got: Any, value: Any) -> None:
        got.validate(full=True)
        assert type(got) is type(value) and got.equals(value, check_metadata=True)

    def same_schema(got: Any, value: Any) -> None:
        assert got.equals(value, check_metadata=True)

    integers = [None if i % 7 == 3 else i % 100 for i in range(N)]
    days = [None if i is None else datetime.date(2000, 1, 1) + datetime.timedelta(i) for i in integers]
    times = [None if i is None else datetime.datetime(2000, 1, 1) + datetime.timedelta(hours=i) for i in integers]
    texts = [None if i is None else "t" * i for i in integers]
    lists = [None if i is None else list(range(i % 5)) for i in integers]
    typed = {
        **{str(kind): (integers, kind) for kind in (
            pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.float32(), pa.float64(),
            pa.duration("us"), pa.time32("s"), pa.time64("ns"), pa.decimal128(20, 3), pa.decimal256(50, 3))},
        "bool": ([None if i is None else i % 2 == 0 for i in integers], pa.bool_()),
        "date32": (days, pa.date32()), "date64": (days, pa.date64()),
        "timestamp": (times, pa.timestamp("us")), "timestamp tz": (times, pa.timestamp("ms", "Asia/Tokyo")),
        "string": (texts, pa.string()), "large string": (texts, pa.large_string()), "view": (texts, pa.string_view()),
        "binary": ([None if t is None else t.encode() for t in texts], pa.binary()),
        "fixed binary": ([None if t is None else b"abcd" for t in texts], pa.binary(4)),
        "list": (lists, pa.list_(pa.int32())), "large list": (lists, pa.large_list(pa.float32())),
        "fixed list": ([None if i is None else [i, i] for i in integers], pa.list_(pa.int16(), 2)),
        "struct": ([None if i is None else {"a": i, "b": [str(i)]} for i in integers],
                   pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))])),
        "map": ([None if i is None else [(str(i), i)] for i in integers], pa.map_(pa.string(), pa.int64())),
        "null": ([None] * N, pa.null()),
    }  # fmt: skip
    arrays = {name: pa.array(values, kind) for name, (values, kind) in typed.items()}
    arrays["no nulls"] = pa.array(range(N))
    arrays["dictionary"] = arrays["string"].dictionary_encode()
    arrays["run ends"] = pa.RunEndEncodedArray.from_arrays(pa.array([300, N], pa.int32()), pa.array(["a", "b"]))
    arrays["sparse union"] = pa.UnionArray.from_sparse(
        pa.array([0, 1] * (N // 2), pa.int8()), [pa.array(range(N)), pa.array(["x"] * N)]
    )
    arrays["dense union"] = pa.UnionArray.from_dense(
        pa.array([0, 1] * 100, pa.int8()), pa.array(np.repeat(np.arange(100), 2), pa.int32()),
        [pa.array(range(100)), pa.array(["x"] * 100)],
    )  # fmt: skip
    found: dict[str, Case] = {}
    for name, array in arrays.items():
        found[f"pyarrow {name}"] = (array, same)
        found[f"pyarrow {name}, slice"] = (array.slice(13, 111), same)
        found[f"pyarrow {name}, empty slice"] = (array.slice(50, 0), same)
    found["pyarrow chunks"] = (pa.chunked_array([range(300), range(7)]), same)
    found["pyarrow no chunk"] = (pa.chunked_array([], pa.int8()), same)
    regular = {name: array for name, array in arrays.items() if len(array) == N}
    table = pa.table(regular)
    schema = table.schema.with_metadata({"k": "v"})
    found |= {
        "pyarrow Table": (table, same_table), "pyarrow Table, slice": (table.slice(5, 50), same_table),
        "pyarrow Table, metadata": (table.replace_schema_metadata({"a": "b"}), same_table),
        "pyarrow Table, chunks": (pa.concat_tables([table, table.slice(9)]), same_table),
        "pyarrow Table, empty": (table.slice(0, 0), same_table), "pyarrow schema": (schema, same_schema),
        "pyarrow batch": (table.select(["int64", "string"]).combine_chunks().to_batches()[0], same_table),
    }  # fmt: skip
    return found


# ---- polars, scipy -----------------------------------------------------------------------------------------------------


def polars_cases() -> dict[str, Case]:
    import polars as pl
    from polars.testing import assert_frame_equal, assert_series_equal

    def same_series(got: Any, value: Any) -> None:
        assert got.dtype == value.dtype
        assert_series_equal(got, value, check_exact=True)

    def same_frame(got: Any, value: Any) -> None:
        assert got.schema == value.schema
        assert_frame_equal(got, value, check_exact=True)

    def same_lazy(got: Any, value: Any) -> None:
        assert_frame_equal(got.collect(), value.collect())

    integers = [None if i % 7 == 3 else i % 100 for i in range(N)]
    start = datetime.datetime(2000, 1, 1)
    texts = [None if i is None else "t" * i for i in integers]
    typed: dict[str, tuple[list[Any], Any]] = {
        **{str(kind): (integers, kind) for kind in (
            pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt32, pl.UInt64, pl.Float32, pl.Float64)},
        "bool": ([None if i is None else i % 2 == 0 for i in integers], pl.Boolean),
        "text": (texts, pl.String), "binary": ([None if t is None else t.encode() for t in texts], pl.Binary),
        "date": ([start.date()] * N, pl.Date), "time": ([start.time()] * N, pl.Time),
        "datetime": ([start] * N, pl.Datetime("ms")), "tz": ([start] * N, pl.Datetime("us", "Asia/Tokyo")),
        "duration": ([datetime.timedelta(hours=3)] * N, pl.Duration("ns")),
        "decimal": ([None if i is None else decimal.Decimal(i) / 8 for i in integers], pl.Decimal(30, 4)),
        "categorical": (texts, pl.Categorical), "enum": (["x", "y"] * (N // 2), pl.Enum(["x", "y", "z"])),
        "list": ([None if i is None else [i] * (i % 4) for i in integers], pl.List(pl.Int16)),
        "array": ([None if i is None else [i, i] for i in integers], pl.Array(pl.Float32, 2)),
        "struct": ([{"a": i, "b": [str(i)]} for i in integers], pl.Struct({"a": pl.Int8, "b": pl.List(pl.String)})),
        "null": ([None] * N, pl.Null),
    }  # fmt: skip
    columns = {name: pl.Series(name, values, kind) for name, (values, kind) in typed.items()}
    found: dict[str, Case] = {}
    for name, column in columns.items():
        found[f"polars {name}"] = (column, same_series)
        found[f"polars {name}, slice"] = (column[13:124], same_series)
        found[f"polars {name}, chunks"] = (pl.concat([column, column[:5]], rechunk=False), same_series)
        found[f"polars {name}, empty"] = (column[:0], same_series)
    frame = pl.DataFrame(list(columns.values()))
    found |= {
        "polars DataFrame": (frame, same_frame), "polars DataFrame, rows": (frame[5:500:7], same_frame),
        "polars DataFrame, columns": (frame.select("text", "Int8"), same_frame),
        "polars DataFrame, no rows": (frame[:0], same_frame), "polars DataFrame, empty": (pl.DataFrame(), same_frame),
        "polars DataFrame, grouped": (frame.group_by("bool").agg("Int64").sort("bool"), same_frame),
        "polars LazyFrame": (frame.lazy().filter(pl.col("Int8") > 5), same_lazy),
    }  # fmt: skip
    return found


def scipy_cases() -> dict[str, Case]:
    import scipy.sparse
    import scipy.spatial
    from scipy.interpolate import CubicSpline

    def same_sparse(got: Any, value: Any) -> None:
        assert type(got) is type(value) and got.dtype == value.dtype and got.shape == value.shape
        np.testing.assert_array_equal(got.toarray(), value.toarray(), strict=True)

    def same_spline(got: Any, value: Any) -> None:
        np.testing.assert_array_equal(got(np.linspace(0, 40, 99)), value(np.linspace(0, 40, 99)), strict=True)

    def same_tree(got: Any, value: Any) -> None:
        points = np.random.default_rng(5).random((20, 3))
        for one, other in zip(got.query(points, 3), value.query(points, 3), strict=True):
            np.testing.assert_array_equal(one, other, strict=True)

    rng = np.random.default_rng(13)
    dense = np.where(rng.random((60, 50)) > 0.9, rng.integers(1, 100, (60, 50)), 0)
    found: dict[str, Case] = {}
    for form, kind, dtype in itertools.product(
        "csr csc coo bsr dia lil dok".split(), ("array", "matrix"), ("i4", "f8", "c16", "bool")
    ):
        found[f"scipy {form} {kind} {dtype}"] = (
            getattr(scipy.sparse, f"{form}_{kind}")(dense.astype(dtype)),
            same_sparse,
        )
    found["scipy spline"] = (CubicSpline(np.arange(50), rng.random(50)), same_spline)
    found["scipy tree"] = (scipy.spatial.cKDTree(rng.random((500, 3))), same_tree)
    return found


def light() -> dict[str, Case]:
    """Return values of the libraries that `make test` installs."""
    return numpy_cases() | pandas_cases() | pyarrow_cases() | polars_cases() | scipy_cases()


# ---- torch, xarray, scikit-learn, Pillow -------------------------------------------------------------------------------


def torch_cases() -> dict[str, Case]:
    import torch

    def same(got: Any, value: Any) -> None:
        assert type(got) is type(value) and got.stride() == value.stride() and got.requires_grad == value.requires_grad
        if "float8" in str(value.dtype):
            assert got.dtype == value.dtype
            got, value = got.float(), value.float()
        torch.testing.assert_close(got, value, rtol=0, atol=0, equal_nan=True)

    def same_output(got: Any, value: Any) -> None:
        assert str(got) == str(value) and got.training == value.training
        torch.testing.assert_close(got.state_dict(), value.state_dict(), rtol=0, atol=0)

    found: dict[str, Case] = {}
    base = torch.arange(6 * N).reshape(2, N, 3) % 120
    names = (
        "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128 float8_e4m3fn".split()
    )
    views = {
        "whole": lambda t: t, "transposed": lambda t: t.transpose(0, 2), "strided": lambda t: t[:, ::2],
        "slice": lambda t: t[1, 5:9], "expanded": lambda t: t[:1].expand(4, N, 3), "empty": lambda t: t[:, :0],
        "scalar": lambda t: t[0, 0, 0],
    }  # fmt: skip
    for name, (kind, view) in itertools.product(names, views.items()):
        found[f"torch {name} {kind}"] = (view(base.to(getattr(torch, name))), same)
    numbers = base.to(torch.complex64)
    found |= {
        "torch conjugate": (numbers.conj(), same), "torch negative": (numbers.conj().imag, same),
        "torch requires grad": (torch.ones(N, requires_grad=True), same),
        "torch parameter": (torch.nn.Parameter(torch.ones(N)), same),
        "torch special": (torch.tensor([float("nan"), float("inf"), -0.0] * 500), same),
        "torch channels last": (torch.ones(2, 3, 20, 20).contiguous(memory_format=torch.channels_last), same),
    }  # fmt: skip
    nn = torch.nn
    for layer in (
        nn.Linear(30, 40), nn.Conv2d(3, 8, 3), nn.LSTM(10, 20), nn.BatchNorm1d(500), nn.Embedding(99, 7),
        nn.MultiheadAttention(16, 4), nn.Sequential(nn.Linear(20, 20), nn.Dropout(), nn.LayerNorm(20)).eval(),
        nn.TransformerEncoderLayer(16, 2, 32),
    ):  # fmt: skip
        found[f"torch {type(layer).__name__}"] = (layer, same_output)
    return found


def xarray_cases() -> dict[str, Case]:
    import pandas as pd
    import xarray
    from xarray.testing import assert_identical

    rng = np.random.default_rng(14)
    field = xarray.DataArray(
        rng.random((50, 30)), dims=("time", "x"), name="t", attrs={"unit": "K"},
        coords={"time": pd.date_range("2000", periods=50), "x": np.arange(30), "height": ("x", rng.random(30))},
    )  # fmt: skip
    data = xarray.Dataset(
        {"t": field, "n": ("x", np.arange(30, dtype="i2")), "label": ("x", [f"s{i}" for i in range(30)])}
    )
    values = {
        "DataArray": field, "slice": field[::3, 4:9], "selected": field.sel(time="2000-01-05"), "mean": field.mean("x"),
        "Dataset": data, "stacked": data.stack(p=("time", "x")), "renamed": data.rename(t="u"), "one": data[["n"]],
        "resampled": data[["t", "n"]].resample(time="5D").mean(), "variable": field.variable, "empty": xarray.Dataset(),
        "transposed": field.T, "masked": field.where(field > 0.5), "tree": xarray.DataTree.from_dict({"/": data, "/a": data}),
    }  # fmt: skip
    return {
        f"xarray {name}": (value, lambda got, value: assert_identical(got, value)) for name, value in values.items()
    }


def sklearn_cases() -> dict[str, Case]:
    import sklearn.cluster
    import sklearn.decomposition
    import sklearn.ensemble
    import sklearn.gaussian_process
    import sklearn.linear_model
    import sklearn.naive_bayes
    import sklearn.neighbors
    import sklearn.neural_network
    import sklearn.pipeline
    import sklearn.preprocessing
    import sklearn.svm
    import sklearn.tree

    rng = np.random.default_rng(15)
    data, labels = rng.random((150, 6)), rng.integers(0, 3, 150)

    def same(got: Any, value: Any) -> None:
        assert repr(got) == repr(value) and type(got) is type(value)
        for method in ("predict", "predict_proba", "transform"):
            if hasattr(value, method):
                np.testing.assert_array_equal(getattr(got, method)(data), getattr(value, method)(data), strict=True)

    s = sklearn
    estimators = [
        s.linear_model.LinearRegression(), s.linear_model.LogisticRegression(), s.linear_model.Lasso(0.01),
        s.linear_model.SGDClassifier(random_state=5), s.svm.SVC(probability=False), s.svm.LinearSVC(),
        s.neighbors.KNeighborsClassifier(), s.neighbors.KNeighborsClassifier(algorithm="kd_tree"),
        s.neighbors.KNeighborsClassifier(algorithm="ball_tree"), s.tree.DecisionTreeClassifier(),
        s.ensemble.RandomForestClassifier(9, random_state=5), s.ensemble.GradientBoostingClassifier(n_estimators=5),
        s.ensemble.HistGradientBoostingClassifier(max_iter=5), s.naive_bayes.GaussianNB(), s.cluster.KMeans(3, n_init=1),
        s.decomposition.PCA(3), s.preprocessing.StandardScaler(), s.preprocessing.PolynomialFeatures(2),
        s.gaussian_process.GaussianProcessRegressor(), s.neural_network.MLPClassifier((9,), max_iter=20),
        s.pipeline.make_pipeline(s.preprocessing.MinMaxScaler(), s.svm.SVC()),
    ]  # fmt: skip
    return {f"sklearn {estimator!r}"[:70]: (estimator.fit(data, labels), same) for estimator in estimators}


def pillow_cases() -> dict[str, Case]:
    from PIL import Image, ImageChops

    def same(got: Any, value: Any) -> None:
        assert got.mode == value.mode and got.size == value.size and got.info == value.info
        assert got.getpalette() == value.getpalette()
        if value.mode in ("L", "RGB", "RGBA"):
            assert ImageChops.difference(got, value).getbbox() is None
        assert got.tobytes() == value.tobytes()

    pixels = np.random.default_rng(16).integers(0, 255, (70, 90, 3), np.uint8)
    picture = Image.fromarray(pixels)
    found = {f"Pillow {mode}": (picture.convert(mode), same) for mode in "1 L P RGB RGBA CMYK YCbCr HSV I F LA".split()}
    return found | {
        "Pillow crop": (picture.crop((3, 4, 50, 60)), same),
        "Pillow resized": (picture.resize((20, 10)), same),
    }


def heavy() -> dict[str, Case]:
    """Return values of the libraries that only `make test-heavy` installs."""
    return torch_cases() | xarray_cases() | sklearn_cases() | pillow_cases()
