"""Compare `put` of large arrays with the fastest copies on this machine, for pages in each state."""

from __future__ import annotations

import multiprocessing
from time import perf_counter

from measuring import data
from measuring.claim import Claim, at_least
from measuring.copyrate import Cold, Copy, SecondHand
from measuring.timing import best, interleaved, median, median_ratio, once

import pyray_ser

ROW = "put large"


def _sizes(quick: bool) -> dict[str, int]:
    return {"10 MB": 10**7} if quick else {"100 MB": 10**8, "1 GB": 10**9}


def warm(quick: bool) -> list[Claim]:
    """Compare a loop of put, drop, put with memcpy and non-temporal copies into memory that is in use."""
    claims = []
    for name, size in _sizes(quick).items():
        array = data.large(size)
        data.check(name, array, pyray_ser.get(pyray_ser.put(array)))
        early = []
        for _ in range(4):
            start = perf_counter()
            ref = pyray_ser.put(array)
            early.append(perf_counter() - start)
            del ref
        copies = Copy(array)
        contenders = {key: once(function) for key, function in copies.kernels().items()}
        contenders["put"] = once(lambda array=array: pyray_ser.put(array))
        rounds = 5 if quick else 15 if size < 10**9 else 7
        results = interleaved(rounds, contenders)
        copies.close()
        fastest = best(results, [key for key in results if key != "put"])
        rates = {key: size / median(result) / 1e9 for key, result in results.items()}
        share = 100 * median_ratio(results[fastest], results["put"])
        claims.append(
            at_least(
                ROW,
                f"{name} warm, share of the best copy rate",
                share,
                85,
                "%",
                note=f"{rates['put']:.1f} of {rates[fastest]:.1f} GB/s ({fastest})",
                rates_gb_s=rates,
            )
        )
        third = 100 * median(results["put"]) / min(early[1:])
        claims.append(
            at_least(
                ROW,
                f"{name}, from the third put of a size on, share of the warm rate",
                third,
                85,
                "%",
                early_ms=[taken * 1e3 for taken in early],
            )
        )
    return claims


def cold(quick: bool) -> list[Claim]:
    """Measure put into pages that were never used: the row keeps every object, so that the next one needs new pages."""
    claims = []
    pyray_ser.put(0)  # opens the store
    for name, size in _sizes(quick).items():
        array = data.large(size)
        kept = []

        def put(array=array, kept=kept) -> float:
            start = perf_counter()
            kept.append(pyray_ser.put(array))
            return perf_counter() - start

        results = interleaved(3 if quick else 9 if size < 10**9 else 3, {**Cold(array).rounds(), "put": put}, warm_up=0)
        data.check(name, array, pyray_ser.get(kept[-1]))
        kept.clear()
        claims.append(_against_best(f"{name} cold", size, results))
    return claims


def _against_best(what: str, size: int, results: dict[str, list[float]]) -> Claim:
    fastest = best(results, [key for key in results if key != "put"])
    rates = {key: size / median(result) / 1e9 for key, result in results.items()}
    share = 100 * median_ratio(results[fastest], results["put"])
    return at_least(
        ROW,
        f"{what}, share of the best way",
        share,
        90,
        "%",
        note=f"{rates['put']:.1f} of {rates[fastest]:.1f} GB/s ({fastest})",
        rates_gb_s=rates,
    )


def second_hand(quick: bool) -> list[Claim]:
    """Measure put into pages that another process wrote and freed, as usual in a pipeline."""
    context = multiprocessing.get_context("spawn")
    # The pages must still exist when the child has started, however long that takes on a busy machine.
    pyray_ser.init(warm_reserve=2 * 10**9)
    claims = []
    for name, size in _sizes(quick).items():
        array = data.large(size)
        results: dict[str, list[float]] = {}
        with context.Pool(1, maxtasksperchild=1) as pool:
            # A new child runs each round, because a child maps the pages in its first round.
            for _ in range(2 if quick else 7 if size < 10**9 else 3):
                # This `put` creates the pages. The child has not mapped them, although this process has.
                kept = pyray_ser.put(array)
                pool.apply(_ready)
                del kept
                for key, taken in pool.apply(_second_hand_round, (size,)).items():
                    results.setdefault(key, []).append(taken)
        del array
        claims.append(_against_best(f"{name} second-hand", size, results))
    return claims


def _ready() -> None:
    pass


def _second_hand_round(size: int) -> dict[str, float]:
    """In a new process, copy once in each way into pages that exist but that this process has not mapped."""
    array = data.large(size)
    pyray_ser.put(0)  # attaches, and makes this process's writable mapping
    before = pyray_ser.stats()
    taken = {name: run() for name, run in SecondHand(array).rounds().items()}
    start = perf_counter()
    ref = pyray_ser.put(array)
    taken["put"] = perf_counter() - start
    after = pyray_ser.stats()
    data.check("second-hand", array, pyray_ser.get(ref))
    grown = after["backed"] - before["backed"]
    if grown > size // 10:
        raise AssertionError(f"put took {grown} new bytes from the kernel instead of the freed ones")
    return taken
