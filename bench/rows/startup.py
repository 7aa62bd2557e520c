"""Measure the time from the start of an interpreter until the program has put and got its first object."""

from __future__ import annotations

import subprocess
import sys

from measuring.claim import Claim, at_most
from measuring.timing import interleaved, typical

BASE = "import time, numpy; a = numpy.arange(10.0); print(time.perf_counter())"
FIRST = "import time, numpy; a = numpy.arange(10.0); import pyray_ser; b = pyray_ser.get(pyray_ser.put(a)); print(time.perf_counter())"


def first_put_and_get(quick: bool) -> list[Claim]:
    """Measure whole processes in pairs; parent and children read the same system clock."""
    from time import perf_counter

    def run(code: str) -> float:
        start = perf_counter()
        out = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
        return float(out.stdout) - start

    results = interleaved(3 if quick else 21, {"numpy": lambda: run(BASE), "first": lambda: run(FIRST)})
    beyond = typical(results["first"]) - typical(results["numpy"])
    return [
        at_most(
            "start",
            "fresh interpreter to first put + get, beyond importing numpy",
            beyond * 1e3,
            40,
            "ms",
            numpy_ms=typical(results["numpy"]) * 1e3,
        )
    ]
