#!/usr/bin/env python3
"""Compare our pickler with `_pickle` of the same interpreter: first the results, then the times in interleaved rounds.

    python bench/pickler.py                 the table
    python bench/pickler.py ints lambda     rows whose name contains one of the words
    python bench/pickler.py --json out.json
    python bench/pickler.py sweep           over 300 shapes; the slowest are printed
    python bench/pickler.py safe            compare loads with allow= and without

Both picklers use protocol 5 with a buffer callback, through their public functions, called as a program calls them. The
figures are medians of the rounds' ratios of CPU times; above 1 our pickler is faster. The row with a lambda compares our
pickler with cloudpickle. If Apache Fory (`pip install pyfory`) is installed, its time is compared with ours as well,
unless Fory fails or returns a different value. The script compares all results with the input before it times anything.
"""

from __future__ import annotations

import gc
import itertools
import pickle
import sys
import time
import types
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from measuring.claim import at_least, at_most, measured
from measuring.program import main
from measuring.timing import interleaved, median, median_ratio
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


def compare(loops, quick, target=0.02):
    """Return {pickler: (median ratio of its time to ours, median time)} for rounds of about `target` seconds."""
    counts = {
        whose: 1 if quick else max(1, int(target / max(seconds(loop, 1), seconds(loop, 1), 1e-7)))
        for whose, loop in loops.items()
    }
    rounds = {whose: partial(seconds, loop, counts[whose]) for whose, loop in loops.items()}
    times = interleaved(3 if quick else 9, rounds, warm_up=0)
    return {whose: (median_ratio(taken, times["ours"]), median(taken)) for whose, taken in times.items()}


def measure(name, make, quick, target=0.02, fory=False):
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
        side: compare({whose: loop for (of, whose), loop in loops.items() if of == side}, quick, target)
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
        return "above 64 MB of text"
    share = python_share(pickle_loops(obj)[side, "ours"])
    return f"{share:.0%} in the objects' own Python code" if share > 0.5 else "<-- below 0.95"


def sweep_all(quick):
    """Measure every shape of the sweep; return the slowest first, with a remark for each ratio below 0.95."""
    found = []
    for name, make in itertools.islice(sweep(), 3 if quick else None):
        result = measure(name, make, quick, 0.004)
        found += [(result[side]["_pickle"][0], side, name, make) for side in ("dumps", "loads")]
    found.sort(key=lambda row: row[:3])
    claims, missed = [], 0
    for number, (value, side, name, make) in enumerate(found):
        said = remark(value, side, make()) if value < 0.95 else ""
        missed += "<--" in said
        if number < 40:
            claims.append(measured("sweep", f"{name}, {side}", value, "x", note=said))
    return [at_most("sweep", f"number of {len(found)} ratios below 0.95 that count", missed, 0, ""), *claims]


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


def safe_mode(quick):
    """Measure the cost of `allow=`, relative to a plain load of the same stream."""
    claims = []
    for name, make, *_ in rows():
        if name in SAFE_ROWS:
            loops = safe_loops(make())
            value, _ = compare({"safe": loops["safe"], "ours": loops["plain"]}, quick)["safe"]
            claims.append(measured("safe", f"{name}, loads with allow=frozenset over none", value, "x"))
    return claims


def compare_row(name, quick):
    """Compare the picklers on one row of the table."""
    _, make, *limits = next(row for row in rows() if row[0] == name)
    gc.collect()
    gc.freeze()
    claims = []
    for (side, of), limit in zip(measure(name, make, quick, fory=True).items(), limits, strict=True):
        note = f"{of['ours'][1] * 1e6:,.2f} and {of['_pickle'][1] * 1e6:,.2f} us"
        claims.append(at_least(name, f"{side}, _pickle over ours", of["_pickle"][0], limit, "x", note=note))
        if "fory" in of:
            claims.append(
                measured(name, f"{side}, Fory over ours", of["fory"][0], "x", note=f"{of['fory'][1] * 1e6:,.2f} us")
            )
    return claims


if __name__ == "__main__":
    table = {name: partial(compare_row, name) for name, *_ in rows()}
    extra = {"sweep": sweep_all, "safe": safe_mode}
    sys.exit(main(__file__, __doc__, table, on_request=extra, packages=("cloudpickle", "pyfory"), timeout=7200))
