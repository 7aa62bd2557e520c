"""Copy random graphs and layouts of buffers with the picklers and the store, and compare the copies with the originals.

    python tests/fuzz/run_graphs.py --seed 1234             one graph, with the ways and disturbances of this seed
    python tests/fuzz/run_graphs.py --start 0 --count 10000 --processes 2
    python tests/fuzz/run_graphs.py --count 1000000 --threads 8
    python tests/fuzz/run_graphs.py --seed 1234 --show      also print the graph

A seed determines the graph, the ways in which it is copied (see `graphs_ways`), and the disturbances during the copies.
A fault may depend on earlier seeds, for example on a full cache, or on another thread. Only a run with the same
`--start` reproduces such a fault; the failure report contains the value of `--start`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import faulthandler
import gc
import importlib
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import graphs_layouts
import graphs_make
import graphs_same
import graphs_ways

import pyray_ser

_WEIGHTS = [weight for _, weight, _, _ in graphs_ways.WAYS.values()]
_NAMES = list(graphs_ways.WAYS)


@dataclasses.dataclass
class Fault:
    seed: int
    way: str
    text: str

    def __str__(self):
        return f"seed {self.seed}, {self.way}: {self.text}"


def make(seed):
    """
    Return the graph or layout of a seed.

    Returns
    -------
    tuple of (object, Builder or None)
    """
    if seed % 4 == 3:
        return graphs_layouts.layout(seed, memory_views=seed % 8 == 3, frames=seed % 16 == 3), None
    builder = graphs_make.graph(seed, size=(14, 14, 5)[seed % 3])
    return builder.root, builder


def ways(seed, only=None):
    """Return the names of the ways to copy the graph of a seed, and their random number generator."""
    r = random.Random(~seed)
    if only:
        return list(only), r
    return r.choices(_NAMES, _WEIGHTS, k=2), r


def fault_of(seed, protocol, original, copy, own_memory):
    """Describe what is wrong with a copy, or return None; a copy that equals the standard library's copy is correct."""
    text = graphs_same.difference(original, copy)
    if text is None:
        return graphs_same.overlapping(copy) if own_memory and seed % 8 == 0 else None
    try:
        standard = graphs_ways.standard_copy(original, protocol)
    except Exception:
        return text
    return text if graphs_same.difference(standard, copy) is not None else None


def same_refusal(obj, protocol, error):
    """Return whether the standard library rejects the object with the same kind of error."""
    try:
        graphs_ways.standard_copy(obj, protocol)
    except Exception as expected:
        return isinstance(error, type(expected)) or isinstance(expected, type(error))
    return False


def check(seed, context, only=None, disturb=True):
    """
    Copy the graph of one seed in each of its ways.

    Parameters
    ----------
    seed : int
    context : Context
    only : list of str, optional
        Names of ways; by default the seed determines them.
    disturb : bool
        Whether finalizers that use the picklers may run in the meantime.

    Returns
    -------
    list of Fault
    """
    obj, builder = make(seed)
    chosen, context.r = ways(seed, only)
    context.by_value = builder is not None and builder.by_value
    views = builder.views if builder is not None else seed % 8 == 3
    faults = []
    for name in chosen:
        function, _, keeps_views, own_memory = graphs_ways.WAYS[name]
        if (views and not keeps_views) or (context.by_value and name in ("older", "file", "standard", "pickler")):
            name, function, keeps_views, own_memory = (
                "serialize",
                *(graphs_ways.WAYS["serialize"][i] for i in (0, 2, 3)),
            )
        things = builder.pool if builder is not None else ()
        inside = (
            graphs_ways.disturbed(context.r, things)
            if disturb and context.r.random() < 0.25
            else contextlib.nullcontext()
        )
        found = []
        context.protocol = 5
        try:
            with inside:
                found.extend(function(obj, context))
        except Exception as error:
            if not same_refusal(obj, context.protocol, error):
                faults.append(Fault(seed, name, "".join(traceback.format_exception(error)).strip()))
            continue
        for label, copy, *other in found:
            text = fault_of(seed, context.protocol, other[0] if other else obj, copy, own_memory)
            if text:
                faults.append(Fault(seed, label, text))
    return faults


def run(start, count, threads=1, only=None, disturb=True, most=5, child=None, spill=False, progress=None):
    """
    Check many graphs in this process.

    Parameters
    ----------
    start, count : int
        The first seed and the number of seeds.
    threads : int
    only : list of str, optional
    disturb : bool
    most : int
        The number of faults after which to stop.
    child : Child, optional
    spill : bool
        Whether the store is small and spills.
    progress : str, optional
        A file into which each thread writes its current seed.

    Returns
    -------
    list of Fault
    """
    faults = []
    lock = threading.Lock()
    seeds = iter(range(start, start + count))

    file = os.open(progress, os.O_WRONLY) if progress else -1

    def work(number=0):
        context = graphs_ways.Context(child, spill)
        while len(faults) < most:
            with lock:
                batch = [seed for seed, _ in zip(seeds, range(16))]
            if not batch:
                return
            for seed in batch:
                if file >= 0:
                    os.pwrite(file, seed.to_bytes(8, "little"), 8 * number)
                faults.extend(check(seed, context, only, disturb))

    if threads == 1:
        work()
        return faults
    # Import these modules before threads start: up to Python 3.11, a finalizer that imports a module while its thread
    # waits for an import never releases the module's lock.
    for name in graphs_make.IMPORTED:
        importlib.import_module(name)
    for name in pyray_ser.__all__:
        getattr(pyray_ser, name)  # imports the module that defines it
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    return faults


@contextlib.contextmanager
def store(spill, threads=1):
    """Open a store of normal size, or a small one that spills but has room for what all threads read at one time."""
    with tempfile.TemporaryDirectory(prefix="graphs-") as folder:
        if spill:
            pyray_ser.init(capacity=max(12, 6 * threads) << 20, spill_dir=folder)
        else:
            pyray_ser.init(capacity=1 << 30)
        try:
            yield
        finally:
            gc.collect()
            pyray_ser.shutdown()


def run_with_store(start, count, threads=1, only=None, disturb=True, most=5, spill=False, child=True, progress=None):
    """Check many graphs, using a store and another process."""
    faulthandler.enable()
    with store(spill, threads):
        other = graphs_ways.Child() if child else None
        try:
            faults = run(start, count, threads, only, disturb, most, other, spill, progress)
            if spill:
                print(f"up to {graphs_ways.Context.most_spilled} objects were in spill files")
            return faults
        finally:
            if other:
                other.close()


# ---- supervising: a fault may be a crash, so graphs are checked in separate processes ------------------------------------


def _fixed_addresses():
    """Disable address space randomization for child processes: addresses determine which classes share a cache slot."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.personality(libc.personality(0xFFFFFFFF) | 0x0040000)


def _worker(options, start, count, spill, extra=()):
    """Start a process that checks some seeds; return (process, file that contains the current seed)."""
    progress = tempfile.NamedTemporaryFile(prefix="graphs-")
    command = [sys.executable, "-P", os.path.abspath(__file__), "--here", "--progress", progress.name]
    command += [
        "--start",
        str(start),
        "--count",
        str(count),
        "--threads",
        str(options.threads),
        "--most",
        str(options.most),
    ]
    command += ["--ways", options.ways] if options.ways else []
    command += ["--spill"] if spill else []
    command += ["--quiet"] if options.quiet else []
    environment = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
    environment |= {"PYTHONHASHSEED": "0", "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        [*command, *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=_fixed_addresses,
    )
    return process, progress


def _seeds_at_work(progress, threads):
    data = progress.read()
    return sorted({int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(min(threads, len(data) // 8))})


def _finish(process, progress, threads):
    """Wait for a worker; return (failed, its output, the seeds in progress when it ended)."""
    output, _ = process.communicate()
    with progress:
        seeds = _seeds_at_work(progress, threads)
    if process.returncode not in (0, 1):
        output += (
            f"\nthe process ended with status {process.returncode} while it worked on seed {', '.join(map(str, seeds))}"
        )
    return process.returncode != 0, output.strip(), seeds


def _first_seed(output, seeds):
    found = re.search(r"^seed (\d+),", output, re.MULTILINE)
    return int(found.group(1)) if found else seeds[0]


def _shortest(options, seed, start, spill):
    """Return the shortest command that reproduces the fault; if none does, return a suggestion."""
    for before in (0, 10, 100, 1000):
        first = max(start, seed - before)
        failed, _, _ = _finish(*_worker(options, first, seed - first + 1, spill), options.threads)
        if failed:
            words = f"--seed {seed}" if before == 0 else f"--start {first} --count {seed - first + 1}"
            words += f" --threads {options.threads}" if options.threads > 1 else ""
            words += f" --ways {options.ways}" if options.ways else ""
            return f"again with: python tests/fuzz/run_graphs.py {words}{' --spill' if spill else ''}"
    return f"seed {seed} with the 1000 before it does not show it again: it needs --start {start}, or a race of threads"


def supervise(options, start, count):
    """
    Check graphs in other processes, each with its own store, and report the faults.

    Parameters
    ----------
    options : argparse.Namespace
    start, count : int

    Returns
    -------
    bool
        Whether any process failed.
    """
    share = -(-count // options.processes)
    workers = []
    for i in range(options.processes):
        first, number = start + i * share, min(share, count - i * share)
        spill = options.spill or (options.processes > 1 and i % 2 == 1)
        if number > 0:
            workers.append((first, spill, *_worker(options, first, number, spill, ["--show"] if options.show else [])))
    failed = False
    for first, spill, process, progress in workers:
        bad, output, seeds = _finish(process, progress, options.threads)
        print(output, flush=True)
        if bad and options.seed is None:
            print(_shortest(options, _first_seed(output, seeds), first, spill), flush=True)
        failed = failed or bad
    return failed


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="check one seed")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="each has its own store; every second one spills")
    parser.add_argument("--ways", help=f"only these: {', '.join(graphs_ways.WAYS)}")
    parser.add_argument("--spill", action="store_true", help="in a small store that spills")
    parser.add_argument("--quiet", action="store_true", help="no disturbances")
    parser.add_argument("--most", type=int, default=5, help="stop after so many faults")
    parser.add_argument("--show", action="store_true", help="print the graph of the first seed")
    parser.add_argument("--here", action="store_true", help="in this process, for a debugger")
    parser.add_argument("--progress", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    start, count = (options.start, options.count) if options.seed is None else (options.seed, 1)
    if not options.here:
        return int(supervise(options, start, count))
    only = options.ways.split(",") if options.ways else None
    if options.show:
        print(repr(make(start)[0])[:5000], "\n", ways(start, only)[0])
    began = time.perf_counter()
    faults = run_with_store(
        start,
        count,
        threads=options.threads,
        only=only,
        disturb=not options.quiet,
        most=options.most,
        spill=options.spill,
        progress=options.progress,
    )
    seconds = time.perf_counter() - began
    for fault in faults:
        print(fault)
    print(f"{count} graphs from seed {start}, {options.threads} threads: {len(faults)} faults, {seconds:.1f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
