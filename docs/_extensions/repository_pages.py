"""Show pages of the repository that are outside of ``docs``, and mend links that lead out of it.

A page that begins with ``<!-- shows: ../../CHANGELOG.md -->`` shows that file. A link to such a file leads to the page
that shows it. A link to any other file outside of ``docs`` becomes plain text, because the site does not contain it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

SHOWS = re.compile(r"<!-- shows: (\S+) -->\n")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def pages_shown(docs: Path) -> dict[Path, Path]:
    """Return the files outside of `docs` that pages show: file -> page."""
    found = {}
    for page in docs.rglob("*.md"):
        if match := SHOWS.match(page.read_text(encoding="utf-8")):
            found[(page.parent / match[1]).resolve()] = page
    return found


def mended(text: str, origin: Path, page: Path, docs: Path, shown: dict[Path, Path]) -> str:
    """Return the text of a page whose links, relative to `origin`, are relative to `page` and stay inside of `docs`."""

    def link(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:") or not path:
            return match[0]
        file = (origin.parent / path).resolve()
        if file == docs / "README.md":
            file = docs / "index.md"
        file = shown.get(file, file)
        if not file.is_relative_to(docs):
            return label
        if file.is_dir():
            file = file / "index.md"
        if not file.exists():
            # A picture may be added later than the page.
            return "" if image else label
        return f"{image}[{label}]({os.path.relpath(file, page.parent)}{hash_sign}{anchor})"

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the text of a page before it is parsed."""
    docs = Path(app.srcdir).resolve()
    page = docs / f"{docname}.md"
    if not page.exists():
        return
    text, origin = source[0], page
    if match := SHOWS.match(text):
        origin = (page.parent / match[1]).resolve()
        app.env.note_dependency(str(origin))
        text = origin.read_text(encoding="utf-8")
    source[0] = mended(text, origin, page, docs, pages_shown(docs))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the function that mends pages."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
