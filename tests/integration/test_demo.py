"""Test the demo as a user runs it, in a separate process, with small data and every kind of unreadable file."""

import re
import subprocess
import sys

import numpy as np
import pytest

MODULE = [sys.executable, "-P", "-m", "pyray_ser.demo"]
SMALL = ["--workers", "2", "--questions", "60"]


def run(*arguments, timeout=240):
    return subprocess.run([*MODULE, *arguments], text=True, capture_output=True, timeout=timeout)


def cells(output: str) -> dict[str, list[str]]:
    """Return the rows of both tables, keyed by their first column."""
    rows = {}
    for line in output.splitlines():
        first, *rest = re.split(r"\s{2,}", line.strip())
        rows[first] = rest
    return rows


def check_report(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stderr
    rows = cells(done.stdout)
    assert rows["answers missing, or not the same both ways"] == ["0"]
    before, after = rows["objects in the store before the kill, and after"][0].split(", ")
    assert before == after
    before, after = rows["bytes in the store before the kill, and after"][0].split(", ")
    assert before == after
    assert rows["objects left once the last reference is gone"] == ["0"]
    assert rows["entries left in /dev/shm"] == ["0"]
    assert rows["processes left"] == ["0"]
    assert all(pid.startswith("pid ") for pid in rows["one worker killed by SIGKILL"])


@pytest.mark.heavy
def test_index_of_the_standard_library():
    done = run("--block-mb", "64", *SMALL)
    check_report(done)
    assert "indexing" in done.stderr


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(200_000.0).reshape(400, 500))
    check_report(run("--input", str(tmp_path / "a.npy"), *SMALL))


def test_npz_with_every_kind_of_column(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        numbers=np.arange(1000, dtype=">i2"),
        words=np.array(["a", "b"] * 500),
        bytes=np.array([b"x", b"yy"]),
        times=np.arange(10).astype("M8[s]"),
        complex=np.ones(7, complex),
        records=np.zeros(5, "i4,f8"),
        scalar=np.float32(2),
        empty=np.zeros(0),
    )
    check_report(run("--input", str(tmp_path / "a.npz"), *SMALL))


def test_csv(tmp_path):
    lines = ["city,people,area", *(f"Town {i},{i * 1000},{i / 7 if i % 5 else ''}" for i in range(3000))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    done = run("--input", str(tmp_path / "a.csv"), *SMALL)
    check_report(done)
    assert "city <U9[3000], people int64[3000], area float64[3000]" in done.stdout


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"x": list(range(1000)), "s": ["a", None] * 500}), tmp_path / "a.parquet")
    check_report(run("--input", str(tmp_path / "a.parquet"), *SMALL))


def _unreadable(folder):
    (folder / "text.npy").write_text("not an array")
    (folder / "cut.npy").write_bytes(_npy_bytes(folder)[:200])
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    (folder / "text.npz").write_text("not an archive")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "empty.csv").write_text("")
    (folder / "header.csv").write_text("a,b\n")
    (folder / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (folder / "twice.csv").write_text("a,a\n1,2\n")
    (folder / "latin.csv").write_bytes(b"a\n\xff\xfe\n")
    (folder / "text.parquet").write_text("not parquet")
    (folder / "notes.txt").write_text("hello")
    (folder / "folder.npy").mkdir()


def _npy_bytes(folder):
    np.save(folder / "whole.npy", np.arange(1000.0))
    return (folder / "whole.npy").read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "missing.npy",
        "text.npy",
        "cut.npy",
        "objects.npy",
        "text.npz",
        "empty.npz",
        "empty.csv",
        "header.csv",
        "ragged.csv",
        "twice.csv",
        "latin.csv",
        "text.parquet",
        "notes.txt",
        "folder.npy",
    ],
)
def test_unreadable_file_is_one_line(tmp_path, name):
    _unreadable(tmp_path)
    path = tmp_path / name
    done = run("--input", str(path), *SMALL, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"demo: cannot read {path}: ")
