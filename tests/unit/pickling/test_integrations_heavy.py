"""Test reducers of `put` for torch, and values of scikit-learn, xarray and Pillow that contain arrays."""

import io
import pickle

import numpy as np
import pytest
from inband import engine, load, put  # noqa: F401

pytestmark = pytest.mark.heavy
SMALL = 8000


def round_trip(value, out_of_band=None, in_band=SMALL):
    stream, buffers = put(value)
    moved = sum(buffer.nbytes for buffer in buffers)
    assert len(stream) <= in_band, len(stream)
    if out_of_band is not None:
        assert moved == out_of_band, (moved, out_of_band)
    return load(stream, buffers)


# ---- torch ---------------------------------------------------------------------------------------


def tensors():
    import torch

    base = torch.arange(6000.0)
    return {
        "float": base,
        "double": base.double(),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "int8": base.to(torch.int8),
        "bool": base > 3,
        "complex": base.to(torch.complex64),
        "matrix": base.reshape(60, 100),
        "transposed": base.reshape(60, 100).T,
        "strided": base[::2],
        "expanded": base[:1000].expand(50, 1000),
        "conjugate": base.to(torch.complex64).conj(),
        "negative": base.to(torch.complex64).conj().imag,
        "scalar": torch.tensor(5.0),
        "empty": torch.empty(0, 3),
        "requires grad": base.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(base.clone()),
        "frozen parameter": torch.nn.Parameter(base.clone(), requires_grad=False),
    }


KINDS = [
    "float", "double", "half", "bfloat16", "int8", "bool", "complex", "matrix", "transposed", "strided", "expanded",
    "conjugate", "negative", "scalar", "empty", "requires grad", "parameter", "frozen parameter",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_tensors(kind):
    import torch

    value = tensors()[kind]
    size = value.untyped_storage().nbytes()
    back = round_trip(value, size if size >= 1024 else None)
    assert type(back) is type(value)
    assert back.dtype == value.dtype and back.shape == value.shape and back.stride() == value.stride()
    assert back.requires_grad == value.requires_grad
    assert back.is_conj() == value.is_conj() and back.is_neg() == value.is_neg()
    assert torch.equal(back, value)
    with torch.no_grad():
        before = value.detach().clone()
        if kind != "expanded":
            back.add_(1) if back.dtype != torch.bool else back.logical_not_()
        assert torch.equal(value, before)  # the write has not changed the original


def test_views_share_one_storage_and_separate_ones_stay_separate():
    import torch

    base = torch.arange(10_000.0)
    other = torch.arange(10_000.0)
    back = round_trip([base, base[100:200], base.reshape(100, 100).T, other], 80_000)
    assert back[0].data_ptr() + 400 == back[1].data_ptr()
    assert back[0].untyped_storage().data_ptr() == back[2].untyped_storage().data_ptr()
    back[1][0] = -1
    assert back[0][100] == -1
    assert back[3].untyped_storage().data_ptr() != back[0].untyped_storage().data_ptr()
    first, _ = round_trip([torch.zeros(300), torch.zeros(300)])
    alone = io.BytesIO()
    torch.save(first, alone)
    assert alone.tell() < 5000


def test_module_and_state_dict():
    import torch

    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(100, 200), torch.nn.ReLU(), torch.nn.BatchNorm1d(200)).eval()
    data = torch.randn(7, 100)
    back = round_trip(model, in_band=20_000)
    assert torch.equal(back(data), model(data))
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in model.parameters()]
    state = round_trip(model.state_dict(), in_band=20_000)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    back(data).sum().backward()


def test_parameters_shared_in_a_module_stay_shared():
    import torch

    model = torch.nn.Module()
    model.a = torch.nn.Linear(50, 50)
    model.b = torch.nn.Linear(50, 50)
    model.b.weight = model.a.weight
    back = round_trip(model, in_band=20_000)
    assert back.a.weight is back.b.weight


def test_what_torch_itself_has_to_pickle():
    import torch

    sparse = torch.eye(50).to_sparse()
    assert torch.equal(round_trip(sparse, in_band=50_000).to_dense(), sparse.to_dense())
    marked = torch.arange(2000.0)
    marked.note = "kept"
    assert round_trip(marked, in_band=50_000).note == "kept"

    class Mine(torch.Tensor):
        pass

    mine = torch.arange(2000.0).as_subclass(Mine)
    assert type(round_trip(mine, in_band=50_000)).__name__ == "Mine"
    result = torch.arange(2000.0, requires_grad=True) * 2
    back = round_trip(result)
    assert torch.equal(back, result) and back.requires_grad and back.is_leaf  # without autograd history, as with pickle


# ---- scikit-learn, xarray, Pillow ----------------------------------------------------------------


def test_scikit_learn_estimators():
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    rng = np.random.default_rng(5)
    data, labels = rng.random((400, 20)), rng.integers(0, 3, 400)
    for estimator in (
        RandomForestClassifier(10, random_state=5),
        LogisticRegression(),
        make_pipeline(StandardScaler(), SVC(random_state=5)),
        KNeighborsClassifier(),
    ):
        estimator.fit(data, labels)
        stream, buffers = put(estimator)
        whole = len(pickle.dumps(estimator, 5))
        assert len(stream) < whole / 2 + SMALL
        back = load(stream, buffers)
        assert (back.predict(data) == estimator.predict(data)).all()


def test_xarray():
    import pandas as pd
    import xarray

    value = xarray.Dataset(
        {"t": (("time", "x"), np.random.default_rng(5).random((200, 300)))},
        coords={"time": pd.date_range("2000", periods=200), "x": np.arange(300)},
        attrs={"unit": "K"},
    )
    back = round_trip(value)
    xarray.testing.assert_identical(back, value)
    xarray.testing.assert_identical(round_trip(value["t"][::2]), value["t"][::2])
    assert not back["t"].values.flags.writeable


def test_pillow():
    from PIL import Image as image_module

    value = image_module.fromarray(np.random.default_rng(5).integers(0, 255, (100, 120, 3), np.uint8))
    back = round_trip(value, 36_000)
    assert back.mode == value.mode and back.size == value.size and back.tobytes() == value.tobytes()


def test_dictionary_of_tensors_as_safetensors_has_it():
    value = {f"layer.{i}.weight": np.full((40, 50), i, "f4") for i in range(100)}
    back = round_trip(value, 100 * 8000, in_band=30_000)
    assert list(back) == list(value) and all((back[key] == value[key]).all() for key in value)
