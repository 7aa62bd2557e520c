"""Every program in examples/ and every program on the README, the pages of tasks and pools runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def _blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


# The blocks of a page that are programs by themselves, and pages whose blocks make up one program.
PROGRAMS = {
    f"{page}-{number}": text
    for page in ("README.md", "docs/how-to/pools.md", "docs/how-to/dataloader.md")
    for number, text in enumerate(_blocks(page))
}
PROGRAMS["docs/tasks.md"] = "\n".join(_blocks("docs/tasks.md"))


def run(path):
    return subprocess.run([sys.executable, str(path)], text=True, capture_output=True, timeout=120)


def _case(value, name, text):
    """Return a parameter; a program that needs torch belongs to the heavy tests, which install it."""
    return pytest.param(value, id=name, marks=[pytest.mark.heavy] if "import torch" in text else [])


@pytest.mark.parametrize("path", [_case(path, path.stem, path.read_text()) for path in EXAMPLES])
def test_example(path):
    done = run(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("text", [_case(text, name, text) for name, text in PROGRAMS.items()])
def test_program_of_a_page(tmp_path, text):
    script = tmp_path / "program.py"
    script.write_text(text)
    done = run(script)
    assert done.returncode == 0, done.stderr
    if "import torch" not in text:  # torch warns about the number of CPUs
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
