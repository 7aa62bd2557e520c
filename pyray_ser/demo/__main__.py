"""``python -m pyray_ser.demo [--input FILE] [--workers N] [--block-mb MB] [--questions N]``."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from pathlib import Path

import pyray_ser

from . import measuring
from .dataset import Dataset, DemoError
from .indexing import MEGABYTE, index_standard_library
from .loading import load_dataset
from .report import duration, size, table
from .scenario import Outcome, Scenario
from .ways import PipeWay, StoreWay


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pyray_ser.demo",
        description="Share a large value with several processes, through the store and through pipes, and compare.",
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help=".npy, .npz, .csv or .parquet instead of the index")
    parser.add_argument("--workers", type=int, default=max(2, min(4, os.cpu_count() or 2) * 2), metavar="N")
    parser.add_argument("--block-mb", type=int, default=512, metavar="MB", help="size of the additional block")
    parser.add_argument("--questions", type=int, default=2000, metavar="N")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 2:
        parser.error("--workers: one is killed, so there must be at least 2")
    if chosen.block_mb < 1 or chosen.questions < 2:
        parser.error("--block-mb and --questions must be positive")
    return chosen


def nbytes(value: dict[str, object]) -> int:
    """Return the bytes of all arrays in nested dicts."""
    return sum(nbytes(item) if isinstance(item, dict) else int(getattr(item, "nbytes", 0)) for item in value.values())


def run_store(dataset: Dataset, workers: int, bytes_of_arrays: int) -> tuple[Outcome, list[tuple[str, str]]]:
    """Run the demo with the store; also return the store's counters before and after the kill."""
    pyray_ser.init(capacity=bytes_of_arrays + bytes_of_arrays // 4 + 256 * MEGABYTE)
    scenario = Scenario(StoreWay(), workers)
    largest = max(dataset.value, key=lambda key: nbytes({key: dataset.value[key]}))
    try:
        scenario.publish(dataset.value)
        # The value is in the store, so this process need not keep its own copy.
        dataset.value = {}
        gc.collect()
        scenario.hand_over()
        scenario.outcome.fingerprints = scenario.read_everything()
        scenario.measure_memory()
        scenario.measure_again(largest)
        before = pyray_ser.stats()
        scenario.ask(dataset.questions)
        scenario.outcome.fingerprints_after = scenario.read_everything()
        after = settled(before["used"])
        facts = [
            ("objects in the store before the kill, and after", f"{before['objects']}, {after['objects']}"),
            ("bytes in the store before the kill, and after", f"{size(before['used'])}, {size(after['used'])}"),
            ("processes attached before the kill, and after", f"{before['clients']}, {after['clients']}"),
        ]
        scenario.close()
        gc.collect()
        empty = settled(0)
        facts.append(("objects left once the last reference is gone", str(empty["objects"])))
    finally:
        scenario.close()
        pyray_ser.shutdown()
    return scenario.outcome, facts


def settled(used: int) -> dict[str, int]:
    """Return the store's counters after living processes have reaped the dead one; they check for it once a second."""
    end = time.monotonic() + 5
    while True:
        now = pyray_ser.stats()
        if now["used"] <= used or time.monotonic() > end:
            return now
        time.sleep(0.05)


def run_pipe(dataset: Dataset, workers: int) -> Outcome:
    """Run the demo with multiprocessing, with the same questions and the same kill."""
    scenario = Scenario(PipeWay(), workers)
    try:
        scenario.publish(dataset.value)
        scenario.hand_over()
        scenario.outcome.fingerprints = scenario.read_everything()
        scenario.measure_memory()
        scenario.ask(dataset.questions)
        scenario.outcome.fingerprints_after = scenario.read_everything()
    finally:
        scenario.close()
    return scenario.outcome


def compare(store: Outcome, pipe: Outcome | None, workers: int, arrays: int) -> str:
    """Return the table with the results of both runs and the cost of the kill."""

    def row(text: str, of_store: str, of_pipe: str = "-") -> tuple[str, str, str]:
        return text, of_store, of_pipe if pipe else "not run"

    p = pipe or Outcome()
    questions = len(store.answers)
    rows = [
        row("put once", duration(store.publish)),
        row(f"handed over to {workers} workers", duration(store.hand_over), duration(p.hand_over)),
        row("the largest part, got once more", duration(store.again or 0.0)),
        row(f"memory of all {workers + 1} processes (PSS)", size(store.memory), size(p.memory)),
        row("memory a worker has for itself, at most", size(store.own), size(p.own)),
        row(f"{questions:,} questions answered in", duration(store.asking), duration(p.asking)),
        row("one worker killed by SIGKILL", f"pid {store.killed_pid}", f"pid {p.killed_pid}"),
        row("  questions asked again", str(store.asked_again), str(p.asked_again)),
        row("  slowest answer before", duration(store.slowest_before), duration(p.slowest_before)),
        row("  slowest answer after", duration(store.slowest_after), duration(p.slowest_after)),
        row("  a new worker has the data after", duration(store.replaced), duration(p.replaced)),
    ]
    return table((f"{size(arrays)} of arrays", store_name(), "multiprocessing"), rows)


def store_name() -> str:
    return f"pyray_ser {pyray_ser.__version__}"


def main(arguments: list[str] | None = None) -> int:
    chosen = parse(sys.argv[1:] if arguments is None else arguments)
    shm_before = measuring.shm_entries()
    if chosen.input is None:
        dataset = index_standard_library(chosen.block_mb * MEGABYTE, chosen.questions)
    else:
        dataset = load_dataset(chosen.input, chosen.questions)
    arrays = nbytes(dataset.value)
    print(dataset.title)
    for name, fact in dataset.facts.items():
        print(f"  {name}: {fact}")
    sys.stdout.flush()

    # With pipes, every process has its own copy, and for a short time also the pickled bytes; the parent keeps its
    # copy.
    needed = arrays * (chosen.workers + 3)
    room = measuring.available()
    pipe = None
    if needed < room:
        pipe = run_pipe(dataset, chosen.workers)
    else:
        print(
            f"not passed through multiprocessing: that takes up to {size(needed)} of memory, {size(room)} are available"
        )
    store, facts = run_store(dataset, chosen.workers, arrays)
    print()
    print(compare(store, pipe, chosen.workers, arrays))
    print()

    problems = []
    if pipe and different(pipe, store):
        problems.append("the two ways gave different answers")
    seen = store.fingerprints | store.fingerprints_after
    if pipe:
        seen |= pipe.fingerprints | pipe.fingerprints_after
    if len(seen) != 1:
        problems.append("workers saw different data")
    left_shm = measuring.left_in_shm(shm_before)
    left_processes = leftover_processes()
    facts += [
        ("all workers of all ways saw the same bytes, before and after", "yes" if len(seen) == 1 else "NO"),
        ("entries left in /dev/shm", str(len(left_shm)) + "".join(f" {entry}" for entry in sorted(left_shm))),
        ("processes left", str(len(left_processes))),
    ]
    if pipe:
        facts.insert(0, ("answers missing, or not the same both ways", str(different(pipe, store))))
    print(table(("after the kill and the end", ""), facts))
    if left_shm:
        problems.append("something is left in /dev/shm")
    if left_processes:
        problems.append(f"processes are left: {sorted(left_processes)}")
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    return 1 if problems else 0


def different(one: Outcome, other: Outcome) -> int:
    """Return the number of questions that were answered in only one run, or differently in the two runs."""
    numbers = one.answers.keys() | other.answers.keys()
    missing = object()
    return sum(one.answers.get(number, missing) != other.answers.get(number, missing) for number in numbers)


def leftover_processes() -> set[int]:
    """Return the child processes, except the tracker that multiprocessing keeps until the interpreter ends."""
    from multiprocessing import resource_tracker

    return measuring.children() - {getattr(resource_tracker._resource_tracker, "_pid", None)}


def run() -> int:
    """Run `main`, and print errors that are caused by the environment in one line."""
    try:
        return main()
    except (DemoError, pyray_ser.exceptions.PyraySerError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"demo: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
