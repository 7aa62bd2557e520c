"""Measure `put` and `get` of small values, compared with plain pickling."""

from __future__ import annotations

import pickle

from measuring import data
from measuring.claim import Claim, at_most
from measuring.timing import Loop, interleaved, median_ratio, once, typical

import pyray_ser

ROW = "put"


def small(quick: bool) -> list[Claim]:
    """Measure put + free of an 80 B array and of an int; the object is freed when its reference is dropped."""
    array, number = data.small(), 7
    data.check("array", array, pyray_ser.get(pyray_ser.put(array)))
    data.check("int", number, pyray_ser.get(pyray_ser.put(number)))
    names = {"put": pyray_ser.put, "free": pyray_ser.free, "array": array, "number": number}
    results = interleaved(
        5 if quick else 41,
        {
            "array": Loop("put(array)", names),
            "int": Loop("put(number)", names),
            "free()": Loop("free(put(array))", names),
        },
    )
    assert pyray_ser.stats()["objects"] == 0
    times = {name: typical(result) * 1e6 for name, result in results.items()}
    fastest = {name: min(result) * 1e6 for name, result in results.items()}
    return [
        at_most(
            ROW,
            "put + free of an 80 B array",
            times["array"],
            0.6,
            "us",
            fastest_round_us=fastest["array"],
            with_free_called_us=times["free()"],
        ),
        at_most(ROW, "put + free of an int", times["int"], 0.4, "us", fastest_round_us=fastest["int"]),
    ]


def mapping(quick: bool) -> list[Claim]:
    """Compare put and get of a 1 KB dict with `pickle` in memory."""
    value = data.mapping()
    ref = pyray_ser.put(value)
    stream = pickle.dumps(value, 5)
    data.check("dict", value, pyray_ser.get(ref))
    names = {
        "put": pyray_ser.put,
        "get": pyray_ser.get,
        "dumps": pickle.dumps,
        "loads": pickle.loads,
        "value": value,
        "ref": ref,
        "stream": stream,
    }
    results = interleaved(
        5 if quick else 61,
        {
            "put": Loop("put(value)", names),
            "dumps": Loop("dumps(value, 5)", names),
            "get": Loop("get(ref)", names),
            "loads": Loop("loads(stream)", names),
        },
    )
    times = {name: typical(result) * 1e6 for name, result in results.items()}
    return [
        at_most(
            ROW,
            "put + free of a 1 KB dict over pickle.dumps",
            median_ratio(results["put"], results["dumps"]),
            1.3,
            "x",
            times_us=times,
            pickled_bytes=len(stream),
        ),
        at_most(
            "get",
            "of a 1 KB dict over pickle.loads",
            median_ratio(results["get"], results["loads"]),
            1.1,
            "x",
            times_us=times,
        ),
    ]


def small_arrays(quick: bool) -> list[Claim]:
    """Measure put and get of a list of 10,000 arrays of 10 float64."""
    value = data.small_arrays()
    kept = pyray_ser.put(value)
    data.check("list", value, pyray_ser.get(kept))
    contenders = {
        "put": once(lambda: pyray_ser.put(value)),
        "get": once(lambda: pyray_ser.get(kept)),
        "dumps": once(lambda: pickle.dumps(value, 5)),
    }
    results = interleaved(3 if quick else 15, contenders)
    times = {name: typical(result) * 1e3 for name, result in results.items()}
    return [
        at_most(
            ROW,
            "a list of 10,000 arrays of 10 float64",
            times["put"],
            4,
            "ms",
            fastest_ms=min(results["put"]) * 1e3,
            dumps_ms=times["dumps"],
        ),
        at_most(
            "get",
            "of a list of 10,000 arrays of 10 float64",
            times["get"],
            4,
            "ms",
            fastest_ms=min(results["get"]) * 1e3,
        ),
    ]
