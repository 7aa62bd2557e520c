#!/usr/bin/env python3
"""Compare our pickler with `_pickle` of the same interpreter: first the results, then the times in interleaved rounds.

    python bench/pickler.py                 the table
    python bench/pickler.py ints lambda     rows whose name contains one of the words
    python bench/pickler.py --json out.json
    python bench/pickler.py --sweep         over 300 shapes; the slowest are printed
    python bench/pickler.py --safe          compare loads with allow= and without

Both picklers use protocol 5 with a buffer callback, through their public functions, called as a program calls them. The
printed ratio is the median of the rounds' ratios of CPU times; above 1 our pickler is faster. The row with a lambda
compares our pickler with cloudpickle. If Apache Fory (`pip install pyfory`) is installed, the last column for dumps and
for loads is the ratio of Fory's time to ours. The column shows "-" if Fory fails or returns a different value. The
script compares all results with the input before it times anything.
"""

from __future__ import annotations

import argparse
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

from pyray_ser import _pickle, _unpickle


def equal(a, b):
    """Return whether two values are equal, comparing arrays by element and functions by their results."""
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


sink = []  # collects the buffers; both picklers get its `append` as the callback


def loop_of(expression, **names):
    """Return a function that evaluates `expression` `count` times, with the call written out as in a program."""
    arguments = ", ".join(["repeat", *(f"{name}={name}" for name in names)])
    source = f"def loop({arguments}):\n    for _ in repeat:\n        {expression}\n"
    exec(source, names)
    loop = names["loop"]
    return lambda count: loop(itertools.repeat(None, count))


def pickle_loops(obj, theirs=pickle.dumps):
    """Return {(side, pickler): loop} for `_pickle` (or `theirs`) and ours, after comparing each result with `obj`."""
    buffers, their_buffers = [], []
    stream = _pickle.dumps(obj, 5, buffer_callback=buffers.append)
    their_stream = theirs(obj, 5, buffer_callback=their_buffers.append)
    for what, result in (
        ("what was written does not read as what went in", pickle.loads(stream, buffers=buffers)),
        ("what was read differs from what went in", _unpickle.loads(stream, buffers=buffers)),
        ("the other's stream was read as something else", _unpickle.loads(their_stream, buffers=their_buffers)),
    ):
        if not equal(result, obj):
            raise AssertionError(what)
    dumps, loads = "dumps(obj, 5, buffer_callback=callback)", "loads(stream, buffers=buffers)"
    if buffers:  # drop the buffers before the next dump, as programs do; otherwise we would measure the collector
        dumps += "; clear()"
    callback = sink.append
    return {
        ("dumps", "_pickle"): loop_of(dumps, dumps=theirs, obj=obj, callback=callback, clear=sink.clear),
        ("dumps", "ours"): loop_of(dumps, dumps=_pickle.dumps, obj=obj, callback=callback, clear=sink.clear),
        ("loads", "_pickle"): loop_of(loads, loads=pickle.loads, stream=their_stream, buffers=their_buffers),
        ("loads", "ours"): loop_of(loads, loads=_unpickle.loads, stream=stream, buffers=buffers),
    }


def fory_loops(obj):
    """Return the loops for Apache Fory in its native mode with reference tracking.

    The result is empty if pyfory is missing, fails, or returns a different value.
    """
    try:
        import pyfory
    except ImportError:
        return {}
    fory = pyfory.Fory(xlang=False, ref=True, strict=False)
    try:
        data = fory.serialize(obj)
        if not equal(fory.deserialize(data), obj):
            return {}
    except Exception:  # any exception means that pyfory does not support the value
        return {}
    return {
        ("dumps", "fory"): loop_of("serialize(obj)", serialize=fory.serialize, obj=obj),
        ("loads", "fory"): loop_of("deserialize(data)", deserialize=fory.deserialize, data=data),
    }


def seconds(loop, count):
    """Return the CPU time of one pass through a loop; other load on the machine hardly affects it."""
    start = time.thread_time()
    loop(count)
    elapsed = time.thread_time() - start
    sink.clear()
    return elapsed / count


def compare(loops, rounds, target):
    """Return {pickler: (median ratio of its time to ours, median time)} for rounds of about `target` seconds."""
    times = {whose: [] for whose in loops}
    counts = {
        whose: max(1, int(target / max(seconds(loop, 1), seconds(loop, 1), 1e-7))) for whose, loop in loops.items()
    }
    order = list(loops)
    for i in range(rounds):
        for whose in order if i % 2 else reversed(order):
            times[whose].append(seconds(loops[whose], counts[whose]))
    return {
        whose: (
            statistics.median(other / mine for other, mine in zip(taken, times["ours"], strict=True)),
            statistics.median(taken),
        )
        for whose, taken in times.items()
    }


def measure(name, make, rounds, target, fory=False):
    """Return {side: {pickler: (ratio, seconds)}} for one row."""
    obj = make()
    gc.freeze()  # otherwise temporary objects of the standard pickler make the collector traverse the data
    theirs = pickle.dumps
    if name == "lambda":
        import cloudpickle

        theirs = cloudpickle.dumps
    try:
        loops = pickle_loops(obj, theirs)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None
    if fory:
        loops |= fory_loops(obj)
    return {
        side: compare({whose: loop for (of, whose), loop in loops.items() if of == side}, rounds, target)
        for side in ("dumps", "loads")
    }


def python_share(loop):
    """Return the fraction of time in the objects' own Python hooks, which are the same for both picklers."""
    inside, depth, entered = 0.0, 0, 0.0

    def watch(frame, event, arg):
        nonlocal inside, depth, entered
        if event == "call":
            depth += 1
            if depth == 3:  # frames 1 and 2 are the lambda and the loop
                entered = time.thread_time()
        elif event == "return":
            if depth == 3:
                inside += time.thread_time() - entered
            depth -= 1

    sys.setprofile(watch)
    start = time.thread_time()
    try:
        loop(1)
    finally:
        whole = time.thread_time() - start
        sys.setprofile(None)
        sink.clear()
    return inside / whole


def bytes_of_text(obj):
    """Return the total size of the bytes and str objects in nested lists and dicts."""
    if isinstance(obj, (str, bytes)):
        return len(obj)
    if isinstance(obj, list):
        return sum(map(bytes_of_text, obj))
    return sum(map(bytes_of_text, obj.values())) if isinstance(obj, dict) else 0


def remark(value, side, obj):
    """Return why a median below 0.95 does not count, or a mark that it is too slow; empty from 0.95 on."""
    if value >= 0.95:
        return ""
    if bytes_of_text(obj) > 64 << 20:
        return "  (above 64 MB of text)"
    share = python_share(pickle_loops(obj)[side, "ours"])
    return f"  ({share:.0%} in the objects' own Python code)" if share > 0.5 else "  <-- below 0.95"


def sweep_all(options):
    """Measure every shape of the sweep and print the slowest first, with a remark for each ratio below 0.95."""
    found = []
    for name, make in sweep():
        if options.words and not any(word in name for word in options.words):
            continue
        result = measure(name, make, options.rounds, min(options.target, 0.004))
        found += [(result[side]["_pickle"][0], side, name, make) for side in ("dumps", "loads")]
    found.sort(key=lambda row: row[:3])
    missed = 0
    for i, (value, side, name, make) in enumerate(found):
        said = remark(value, side, make())
        missed += "<--" in said
        if i < 40 or options.words:
            print(f"{value:>7.2f}x  {side}  {name}{said}")
    print(f"{len(found)} medians, {sum(row[0] < 0.95 for row in found)} below 0.95, of which {missed} count")
    if options.json:
        rows = [(*row[:3], remark(row[0], row[1], row[3]())) for row in found]
        options.json.write_text(json.dumps({"python": sys.version, "sweep": rows}, indent=1))


SAFE_ROWS = ("dict of 3", "function", "class", "10,000 plain", "10,000 enum members", "one ndarray")


def safe_loops(obj):
    """Return loops that load one stream: without ``allow=``, with all its names allowed, and with ``allow=None``."""
    buffers, names = [], set()
    stream = _pickle.dumps(obj, 5, buffer_callback=buffers.append)
    _unpickle.loads(stream, buffers=buffers, allow=lambda module, name: not names.add(f"{module}:{name}"))
    given = {"loads": _unpickle.loads, "stream": stream, "buffers": buffers}
    return {
        "plain": loop_of("loads(stream, buffers=buffers)", **given),
        "safe": loop_of("loads(stream, buffers=buffers, allow=allow)", allow=frozenset(names), **given),
        "none": loop_of("loads(stream, buffers=buffers, allow=None)", **given),
    }


def safe_mode(options):
    """Return the cost of `allow=`, relative to a plain load of the same stream."""
    print(f"{'allow=frozenset over none':<28}{'ratio':>8}")
    for name, make, *_ in rows():
        if name not in SAFE_ROWS:
            continue
        loops = safe_loops(make())
        value, _ = compare({"safe": loops["safe"], "ours": loops["plain"]}, options.rounds, options.target)["safe"]
        print(f"{name:<28}{value:>7.2f}x")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--target", type=float, default=0.02, help="seconds per round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--safe", action="store_true", help="what safe mode costs")
    options = parser.parse_args()
    gc.collect()
    gc.freeze()
    print(f"Python {sys.version.split()[0]}, numpy {np.__version__}")
    if options.sweep or options.safe:
        (sweep_all if options.sweep else safe_mode)(options)
        return
    print(
        f"{'data':<26}"
        + "".join(f"{side:>9}{'asked':>7}{'us':>11}{'_pickle':>11}{'fory':>8}" for side in ("dumps", "loads"))
    )
    results = {}
    for name, make, *asked in rows():
        if options.words and not any(word in name for word in options.words):
            continue
        result = results[name] = measure(name, make, options.rounds, options.target, fory=True)
        line = f"{name:<26}"
        for side, promised in zip(("dumps", "loads"), asked, strict=True):
            of = result[side]
            line += f"{of['_pickle'][0]:>8.2f}x{promised or '-':>7}{of['ours'][1] * 1e6:>11,.2f}{of['_pickle'][1] * 1e6:>11,.2f}"
            line += f"{of['fory'][0]:>7.2f}x" if "fory" in of else f"{'-':>8}"
        print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps({"python": sys.version, "rows": results}, indent=1))


if __name__ == "__main__":
    main()
