"""Test that the examples in the documentation produce the printed output."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"
PAGES = ["customizing.md", "getting-started.md", "reference.md"]


@pytest.mark.parametrize("name", PAGES)
def test_page(name):
    page = (DOCS / name).read_text(encoding="utf-8")
    # Keep only code fenced as Python, at its original line numbers.
    kept, inside = [], False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
        kept.append(line if inside and not line.startswith("```") else "")
    test = doctest.DocTestParser().get_doctest("\n".join(kept), {"__name__": "__main__"}, name, str(DOCS / name), 0)
    assert len(test.examples) > 10
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    report = []
    result = doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=report.append, clear_globs=True)
    assert not result.failed, "".join(report)


def test_every_error_is_in_the_list_of_errors():
    from pyray_ser import exceptions

    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert not [name for name in exceptions.__all__ if f"`{name}`" not in page and name != "PyraySerError"]


def test_every_public_name_is_in_the_reference():
    import pyray_ser
    from pyray_ser import util

    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert not [name for name in [*pyray_ser.__all__, *util.__all__] if f"`{name}`" not in page and name[:2] != "__"]


@pytest.mark.parametrize("path", sorted(DOCS.glob("**/*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_links_between_pages_lead_somewhere(path):
    import re

    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", sorted((DOCS / "how-to").glob("*.md")), ids=lambda path: path.name)
def test_programs_in_the_how_to_pages_compile(path):
    page = path.read_text(encoding="utf-8")
    for block in page.split("```python\n")[1:]:
        compile(block.partition("```")[0], str(path), "exec")


def test_the_programs_of_a_page_run():
    import isolated

    page = (DOCS / "how-to" / "compute-once.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    lines = isolated.run("\n".join(blocks)).split("\n")
    assert lines[:4] == ["499999500000.0", "{'rate': 1.25}", "332833500", "332833500"]
    assert lines[4].startswith("CacheInfo(hits=1, misses=1,") and lines[-1] == "2"
