"""Every program in examples/ and every Python block of the README runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def run(path):
    return subprocess.run([sys.executable, str(path)], text=True, capture_output=True, timeout=120)


def _example(path):
    """One that needs torch belongs to the heavy tests, which install it."""
    return pytest.param(path, id=path.stem, marks=[pytest.mark.heavy] if "import torch" in path.read_text() else [])


@pytest.mark.parametrize("path", [_example(path) for path in EXAMPLES])
def test_example(path):
    done = run(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_of_the_readme(tmp_path, number):
    script = tmp_path / "readme.py"
    script.write_text(BLOCKS[number])
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_examples_are_listed():
    text = (ROOT / "examples" / "README.md").read_text()
    assert EXAMPLES
    assert set(re.findall(r"`(\w+\.py)`", text)) == {path.name for path in EXAMPLES}


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
)
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not ((ROOT / page).parent / link).exists()]
    assert missing == []
