"""Load ``--input FILE``: a dataset from .npy, .npz, .csv or .parquet. A file that cannot be read gives a one-line
error."""

from __future__ import annotations

import csv
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import Dataset, DemoError

Columns = dict[str, "np.ndarray[Any, Any]"]


def load_dataset(path: Path, questions: int) -> Dataset:
    """Read `path` into named columns, in the format that its suffix indicates.

    Raises
    ------
    DemoError
        If the file is missing, not readable, of an unknown kind, malformed or empty.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DemoError(f"cannot read {path}: {path.suffix or 'no suffix'} is none of {', '.join(READERS)}")
    try:
        columns = reader(path)
    except DemoError:
        raise
    except OSError as error:
        raise DemoError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, csv.Error, zipfile.BadZipFile, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DemoError(f"cannot read {path}: {reason}") from error
    if not any(column.size for column in columns.values()):
        raise DemoError(f"cannot read {path}: there is no data in it")
    size = sum(column.nbytes for column in columns.values())
    return Dataset(
        title=str(path),
        value=columns,
        questions=_questions(columns, questions),
        facts={
            "arrays": ", ".join(f"{name} {column.dtype}{list(column.shape)}" for name, column in columns.items())[:200],
            "size": f"{size / 1e6:,.1f} MB",
        },
    )


def _npy(path: Path) -> Columns:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise DemoError(f"cannot read {path}: not an .npy file")
    return {"array": array}


def _npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DemoError(f"cannot read {path}: not an .npz archive")
        return {name: archive[name] for name in archive.files}


def _csv(path: Path) -> Columns:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        header = next(rows, None)
        if not header:
            raise DemoError(f"cannot read {path}: it is empty")
        fields: list[list[str]] = [[] for _ in header]
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DemoError(f"cannot read {path}: line {rows.line_num} has {len(row)} fields, not {len(header)}")
            for column, field in zip(fields, row, strict=True):
                column.append(field)
    names = [name or f"column {number}" for number, name in enumerate(header)]
    if len(set(names)) != len(names):
        raise DemoError(f"cannot read {path}: two columns have the same name")
    return {name: _typed(column) for name, column in zip(names, fields, strict=True)}


def _typed(fields: list[str]) -> np.ndarray[Any, Any]:
    """Return integers if all fields are integers, otherwise floats (an empty field is NaN) if possible, else text."""
    try:
        return np.array([int(field) for field in fields], dtype=np.int64)
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([float(field) if field else np.nan for field in fields], dtype=np.float64)
    except ValueError:
        return np.array(fields, dtype=np.str_)


def _parquet(path: Path) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DemoError(f"cannot read {path}: .parquet needs pyarrow, which is not installed") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    return {name: table.column(name).to_numpy() for name in table.column_names}


READERS: dict[str, Callable[[Path], Columns]] = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}


def _questions(columns: Columns, count: int) -> list[tuple[str, tuple[Any, ...]]]:
    pick = random.Random(2)
    names = [name for name, column in columns.items() if column.size]
    made: list[tuple[str, tuple[Any, ...]]] = []
    for number in range(count):
        name = names[number % len(names)]
        column = columns[name]
        start = pick.randrange(column.size)
        bounds = (name, start, min(column.size, start + (1 << 17)))
        if column.dtype.kind in "biuf":
            made.append((("column_sum", "column_range")[number // len(names) % 2], bounds))
        elif column.dtype.kind in "OSUmM":
            made.append(("column_range", bounds))
        else:
            made.append(("column_checksum", bounds))
    return made
