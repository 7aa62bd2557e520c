"""The examples in the documentation work as they are printed."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["customizing.md"]


@pytest.mark.parametrize("name", PAGES)
def test_page(name):
    page = (DOCS / name).read_text(encoding="utf-8")
    # Only what is fenced as Python, on the lines where it stands.
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
