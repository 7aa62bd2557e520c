"""Test that tools/download_size.py prints a size only if an index has no CPU build of torch."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "download_size.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("download_size", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def items(folder=None, **versions):
    return [
        {
            "metadata": {"name": name.replace("_", "-"), "version": version},
            "download_info": {
                "url": f"https://index.invalid/{name}.whl" if folder is None else f"file://{folder}/{name}"
            },
        }
        for name, version in versions.items()
    ]


def test_builds_are_told_apart(script):
    assert script.gpu_build(items(numpy="2.0")) is None
    assert script.gpu_build(items(torch="2.13.0+cpu", nvidia_cublas="13")) is None
    assert script.gpu_build(items(torch="2.13.0", sympy="1.14")) is None  # a CPU build without a suffix
    assert script.gpu_build(items(torch="2.13.0", nvidia_cublas="13")) == "2.13.0"
    assert script.gpu_build(items(torch="2.13.0+cu130", nvidia_cublas="13")) == "2.13.0+cu130"


def test_the_sum_is_printed_before_anything_is_downloaded(script, monkeypatch, capsys):
    found = items(torch="2.13.0", nvidia_cublas="13", numpy="2.0")
    sizes = {"torch": 900_000_000, "nvidia_cublas": 2_000_000_000, "numpy": 20_000_000}
    monkeypatch.setattr(script, "plan", lambda requirements: found)
    monkeypatch.setattr(script, "size_of", lambda url: sizes[url.rsplit("/", 1)[1].removesuffix(".whl")])
    monkeypatch.setattr("sys.argv", ["download_size.py", "whatever"])
    assert script.main() == 0
    said = capsys.readouterr().out
    assert "2.9 GB" in said and "torch 2.13.0" in said and "nvidia-cublas 2000 MB" in said
    found[0]["metadata"]["version"] = "2.13.0+cpu"
    assert script.main() == 0
    assert not capsys.readouterr().out


def test_files_that_are_here_already_cost_nothing(script, tmp_path):
    (tmp_path / "a wheel").write_bytes(b"x" * 50)
    assert script.size_of(f"file://{tmp_path}/a%20wheel") == 0
    with pytest.raises(FileNotFoundError):
        script.size_of(f"file://{tmp_path}/absent")
