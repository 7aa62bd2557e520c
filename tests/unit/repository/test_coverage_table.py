"""tools/coverage_table.py: what the C tests do not reach has a reason, or is named; a reason without its line is an error."""

import importlib.util
import json
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "tools" / "coverage_table.py"

SOURCE = """int f(int a)
{
    if (a)
        return 1;
    if (a > 1 && a < 9)
        return 2;
    if (a)
        return 3;
}
"""


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("coverage_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "coverage_table", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, tmp_path, capsys):
    """Counts of the branches of lines 3, 5 and 7, a table of reasons, options -> status and output."""

    def run(reasons, third=(1, 0), fifth=(2, 0, 0, 2), seventh=(1, 1), options=()):
        lines = [{"line_number": 1, "count": 3, "branches": []}, {"line_number": 8, "count": 0}]
        for number, counts in ((3, third), (5, fifth), (7, seventh)):
            lines.append({"line_number": number, "count": sum(counts), "branches": [{"count": n} for n in counts]})
        (tmp_path / "a.c").write_text(SOURCE)
        (tmp_path / "coverage.json").write_text(json.dumps({"files": [{"file": "a.c", "lines": lines}]}))
        (tmp_path / "reasons.toml").write_text(reasons)
        paths = [str(tmp_path / "coverage.json"), str(tmp_path / "reasons.toml"), str(tmp_path)]
        return script.main([*paths, *options]), capsys.readouterr().out

    return run


KINDS = "[kinds]\nrace = 'two at once'\n['a.c']\n"


def row(out, name="a.c"):
    return next(line for line in out.splitlines() if line.startswith(name)).split()


def test_what_has_a_reason_is_told_from_what_has_none(run):
    status, out = run(KINDS + "'if (a)' = 'race'\n'if (a > 1 && a < 9)' = 'race: words'\n")
    assert status == 0
    assert row(out) == ["a.c", "4/5", "80.0", "%", "5/8", "62.5", "%", "2", "1"]
    assert "without a reason: a.c:5: 1 of 4: if (a > 1 && a < 9)\n" in out
    assert out.count("without a reason") == 1


def test_a_reason_covers_as_many_branches_as_it_says(run):
    status, out = run(KINDS + "'if (a)' = 'race'\n'if (a > 1 && a < 9)' = 'race 2: words'\n")
    assert (status, row(out)[-2:]) == (0, ["3", "0"])
    status, out = run(KINDS + "'if (a)' = 'race'\n'if (a > 1 && a < 9)' = ['race', 'race: other words']\n")
    assert (status, row(out)[-2:]) == (0, ["3", "0"])


def test_lines_of_the_same_text_are_counted(run):
    reasons = KINDS + "'if (a) #2' = 'race'\n'if (a > 1 && a < 9)' = 'race 2'\n"
    status, out = run(reasons)
    assert status == 0
    assert "without a reason: a.c:3: 1 of 2: if (a)\n" in out
    status, out = run(reasons, third=(1, 1), seventh=(0, 1))
    assert (status, row(out)[-2:]) == (0, ["3", "0"])


def test_what_was_reached_this_time_is_no_error(run):
    reasons = KINDS + "'if (a)' = 'race'\n'if (a > 1 && a < 9)' = 'race 2'\n"
    status, out = run(reasons, third=(1, 1), options=["--reached"])
    assert status == 0
    assert "2 reasons, 1 of them not needed this time\n" in out
    assert "reached: a.c: if (a)\n" in out


@pytest.mark.parametrize(
    "entry, said",
    [
        ("'if (b)' = 'race'", "stale: a.c has no such line any more: if (b)"),
        ("'if (a) #3' = 'race'", "stale: a.c has no such line any more: if (a) #3"),
        ("['b.c']\n'if (a)' = 'race'", "stale: b.c has no such line any more: if (a)"),
        ("'if (a)' = 'luck'", "wrong: a.c: if (a): 'luck' is not"),
        ("'if (a)' = 'race 0'", "wrong: a.c: if (a): 'race 0' is not"),
        ("'if (a)' = 'race, words'", "wrong: a.c: if (a): 'race, words' is not"),
    ],
)
def test_a_table_that_does_not_fit_the_source_is_an_error(run, entry, said):
    status, out = run(KINDS + f"'if (a > 1 && a < 9)' = 'race'\n{entry}\n")
    assert status == 1
    assert said in out


def test_a_kind_nobody_uses_is_an_error(run):
    status, out = run("[kinds]\nrace = 'two at once'\nluck = 'none'\n['a.c']\n'if (a)' = 'race'\n")
    assert status == 1
    assert "wrong: no entry is of the kind 'luck'" in out


def test_the_table_kept_here_fits_the_sources(script):
    """No coverage is measured for this: lines that moved out of a file are found without a compiler."""
    text = (ROOT / "tests" / "c" / "unreached.toml").read_text()
    reasons, wrong = script.read_reasons(text)
    assert wrong == []
    names = [name for name in tomllib.loads(text) if name != "kinds"]
    sources = {name: (ROOT / name).read_text() for name in names}
    report = script.compare([script.File(name, 0, 0, []) for name in names], reasons, sources)
    assert report.stale == []
