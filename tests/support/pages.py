"""Read the code blocks of Markdown pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# Programs that import one of these run with the heavy tests, which install them.
_HEAVY = re.compile(r"^\s*(?:import|from) (torch|sklearn)\b", re.MULTILINE)
_FILE = re.compile(r"# ([\w.-]+\.\w+)\n")
_NOT_RUN = re.compile(r"<!-- not run: (.*) -->")


@dataclass(frozen=True)
class Block:
    """
    A fenced block of a page.

    Attributes
    ----------
    page : Path
    line : int
        Number of the first line of the text.
    language : str
    text : str
    reason : str or None
        Why the block is not run, if a comment before it says so.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def file(self) -> str | None:
        """Return the name of the file that the block shows: its first line is a comment with the name."""
        match = _FILE.match(self.text)
        return match[1] if match else None

    @property
    def is_session(self) -> bool:
        """Return whether the block shows an interactive session."""
        return self.text.startswith(">>> ")


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    language, start, kept, before = "", 0, [], ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if start:
            if line.startswith("```"):
                reason = _NOT_RUN.fullmatch(before)
                found.append(Block(page, start, language, "\n".join([*kept, ""]), reason and reason[1]))
                start, kept, before = 0, [], ""
            else:
                kept.append(line)
        elif line.startswith("```"):
            language, start = line.removeprefix("```"), number + 1
        elif line.strip():
            before = line
    return found


def python_blocks(page: Path) -> list[Block]:
    """Return the blocks of Python code, except interactive sessions."""
    return [block for block in blocks(page) if block.language == "python" and not block.is_session]


def programs(page: Path) -> list[list[Block]]:
    """
    Return the programs of a page.

    A block that imports the package begins a program, and the other blocks continue it.
    """
    found: list[list[Block]] = []
    for block in python_blocks(page):
        if block.reason or block.file:
            continue
        if not found or re.search(r"^import pyray_ser|^from pyray_ser", block.text, re.MULTILINE):
            found.append([])
        found[-1].append(block)
    return found


def text_of(program: list[Block]) -> str:
    """Return the text of a program."""
    return "\n\n".join(block.text for block in program)


def is_heavy(text: str) -> bool:
    """Return whether a program needs packages that only the heavy tests install."""
    return _HEAVY.search(text) is not None


def guides() -> list[Path]:
    """Return the pages for users."""
    folders = ("start", "how-to", "reference", "explanation")
    return [DOCS / "index.md", *(page for folder in folders for page in sorted((DOCS / folder).rglob("*.md")))]
