"""A self-contained page that shows sizes as a treemap and lists what cannot be pickled."""

from html import escape
from typing import TYPE_CHECKING

from .failure import FailureTuple
from .text import size_text

if TYPE_CHECKING:
    from .sizes import Size, Sizes

__all__ = ["page"]

_WIDTH, _HEIGHT = 1000.0, 560.0
# Rectangles smaller than this (in pixels) are not drawn, because a user could not point at them.
_LEAST = 6.0
_COLOURS = {"zero-copy": "#3b8f5a", "copied": "#d9a441", "referenced": "#4a78b5", "in-band": "#c4553f"}

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 24px; color: #222; background: #fff; }
h1 { font-size: 18px; font-weight: 600; }
svg { width: 100%; max-width: 1200px; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #fff; pointer-events: none; }
rect { stroke: #fff; stroke-width: 1; }
table { border-collapse: collapse; margin-top: 16px; }
td, th { text-align: left; padding: 2px 14px 2px 0; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font: 12px ui-monospace, monospace; }
.key { display: inline-block; width: 11px; height: 11px; margin: 0 5px 0 14px; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b; } rect { stroke: #1b1b1b; } }
"""


def page(sizes: "Sizes", failures: list[FailureTuple] | None = None) -> str:
    """Return the page as HTML."""
    root = sizes.root
    title = f"{root.path or root.type}: {size_text(root.total)}"
    legend = "".join(
        f'<span class="key" style="background:{_COLOURS[word]}"></span>{word} {size_text(number)}'
        for word, number in root.kinds.items()
        if number or word != "referenced"
    )
    cells: list[str] = []
    _draw(root, 0.0, 0.0, _WIDTH, _HEIGHT, cells)
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>',
        f"<h1>{escape(title)}</h1><p>{legend}</p>",
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(title)}">{"".join(cells)}</svg>',
    ]
    if failures:
        rows = "".join(
            f"<tr><td><code>{escape(failure.path or failure.name)}</code><td>{escape(failure.error)}"
            f"<td>{escape(failure.hint)}"
            for failure in failures[:100]
        )
        parts.append(f"<h1>Cannot be pickled</h1><table><tr><th>where<th>what<th>hint{rows}</table>")
    if sizes.captures:
        rows = "".join(
            f'<tr><td class="n">{size_text(capture.total)}<td><code>{escape(capture.path)}</code>'
            for capture in sizes.captures[:30]
        )
        parts.append(f"<h1>Captured by functions</h1><table>{rows}</table>")
    return "\n".join(parts) + "</html>\n"


def _kind(size: "Size") -> str:
    """Return the kind to which most bytes of a part belong."""
    return max(size.kinds.items(), key=lambda pair: pair[1])[0]


def _draw(size: "Size", x: float, y: float, width: float, height: float, cells: list[str]) -> None:
    """Draw a part, and its children inside it."""
    tip = f"{size.path or size.type}\n{size.type}\n{size_text(size.total)} " + ", ".join(
        f"{size_text(number)} {word}" for word, number in size.kinds.items() if number
    )
    opacity = 0.45 if size.children else 1
    cells.append(
        f'<g><title>{escape(tip)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{_COLOURS[_kind(size)]}" fill-opacity="{opacity}"/>'
    )
    label = f"{size.label or size.type} {size_text(size.total)}"
    room = int(width / 6.5)
    if room > 4 and height > 16:
        cells.append(f'<text x="{x + 4:.1f}" y="{y + 12:.1f}">{escape(label[:room])}</text>')
    cells.append("</g>")
    inner = (x + 2, y + 16, width - 4, height - 18)
    if size.children and inner[2] > _LEAST and inner[3] > _LEAST:
        # The area of small parts that are not listed stays empty.
        share = sum(child.total for child in size.children) / max(size.total, 1)
        for child, box in _squarify(size.children, inner[0], inner[1], inner[2], inner[3] * min(share, 1.0)):
            if box[2] > _LEAST / 2 and box[3] > _LEAST / 2:
                _draw(child, *box, cells)


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
