#!/usr/bin/env python3
"""Count instructions per element with callgrind, for each row of the pickler's table: `_pickle`, ours, Apache Fory.

    python bench/pickler_instructions.py                 the table (minutes: callgrind is 50 times slower)
    python bench/pickler_instructions.py ints lambda     rows whose name contains one of the words
    python bench/pickler_instructions.py --json out.json
    python bench/pickler_instructions.py --safe          compare loads with allow= and without
    python bench/pickler_instructions.py --profile dumps,ours one    functions with their counts, for rows with a word

Instruction counts do not depend on other load; two runs differ only by a few per thousand, because addresses determine
hash collisions. One process runs all rows under callgrind. Before each measurement the process tells callgrind to
reset the counters, and afterwards to write them; a few lines of C, compiled on demand, send these client requests. The
script measures the cost of the loop itself in the same way and subtracts it. The script needs valgrind with its
headers, and a C compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

CHILD = "PYRAY_SER_BENCH_INSTRUCTIONS"
SIDES = ("dumps", "loads")
REQUESTS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; CALLGRIND_TOGGLE_COLLECT; }
void end(const char *name)
{ CALLGRIND_TOGGLE_COLLECT; CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


def elements(name):
    """Return the number of elements of a row, which is the number at the start of its name, or 1."""
    found = re.match(r"([\d,]+) ", name)
    return int(found[1].replace(",", "")) if found else 1


# ---- the process under callgrind ----------------------------------------------------------------------------------------


def measure_all(library, words):
    """Run every row between the requests to reset and to write the counters; callgrind writes one file per row."""
    import cloudpickle
    from pickler import SAFE_ROWS, fory_loops, loop_of, pickle_loops, safe_loops
    from pickler_data import rows

    requests = ctypes.CDLL(library)
    begin, end = requests.begin, requests.end
    end.argtypes = [ctypes.c_char_p]

    def count(label, loop, times):
        for _ in range(3):
            loop(1)
        name = label.encode()
        begin()
        loop(times)
        end(name)

    count("|-|loop|1000", loop_of("pass"), 1000)
    if "--safe" in words:
        for name, make, *_ in rows():
            if name in SAFE_ROWS:
                times = 1 if elements(name) > 1000 else 100
                for whose, loop in safe_loops(make()).items():
                    count(f"{name}|loads|{whose}|{times}", loop, times)
        return
    for name, make, *_ in rows():
        if words and not any(word in name for word in words):
            continue
        times = 1 if elements(name) > 1000 or name.startswith("JSON") else 100
        obj = make()
        loops = pickle_loops(obj, cloudpickle.dumps if name == "lambda" else pickle.dumps) | fory_loops(obj)
        for (side, whose), loop in loops.items():
            count(f"{name}|{side}|{whose}|{times}", loop, times)


# ---- the parent ---------------------------------------------------------------------------------------------------------


def under_callgrind(folder, words):
    """Run the measuring process under callgrind; return {label: instructions}."""
    source, library = folder / "requests.c", folder / "requests.so"
    source.write_text(REQUESTS)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--instr-atstart=no",
               f"--callgrind-out-file={folder}/out", "--compress-strings=no", sys.executable, *(["-P"] if sys.flags.safe_path else []),
               __file__, *words]  # fmt: skip
    environment = os.environ | {CHILD: str(library), "PYTHONHASHSEED": "0", "PYTHONMALLOC": "pymalloc"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    counts = {}
    for path in folder.glob("out.*"):
        text = path.read_text(errors="replace")
        label = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.M)
        total = re.search(r"^totals: (\d+)", text, re.M) or re.search(r"^summary: (\d+)", text, re.M)
        if label and total:
            counts[label[1]] = int(total[1])
            if "|-|" not in label[1]:
                path.rename(folder / label[1].replace("|", "_").replace(" ", "_").replace(",", ""))
    return counts


def table(counts):
    """Return [{name, elements, dumps: {pickler: instructions per element}, loads: ...}]."""
    loop = counts.pop("|-|loop|1000") / 1000
    found = {}
    for label, total in counts.items():
        name, side, whose, times = label.split("|")
        row = found.setdefault(name, {"name": name, "elements": elements(name), "dumps": {}, "loads": {}})
        row[side][whose] = (total / int(times) - loop) / elements(name)
    return list(found.values())


def main():
    if os.environ.get(CHILD):
        measure_all(os.environ[CHILD], sys.argv[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--safe", action="store_true", help="what safe mode costs")
    parser.add_argument("--profile", metavar="SIDE,WHOSE", help="print the functions of these measurements")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="instructions-") as name:
        folder = Path(name)
        rows = table(under_callgrind(folder, ["--safe"] if options.safe else options.words))
        if options.safe:
            print(f"{'instructions per element':<28}{'plain':>10}{'safe':>10}{'more':>8}{'allow=None':>12}{'more':>8}")
            for row in rows:
                plain, safe, none = (row["loads"][whose] for whose in ("plain", "safe", "none"))
                print(
                    f"{row['name']:<28}{plain:>10,.1f}{safe:>10,.1f}{safe / plain - 1:>8.1%}{none:>12,.1f}{safe / none - 1:>8.1%}"
                )
            return
        if options.profile:
            side, whose = options.profile.split(",")
            for path in sorted(folder.glob(f"*_{side}_{whose}_*")):
                print(path.name)
                subprocess.run(["callgrind_annotate", "--threshold=95", path], check=True)
            return
    from pickler_data import rows as data_rows

    order = [name for name, *_ in data_rows()]
    rows.sort(key=lambda row: order.index(row["name"]))
    print(
        f"{'instructions per element':<28}"
        + "".join(f"{f'{side} {who}':>15}" for side in SIDES for who in ("_pickle", "ours", "fory"))
    )
    for row in rows:
        cells = [row[side].get(who) for side in SIDES for who in ("_pickle", "ours", "fory")]
        print(f"{row['name']:<28}" + "".join(f"{'-' if cell is None else f'{cell:,.0f}':>15}" for cell in cells))
    if options.json:
        options.json.write_text(json.dumps({"python": sys.version, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
