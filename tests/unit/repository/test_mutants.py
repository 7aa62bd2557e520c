"""Test that each text that a planted bug (tests/mutation) replaces occurs exactly once in its source file."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
TABLES = ROOT / "tests" / "mutation"

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs a source checkout")


def mutants(table):
    return tomllib.loads((TABLES / table).read_text())["mutant"]


def edits():
    """Yield (name of the mutant, path of the file, old text, new text)."""
    for mutant in mutants("mutants.toml"):
        yield mutant["name"], CSRC / "store" / mutant["file"], mutant["old"], mutant["new"]
    for mutant in mutants("picklers.toml"):
        for edit in mutant["edits"]:
            yield mutant["name"], CSRC / edit["file"], edit["old"], edit["new"]


def test_the_text_that_a_mutant_replaces_occurs_once_in_its_file():
    wrong = [
        f"{path.name}, {name}: {path.read_text().count(old)} times"
        for name, path, old, new in edits()
        if path.read_text().count(old) != 1 or old == new
    ]
    assert not wrong, "the code moved on: change the tables in tests/mutation\n" + "\n".join(wrong)


def test_the_edits_of_a_mutant_of_the_picklers_apply_together():
    for mutant in mutants("picklers.toml"):
        folders = {edit["file"].partition("/")[0] for edit in mutant["edits"]}
        assert len(folders) == 1, f"{mutant['name']}: one extension is built, not those of {sorted(folders)}"
        assert all(edit["file"].endswith(".c") for edit in mutant["edits"]), (
            f"{mutant['name']}: only C files are compiled"
        )
        texts = {edit["file"]: (CSRC / edit["file"]).read_text() for edit in mutant["edits"]}
        for edit in mutant["edits"]:
            text = texts[edit["file"]]
            assert text.count(edit["old"]) == 1, f"{mutant['name']}: an edit changes the text that another one replaces"
            texts[edit["file"]] = text.replace(edit["old"], edit["new"])


def test_each_listed_fault_of_the_picklers_has_a_mutant():
    assert {"f01", "f03", "f05", "f07", "f09", "g2", "g3"} <= {mutant["fault"] for mutant in mutants("picklers.toml")}


def test_names_of_mutants_are_unique():
    for table in ("mutants.toml", "picklers.toml"):
        names = [mutant["name"] for mutant in mutants(table)]
        assert len(names) == len(set(names)), table
