#!/usr/bin/env python3
"""Run joblib's Parallel over 1 GB, with results of 100 MB; compare its memmapping with the same code under `install()`.

    python bench/pools.py [--quick] [--json FILE]

Three contenders take turns, each a separate process with its own workers: joblib unchanged; the same array under
`install()`; and an array in the store under `install()`. The time is that of the whole call, which consumes the results
as they arrive. Memory is the largest total of the proportional set sizes of the process and its workers; another
process samples it during a call that is not timed. The largest total is split by process and by kind of memory: private
memory, the store, joblib's files.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measuring.claim import Claim, at_least, at_most, measured
from measuring.program import main
from measuring.timing import interleaved, median, median_ratio

JOBS = 2
CONTENDERS = {"joblib": "joblib's memmapping", "given": "install()", "stored": "install(), array in the store"}


# ---- one contender ------------------------------------------------------------------------------------------------------


def part(array, number: int, length: int):
    """Return a result with a tenth of the array's size; the worker gets the complete array as an argument."""
    return array[:length] + array[number * length : (number + 1) * length]


def serve(kind: str, nbytes: int) -> None:
    import numpy as np
    from joblib import Parallel, delayed

    import pyray_ser

    array = np.ones(nbytes // 8)
    if kind != "joblib":
        pyray_ser.init(capacity=4 * nbytes)
        pyray_ser.install()
    if kind == "stored":
        array = pyray_ser.get(pyray_ser.put(array))
    length = len(array) // 10

    def call() -> float:
        began = time.perf_counter()
        results = Parallel(JOBS, return_as="generator")(delayed(part)(array, i, length) for i in range(10))
        total = sum(float(result[0] + result[-1]) for result in results)
        assert total == 40.0, total
        return time.perf_counter() - began

    print(call(), flush=True)
    for _ in sys.stdin:
        print(call(), flush=True)
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)


# ---- the comparing process -------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def total_pss(pid: int) -> int:
    total = 0
    for one in descendants(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total


def kind_of(path: str) -> str:
    if "memfd:pyray_ser" in path or "/dev/shm/pyray_ser" in path:
        return "store"
    if "joblib" in path or "loky" in path:
        return "files"
    return "private" if not path.startswith("/") else "libraries"


def split_pss(pid: int) -> dict[str, int]:
    """Return the proportional set sizes of the "caller" and of all "workers", by kind of mapping."""
    found: dict[str, int] = {}
    for one in descendants(pid):
        who, kind = "caller" if one == pid else "workers", "private"
        try:
            lines = Path(f"/proc/{one}/smaps").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.split(None, 5)
            if words[0].endswith(":"):
                if words[0] == "Pss:":
                    found[f"{who}: {kind}"] = found.get(f"{who}: {kind}", 0) + (int(words[1]) << 10)
                elif words[0] == "Anonymous:" and kind != "private":
                    # Pages of a copy-on-write mapping that were written are private.
                    found[f"{who}: {kind}"] -= int(words[1]) << 10
                    found[f"{who}: private"] = found.get(f"{who}: private", 0) + (int(words[1]) << 10)
            else:
                kind = kind_of(words[5] if len(words) > 5 else "")
    return found


class Contender:
    def __init__(self, kind: str, nbytes: int) -> None:
        command = [sys.executable, "-P", __file__, "--serve", kind, str(nbytes)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def _answer(self) -> float:
        return float(self.process.stdout.readline())

    def _ask(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def seconds(self) -> float:
        self._ask()
        return self._answer()

    def memory(self) -> tuple[int, dict[str, int]]:
        self._ask()
        largest, split = 0, {}
        while not select.select([self.process.stdout], [], [], 0.02)[0]:
            now = total_pss(self.process.pid)
            if now > largest:
                largest, split = now, split_pss(self.process.pid)
        self._answer()
        return largest, split

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def joblib(quick: bool) -> list[Claim]:
    """Compare the three contenders on 1 GB, or on 200 MB if `quick` is true."""
    nbytes = 200_000_000 if quick else 1_000_000_000
    contenders = {kind: Contender(kind, nbytes) for kind in CONTENDERS}
    times = interleaved(3, {kind: contender.seconds for kind, contender in contenders.items()}, warm_up=0)
    looked = {kind: contender.memory() for kind, contender in contenders.items()}
    for contender in contenders.values():
        contender.end()
    claims = []
    for kind, name in CONTENDERS.items():
        largest, split = looked[kind]
        parts = sorted(split.items(), key=lambda part: -part[1])
        note = ", ".join(f"{what} {size / 1e9:.2f}" for what, size in parts if size > largest / 100)
        claims.append(measured("joblib", f"{name}, memory", largest / 2**30, "GiB", note=f"GB: {note}"))
        if kind != "joblib":
            faster, share = median_ratio(times["joblib"], times[kind]), largest / looked["joblib"][0]
            note = f"{median(times['joblib']):.2f} and {median(times[kind]):.2f} s"
            claims.append(at_least("joblib", f"time of joblib's memmapping over {name}", faster, 1, "x", note=note))
            claims.append(at_most("joblib", f"memory of {name} over joblib's memmapping", share, 1 / 3, "x"))
    return claims


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(main(__file__, __doc__, {"joblib": joblib}, packages=("joblib",), timeout=3600))
