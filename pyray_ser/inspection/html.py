"""A self-contained page that shows sizes as a treemap and lists what cannot be pickled."""

import unicodedata
from html import escape
from typing import TYPE_CHECKING

from .failure import FailureTuple
from .text import size_text

if TYPE_CHECKING:
    from .sizes import Size, Sizes

__all__ = ["document", "fragment", "page", "scrolling"]

# The width and height of the treemap for wide and for narrow screens, in the units of its font size.
_WIDE, _NARROW = (960.0, 540.0), (400.0, 560.0)
# Rectangles smaller than this are not drawn, because a user could not point at them.
_LEAST = 6.0
# White text is readable on each of these colours.
_COLOURS = {"zero-copy": "#2c7a4b", "copied": "#926400", "referenced": "#3767a6", "in-band": "#b3402a"}
_MEANINGS = {
    "zero-copy": "copied into the store once, read in place",
    "copied": "each reader copies it once",
    "referenced": "in the store already",
    "in-band": "in the pickle stream, decoded by each reader",
}
_MONO, _FONT = "ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace", 12.0
# The width of a character of a monospaced font, and the distance between a label and the edge.
_CHARACTER, _PADDING = 0.61 * _FONT, 5.0
_DIGITS = "0123456789.,_"
_TITLE = 18.0
"""Height of the title of a part that contains other parts."""

_BASE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #586374; --line: #d9dee6; --paper: #fff; --hover: #f2f5f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #a0aab8; --line: #363d49; --paper: #15181d; --hover: #20252d; }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 24px 16px 48px; max-width: 1100px;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 22px; line-height: 1.25; font-weight: 650; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; font-weight: 650; margin: 32px 0 8px; overflow-wrap: anywhere; }
p { margin: 0 0 12px; color: var(--soft); }
code, .code { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
svg { display: block; width: 100%; height: auto; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 12px 0; padding: 0; }
.key span { color: var(--soft); }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; vertical-align: -1px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
td, th { text-align: left; padding: 5px 18px 5px 0; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""

_STYLE = """
rect { stroke: var(--paper); }
g:hover > rect { stroke: var(--ink); }
.narrow { display: none; }
@media (max-width: 759px) { .wide { display: none; } .narrow { display: block; } }
"""


def document(title: str, style: str, parts: list[str]) -> str:
    """Return a page that needs no other file, is readable in light and dark mode, and fits a phone."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_BASE}{style}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def scrolling(name: str, table: str) -> str:
    """Return a table that scrolls if the screen is too narrow, also by keyboard."""
    return f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">{table}</div>'


def page(sizes: "Sizes", failures: list[FailureTuple] | None = None) -> str:
    """Return the page as HTML."""
    root = sizes.root
    title = f"{root.path or root.type}: {size_text(root.total)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<p>Areas are in proportion to bytes. Point at a rectangle to see the path to its object.</p>",
        f'<ul class="key">{_legend(root)}</ul>',
        _treemap(root, title, "wide", *_WIDE),
        _treemap(root, title, "narrow", *_NARROW),
    ]
    if failures:
        rows = "".join(
            f"<tr><td><code>{escape(failure.path or failure.name)}</code><td>{escape(failure.error)}"
            f"<td>{escape(failure.hint)}"
            for failure in failures[:100]
        )
        parts.append("<h2>Cannot be pickled</h2>")
        parts.append(scrolling("Cannot be pickled", f"<table><tr><th>where<th>what<th>hint{rows}</table>"))
    if sizes.captures:
        rows = "".join(
            f'<tr><td class="n">{size_text(capture.total)}<td><code>{escape(capture.path)}</code>'
            for capture in sizes.captures[:30]
        )
        parts.append("<h2>Captured by functions</h2>")
        parts.append(scrolling("Captured by functions", f'<table><tr><th class="n">size<th>where{rows}</table>'))
    return document(title, _STYLE, parts)


def fragment(sizes: "Sizes") -> str:
    """Return the treemap and the tree for a notebook, which has its own style in light or dark mode."""
    root = sizes.root
    treemap = _treemap(root, f"{root.path or root.type}: {size_text(root.total)}", "wide", *_WIDE)
    style = "list-style: none; display: flex; flex-wrap: wrap; gap: 0 22px; margin: 8px 0; padding: 0"
    return (
        f'<div style="max-width: {_WIDE[0]:g}px"><ul style="{style}">{_legend(root)}</ul>{treemap}'
        f"<details><summary>as text</summary><pre>{escape(sizes.to_text())}</pre></details></div>"
    )


def _legend(root: "Size") -> str:
    shape = "display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px"
    return "".join(
        f'<li><i style="{shape}; background: {_COLOURS[word]}"></i>{word} {size_text(number)} '
        f"<span>{_MEANINGS[word]}</span></li>"
        for word, number in root.kinds.items()
        if number or word != "referenced"
    )


def _treemap(root: "Size", title: str, name: str, width: float, height: float) -> str:
    cells: list[str] = []
    _draw(root, 0.0, 0.0, width, height, cells)
    return (
        f'<svg class="{name}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'font-family="{_MONO}" font-size="{_FONT:g}" stroke-width="1.5">'
        f"{''.join(cells)}</svg>"
    )


def _kind(size: "Size") -> str:
    """Return the kind to which most bytes of a part belong."""
    return max(size.kinds.items(), key=lambda pair: pair[1])[0]


def _draw(size: "Size", x: float, y: float, width: float, height: float, cells: list[str]) -> None:
    """Draw a part, and its children inside it."""
    tip = f"{size.path or size.type}\n{size.type}\n{size_text(size.total)}: " + ", ".join(
        f"{size_text(number)} {word}" for word, number in size.kinds.items() if number
    )
    # A part that contains others is pale, so that the others stand out.
    inner = (x + 3, y + _TITLE, width - 6, height - _TITLE - 3)
    children = size.children if inner[2] > _LEAST and inner[3] > _LEAST else []
    opacity = 0.15 if children else 1
    cells.append(
        f'<g><title>{escape(tip)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="2" fill="{_COLOURS[_kind(size)]}" fill-opacity="{opacity}" stroke="#fff"/>'
    )
    lines = _label(size, width, 1 if children else int((height - 3) / (_FONT + 3)))
    for i, line in enumerate(lines):
        cells.append(
            f'<text fill="{"currentColor" if children else "#fff"}" x="{x + _PADDING:.1f}" '
            f'y="{y + 13 + i * (_FONT + 3):.1f}">{escape(line)}</text>'
        )
    cells.append("</g>")
    # The area of small parts that are not listed stays empty.
    share = sum(child.total for child in children) / max(size.total, 1)
    for child, box in _squarify(children, inner[0], inner[1], inner[2], inner[3] * min(share, 1.0)):
        if box[2] > _LEAST / 2 and box[3] > _LEAST / 2:
            _draw(child, *box, cells)


def _label(size: "Size", width: float, lines: int) -> list[str]:
    """Return the lines of text that fit into a rectangle; a number is shown completely or not at all."""
    room = int((width - 2 * _PADDING) / _CHARACTER)
    name, number = size.label or size.type, size_text(size.total)
    if lines < 1 or room < 3:
        return []
    if _columns_of(name) + 1 + len(number) <= room:
        return [f"{name} {number}"]
    label = _shortened(name, room)
    found = [label, number] if len(number) <= room else [label]
    return [line for line in found if line][:lines]


def _shortened(text: str, room: int) -> str:
    """Return the beginning of a text that fits into `room` columns, with an ellipsis that never divides a number."""
    if _columns_of(text) <= room:
        return text
    end = 0
    while end < len(text) and _columns_of(text[: end + 1]) < room:
        end += 1
    while end and text[end - 1] in _DIGITS and text[end] in _DIGITS:
        end -= 1
    return f"{text[:end]}…" if end > 1 and any(map(str.isalnum, text[:end])) else ""


def _columns_of(text: str) -> int:
    """Return how many columns a text takes in a monospaced font."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


Box = tuple[float, float, float, float]


def _squarify(children: "list[Size]", x: float, y: float, width: float, height: float) -> "list[tuple[Size, Box]]":
    """Divide a rectangle in proportion to the sizes, into near-squares (Bruls, Huizing, van Wijk 2000)."""
    found: list[tuple[Size, Box]] = []
    left = [child for child in children if child.total > 0]
    scale = width * height / max(sum(child.total for child in left), 1)
    while left:
        short = min(width, height)
        if short <= 0:
            break
        row: list[Size] = []
        worst = float("inf")
        for child in left:
            areas = [item.total * scale for item in (*row, child)]
            depth = sum(areas) / short
            ratio = max(max(area / depth / depth, depth * depth / area) for area in areas)
            if row and ratio > worst:
                break
            row.append(child)
            worst = ratio
        depth = sum(item.total for item in row) * scale / short
        at = 0.0
        for item in row:
            along = item.total * scale / depth
            box = (x, y + at, depth, along) if width >= height else (x + at, y, along, depth)
            found.append((item, box))
            at += along
        if width >= height:
            x, width = x + depth, width - depth
        else:
            y, height = y + depth, height - depth
        del left[: len(row)]
    return found
