#!/usr/bin/env python3
"""Compare put and get of each type with pickle and with the best zero-copy method of the type's own library.

    python bench/by_type.py                    all types whose library is installed
    python bench/by_type.py numpy torch --json figures.json

The values are those of docs/types.md, about 8 MB each. *Own way* means Arrow IPC for pyarrow and polars, `torch.save`
and `torch.load(mmap=True)` for torch, joblib's dump and memory-mapped load for the rest. The files are in /dev/shm, so
no disk slows these methods down. Times are medians of interleaved rounds, ratios medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from measuring.machine import describe, versions
from measuring.timing import interleaved, median, median_ratio, once
from types_rows import ROWS, Row

import pyray_ser

Way = tuple[str, Callable[[], Any], Callable[[], Any]]


def arrow_ipc(value: Any, path: str) -> Way:
    """Write Arrow IPC to a file, and open the file as a memory map."""
    import pyarrow as pa

    def write() -> None:
        table = value.to_arrow() if type(value).__module__.startswith("polars") else value
        if not isinstance(table, pa.Table):
            table = pa.table({"x": table})
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def read() -> Any:
        return pa.ipc.open_file(pa.memory_map(path)).read_all()

    return "Arrow IPC", write, read


def torch_file(value: Any, path: str) -> Way:
    """Write torch's own file format, and map the file."""
    import torch

    return (
        "torch.save",
        lambda: torch.save(value, path),
        lambda: torch.load(path, mmap=True, weights_only=False),
    )


def joblib_file(value: Any, path: str) -> Way:
    """Write joblib's file format, and map the arrays in the file."""
    import joblib

    return "joblib", lambda: joblib.dump(value, path), lambda: joblib.load(path, mmap_mode="r")


def own_way(row: Row, value: Any, path: str) -> Way | None:
    """Return the best method of the type's own library, or None if there is none."""
    if row.group == "pyarrow" or (row.group == "polars" and hasattr(value, "to_arrow")):
        way = arrow_ipc(value, path)
    elif row.group == "torch":
        way = torch_file(value, path)
    else:
        way = joblib_file(value, path)
    try:
        way[1]()
        way[2]()
    except Exception as error:  # joblib fails for the values for which pickle fails
        print(f"{row.group} {row.name}: no {way[0]}: {type(error).__name__}", file=sys.stderr)
        return None
    return way


def measure(row: Row, path: str, rounds: int) -> dict[str, Any]:
    """Return medians in ms, and ratios to our times."""
    value = row.make()
    ref = pyray_ser.put(value)
    contenders = {"put": once(lambda: pyray_ser.put(value)), "get": once(lambda: pyray_ser.get(ref))}
    try:
        stream = pickle.dumps(value, 5)
    except Exception as error:  # expected for memoryviews and ctypes arrays
        print(f"{row.group} {row.name}: no pickle: {type(error).__name__}", file=sys.stderr)
    else:
        contenders["dumps"] = once(lambda: pickle.dumps(value, 5))
        contenders["loads"] = once(lambda: pickle.loads(stream))
    way = own_way(row, value, path)
    if way is not None:
        contenders["own write"], contenders["own read"] = once(way[1]), once(way[2])
    results = interleaved(rounds, contenders)
    found: dict[str, Any] = {
        "own": way and way[0],
        "ms": {name: median(taken) * 1e3 for name, taken in results.items()},
    }
    pairs = (("put", "dumps"), ("get", "loads"), ("put", "own write"), ("get", "own read"))
    found["over ours"] = {
        other: median_ratio(results[other], results[ours]) for ours, other in pairs if other in results
    }
    return found


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Return a text table with one line for each type."""
    lines = [
        f"{'type':42} {'put ms':>8} {'get ms':>8} {'dumps':>8} {'loads':>8}  {'own way':10} {'write':>8} {'read':>8}"
    ]
    for name, found in figures.items():
        ratio = found["over ours"]
        cells = [
            f"{ratio[key]:7.1f}x" if key in ratio else f"{'-':>8}"
            for key in ("dumps", "loads", "own write", "own read")
        ]
        ms = found["ms"]
        lines.append(
            f"{name:42.42} {ms['put']:8.3f} {ms['get']:8.3f} {cells[0]} {cells[1]}  {found['own'] or '-':10} {cells[2]} {cells[3]}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="only these: Python, numpy, pandas, ...")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for row in ROWS:
            if options.groups and row.group not in options.groups:
                continue
            name = f"{row.group} {row.name}"
            try:
                figures[name] = measure(row, os.path.join(folder, "value"), 3 if options.quick else 9)
            except ImportError as error:
                print(f"{name}: {error}", file=sys.stderr)
            gc.collect()
    print(table(figures))
    print("\nms: ours. The other columns: how many times as long as ours.")
    if options.json:
        names = ("numpy", "pandas", "pyarrow", "polars", "scipy", "torch", "xarray", "scikit-learn", "pillow", "joblib")
        document = {"machine": describe(), "versions": versions(*names), "figures": figures}
        Path(options.json).write_text(json.dumps(document, indent=1) + os.linesep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
