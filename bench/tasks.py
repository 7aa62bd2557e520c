#!/usr/bin/env python3
"""Compare tasks, actors and installed pools with the standard library's, as ratios of interleaved rounds in one run.

    python bench/tasks.py            everything, about a minute
    python bench/tasks.py --quick    fewer rounds and 20 MB instead of 100

Each line shows the measured figure (the median of the rounds' ratios), its limit, and the medians of the times.
"""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from measuring.claim import Claim, at_least, at_most
from measuring.program import main
from measuring.timing import Loop, Round, interleaved, median, median_ratio, once

import pyray_ser as ray


def nothing():
    pass


def same(value):
    return value


def echo(end) -> None:
    while True:
        end.send(end.recv())


@ray.remote
class Actor:
    def nothing(self):
        pass


def compare(what: str, ours: Round, theirs: Round, rounds: int, limit: float, *, inverse: bool = False) -> Claim:
    """Return the claim that ours / theirs is at most `limit` or, if `inverse`, that theirs / ours is at least `limit`."""
    times = interleaved(rounds, {"ours": ours, "theirs": theirs})
    note = " and ".join(f"{median(times[side]) * 1e6:,.0f} us" for side in ("ours", "theirs"))
    if inverse:
        return at_least("tasks", what, median_ratio(times["theirs"], times["ours"]), limit, "x", note=note)
    return at_most("tasks", what, median_ratio(times["ours"], times["theirs"]), limit, "x", note=note)


def tasks(quick: bool) -> list[Claim]:
    rounds, seconds, size = (5, 0.01, 2_500_000) if quick else (15, 0.03, 12_500_000)
    claims = []
    task, actor = ray.remote(nothing), Actor.remote()
    back = ray.remote(same)
    context = multiprocessing.get_context("fork")
    ray.init(num_workers=1)
    ray.get([task.remote(), actor.nothing.remote()])
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(nothing).result()
        mine, theirs = context.Pipe()
        echoing = context.Process(target=echo, args=(theirs,), daemon=True)
        echoing.start()

        def a_task():
            return ray.get(task.remote())

        def a_call():
            return ray.get(actor.nothing.remote())

        def an_echo():
            mine.send(None)
            mine.recv()

        def submitted():
            return executor.submit(nothing).result()

        a_task, a_call, an_echo, submitted = (
            Loop("call()", {"call": call}, seconds=seconds) for call in (a_task, a_call, an_echo, submitted)
        )
        claims.append(compare("no-op task / ProcessPoolExecutor", a_task, submitted, rounds, 1.2))
        claims.append(compare("no-op actor call / Pipe echo", a_call, an_echo, rounds, 3))
        claims.append(compare("no-op actor call / ProcessPoolExecutor", a_call, submitted, rounds, 0.5))

        array = np.ones(size)
        stored = ray.put(array)
        few = max(3, rounds // 3)
        megabytes = size * 8 // 1_000_000

        def through_store():
            return ray.get(back.remote(stored))

        def copied_once():
            return ray.get(back.remote(array))

        def untouched():
            return executor.submit(same, array).result()

        with context.Pool(1) as pool:
            pool.apply(nothing)

            def pooled():
                return pool.apply(same, (array,))

            for name, ours in (("stored", through_store), ("given", copied_once)):
                for other, what in ((untouched, "ProcessPoolExecutor"), (pooled, "Pool")):
                    text = f"{megabytes} MB there and back, array {name}: {what} / ours"
                    claims.append(compare(text, once(ours), once(other), few, 20, inverse=True))
            with ray.install(max_in_flight=1 << 40), ProcessPoolExecutor(1, mp_context=context) as installed:
                installed.submit(nothing).result()
                text = f"{megabytes} MB there and back, installed: untouched / ours"
                ours = once(lambda: installed.submit(same, array).result())
                claims.append(compare(text, ours, once(untouched), few, 20, inverse=True))
        echoing.kill()
        echoing.join()
    ray.shutdown()
    return claims


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"tasks": tasks}))
