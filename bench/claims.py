#!/usr/bin/env python3
"""Measure the figures of all rows and compare each with its limit.

    python bench/claims.py                  all of them, as a table
    python bench/claims.py get-small startup --json figures.json
    python bench/claims.py --list

Each row runs in a separate process. The figure of a row that compares two things is a ratio of interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measuring.claim import Claim, markdown, table
from measuring.machine import describe, versions
from rows import NAMES, measure


def measure_apart(name: str, quick: bool = False, timeout: float = 900) -> list[Claim]:
    """Measure one row in a fresh process; if that fails, return a claim without a figure, with the reason."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--row", name, *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return [Claim(name, name, None, "<=", 0, "", {"failed": True, "skipped": f"took more than {timeout:.0f} s"})]
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return [
            Claim(name, name, None, "<=", 0, "", {"failed": True, "skipped": words[-1], "stderr": done.stderr[-4000:]})
        ]
    sys.stderr.write(done.stderr)
    return [Claim.from_dict(claim) for claim in json.loads(done.stdout)]


def document(claims: list[Claim]) -> dict:
    """Return the data for the JSON file."""
    return {
        "machine": describe(),
        "versions": versions("numpy", "cloudpickle", "pyray_ser"),
        "claims": [claim.as_dict() for claim in claims],
    }


def measure_all(names: list[str], quick: bool = False) -> list[Claim]:
    """Measure rows one after another, and show the current row on stderr."""
    claims: list[Claim] = []
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}", file=sys.stderr, flush=True)
        claims += measure_apart(name, quick)
    return claims


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only these rows (default: all)")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it runs, figures mean nothing")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--markdown", action="store_true", help="print the table as bench/RESULTS.md has it")
    parser.add_argument("--row", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(NAMES))
        return 0
    if options.row:
        claims = measure(options.row, options.quick)
        json.dump([claim.as_dict() for claim in claims], sys.stdout)
        return 0
    unknown = set(options.rows) - set(NAMES)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))} (see --list)")
    claims = measure_all(options.rows or NAMES, options.quick)
    print(markdown(claims) if options.markdown else table(claims))
    if options.json:
        Path(options.json).write_text(json.dumps(document(claims), indent=1) + os.linesep)
    return 0 if all(claim.passed for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
