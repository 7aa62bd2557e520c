#!/usr/bin/env python3
"""Run all benchmarks: a comparison of libraries, the figures with limits, and single operations.

    python bench/run.py --out DIR                       in the environment that pyray_ser is installed in
    python bench/run.py --out DIR --peers --python PY   also Ray, Plasma and vineyard, each in its own environment
    python bench/run.py --out DIR --only comparison

Writes comparison.json, comparison.png, claims.json, operations.json and the logs of the libraries into DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from comparison import Comparison, WorkerError, compare, environment, installed
from libraries import PEERS
from measuring.claim import Claim, table
from measuring.data import VALUES
from measuring.program import document, measure_all
from plot import draw
from rows import NAMES
from rows.peers import judge

PARTS = ("comparison", "claims", "operations")


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + os.linesep)
    print(f"written: {path}", file=sys.stderr)


def run_comparison(options: argparse.Namespace) -> Comparison:
    interpreters = installed()
    if options.peers:
        for title in PEERS:
            try:
                interpreters[title] = environment(title, options.out / "peers", options.python)
            except subprocess.CalledProcessError as error:
                print(f"{title} cannot be installed: {error}", file=sys.stderr)
    values = [name for name in VALUES if not options.quick or name in ("int", "80 B array", "1 KB dict")]
    logs = options.out / "logs"
    logs.mkdir(exist_ok=True)
    result = compare(interpreters, values, 3 if options.quick else 9, 1 if options.quick else 3, logs)
    print(result.table())
    _write(options.out / "comparison.json", result.as_dict())
    picture = options.out / "comparison.png"
    if draw(result, picture):
        print(f"written: {picture}", file=sys.stderr)
    else:
        print("no picture: matplotlib is not installed", file=sys.stderr)
    return result


def run_operations(options: argparse.Namespace) -> bool:
    folder = Path(__file__).resolve().parent / "operations"
    command = [
        *(sys.executable, "-P", "-m", "pytest", str(folder), "-q", "-p", "no:cacheprovider", "-c", os.devnull),
        *("--rootdir", str(folder), "--import-mode=importlib", f"--benchmark-json={options.out / 'operations.json'}"),
        *("--benchmark-columns=min,median,iqr,rounds,iterations", "--benchmark-sort=name"),
        *(["--benchmark-disable"] if options.quick else []),
    ]
    return subprocess.run(command).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything that is written")
    parser.add_argument("--peers", action="store_true", help="also measure Ray, Plasma and vineyard, installed by pip")
    parser.add_argument(
        "--python", default=sys.executable, metavar="PY", help="interpreter for the peers' environments"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated (default: all)")
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it runs, figures mean nothing")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    parts = options.only or PARTS
    claims: list[Claim] = []
    good = True
    if "comparison" in parts:
        try:
            result = run_comparison(options)
        except WorkerError as error:
            print(f"comparison: {error}", file=sys.stderr)
            good = False
        else:
            claims += [claim for claim in judge(result) if claim.figure is not None or options.peers]
    if "claims" in parts:
        claims += measure_all(Path(__file__).resolve().with_name("claims.py"), NAMES, options.quick)
    if claims:
        print()
        print(table(claims))
        _write(options.out / "claims.json", document(claims))
    if "operations" in parts:
        print()
        good &= run_operations(options)
    # A figure that misses its limit on another machine is a finding, not a failure; a figure that could not be
    # measured is a failure.
    return 0 if good and not any(claim.detail.get("failed") for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
