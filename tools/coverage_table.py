"""Print what gcovr counted of csrc/store as one table, and compare what was not reached with the table of reasons.

coverage_table.py COVERAGE.json [REASONS.toml [ROOT]] [--reached]

COVERAGE.json is gcovr's `--json`, REASONS.toml is tests/c/unreached.toml, whose head says how it is written. Printed are lines and
branches of every file, how many of its unreached branches have a reason and how many have none; then the latter by line, as
keys that can be copied; then the entries whose line is in the file no more. Only those, and entries that make no sense, are
an error: what is reached differs a little from run to run. `--reached` names the entries that this run did not need.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import re
import sys
import tomllib

ENTRY = re.compile(r"(?P<kind>[a-z]+)(?: (?P<count>[1-9]\d*))?(?:: (?P<words>\S.*))?")

Key = tuple[str, str]  # file, text of the line (with " #2" if it is the second such line of the file)


@dataclasses.dataclass
class Line:
    """A line with branches."""

    file: str
    number: int
    branches: int
    unreached: int


@dataclasses.dataclass
class File:
    name: str
    lines: int
    lines_reached: int
    branches: list[Line]


@dataclasses.dataclass
class Report:
    excused: dict[str, int]  # unreached branches with a reason, by file
    unexplained: list[tuple[Line, Key, int]]  # and how many branches of the line have none
    stale: list[Key]
    reached: list[Key]  # entries that were not needed, all or in part


def read_coverage(data: dict[str, list[dict[str, object]]]) -> list[File]:
    files = []
    for file in data["files"]:
        name, found = str(file["file"]), file["lines"]
        assert isinstance(found, list)
        counted: dict[int, bool] = {}
        branches: dict[int, Line] = {}
        for line in found:
            number = line["line_number"]
            counted[number] = counted.get(number, False) or line["count"] > 0
            for branch in line.get("branches", []):
                at = branches.setdefault(number, Line(name, number, 0, 0))
                at.branches += 1
                at.unreached += branch["count"] == 0
        files.append(File(name, len(counted), sum(counted.values()), list(branches.values())))
    return files


def keys_of(name: str, source: str) -> list[Key]:
    """The key of every line."""
    seen: collections.Counter[str] = collections.Counter()
    keys = []
    for text in (line.strip() for line in source.splitlines()):
        seen[text] += 1
        keys.append((name, text if seen[text] == 1 else f"{text} #{seen[text]}"))
    return keys


def read_reasons(text: str) -> tuple[dict[Key, int], list[str]]:
    """How many branches of each line have a reason, and what is wrong with the table."""
    table = tomllib.loads(text)
    kinds = table.pop("kinds", {})
    reasons: dict[Key, int] = {}
    wrong, used = [], set()
    for name, entries in table.items():
        for line, value in entries.items():
            for entry in value if isinstance(value, list) else [value]:
                match = ENTRY.fullmatch(entry)
                if not match or match["kind"] not in kinds:
                    wrong.append(f"{name}: {line}: {entry!r} is not 'KIND', 'KIND COUNT' or one of them with ': WORDS'")
                    continue
                used.add(match["kind"])
                reasons[name, line] = reasons.get((name, line), 0) + int(match["count"] or 1)
    wrong += [f"no entry is of the kind {kind!r}" for kind in kinds if kind not in used]
    return reasons, wrong


def compare(files: list[File], reasons: dict[Key, int], sources: dict[str, str]) -> Report:
    report = Report(collections.Counter(), [], [], [])
    left = dict(reasons)
    known: set[Key] = set()
    for file in files:
        keys = keys_of(file.name, sources[file.name])
        known.update(keys)
        for line in file.branches:
            key = keys[line.number - 1]
            excused = min(line.unreached, reasons.get(key, 0))
            if key in left:
                left[key] -= excused
            report.excused[file.name] += excused
            if line.unreached > excused:
                report.unexplained.append((line, key, line.unreached - excused))
    report.stale = [key for key in reasons if key not in known]
    report.reached = [key for key, count in left.items() if count and key in known]
    return report


def share(covered: int, total: int) -> str:
    return f"{covered:5}/{total:<5} {100 * covered / total if total else 100:5.1f} %"


def print_table(files: list[File], report: Report) -> None:
    print(f"{'file':30}{'lines':>19}   {'branches':>19}   {'unreached: reason':>17}   {'none':>4}")
    rows = []
    without: collections.Counter[str] = collections.Counter()
    for line, _, count in report.unexplained:
        without[line.file] += count
    for file in files:
        total = sum(line.branches for line in file.branches)
        reached = total - sum(line.unreached for line in file.branches)
        rows.append(
            (file.name, file.lines_reached, file.lines, reached, total, report.excused[file.name], without[file.name])
        )
    rows.append(("all", *(sum(row[column] for row in rows) for column in range(1, 7))))  # type: ignore[arg-type, misc]
    for name, lines_reached, lines, reached, total, excused, none in rows:
        print(f"{name:30}{share(lines_reached, lines):>19}   {share(reached, total):>19}   {excused:17}   {none:4}")


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coverage", type=pathlib.Path)
    parser.add_argument("reasons", type=pathlib.Path, nargs="?")
    parser.add_argument("root", type=pathlib.Path, nargs="?", default=pathlib.Path())
    parser.add_argument("--reached", action="store_true")
    given = parser.parse_args(args)
    files = read_coverage(json.loads(given.coverage.read_text()))
    reasons, wrong = read_reasons(given.reasons.read_text()) if given.reasons else ({}, [])
    # Also files that have entries and were not counted at all: their entries are stale only if the lines are gone.
    names = [file.name for file in files]
    missing = {name for name, _ in reasons} - set(names)
    files += [File(name, 0, 0, []) for name in sorted(missing) if (given.root / name).exists()]
    report = compare(files, reasons, {file.name: (given.root / file.name).read_text() for file in files})
    print_table([file for file in files if file.name in names], report)
    if given.reasons:
        for line, (_, text), count in report.unexplained:
            print(f"without a reason: {line.file}:{line.number}: {count} of {line.branches}: {text}")
        print(f"{len(reasons)} reasons, {len(report.reached)} of them not needed this time")
        if given.reached:
            for name, text in report.reached:
                print(f"reached: {name}: {text}")
    for name, text in report.stale:
        print(f"stale: {name} has no such line any more: {text}")
    for complaint in wrong:
        print(f"wrong: {complaint}")
    return 1 if report.stale or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
