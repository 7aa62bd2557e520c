"""Print gcovr's counts for csrc/store as a table, and match each unreached branch with a reason in the source.

coverage_table.py COVERAGE.json [ROOT] [--reached]

COVERAGE.json is the output of gcovr's `--json`.  A reason is a comment on a separate line in front of the statement
whose branches it explains:

    /* unreached by tests (race, 2 branches): the owner died meanwhile */

A reason has a kind (one of KINDS), the number of branches that it explains (default 1), and a text if the kind alone
does not explain them; several such comments may follow each other.  A race has a reason even if some runs reach it.

The table shows the lines and branches of every file, and how many unreached branches have a reason and how many have
none. A list of the branches without a reason follows, by line. Only an invalid comment is an error, because the reached
branches differ a little from run to run. `--reached` lists the reasons that this run did not need.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import re
import sys

KINDS = {
    "failing call": "A system call fails: `make failpoints` makes each call fail in turn, which takes longer than this run.",
    "no injected fault": "A system or library call fails or is interrupted, and no test injects that at this place.",
    "other kernel": "Needs another kernel, C library, file system, processor or size of machine than the tests have.",
    "damaged tables": "A defence against damaged tables or texts; torture_fuzz flips bits at random, no test aims at this branch.",
    "race": "Two threads or processes meet between the same two instructions; storms and tests of threads reach some in some runs.",
    "death": "A death followed by actions of others; `make failpoints` and the storm try every combination.",
    "impossible": "Excluded by an earlier check or by the present callers: a second defence.",
    "compiler": "Not a path of the source: an inlined function whose arguments the compiler knows.",
    "uncounted": "Reached, but by a process that cannot write its counters.",
    "no test": "A case that is possible and has no test here.",
}
MARKER = re.compile(r"\s*/\* unreached by tests (?P<entry>.*?) \*/\s*")
ENTRY = re.compile(r"\((?P<kind>[a-z ]+)(?:, (?P<count>[1-9]\d*) branches)?\)(?:: (?P<words>\S.*))?")


@dataclasses.dataclass
class Line:
    """A line of source code that has branches."""

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
class Reason:
    """The reason why `count` branches in the lines from `first` to `last` are not reached."""

    file: str
    first: int
    last: int
    count: int


@dataclasses.dataclass
class Report:
    excused: dict[str, int]  # file -> number of unreached branches that have a reason
    unexplained: list[tuple[Line, int]]  # lines, and how many of their unreached branches have no reason
    reached: list[Reason]  # reasons for branches that this run has reached, all or some of them


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


def statement(lines: list[str], first: int) -> int:
    """Return the number of the last line of the statement that begins in line `first`; both count from 1."""
    depth = 0
    for number in range(first, len(lines) + 1):
        code = re.sub(r"/\*.*?\*/|//.*|\"(?:\\.|[^\"\\])*\"", "", lines[number - 1]).rstrip("\\ \t")
        depth += code.count("(") - code.count(")")
        follows = lines[number].lstrip() if number < len(lines) else ""
        if (
            depth <= 0
            and not follows.startswith(("&&", "||", "?", ":", "|", "+"))
            and not code.endswith(("=", "?", ":"))
        ):
            return number
    return len(lines)


def read_reasons(name: str, source: str) -> tuple[list[Reason], list[str]]:
    """Return the reasons in a file, and descriptions of the invalid ones."""
    lines = source.splitlines()
    reasons, wrong, waiting = [], [], []
    for number, text in enumerate(lines, 1):
        marker = MARKER.fullmatch(text)
        if not marker:
            if "unreached by tests" in text:
                wrong.append(f"{name}:{number}: a reason has a line of its own")
            reasons += [Reason(name, number, statement(lines, number), count) for count in waiting]
            waiting = []
            continue
        entry = ENTRY.fullmatch(marker["entry"])
        if not entry or entry["kind"] not in KINDS:
            wrong.append(
                f"{name}:{number}: {marker['entry']!r} is not '(KIND)' or '(KIND, COUNT branches)', optionally with ': WORDS'"
            )
        else:
            waiting.append(int(entry["count"] or 1))
    if waiting:
        wrong.append(f"{name}:{len(lines)}: a reason without a statement behind it")
    return reasons, wrong


def compare(files: list[File], reasons: list[Reason]) -> Report:
    report = Report(collections.Counter(), [], [])
    left = [reason.count for reason in reasons]
    for file in files:
        for line in file.branches:
            missing = line.unreached
            for index, reason in enumerate(reasons):
                if reason.file == file.name and reason.first <= line.number <= reason.last:
                    excused = min(missing, left[index])
                    left[index] -= excused
                    missing -= excused
                    report.excused[file.name] += excused
            if missing:
                report.unexplained.append((line, missing))
    report.reached = [reason for reason, count in zip(reasons, left, strict=True) if count]
    return report


def share(covered: int, total: int) -> str:
    return f"{covered:5}/{total:<5} {100 * covered / total if total else 100:5.1f} %"


def print_table(files: list[File], report: Report) -> None:
    print(f"{'file':30}{'lines':>19}   {'branches':>19}   {'unreached: reason':>17}   {'none':>4}")
    rows = []
    without: collections.Counter[str] = collections.Counter()
    for line, count in report.unexplained:
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
    parser.add_argument("root", type=pathlib.Path, nargs="?", default=pathlib.Path())
    parser.add_argument("--reached", action="store_true")
    given = parser.parse_args(args)
    files = read_coverage(json.loads(given.coverage.read_text()))
    sources = {file.name: (given.root / file.name).read_text() for file in files}
    reasons: list[Reason] = []
    wrong: list[str] = []
    for name, source in sources.items():
        found, complaints = read_reasons(name, source)
        reasons += found
        wrong += complaints
    report = compare(files, reasons)
    print_table(files, report)
    for line, count in report.unexplained:
        text = sources[line.file].splitlines()[line.number - 1].strip()
        print(f"without a reason: {line.file}:{line.number}: {count} of {line.branches}: {text}")
    print(f"{len(reasons)} reasons, {len(report.reached)} of them not needed this time")
    if given.reached:
        for reason in report.reached:
            text = sources[reason.file].splitlines()[reason.first - 1].strip()
            print(f"reached: {reason.file}:{reason.first}: {text}")
    for complaint in wrong:
        print(f"wrong: {complaint}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
