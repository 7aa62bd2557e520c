"""Measure `get`, which makes a view in a fraction of a microsecond, for several sizes and numbers of objects."""

from __future__ import annotations

import random
from itertools import cycle
from time import perf_counter

from measuring import data
from measuring.claim import Claim, at_most
from measuring.timing import Loop, interleaved, median_ratio, typical

import pyray_ser

ROW = "get"
SIZES = {"80 B": 80, "8 KB": 8_000, "1 MB": 10**6, "100 MB": 10**8, "1 GB": 10**9}


def _put(nbytes: int) -> pyray_ser.ObjectRef:
    array = data.large(nbytes)
    ref = pyray_ser.put(array)
    got = pyray_ser.get(ref)
    data.check(f"{nbytes} bytes", array, got)
    assert pyray_ser.get(ref) is not got and not got.flags.writeable
    return ref


def small(quick: bool) -> list[Claim]:
    """Measure `get` for every size, with the result dropped immediately and while another view of the object exists."""
    sizes = {name: size for name, size in SIZES.items() if not quick or size <= 10**6}
    refs = {name: _put(size) for name, size in sizes.items()}
    loops = {f"{name}, dropped": Loop("get(ref)", {"get": pyray_ser.get, "ref": ref}) for name, ref in refs.items()}
    results = interleaved(5 if quick else 41, loops)
    views = [pyray_ser.get(ref) for ref in refs.values()]
    loops = {f"{name}, held": Loop("get(ref)", {"get": pyray_ser.get, "ref": ref}) for name, ref in refs.items()}
    results |= interleaved(5 if quick else 41, loops)
    del views
    claims = []
    for how in ("dropped", "held"):
        names = [f"{name}, {how}" for name in refs]
        times = {name: typical(results[name]) * 1e6 for name in names}
        slowest = max(times, key=times.__getitem__)
        claims.append(
            at_most(
                ROW,
                f"80 B to 1 GB, result {how}, slowest size",
                times[slowest],
                0.3,
                "us",
                times_us=times,
                fastest_rounds_us={name: min(results[name]) * 1e6 for name in names},
            )
        )
        spread = {name: median_ratio(results[name], results[names[0]]) for name in names[1:]}
        claims.append(at_most(ROW, f"any size over 80 B, result {how}", max(spread.values()), 1.2, "x", ratios=spread))
    return claims


class _Parts:
    """
    Call `get` for consecutive parts of `refs`, one part per round, cyclically. A round returns the seconds per `get`.

    One pass over very many objects would take too long for a round, because other load would always disturb it. With
    parts, too, each object is read again only after all others.
    """

    def __init__(self, refs: list[pyray_ser.ObjectRef], length: int = 1_000):
        parts = [refs[at : at + length] for at in range(0, len(refs), length)]
        self.count = len(parts)
        self._parts = cycle(parts)
        for ref in refs:
            pyray_ser.get(ref)

    def __call__(self) -> float:
        part, get = next(self._parts), pyray_ser.get
        start = perf_counter()
        for ref in part:
            get(ref)
        return (perf_counter() - start) / len(part)


def many_live(quick: bool) -> list[Claim]:
    """Measure `get` of one object among 1, 1,000 and 100,000 objects, and of all of them in random order."""
    array = data.small()
    first = _put(80)
    alone = Loop("get(ref)", {"get": pyray_ser.get, "ref": first})
    rounds = 5 if quick else 41
    # Rounds with different numbers of live objects cannot be interleaved. Each round also times a plain computation of
    # the same duration, so that a change of the clock rate is visible.
    clock = Loop("len(data)", {"data": array})
    refs = [first]
    among: dict[int, float] = {}
    times: dict[int, float] = {}
    randomly: dict[int, float] = {}
    for count in (1, 1_000, 10_000 if quick else 100_000):
        while len(refs) < count:
            refs.append(pyray_ser.put(array))
        order = random.Random(count).sample(refs, len(refs))
        everything: Loop | _Parts
        if count <= 1_000:
            everything, turns = (
                Loop("for ref in refs: get(ref)", {"get": pyray_ser.get, "refs": order}, per=count),
                rounds,
            )
        else:
            everything = _Parts(order)
            turns = max(5, everything.count * rounds // 10)
        results = interleaved(turns, {"one": alone, "all": everything, "clock": clock})
        times[count] = typical(results["one"]) * 1e6
        among[count] = median_ratio(results["one"], results["clock"])
        randomly[count] = typical(results["all"]) * 1e6
    most = max(among)
    for ref in refs[:: max(1, len(refs) // 50)]:
        data.check("one of many", array, pyray_ser.get(ref))
    return [
        at_most(ROW, f"among {most:,} live objects", times[most], 0.3, "us", times_us=times),
        at_most(
            ROW, f"among 1,000 and {most:,} live objects over 1", max(among[1_000], among[most]) / among[1], 1.2, "x"
        ),
        at_most(ROW, "all of 1,000 objects in random order", randomly[1_000], 0.3, "us"),
        at_most(ROW, f"all of {most:,} objects in random order", randomly[most], 1.0, "us"),
    ]


def writable(quick: bool) -> list[Claim]:
    """Measure mode "c" for a large object, which makes a private mapping, not a copy."""
    size = 10**7 if quick else 10**9
    ref = _put(size)
    array = pyray_ser.get(ref, mmap_mode="c")
    array[0] = -1.0
    assert array.flags.writeable and pyray_ser.get(ref)[0] == 0.0
    del array
    loop = Loop('get(ref, mmap_mode="c")', {"get": pyray_ser.get, "ref": ref})
    result = interleaved(5 if quick else 41, {"c": loop})["c"]
    return [
        at_most(
            ROW,
            f'mode "c" of {"10 MB" if quick else "1 GB"}',
            typical(result) * 1e6,
            15,
            "us",
            fastest_round_us=min(result) * 1e6,
        )
    ]
