#!/usr/bin/env python3
"""Compare tasks, actors and installed pools with the standard library's, as ratios of interleaved rounds in one run.

    python bench/tasks.py            everything, about a minute
    python bench/tasks.py --quick    fewer rounds and 20 MB instead of 100

Each line shows the limit, the measured figure (the median of the rounds' ratios), and the times.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np

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


def seconds(call, times: int) -> float:
    began = perf_counter()
    for _ in range(times):
        call()
    return (perf_counter() - began) / times


def compare(ours, theirs, rounds: int, times: int) -> tuple[float, float, float]:
    """Return the median ratio ours / theirs of interleaved rounds, and both medians."""
    ours(), theirs()
    pairs = [(seconds(ours, times), seconds(theirs, times)) for _ in range(rounds)]
    return median(a / b for a, b in pairs), median(a for a, _ in pairs), median(b for _, b in pairs)


def show(what: str, promise: str, ratio: float, kept: bool, ours: float, theirs: float) -> bool:
    print(
        f"{'kept' if kept else 'NOT '}  {what:58s} {promise:>8s}  {ratio:8.2f}   {ours * 1e6:10.0f} us  {theirs * 1e6:10.0f} us"
    )
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, times, size = (5, 100, 2_500_000) if quick else (15, 300, 12_500_000)
    kept = []
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

        print(f"{'':4s}  {'':58s} {'promised':>8s}  {'ratio':>8s}   {'ours':>13s}  {'theirs':>13s}")
        ratio, *both = compare(a_task, submitted, rounds, times)
        kept.append(show("no-op task / ProcessPoolExecutor", "<= 1.2", ratio, ratio <= 1.2, *both))
        ratio, *both = compare(a_call, an_echo, rounds, times)
        kept.append(show("no-op actor call / Pipe echo", "<= 3", ratio, ratio <= 3, *both))
        ratio, *both = compare(a_call, submitted, rounds, times)
        kept.append(show("no-op actor call / ProcessPoolExecutor", "<= 0.5", ratio, ratio <= 0.5, *both))

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
                    ratio, *both = compare(ours, other, few, 1)
                    kept.append(
                        show(
                            f"{megabytes} MB there and back, array {name}: {what} / ours",
                            ">= 20",
                            1 / ratio,
                            1 / ratio >= 20,
                            *both,
                        )
                    )
            with ray.install(max_in_flight=1 << 40), ProcessPoolExecutor(1, mp_context=context) as installed:
                installed.submit(nothing).result()
                ratio, *both = compare(lambda: installed.submit(same, array).result(), untouched, few, 1)
                kept.append(
                    show(
                        f"{megabytes} MB there and back, installed: untouched / ours",
                        ">= 20",
                        1 / ratio,
                        1 / ratio >= 20,
                        *both,
                    )
                )
        echoing.kill()
        echoing.join()
    ray.shutdown()
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
