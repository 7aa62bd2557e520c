#!/usr/bin/env python3
"""The pickler against `_pickle` of the same interpreter: ratios of interleaved rounds, equal results checked first.

    python bench/pickler.py                 the table
    python bench/pickler.py ints lambda     rows whose name contains one of the words
    python bench/pickler.py --json out.json
    python bench/pickler.py --sweep         over 300 shapes; the slowest are printed

Protocol 5 with a buffer callback, through the public functions. A ratio above 1 means that ours is faster; it is the median
of the ratios of the rounds. The row with a lambda is compared with cloudpickle.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import pickle
import statistics
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from pickler_data import rows, sweep

from pyray_ser import _pickle

try:
    from pyray_ser import _unpickle
except ImportError:
    _unpickle = None


def equal(a, b):
    """Equality that looks into arrays and compares functions by what they return."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and (a.tolist() == b.tolist() if a.dtype.hasobject else a.tobytes() == b.tobytes())
    if type(a) is list:
        return len(a) == len(b) and all(map(equal, a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, types.FunctionType):
        return a(7) == b(7)
    if hasattr(a, "__dict__") and type(a).__eq__ is object.__eq__ and not isinstance(a, type):
        return vars(a) == vars(b)
    if isinstance(a, BaseException):
        return a.args == b.args
    if isinstance(a, types.BuiltinMethodType) and a is not len:
        return a() == b()
    return a == b


sink = []  # takes the buffers; the same bound method for both sides


def seconds(function, count):
    """Time of one call of `function`, a functools.partial or a plain function."""
    repeat = itertools.repeat(None, count)
    start = time.perf_counter()
    for _ in repeat:
        function()
    elapsed = time.perf_counter() - start
    sink.clear()
    return elapsed / count


def ratio(theirs, ours, rounds, target):
    """Median of theirs/ours over interleaved rounds of about `target` seconds each, and our time."""
    once = max(seconds(theirs, 1), seconds(ours, 1), 1e-7)
    count = max(1, int(target / once))
    ratios, times = [], []
    for i in range(rounds):
        if i % 2:
            mine, other = seconds(ours, count), seconds(theirs, count)
        else:
            other, mine = seconds(theirs, count), seconds(ours, count)
        ratios.append(other / mine)
        times.append(mine)
    return statistics.median(ratios), statistics.median(times)


def measure(name, make, rounds, target):
    obj = make()
    gc.freeze()  # else the standard pickler's temporary objects make the collector walk the data again and again
    dump_theirs = functools.partial(pickle.dumps, obj, 5, buffer_callback=sink.append)
    dump_ours = functools.partial(_pickle.dumps, obj, 5, buffer_callback=sink.append)
    if name == "lambda":
        import cloudpickle

        dump_theirs = functools.partial(cloudpickle.dumps, obj, 5, buffer_callback=sink.append)

    buffers = []
    stream = _pickle.dumps(obj, 5, buffer_callback=buffers.append)
    if not equal(pickle.loads(stream, buffers=buffers), obj):
        raise AssertionError(f"{name}: what was written does not read as what went in")
    result = dict(zip(("dumps", "dumps_seconds"), ratio(dump_theirs, dump_ours, rounds, target), strict=True))
    if _unpickle is not None:
        their_buffers = []
        their_stream = pickle.dumps(obj, 5, buffer_callback=their_buffers.append) if name != "lambda" else dump_theirs()
        if not equal(_unpickle.loads(stream, buffers=buffers), obj):
            raise AssertionError(f"{name}: what was read differs from what went in")

        load_theirs = functools.partial(pickle.loads, their_stream, buffers=their_buffers)
        load_ours = functools.partial(_unpickle.loads, stream, buffers=buffers)
        result |= dict(zip(("loads", "loads_seconds"), ratio(load_theirs, load_ours, rounds, target), strict=True))
    return result


def sweep_all(options):
    """Every shape of the sweep, worst first; below 0.95 is marked."""
    found = []
    for name, make in sweep():
        if options.words and not any(word in name for word in options.words):
            continue
        result = measure(name, make, options.rounds, min(options.target, 0.004))
        found += [(result[side], side, name) for side in ("dumps", "loads") if side in result]
    found.sort()
    for value, side, name in found if options.words else found[:40]:
        print(f"{value:>7.2f}x  {side}  {name}{'   <-- below 0.95' if value < 0.95 else ''}")
    print(f"{len(found)} medians, {sum(value < 0.95 for value, _, _ in found)} below 0.95")
    if options.json:
        options.json.write_text(json.dumps({"python": sys.version, "sweep": found}, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--target", type=float, default=0.02, help="seconds per round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()
    gc.collect()
    gc.freeze()
    print(f"Python {sys.version.split()[0]}, numpy {np.__version__}")
    if options.sweep:
        sweep_all(options)
        return
    print(f"{'data':<28}{'dumps':>8}{'asked':>8}{'':>12}{'loads':>8}{'asked':>8}")
    results = {}
    for name, make, asked_dumps, asked_loads in rows():
        if options.words and not any(word in name for word in options.words):
            continue
        result = results[name] = measure(name, make, options.rounds, options.target)
        line = f"{name:<28}{result['dumps']:>7.2f}x{asked_dumps or '-':>8}{result['dumps_seconds'] * 1e6:>10.1f}us"
        if "loads" in result:
            line += f"{result['loads']:>7.2f}x{asked_loads or '-':>8}{result['loads_seconds'] * 1e6:>10.1f}us"
        print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps({"python": sys.version, "rows": results}, indent=1))


if __name__ == "__main__":
    main()
