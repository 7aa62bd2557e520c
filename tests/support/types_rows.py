"""Define the rows of docs/types.md: a value of about 8 MB of each type, and a function that tries to write to it.

`write` returns None, or raises if it cannot write; for an immutable type (text, bytes), the field `write` is None.
"""

from __future__ import annotations

import io
import mmap
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

N = 1_000_000  # float64: 8 MB


@dataclass(frozen=True)
class Row:
    """One type: its value and the function that tries to write to it."""

    group: str
    name: str
    make: Callable[[], Any]
    write: Callable[[Any], Any] | None
    heavy: bool = False


def _set(value: Any, key: Any = 0, item: Any = 1) -> None:
    value[key] = item


def _numbers() -> Any:
    import numpy as np

    return np.random.default_rng(5).random(N)


def _mapped() -> Any:
    import numpy as np

    area = mmap.mmap(-1, N * 8)
    values = np.frombuffer(area, "f8")
    values[:] = 1
    return values


def _ctypes() -> Any:
    import ctypes

    return (ctypes.c_double * N)(*([1.5] * 1000))


def _numpy(change: Callable[[Any, Any], Any], write: Callable[[Any], Any] | None = _set) -> dict[str, Any]:
    def make() -> Any:
        import numpy as np

        return change(np, _numbers())

    return {"make": make, "write": write}


def _strings(np: Any, numbers: Any) -> Any:
    return np.array([f"number {x:.12f} of them" for x in numbers[:300_000]], np.dtypes.StringDType())


def _pandas(change: Callable[[Any, Any, Any], Any], write: Callable[[Any], Any]) -> dict[str, Any]:
    def make() -> Any:
        import numpy as np
        import pandas as pd

        return change(pd, np, _numbers())

    return {"make": make, "write": write}


def mixed_frame(pd: Any, np: Any, numbers: Any, rows: int = 200_000) -> Any:
    """Return a frame with a column of each common type."""
    dates = pd.date_range("2000-01-01", periods=rows, freq="s")
    return pd.DataFrame(
        {
            "int": np.arange(rows),
            "float": numbers[:rows],
            "bool": numbers[:rows] > 0.5,
            "datetime": dates,
            "tz-aware": dates.tz_localize("Europe/Berlin", ambiguous="NaT", nonexistent="NaT"),
            "categorical": pd.Categorical(np.array(["red", "green", "blue"])[(numbers[:rows] * 3).astype(int)]),
            "text": pd.Series([f"row {i}" for i in range(rows)], dtype="string[pyarrow]"),
        }
    )


def _series_write(series: Any) -> None:
    series.iloc[0] = series.iloc[1]


def _frame_write(frame: Any) -> None:
    frame.iloc[0, 0] = 7


def _arrow(change: Callable[[Any, Any], Any]) -> dict[str, Any]:
    def make() -> Any:
        import pyarrow as pa

        return change(pa, _numbers())

    return {"make": make, "write": None}


def _polars(change: Callable[[Any, Any], Any]) -> dict[str, Any]:
    def make() -> Any:
        import polars as pl

        return change(pl, _numbers())

    return {"make": make, "write": None}


def _sparse(form: str) -> Callable[[], Any]:
    def make() -> Any:
        import scipy.sparse

        return scipy.sparse.random_array((20_000, 20_000), density=0.0018, format=form, rng=5)

    return make


def _torch(change: Callable[[Any, Any], Any], write: Callable[[Any], Any] = _set) -> dict[str, Any]:
    def make() -> Any:
        import torch

        return change(torch, torch.from_numpy(_numbers().astype("f4")).repeat(2))

    return {"make": make, "write": write, "heavy": True}


def _module(torch: Any, numbers: Any) -> Any:
    return torch.nn.Sequential(torch.nn.Linear(1400, 1400), torch.nn.ReLU(), torch.nn.Linear(1400, 10))


def _module_write(module: Any) -> None:
    import torch

    with torch.no_grad():
        module[0].weight[0, 0] = 1


def _dataset() -> Any:
    import numpy as np
    import pandas as pd
    import xarray

    return xarray.Dataset(
        {"t": (("time", "x"), _numbers().reshape(1000, 1000))},
        coords={"time": pd.date_range("2000", periods=1000), "x": np.arange(1000)},
    )


def _forest() -> Any:
    from sklearn.ensemble import RandomForestRegressor

    numbers = _numbers()[:60_000].reshape(6000, 10)
    return RandomForestRegressor(12, random_state=5).fit(numbers, numbers[:, 0] * numbers[:, 1])


def _neighbours() -> Any:
    from sklearn.neighbors import KNeighborsRegressor

    numbers = _numbers().reshape(-1, 10)
    return KNeighborsRegressor(algorithm="brute").fit(numbers, numbers[:, 0])


def _image() -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray((_numbers().repeat(8) * 255).astype(np.uint8).reshape(2000, 4000))


def _fields(np: Any, numbers: Any) -> Any:
    made = np.zeros(N // 2, [("a", "f8"), ("b", "i8")])
    made["a"] = numbers[: N // 2]
    return made


def _dictionary() -> Any:
    import numpy as np

    numbers = _numbers().astype("f4")
    return {f"layer.{i}.weight": np.ascontiguousarray(numbers[i * 10_000 : i * 10_000 + 20_000]) for i in range(98)}


ROWS = [
    Row("Python", "str", lambda: "x" * 8 * N, None),
    Row("Python", "bytes", lambda: bytes(8 * N), None),
    Row("Python", "bytearray", lambda: bytearray(8 * N), _set),
    Row("Python", "memoryview", lambda: memoryview(bytearray(8 * N)), _set),
    Row("Python", "array.array", lambda: array("d", bytes(8 * N)), _set),
    Row("Python", "io.BytesIO", lambda: io.BytesIO(bytes(8 * N)), lambda value: value.write(b"1")),
    Row("Python", "ctypes array", _ctypes, _set),
    Row("Python", "array over an mmap", _mapped, _set),
    Row("numpy", "array", **_numpy(lambda np, x: x)),
    Row("numpy", "array, Fortran order", **_numpy(lambda np, x: np.asfortranarray(x.reshape(1000, 1000)))),
    Row("numpy", "strided view `a[::2]`", **_numpy(lambda np, x: np.concatenate([x, x])[::2])),
    Row("numpy", "column view `a[:, :10]`", **_numpy(lambda np, x: np.tile(x, 2).reshape(-1, 20)[:, :10])),
    Row("numpy", "transposed", **_numpy(lambda np, x: x.reshape(100, 100, 100).transpose(1, 2, 0))),
    Row("numpy", "broadcast, 8 bytes shown as 8 MB", **_numpy(lambda np, x: np.broadcast_to(x[:1], (N,)))),
    Row("numpy", "datetime64", **_numpy(lambda np, x: (x * 1e9).astype("M8[s]"))),
    Row("numpy", "structured", **_numpy(_fields, lambda value: _set(value["a"]))),
    Row("numpy", "recarray", **_numpy(lambda np, x: _fields(np, x).view(np.recarray), lambda v: _set(v["a"]))),
    Row("numpy", "masked array", **_numpy(lambda np, x: np.ma.MaskedArray(x, x > 0.5), lambda v: _set(v.data))),
    Row("numpy", "StringDType", **_numpy(_strings, lambda value: _set(value, 0, "y"))),
    Row("numpy", "array of objects", **_numpy(lambda np, x: np.array([str(v) for v in x[:200_000]], object))),
    Row("numpy", "dict of 98 arrays (as safetensors)", _dictionary, lambda value: _set(value["layer.0.weight"])),
    Row("pandas", "Series of float", **_pandas(lambda pd, np, x: pd.Series(x), _series_write)),
    Row("pandas", "DataFrame of float", **_pandas(lambda pd, np, x: pd.DataFrame(x.reshape(-1, 10)), _frame_write)),
    Row("pandas", "DataFrame of seven kinds", **_pandas(mixed_frame, _frame_write)),
    Row(
        "pandas", "Series of tz-aware datetimes",
        **_pandas(lambda pd, np, x: pd.Series(pd.date_range("2000", periods=N, freq="s", tz="UTC")), _series_write),
    ),
    Row(
        "pandas", "Series of nullable Int64",
        **_pandas(lambda pd, np, x: pd.Series(np.arange(N), dtype="Int64").where(x > 0.1), _series_write),
    ),
    Row(
        "pandas", "Series of categories",
        **_pandas(lambda pd, np, x: pd.Series(pd.Categorical((x * 5000).astype(int))), _series_write),
    ),
    Row(
        "pandas", "Series of periods",
        **_pandas(lambda pd, np, x: pd.Series(pd.period_range("1700", periods=N, freq="min")), _series_write),
    ),
    Row(
        "pandas", "Series of intervals",
        **_pandas(lambda pd, np, x: pd.Series(pd.IntervalIndex.from_breaks(np.arange(N / 2))), _series_write),
    ),
    Row(
        "pandas", "Series of Arrow strings",
        **_pandas(
            lambda pd, np, x: pd.Series([f"{v:.12f}" for v in x[:400_000]], dtype="string[pyarrow]"), _series_write
        ),
    ),
    Row(
        "pandas", "Series of str objects",
        **_pandas(lambda pd, np, x: pd.Series([str(v) for v in x[:200_000]], dtype=object), _series_write),
    ),
    Row("pyarrow", "Array of float", **_arrow(lambda pa, x: pa.array(x))),
    Row("pyarrow", "Array of strings", **_arrow(lambda pa, x: pa.array([f"{v:.12f}" for v in x[:400_000]]))),
    Row("pyarrow", "slice of an Array", **_arrow(lambda pa, x: pa.array(x.repeat(4)).slice(1001, N))),
    Row(
        "pyarrow", "slice of strings",
        **_arrow(lambda pa, x: pa.array([f"{v:.12f}" for v in x[:800_000]]).slice(1001, 400_000)),
    ),
    Row(
        "pyarrow", "Table",
        **_arrow(lambda pa, x: pa.table({"a": x[: N // 2], "b": [f"{v:.8f}" for v in x[: N // 4]] * 2})),
    ),
    Row(
        "pyarrow", "DictionaryArray",
        **_arrow(lambda pa, x: pa.DictionaryArray.from_arrays(pa.array((x * 1000).astype("i8")), list(range(1000)))),
    ),
    Row("polars", "Series of float", **_polars(lambda pl, x: pl.Series("x", x))),
    Row(
        "polars", "DataFrame of float and text",
        **_polars(lambda pl, x: pl.DataFrame({"a": x[: N // 2], "b": [f"{v:.15f}" for v in x[: N // 4]] * 2})),
    ),
    Row(
        "polars", "Series of categories",
        **_polars(lambda pl, x: pl.Series("x", (x * 1000).astype("i4").astype(str), pl.Categorical)),
    ),
    Row(
        "polars", "Series of lists",
        **_polars(lambda pl, x: pl.Series("x", x.reshape(-1, 4)).cast(pl.List(pl.Float64))),
    ),
    Row("polars", "LazyFrame", **_polars(lambda pl, x: pl.DataFrame({"a": x}).lazy())),
    Row("scipy", "sparse csr", _sparse("csr"), lambda value: _set(value.data)),
    Row("scipy", "sparse coo", _sparse("coo"), lambda value: _set(value.data)),
    Row("torch", "Tensor", **_torch(lambda torch, x: x)),
    Row("torch", "Tensor, bfloat16", **_torch(lambda torch, x: x.bfloat16().repeat(2))),
    Row("torch", "Tensor, strided view", **_torch(lambda torch, x: x[::2])),
    Row("torch", "Tensor, conjugate", **_torch(lambda torch, x: torch.view_as_complex(x.reshape(-1, 2)).conj())),
    Row("torch", "two views of one storage", **_torch(lambda torch, x: [x[:N], x[N // 2 :]], lambda v: _set(v[0]))),
    Row("torch", "nn.Module", **_torch(_module, _module_write)),
    Row(
        "torch", "state dict",
        **_torch(lambda torch, x: _module(torch, x).state_dict(), lambda v: _set(v["0.weight"])),
    ),
    Row("xarray", "Dataset", _dataset, lambda value: _set(value["t"].values, (0, 0)), heavy=True),
    Row("scikit-learn", "random forest", _forest, lambda v: _set(v.estimators_[0].tree_.value, (0, 0, 0)), heavy=True),
    Row("scikit-learn", "nearest neighbours", _neighbours, lambda value: _set(value._fit_X, (0, 0)), heavy=True),
    Row("Pillow", "Image", _image, lambda value: value.putpixel((0, 0), 1), heavy=True),
]  # fmt: skip
