"""Test that reducers of `put` for pandas, pyarrow, polars and scipy are exact and keep data outside of the stream."""

import datetime
import decimal
import functools
import pickle

import numpy as np
import pytest
from inband import engine, load, put  # noqa: F401

SMALL = 6000
N = 5000


def round_trip(value, out_of_band=None, in_band=SMALL):
    stream, buffers = put(value)
    moved = sum(buffer.nbytes for buffer in buffers)
    assert len(stream) <= in_band, len(stream)
    if out_of_band is not None:
        assert moved <= out_of_band * 1.02 + 4096, (moved, out_of_band)
    return load(stream, buffers)


# ---- pandas --------------------------------------------------------------------------------------


@functools.cache
def pandas_values():
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(5)
    dates = pd.date_range("2000-01-01", periods=N, freq="h")
    numbers = rng.random(N)
    return {
        "int": pd.Series(np.arange(N)),
        "float": pd.Series(numbers, name="x"),
        "bool": pd.Series(numbers > 0.5),
        "datetime": pd.Series(dates),
        "tz-aware": pd.Series(dates.tz_localize("Europe/Berlin", ambiguous="NaT", nonexistent="NaT")),
        "timedelta": pd.Series(dates - dates[0]),
        "categorical": pd.Series(pd.Categorical(rng.choice(["a", "b", "c"], N), ordered=True)),
        "interval": pd.Series(pd.IntervalIndex.from_breaks(np.arange(N + 1.0))),
        "period": pd.Series(pd.period_range("2000", periods=N, freq="D")),
        "nullable int": pd.Series([1, None] * (N // 2), dtype="Int64"),
        "nullable bool": pd.Series([True, None] * (N // 2), dtype="boolean"),
        "arrow strings": pd.Series([f"text {i}" for i in range(N)], dtype="string[pyarrow]"),
        "default strings": pd.Series([f"text {i}" for i in range(N)]),
        "arrow decimals": pd.Series(
            [decimal.Decimal(i) for i in range(N)],
            dtype=pd.ArrowDtype(pytest.importorskip("pyarrow").decimal128(10, 2)),
        ),
        "sparse": pd.Series(pd.arrays.SparseArray(np.where(numbers > 0.5, numbers, 0), fill_value=0)),
        "datetime index": dates,
        "float index": pd.Index(numbers),
        "range index": pd.RangeIndex(N),
        "multi index": pd.MultiIndex.from_product([range(100), pd.date_range("2000", periods=50)], names=["a", "b"]),
        "interval index": pd.IntervalIndex.from_breaks(np.arange(N + 1.0)),
        "frame": pd.DataFrame(
            {"a": np.arange(N), "b": numbers, "c": dates, "d": pd.Categorical(["x", "y"] * (N // 2))}
        ),
        "wide frame": pd.DataFrame(rng.random((N // 50, 200))),
        "sliced frame": pd.DataFrame(rng.random((N, 10))).iloc[::3, 2:7],
        "transposed frame": pd.DataFrame(rng.random((N // 10, 40))).T,
        "frame with multi index": pd.DataFrame(
            {"v": numbers}, index=pd.MultiIndex.from_product([range(100), range(50)], names=["a", "b"])
        ),
        "empty frame": pd.DataFrame({"a": np.array([], "i4")}),
    }


PANDAS = list(pandas_values()) if pytest.importorskip("pandas") else []


@pytest.mark.parametrize("kind", PANDAS)
def test_pandas(kind):
    import pandas as pd

    value = pandas_values()[kind]
    back = round_trip(value)
    assert type(back) is type(value)
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(value, back)
        assert list(value.dtypes) == list(back.dtypes)
    elif isinstance(value, pd.Series):
        pd.testing.assert_series_equal(value, back)
    else:
        pd.testing.assert_index_equal(value, back)
        assert value.names == back.names


def test_pandas_frames_are_used_read_only_and_copied_on_write():
    import pandas as pd

    value = pd.DataFrame({"a": np.arange(N), "b": np.arange(N) * 1.5})
    back = round_trip(value)
    copy = back.copy(deep=False)
    copy.loc[0, "a"] = 77
    assert copy.loc[0, "a"] == 77 and back.loc[0, "a"] == 0
    with pytest.raises(ValueError, match="read-only"):
        back["b"].to_numpy()[0] = 1
    assert back["b"].sum() == value["b"].sum()
    assert (back.groupby(back["a"] % 7).sum() == value.groupby(value["a"] % 7).sum()).all().all()
    assert back.sort_values("b", ascending=False).iloc[0]["a"] == N - 1


def test_pandas_columns_of_several_chunks_are_not_copied_into_one():
    import pandas as pd
    import pyarrow as pa

    chunks = pa.chunked_array([[f"text {i}" for i in range(N)], [None, "last"] * N])
    value = pd.Series(chunks, dtype=pd.ArrowDtype(pa.string()))
    back = round_trip(value)
    assert back.array.__arrow_array__().num_chunks == value.array.__arrow_array__().num_chunks == 2
    pd.testing.assert_series_equal(back, value)
    assert back.str.len().sum() == value.str.len().sum()


def test_pandas_caches_of_columns_stay_where_they_are():
    import pandas as pd
    import pyarrow as pa

    column = pd.array(range(5), dtype=pd.ArrowDtype(pa.duration("ns")))
    if not hasattr(column, "_dt_day_remainder"):
        pytest.skip("this pandas has no such cache")
    column._dt_day_remainder  # pandas caches a result in the column
    assert column._cache
    back = round_trip(column)
    assert back._cache == {} and back._cache is not column._cache
    assert column._cache
    pd.testing.assert_extension_array_equal(back, column)


def test_pandas_attributes_flags_and_names():
    import pandas as pd

    value = pd.DataFrame({"a": np.arange(N)}).set_flags(allows_duplicate_labels=False)
    value.attrs["unit"] = "m"
    back = round_trip(value)
    assert back.attrs == {"unit": "m"} and not back.flags.allows_duplicate_labels


# ---- pyarrow -------------------------------------------------------------------------------------


@functools.cache
def arrow_arrays():
    pa = pytest.importorskip("pyarrow")
    numbers = list(range(N))
    return {
        "int": pa.array(numbers),
        "int with nulls": pa.array([None if i % 3 == 0 else i for i in numbers]),
        "float16": pa.array(np.arange(N).astype("f2")),
        "bool": pa.array([i % 3 == 0 for i in numbers]),
        "string": pa.array([f"text {i}" for i in numbers]),
        "string with nulls": pa.array([None if i % 3 == 0 else f"text {i}" for i in numbers]),
        "large string": pa.array([f"text {i}" for i in numbers], pa.large_string()),
        "string view": pa.array([f"a longer text {i}" for i in numbers], pa.string_view()),
        "binary": pa.array([bytes([i % 256]) * 5 for i in numbers]),
        "fixed binary": pa.array([bytes([i % 256]) * 5 for i in numbers], pa.binary(5)),
        "date": pa.array([datetime.date(2000, 1, 1) + datetime.timedelta(i) for i in numbers]),
        "timestamp": pa.array(numbers, pa.timestamp("ms", "UTC")),
        "decimal": pa.array([decimal.Decimal(i) for i in numbers], pa.decimal128(10, 2)),
        "dictionary": pa.array(["a", "b", None, "c"] * (N // 4)).dictionary_encode(),
        "list": pa.array([[i, i + 1] for i in numbers]),
        "fixed list": pa.array([[i, i + 1] for i in numbers], pa.list_(pa.int32(), 2)),
        "struct": pa.array([{"x": i, "y": str(i)} for i in numbers]),
        "map": pa.array([[("k", i)] for i in numbers], pa.map_(pa.string(), pa.int64())),
        "dense union": pa.UnionArray.from_dense(
            pa.array([0, 1] * (N // 2), pa.int8()),
            pa.array([i // 2 for i in numbers], pa.int32()),
            [pa.array(range(N // 2)), pa.array([str(i) for i in range(N // 2)])],
        ),
        "sparse union": pa.UnionArray.from_sparse(
            pa.array([0, 1] * (N // 2), pa.int8()), [pa.array(numbers), pa.array([str(i) for i in numbers])]
        ),
        "run-end encoded": pa.RunEndEncodedArray.from_arrays(list(range(5, N + 5, 5)), list(range(N // 5))),
        "null": pa.nulls(N),
    }


ARROW = list(arrow_arrays()) if pytest.importorskip("pyarrow") else []


@pytest.mark.parametrize("kind", ARROW)
def test_arrow_arrays(kind):
    value = arrow_arrays()[kind]
    back = round_trip(value, value.get_total_buffer_size())
    assert type(back) is type(value) and back.type == value.type
    assert back.equals(value)
    back.validate(full=True)


@pytest.mark.parametrize("start", [0, 1, 8, 1003])
@pytest.mark.parametrize("kind", ARROW)
def test_arrow_slices_travel_alone(kind, start):
    parent = arrow_arrays()[kind]
    value = parent.slice(start, 500)
    part = parent.get_total_buffer_size() * 500 / N
    # In addition to the slice, `put` stores dictionaries and data that pyarrow cannot slice.
    allowed = {"dense union": 20, "run-end encoded": 20}.get(kind, 2.5)
    stream, buffers = put(value)
    moved = sum(buffer.nbytes for buffer in buffers)
    assert len(stream) + moved <= part * allowed + SMALL, (moved, part)
    back = load(stream, buffers)
    assert type(back) is type(value) and back.type == value.type
    assert back.equals(value) and len(back) == 500
    back.validate(full=True)


def test_arrow_empty_slices():
    for kind, parent in arrow_arrays().items():
        value = parent.slice(100, 0)
        stream, buffers = put(value)
        assert sum(buffer.nbytes for buffer in buffers) < 2000 or kind in ("dense union", "sparse union"), kind
        back = load(stream, buffers)
        assert back.equals(value) and back.type == value.type


def test_arrow_data_is_used_in_place():
    import pyarrow as pa

    value = pa.array(np.arange(N))
    stream, buffers = put(value)
    given = [memoryview(bytes(buffer)) for buffer in buffers]
    back = pickle.loads(stream, buffers=given)
    addresses = {pa.py_buffer(buffer).address for buffer in given}
    assert back.buffers()[1].address in addresses


def test_arrow_tables_batches_schemas():
    import pyarrow as pa

    schema = pa.schema(
        [pa.field("a", pa.int64(), nullable=False, metadata={"unit": "m"}), pa.field("b", pa.string())],
        metadata={"made": "here"},
    )
    table = pa.table([list(range(N)), [str(i) for i in range(N)]], schema=schema)
    batch = table.to_batches()[0]
    chunked = pa.chunked_array([batch.column(0), batch.column(0).slice(10, 20)])
    for value in (table, batch, table.slice(100, 300), pa.concat_tables([table, table.slice(5, 50)])):
        back = round_trip(value)
        assert type(back) is type(value) and back.equals(value, check_metadata=True)
    assert round_trip(chunked).equals(chunked)
    assert round_trip(schema).equals(schema, check_metadata=True)
    stream, buffers = put(table.slice(100, 300))
    assert len(stream) + sum(buffer.nbytes for buffer in buffers) < table.nbytes / 5


# ---- polars --------------------------------------------------------------------------------------


@functools.cache
def polars_values():
    pl = pytest.importorskip("polars")
    numbers = list(range(N))
    return {
        "int": pl.Series("x", numbers),
        "int with nulls": pl.Series("x", [None if i % 3 == 0 else i for i in numbers]),
        "float": pl.Series("x", np.arange(N) * 1.5),
        "bool": pl.Series("x", [i % 3 == 0 for i in numbers]),
        "string": pl.Series("x", [f"a longer text number {i}" for i in numbers]),
        "binary": pl.Series("x", [bytes([i % 256]) * 20 for i in numbers]),
        "datetime": pl.Series("x", [datetime.datetime(2000, 1, 1) + datetime.timedelta(hours=i) for i in numbers]),
        "tz-aware": pl.Series("x", [datetime.datetime(2000, 1, 1)] * N).dt.replace_time_zone("Europe/Berlin"),
        "duration": pl.Series("x", [datetime.timedelta(hours=i) for i in numbers]),
        "date": pl.Series("x", [datetime.date(2000, 1, 1)] * N),
        "time": pl.Series("x", [datetime.time(1, 2, 3)] * N),
        "categorical": pl.Series("x", ["a", "b", None, "c"] * (N // 4), pl.Categorical),
        "enum": pl.Series("x", ["a", "b", None, "c"] * (N // 4), pl.Enum(["a", "b", "c"])),
        "decimal": pl.Series("x", [decimal.Decimal(i) for i in numbers], pl.Decimal(20, 2)),
        "list": pl.Series("x", [[i, i + 1] for i in numbers]),
        "array": pl.Series("x", [[i, i + 1] for i in numbers], pl.Array(pl.Int32, 2)),
        "struct": pl.Series("x", [{"a": i, "b": str(i)} for i in numbers]),
        "nested": pl.Series("x", [[{"a": [i]}] for i in numbers]),
        "null": pl.Series("x", [None] * N),
        "empty": pl.Series("x", [], pl.Int16),
        "sliced": pl.Series("x", numbers)[1000:1500],
    }


POLARS = list(polars_values()) if pytest.importorskip("polars") else []


@pytest.mark.parametrize("kind", POLARS)
def test_polars_series(kind):
    import polars as pl
    from polars.testing import assert_series_equal

    value = polars_values()[kind]
    back = round_trip(value, value.estimated_size() * 2)
    assert type(back) is pl.Series and back.dtype == value.dtype and back.name == value.name
    assert_series_equal(back, value)


def test_polars_frames():
    import polars as pl
    from polars.testing import assert_frame_equal

    columns = polars_values()
    value = pl.DataFrame([column.rename(name) for name, column in columns.items() if len(column) == N])
    back = round_trip(value, value.estimated_size() * 2, in_band=40_000)
    assert back.schema == value.schema
    assert_frame_equal(back, value)
    assert back.select(pl.col("int").sum()).item() == sum(range(N))
    assert round_trip(pl.DataFrame()).shape == (0, 0)


def categories():
    import polars as pl

    small, large = pl.Categories("small", "tests", pl.UInt8), pl.Categories("large", "tests")
    words = ["red", "green", None, "blue"] * (N // 4)
    plain = pl.Series("x", words, pl.Categorical)
    enum = pl.Series("x", words, pl.Enum(["blue", "green", "red", "unused"]))
    keep = pl.Series(
        [f"category {i}" for i in range(5000)], dtype=pl.Categorical(large)
    )  # while this series exists, polars keeps the numbers of its categories
    table = pl.DataFrame({"key": np.arange(N) // 5, "a": plain, "b": enum, "n": np.arange(N)})
    struct = table.select(
        pl.when(pl.col("n") % 7 != 0).then(pl.struct("a", "n", "b", pl.struct(pl.col("a").alias("deep")).alias("s")))
    ).to_series()
    return keep, {
        "plain": plain,
        "of a size": pl.Series("x", words, pl.Categorical(small)),
        "some of many": pl.Series("x", ["category 7", "category 4711", None] * (N // 3), pl.Categorical(large)),
        "many": keep.rename("x"),
        "enum": enum,
        "list": table.group_by("key", maintain_order=True).agg("a")["a"],
        "list of enums": table.group_by("key", maintain_order=True).agg("b")["b"],
        "array": pl.Series("x", words, pl.Categorical).reshape((N // 4, 4)),
        "struct": struct.rename("x"),
        "list of structs": pl.DataFrame({"k": np.arange(N) // 5, "s": struct}).group_by("k", maintain_order=True).agg("s")["s"],
        "of a pattern's name": plain.rename("^x.*$"),
        "fields of a pattern's name": pl.DataFrame({"^a.*$": plain, "ab": plain}).to_struct("x"),
        "empty": plain[:0],
        "sliced": plain[17:4001],
        "chunks": pl.concat([plain, plain[:99]], rechunk=False),
        "nothing but nulls": pl.Series("x", [None] * N, pl.Categorical),
    }  # fmt: skip


def codes(series):
    """Return the Arrow array of the codes of a series."""
    import polars as pl

    series = series.alias("x")
    while isinstance(series.dtype, (pl.List, pl.Array)):
        series = series.explode()
    if isinstance(series.dtype, pl.Struct):
        return codes(series.struct.field(next(f.name for f in series.dtype.fields if f.name != "n")))
    return series.to_physical().to_arrow()


def lies_in(buffers, series):
    address = codes(series).buffers()[-1].address
    spans = [(np.frombuffer(buffer, "u1").ctypes.data, len(buffer)) for buffer in buffers]
    return any(start <= address < start + length for start, length in spans)


@pytest.mark.parametrize("kind", [
    "plain", "of a size", "some of many", "many", "enum", "list", "list of enums", "array", "struct", "list of structs",
    "of a pattern's name", "fields of a pattern's name", "empty", "sliced", "chunks", "nothing but nulls",
])  # fmt: skip
def test_polars_categories(kind):
    import polars as pl
    from polars.testing import assert_frame_equal, assert_series_equal

    _keep, values = categories()
    value = values[kind]
    stream, buffers = put(value)
    buffers = [bytes(buffer) for buffer in buffers]
    back = pickle.loads(stream, buffers=buffers)
    assert back.dtype == value.dtype and back.name == value.name
    assert_series_equal(back, value)
    if kind not in ("empty", "fields of a pattern's name", "list of structs"):
        assert lies_in(buffers, back)
    frame = pl.DataFrame({value.name: value, "n": np.arange(len(value))})
    back = round_trip(frame, in_band=10_000)
    assert back.schema == frame.schema
    assert_frame_equal(back, frame)


def test_polars_categories_in_a_process_that_numbers_them_otherwise(tmp_path):
    import subprocess
    import sys

    _keep, values = categories()
    kinds = ("plain", "some of many", "enum", "list", "struct")
    expected = [values[kind].to_list() for kind in kinds]
    streams = [put(values[kind]) for kind in kinds]
    saved = [(stream, [bytes(buffer) for buffer in buffers]) for stream, buffers in streams]
    (tmp_path / "values").write_bytes(pickle.dumps((saved, expected)))
    code = """
import pickle, sys
import polars as pl
sys.path[:0] = [sys.argv[3], sys.argv[3] + "/support"]
from unit.pickling.test_integrations_frames import lies_in
saved, expected = pickle.load(open(sys.argv[1], "rb"))
if sys.argv[2] == "others":
    others = [pl.Series(["unheard of", "blue"], dtype=pl.Categorical),
              pl.Series(["unheard of"], dtype=pl.Categorical(pl.Categories("large", "tests")))]
for (stream, buffers), values in zip(saved, expected):
    back = pickle.loads(stream, buffers=buffers)
    assert back.to_list() == values, (back, values)
    print(lies_in(buffers, back))
"""
    from pathlib import Path

    def run(mode):
        tests = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-P", "-c", code, str(tmp_path / "values"), mode, tests]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    # If there are many categories, the stream has only those in use, so the reading process numbers them differently.
    assert run("none") == ["True", "False", "True", "True", "True"]
    assert run("others") == ["False", "False", "True", "False", "False"]


def test_polars_objects_and_lazy_frames_go_their_own_way():
    import polars as pl
    from polars.testing import assert_frame_equal

    lazy = pl.DataFrame({"a": [1, 2, 3]}).lazy().filter(pl.col("a") > 1)
    back = round_trip(lazy)
    assert_frame_equal(back.collect(), lazy.collect())


# ---- scipy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
@pytest.mark.parametrize("kind", ["matrix", "array"])
def test_scipy_sparse(form, kind):
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.where(np.random.default_rng(5).random((200, 150)) > 0.9, 1.5, 0)
    value = getattr(sparse, f"{form}_{kind}")(dense)
    back = round_trip(value, in_band=10**6 if form in ("lil", "dok") else SMALL)
    assert type(back) is type(value) and back.shape == value.shape and back.dtype == value.dtype
    assert (back.toarray() == dense).all()
    if form == "csr":
        assert back.has_sorted_indices == value.has_sorted_indices
        assert not back.data.flags.writeable


@pytest.mark.parametrize("name", ["Int128", "UInt128", "Float16"])
@pytest.mark.parametrize("way", ["plain", "list", "struct"])
def test_polars_types_that_arrow_does_not_have(name, way):
    import polars as pl

    import pyray_ser

    inner = getattr(pl, name, None)
    if inner is None:
        pytest.skip("this polars does not have the type")
    dtype = {"plain": inner, "list": pl.List(inner), "struct": pl.Struct({"a": inner})}[way]
    item = {"plain": 1, "list": [1, None], "struct": {"a": 1}}[way]
    series = pl.Series("x", [item, None], dtype=dtype)
    for value in (series, series.to_frame()):
        assert pyray_ser.get(pyray_ser.put(value)).equals(value)
        assert pyray_ser.deserialize(pyray_ser.serialize([value]))[0].equals(value)
