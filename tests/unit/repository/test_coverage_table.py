"""Test that tools/coverage_table.py lists each branch that the C tests do not reach and that has no stated reason."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "tools" / "coverage_table.py"

SOURCE = """int f(int a)
{
    IF
    if (a)
        return 1;
    CONDITION
    if (a > 1 &&
        a < 9)
        return 2;
    LAST
    if (a)
        return 3;
}
"""


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("coverage_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "coverage_table", module)  # `dataclasses` looks up the module there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, tmp_path, capsys):
    """Return a function that runs the tool with given reasons, branch counts and options."""

    def run(
        *reasons, condition=(2, 0, 0, 2), last=(1, 1), options=()
    ):  # the branches of a condition on two lines belong to the first line
        source = SOURCE
        for place, reason in zip(["IF", "CONDITION", "LAST"], [*reasons, "", "", ""], strict=False):
            source = source.replace(
                place, reason if reason.startswith("/*") or not reason else f"/* unreached by tests {reason} */"
            )
        source = "\n".join(line for line in source.split("\n") if line.strip())
        numbers = [number for number, line in enumerate(source.split("\n"), 1) if "if (" in line]
        lines = [{"line_number": 1, "count": 3, "branches": []}, {"line_number": 2, "count": 0}]
        for number, counts in zip(numbers, ((1, 0), condition, last), strict=True):
            lines.append({"line_number": number, "count": sum(counts), "branches": [{"count": n} for n in counts]})
        (tmp_path / "a.c").write_text(source)
        (tmp_path / "coverage.json").write_text(json.dumps({"files": [{"file": "a.c", "lines": lines}]}))
        status = script.main([str(tmp_path / "coverage.json"), str(tmp_path), *options])
        return status, capsys.readouterr().out

    return run


def row(out, name="a.c"):
    return next(line for line in out.splitlines() if line.startswith(name)).split()


def test_what_has_a_reason_is_told_from_what_has_none(run):
    status, out = run("(race)", "(race): words")
    assert status == 0
    assert row(out) == ["a.c", "4/5", "80.0", "%", "5/8", "62.5", "%", "2", "1"]
    assert "without a reason: a.c:7: 1 of 4: if (a > 1 &&\n" in out
    assert out.count("without a reason") == 1


def test_a_reason_covers_as_many_branches_as_it_says(run):
    status, out = run("(race)", "(race, 2 branches): words")
    assert (status, row(out)[-2:]) == (0, ["3", "0"])
    status, out = run("(race)", "/* unreached by tests (race) */\n/* unreached by tests (race): other words */")
    assert (status, row(out)[-2:]) == (0, ["3", "0"])


def test_a_reason_holds_for_its_statement_only(run):
    status, out = run("", "(race, 2 branches)", "(race)")
    assert status == 0
    assert "without a reason: a.c:3: 1 of 2: if (a)\n" in out


def test_what_was_reached_this_time_is_no_error(run):
    status, out = run("(race)", "(race, 2 branches)", "(race)", options=["--reached"])
    assert status == 0
    assert "3 reasons, 1 of them not needed this time\n" in out
    assert "reached: a.c:11: if (a)\n" in out


@pytest.mark.parametrize(
    "reason, said",
    [
        ("(luck)", "wrong: a.c:10: '(luck)' is not"),
        ("(race, 0 branches)", "wrong: a.c:10: '(race, 0 branches)' is not"),
        ("race, words", "wrong: a.c:10: 'race, words' is not"),
        ("/* unreached by tests (race) */ int b;", "wrong: a.c:10: a reason has a line of its own"),
    ],
)
def test_a_reason_that_makes_no_sense_is_an_error(run, reason, said):
    status, out = run("(race)", "(race)", reason)
    assert status == 1
    assert said in out


def test_the_reasons_kept_here_make_sense(script):
    """The reasons in csrc/store must be valid; this check needs no measurement of coverage."""
    found, kinds = [], set()
    for path in sorted((ROOT / "csrc" / "store").rglob("*.[ch]")):
        source = path.read_text()
        reasons, wrong = script.read_reasons(path.name, source)
        assert wrong == []
        found += reasons
        kinds.update(re.findall(r"/\* unreached by tests \(([a-z ]+)", source))
    assert len(found) > 300
    assert kinds == set(script.KINDS)
