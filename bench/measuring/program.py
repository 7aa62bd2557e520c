"""The command line of the benchmarks: select rows, measure each in a new process, print figures and verdicts.

A row is a function that gets whether to be quick, and returns claims. A program has one dict of rows by name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from measuring.claim import Claim, markdown, table
from measuring.machine import describe, versions

__all__ = ["document", "main", "measure_all"]

Row = Callable[[bool], list[Claim]]


def _measure_apart(script: Path, name: str, quick: bool, timeout: float) -> list[Claim]:
    """Measure one row in a new process; if that fails, return a claim without a figure, with the reason."""
    command = [sys.executable, "-P", str(script), "--row", name, *(["--quick"] if quick else [])]
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


def measure_all(script: Path, names: list[str], quick: bool = False, timeout: float = 900) -> list[Claim]:
    """Measure rows of a program one after another, and show the current row on stderr."""
    claims: list[Claim] = []
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}", file=sys.stderr, flush=True)
        claims += _measure_apart(script, name, quick, timeout)
    return claims


def document(claims: list[Claim], packages: Iterable[str] = ("cloudpickle",)) -> dict:
    """Return the data for the JSON file."""
    return {
        "machine": describe(),
        "versions": versions("numpy", "pyray_ser", *packages),
        "claims": [claim.as_dict() for claim in claims],
    }


def main(
    script: str,
    doc: str | None,
    rows: Mapping[str, Row],
    *,
    on_request: Mapping[str, Row] | None = None,
    packages: Iterable[str] = ("cloudpickle",),
    timeout: float = 900,
) -> int:
    """
    Run a benchmark program.

    Parameters
    ----------
    script, doc : str
        Path and docstring of the program.
    rows : dict of str to callable
    on_request : dict of str to callable, optional
        Rows that are measured only if the command line names them.
    packages : iterable of str
        Packages whose versions the JSON file records.
    timeout : float
        Maximum number of seconds for a row.

    Returns
    -------
    int
        The exit status: 0 if every figure is within its limit.
    """
    known = {**rows, **(on_request or {})}
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only rows with this name, or with it in their name")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it runs, figures mean nothing")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--markdown", action="store_true", help="print the table as bench/RESULTS.md has it")
    parser.add_argument("--row", choices=known, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(known))
        return 0
    if options.row:
        claims = known[options.row](options.quick)
        json.dump([claim.as_dict() for claim in claims], sys.stdout)
        return 0
    names = list(rows)
    if options.rows:
        found = {word: [word] if word in known else [name for name in rows if word in name] for word in options.rows}
        if missing := [word for word, some in found.items() if not some]:
            parser.error(f"no such row: {', '.join(missing)} (see --list)")
        names = list(dict.fromkeys(name for some in found.values() for name in some))
    claims = measure_all(Path(script).resolve(), names, options.quick, timeout)
    print(markdown(claims) if options.markdown else table(claims))
    if options.json:
        Path(options.json).write_text(json.dumps(document(claims, packages), indent=1) + os.linesep)
    return 0 if all(claim.passed for claim in claims if claim.target is not None) else 1
