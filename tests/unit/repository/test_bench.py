"""Test that the benchmarks run, reject wrong output, and compute figures correctly; no measured value is checked."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import isolated
import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[3] / "bench"


@pytest.fixture(scope="module", autouse=True)
def bench_on_path():
    """Import the modules of bench as its scripts do, and remove them from sys.modules afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))
    for name in set(sys.modules) - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and Path(file).is_relative_to(BENCH):
            del sys.modules[name]


def bench(name):
    return importlib.import_module(name)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-P", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env=isolated.environment(),  # a separate store, because the rows count its contents
    )


# ---- arithmetic -------------------------------------------------------------------------------------------------------


def test_median_ratio_is_of_the_rounds_and_not_of_the_medians():
    timing = bench("measuring.timing")
    ours, theirs = [1.0, 10.0, 2.0], [3.0, 40.0, 10.0]
    assert timing.ratios(theirs, ours) == [3.0, 4.0, 5.0]
    assert timing.median_ratio(theirs, ours) == 4.0
    assert timing.median(theirs) / timing.median(ours) == 5.0


def test_ratios_of_unequal_rounds_are_refused():
    with pytest.raises(ValueError):
        bench("measuring.timing").median_ratio([1.0, 2.0], [1.0])


def test_typical_is_the_lower_quartile_and_ignores_what_neighbours_add():
    typical = bench("measuring.timing").typical
    assert typical([5.0, 1.0, 3.0, 2.0, 4.0]) == 2.0
    assert typical([1.0, 1.0, 1.0, 1000.0, 1000.0]) == 1.0


def test_interleaved_rounds_take_turns_and_begin_with_each():
    order = []

    def contender(name, value):
        def call():
            order.append(name)
            return value

        return call

    results = bench("measuring.timing").interleaved(3, {"a": contender("a", 1.0), "b": contender("b", 2.0)}, warm_up=1)
    assert results == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"


def test_loop_reports_one_operation():
    calls = []
    loop = bench("measuring.timing").Loop("work(); work()", {"work": lambda: calls.append(1)}, per=2, most=50)
    calls.clear()
    seconds = loop()
    assert len(calls) == 2 * loop.number
    assert 0 < seconds < 1


@pytest.mark.parametrize(
    ("relation", "figure", "passed"),
    [
        ("<=", 1.0, True),
        ("<=", 2.0, True),
        ("<=", 2.1, False),
        (">=", 2.0, True),
        (">=", 1.9, False),
        ("<=", None, None),
    ],
)
def test_verdict(relation, figure, passed):
    module = bench("measuring.claim")
    claim = module.Claim("row", "what", figure, relation, 2.0, "x")
    assert claim.passed is passed
    assert module.Claim.from_dict(json.loads(json.dumps(claim.as_dict()))) == claim
    verdict = {True: "yes", False: "NO", None: "-"}[passed]
    assert verdict in module.table([claim]).splitlines()[-1].split()
    assert module.markdown([claim]).splitlines()[-1].split(" | ")[3] == verdict


def test_comparison_ratios_are_per_round_and_over_ours():
    module = bench("comparison")
    seconds = {
        "pyray_ser": {"int": {"put": [1.0, 2.0, 4.0]}},
        "other": {"int": {"put": [10.0, 60.0, 80.0]}},
    }
    cold = {"pyray_ser": [1.0, 3.0, 2.0], "other": [40.0, 40.0, 400.0]}
    result = module.Comparison(seconds, cold, {"pyray_ser": 1, "other": 2})
    assert result.ratio("other", "int", "put") == 20.0
    assert result.ratio("other", "int", "get") is None
    assert result.cold_ratio("other") == 20.0


def test_peers_are_judged_by_the_ratio_promised():
    module = bench("comparison")
    seconds = {
        "pyray_ser": {"80 B array": {"put": [1.0], "get": [1.0]}, "100 MB array": {"put": [1.0]}},
        "Ray": {"80 B array": {"put": [299.0], "get": [101.0]}, "100 MB array": {"put": [0.9]}},
    }
    result = module.Comparison(seconds, {"pyray_ser": [1.0], "Ray": [21.0]}, {})
    verdicts = {claim.what: claim.passed for claim in bench("rows.peers").judge(result)}
    assert verdicts["small put, Ray over ours"] is False
    assert verdicts["small get, Ray over ours"] is True
    assert verdicts["100 MB put, Ray over ours"] is False
    assert verdicts["cold start, Ray over ours"] is True
    assert verdicts["small put, Plasma over ours"] is None


# ---- wrong output is not timed ----------------------------------------------------------------------------------------


def test_equal_looks_inside():
    equal = bench("measuring.data").equal
    assert equal({"a": [np.arange(3), 1]}, {"a": [np.arange(3), 1]})
    assert not equal({"a": [np.arange(3), 1]}, {"a": [np.array([0, 1, 3]), 1]})
    assert not equal([1], (1,))
    assert not equal(np.arange(3), np.arange(3.0))
    assert not equal(1, 1.0)


def test_worker_skips_a_library_that_gives_other_values_back():
    worker = bench("worker").Worker("pickle_bytes")
    assert worker.start()["seconds"] > 0
    assert worker.prepare("int")["numbers"].keys() == {"put", "get"}
    worker._library.get = lambda handle: [8]
    assert "not equal" in worker.prepare("1 KB dict")["skipped"]


def test_the_dict_is_what_it_is_called():
    import pickle

    assert 900 <= len(pickle.dumps(bench("measuring.data").mapping(), 5)) <= 1100


# ---- it runs ----------------------------------------------------------------------------------------------------------


def test_claims_of_a_row(tmp_path):
    done = run(BENCH / "claims.py", "put-small", "--quick", "--json", tmp_path / "claims.json")
    assert "put + free of an int" in done.stdout, done.stderr
    document = json.loads((tmp_path / "claims.json").read_text())
    assert len(document["claims"]) == 2
    assert all(claim["figure"] > 0 for claim in document["claims"])
    assert document["versions"]["pyray_ser"] is not None and document["machine"]["cpus"] >= 1
    assert done.returncode == (0 if all(claim["passed"] for claim in document["claims"]) else 1)


@pytest.mark.parametrize(
    ("program", "row"),
    [
        ("claims", "put-small"),
        ("by_type", "numpy"),
        ("caching", "hit"),
        ("cluster", "cluster"),
        ("pickler", "sweep"),
        ("pools", "joblib"),
        ("tasks", "tasks"),
    ],
)
def test_every_program_lists_its_rows(program, row):
    done = run(BENCH / f"{program}.py", "--list")
    assert row in done.stdout.splitlines(), done.stderr


def test_a_word_selects_the_rows_that_contain_it(tmp_path):
    run(BENCH / "pickler.py", "enum", "3 members", "--quick", "--json", tmp_path / "pickler.json")
    claims = json.loads((tmp_path / "pickler.json").read_text())["claims"]
    assert list(dict.fromkeys(claim["row"] for claim in claims)) == ["10,000 enum members", "10,000 refs to 3 members"]
    assert {"dumps, _pickle over ours", "loads, _pickle over ours"} <= {claim["what"] for claim in claims}


def test_a_figure_without_a_limit_has_no_verdict():
    module = bench("measuring.claim")
    claim = module.measured("row", "what", 1.5, "x")
    assert claim.passed is None
    assert module.table([claim]).splitlines()[-1].split()[-2:] == ["-", "-"]


def test_unknown_row_is_an_error():
    done = run(BENCH / "claims.py", "no-such-row")
    assert done.returncode == 2
    assert "no such row: no-such-row" in done.stderr


def test_runner_compares_the_libraries_that_are_there(tmp_path):
    done = run(BENCH / "run.py", "--out", tmp_path, "--quick", "--only", "comparison")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "comparison.json").read_text())
    assert {"pyray_ser", "shared_memory by hand"} <= document["seconds"].keys()
    rounds = document["seconds"]["pyray_ser"]["80 B array"]["get"]
    assert len(rounds) == 3 and all(seconds > 0 for seconds in rounds)
    assert document["memory_bytes"]["pyray_ser"] > 0
