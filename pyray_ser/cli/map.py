"""``pyray-ser map``: a picture of the segment."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime
from html import escape
from typing import Any, NamedTuple

from .. import _core
from .._version import __version__
from . import CommandError
from .look import each_found
from .objects import add_descriptions, extended, records
from .output import bytes_text, count, printable, write_json
from .stores import Found, add_selection


class Kind(NamedTuple):
    """How a kind of cell is drawn."""

    letter: str
    """The character in a terminal."""
    colour: str
    """The colour in a picture."""
    dark: str
    """The colour in dark mode."""
    plain: str
    """The character in a terminal without UTF-8."""
    meaning: str
    """What the bytes of the kind are used for."""


# A cell has the kind to which most of its bytes belong, but it is "free" only if all of its bytes are free. Spilled
# objects take no cell.
KINDS = {
    "free": Kind("\u00b7", "#e6eaf0", "#2b313b", ".", "no object"),
    "live": Kind("\u2592", "#6aa3e0", "#3f78b8", "o", "held by references"),
    "pinned": Kind("\u2588", "#1f4e8c", "#a9cdf7", "#", "read in place by a process"),
    "making": Kind("+", "#e39a1f", "#e3a53b", "+", "being written"),
    "spilled": Kind("s", "#9063b5", "#b48ad6", "s", "in files on disk"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_selection(parser)
    parser.add_argument("--cells", type=int, metavar="N", help="into how many cells the data area is divided")
    parser.add_argument("--svg", metavar="FILE", help="write a picture")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures and figures")


def kind_of(record: dict[str, Any]) -> str:
    """Return the kind of cell that shows an object's bytes."""
    if record["spilled"]:
        return "spilled"
    if record["state"] == "creating":
        return "making"
    return "pinned" if record["pin_holders"] else "live"


def _spread(records: list[dict[str, Any]], capacity: int, count: int) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Iterate over the cells of each object in memory, with the bytes of the object in that cell."""
    size = -(-capacity // count)
    for record in records:
        start, end = record["offset"], min(record["offset"] + record["extent"], capacity)
        while start < end and not record["spilled"]:
            cell = start // size
            stop = min(end, (cell + 1) * size)
            yield cell, record, stop - start
            start = stop


def cells_of(records: list[dict[str, Any]], capacity: int, count: int) -> list[str]:
    """
    Divide the data area into cells.

    Returns
    -------
    list of str
        The kind of each cell.
    """
    filled: list[dict[str, int]] = [{} for _ in range(count)]
    for cell, record, part in _spread(records, capacity, count):
        kind = kind_of(record)
        filled[cell][kind] = filled[cell].get(kind, 0) + part
    return [max(cell, key=lambda kind: cell[kind]) if cell else "free" for cell in filled]


def _runs(answer: dict[str, Any], records: list[dict[str, Any]]) -> list[tuple[int, int, dict[str, Any], int]]:
    """
    Return the runs of cells in which the same object has the most bytes.

    Returns
    -------
    list of (int, int, dict, int)
        The first cell and the cell after the last one, the record of the object, and how many more objects are there.
    """
    cells = answer["cells"]
    best: list[tuple[int, dict[str, Any]] | None] = [None] * len(cells)
    numbers = [0] * len(cells)
    for cell, record, part in _spread(records, answer["capacity"], len(cells)):
        numbers[cell] += 1
        largest = best[cell]
        if kind_of(record) == cells[cell] and (largest is None or part > largest[0]):
            best[cell] = part, record
    found: list[tuple[int, int, dict[str, Any], int]] = []
    for cell, largest in enumerate(best):
        if largest is None:
            continue
        record, more = largest[1], numbers[cell] - 1
        if found and found[-1][1] == cell and found[-1][2] is record and not more and not found[-1][3]:
            found[-1] = (found[-1][0], cell + 1, record, 0)
        else:
            found.append((cell, cell + 1, record, more))
    return found


def _ask(store: _core.Store) -> dict[str, Any]:
    objects = records(store)
    sums = dict.fromkeys(KINDS, 0)
    for record in objects:
        sums[kind_of(record)] += record["size"] if record["spilled"] else record["extent"]
    capacity = store.capacity
    sums["free"] = max(0, capacity - sums["live"] - sums["pinned"] - sums["making"])
    return {"capacity": capacity, "bytes": sums, "count": len(objects), "records": objects}


def _listed(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of the objects that a page lists, largest first."""
    return sorted(objects, key=lambda record: -record["size"])[:_LISTED]


def _terminal(answer: dict[str, Any], letters: dict[str, str]) -> str:
    width = max(16, shutil.get_terminal_size((80, 24)).columns - 2)
    row = "".join(letters[cell] for cell in answer["cells"])
    lines = [row[i : i + width] for i in range(0, len(row), width)]
    legend = "  ".join(f"{letters[kind]} {kind} {bytes_text(n)}" for kind, n in answer["bytes"].items())
    head = f"{printable(answer['label'])}: {bytes_text(answer['capacity'])}, {bytes_text(answer['cell'])} a cell"
    return "\n".join([head, *lines, legend]) + "\n"


# ---- pictures -----------------------------------------------------------------------------------------------------------

Drawn = tuple[dict[str, Any], list[dict[str, Any]]]
"""What is known about a store, and the records of its objects."""

_SIDE, _COLUMNS = 9, 100
# A page lists at most this many objects of a store, the largest ones.
_LISTED = 1000

_COLOURS = (
    "".join(f".{name} {{ fill: {kind.colour}; background: {kind.colour}; }}\n" for name, kind in KINDS.items())
    + "@media (prefers-color-scheme: dark) {\n"
    + "".join(f"  .{name} {{ fill: {kind.dark}; background: {kind.dark}; }}\n" for name, kind in KINDS.items())
    + "}\n"
)
_SVG_STYLE = f"""
text {{ font: 13px system-ui, sans-serif; fill: #1c2430; }}
.soft {{ fill: #586374; }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #e4e8ee; }} .soft {{ fill: #a0aab8; }} }}
{_COLOURS}"""
_HTML_STYLE = f"""
{_COLOURS}
g[data-object] {{ cursor: pointer; }}
g[data-object]:hover, g.shown {{ stroke: var(--ink); stroke-width: 1.5; }}
tbody tr:hover, tr.shown {{ background: var(--hover); }}
td {{ white-space: nowrap; }}
td:first-child, th:first-child {{ padding-left: 8px; }}
th button {{ font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }}
th button::after {{ content: "\\2195"; opacity: .45; margin-left: 5px; }}
th[aria-sort=ascending] button::after {{ content: "\\2191"; opacity: 1; }}
th[aria-sort=descending] button::after {{ content: "\\2193"; opacity: 1; }}
"""
_SCRIPT = """
for (const head of document.querySelectorAll("th")) {
  head.querySelector("button").addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = line => line.cells[head.cellIndex].dataset.sort ?? line.cells[head.cellIndex].textContent;
    const number = text => text !== "" && isFinite(text);
    const order = (a, b) => number(a) && number(b) ? a - b : a < b ? -1 : a > b ? 1 : 0;
    body.append(...[...body.rows].sort((a, b) => sign * order(key(a), key(b))));
  });
}
for (const part of document.querySelectorAll("[data-object]")) {
  const same = document.querySelectorAll(`[data-object="${part.dataset.object}"]`);
  const show = on => { for (const other of same) other.classList.toggle("shown", on); };
  part.addEventListener("mouseenter", () => show(true));
  part.addEventListener("mouseleave", () => show(false));
  if (part.tagName === "g") part.addEventListener("click", () => {
    for (const other of same) if (other.tagName === "TR") other.scrollIntoView({block: "center"});
  });
}
"""


def _about(record: dict[str, Any]) -> str:
    """Return a line that describes an object."""
    use = f"{kind_of(record)}, held by {count(record['ref_holders'], 'process', 'processes')}"
    name = f" {printable(record['name'])}" if record["name"] else ""
    return f"object {record['serial']}{name}: {bytes_text(record['size'])}, {use}"


def _grid(number: int, answer: dict[str, Any], records: list[dict[str, Any]], y: int) -> tuple[str, int]:
    """Return the cells of a store as SVG elements that begin at `y`, and their height."""
    cells = answer["cells"]
    lines = -(-len(cells) // _COLUMNS)

    def place(cell: int, kind: str) -> str:
        x, line = cell % _COLUMNS * _SIDE, y + cell // _COLUMNS * _SIDE
        size = f'width="{_SIDE - 1}" height="{_SIDE - 1}"'
        return f'<rect class="{kind}" x="{x}" y="{line}" {size} rx="1.5" fill="{KINDS[kind].colour}"/>'

    parts = [place(cell, kind) for cell, kind in enumerate(cells) if kind == "free"]
    for first, end, record, more in _runs(answer, records):
        tip = _about(record) + (
            f"\nand {count(more, 'smaller part', 'smaller parts')} of other objects" if more else ""
        )
        parts.append(
            f'<g data-object="{number}-{record["serial"]}"><title>{escape(tip)}</title>'
            f"{''.join(place(cell, cells[cell]) for cell in range(first, end))}</g>"
        )
    return "".join(parts), lines * _SIDE


def _title(answer: dict[str, Any]) -> str:
    return f"{printable(answer['label'])}: {bytes_text(answer['capacity'])}"


def _svg(drawn: list[Drawn]) -> str:
    """Return a picture of the stores."""
    parts, y = [], 0
    for number, (answer, found) in enumerate(drawn):
        cell = f"{bytes_text(answer['cell'])} in each cell"
        parts.append(
            f'<text x="0" y="{y + 14}">{escape(_title(answer))} <tspan class="soft" dx="8">{cell}</tspan></text>'
        )
        grid, height = _grid(number, answer, found, y + 26)
        parts.append(grid)
        y += 26 + height + 12
        x = 0
        for kind, n in answer["bytes"].items():
            text = f"{kind} {bytes_text(n)}"
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="12" height="12" rx="2" fill="{KINDS[kind].colour}"/>'
                f'<text x="{x + 19}" y="{y + 11}">{text}</text>'
            )
            x += 40 + 8 * len(text)
        y += 52
    width, height = _COLUMNS * _SIDE + 3, max(1, y - 36)
    title = escape(", ".join(_title(answer) for answer, _ in drawn) or "no stores")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="13"><title>{title}</title>'
        f"<style>{_SVG_STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _list(number: int, answer: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """Return the table of a store's objects, largest first."""
    from ..inspection.html import scrolling

    # Cells with a unit are sorted by the number.
    exact = {"SIZE": "size", "AGE": "age"}
    shown = _listed(found)
    heads, rows, _ = extended(shown)
    right = [
        ' class="n"' if head in exact or all(cells[i].isdigit() for cells in rows) else ""
        for i, head in enumerate(heads)
    ]
    lines = []
    for record, texts in zip(shown, rows, strict=True):
        cells = []
        for head, text, side in zip(heads, texts, right, strict=True):
            exactly = f' data-sort="{record[exact[head]]}"' if head in exact else ""
            swatch = f'<i class="swatch {kind_of(record)}"></i>' if head == "STATE" else ""
            cells.append(f"<td{side}{exactly}>{swatch}{escape(text)}</td>")
        lines.append(f'<tr data-object="{number}-{record["serial"]}">{"".join(cells)}</tr>')
    order = {"SIZE": ' aria-sort="descending"'}
    buttons = "".join(
        f'<th scope="col"{side}{order.get(head, "")}><button type="button">{head.lower()}</button></th>'
        for head, side in zip(heads, right, strict=True)
    )
    table = f"<table><thead><tr>{buttons}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    rest = len(found) - len(lines)
    note = f"<p>{count(rest, 'smaller object is', 'smaller objects are')} not listed.</p>" if rest else ""
    return scrolling(f"Objects of {printable(answer['label'])}", table) + note


def _html(drawn: list[Drawn]) -> str:
    """Return a page with the map of each store, its legend and its objects."""
    from ..inspection.html import document

    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    parts = [f"<h1>Shared memory</h1><p>pyray-ser {__version__}, {now}</p>"]
    for number, (answer, found) in enumerate(drawn):
        objects = count(answer["count"], "object", "objects")
        facts = f"{bytes_text(answer['capacity'])}, {objects}, {bytes_text(answer['cell'])} in each cell"
        legend = "".join(
            f'<li><i class="swatch {kind}"></i>{kind} {bytes_text(n)} <span>{KINDS[kind].meaning}</span></li>'
            for kind, n in answer["bytes"].items()
        )
        grid, height = _grid(number, answer, found, 0)
        box = f"-2 -2 {_COLUMNS * _SIDE + 3} {height + 3}"
        parts += [
            f"<h2>{escape(printable(answer['label']))}</h2><p>{facts}</p>",
            f'<svg viewBox="{box}" role="img" aria-label="Map of the data area of {escape(_title(answer))}">{grid}</svg>',
            f'<ul class="key">{legend}</ul>',
            _list(number, answer, found) if found else "<p>The store is empty.</p>",
        ]
    if not drawn:
        parts.append("<p>There are no stores.</p>")
    parts.append(f"<script>{_SCRIPT}</script>")
    return document("pyray_ser stores", _HTML_STYLE, parts)


def run(arguments: argparse.Namespace) -> int:
    """Draw the stores."""
    if arguments.cells is not None and not 1 <= arguments.cells <= 1_000_000:
        raise CommandError("--cells is between 1 and 1000000")
    pictures = bool(arguments.svg or arguments.html)
    cells = arguments.cells or (2000 if pictures else 10 * max(16, shutil.get_terminal_size((80, 24)).columns - 2))

    def ask(found: Found, store: _core.Store, spill_dir: str | None) -> dict[str, Any]:
        answer = _ask(store)
        if arguments.html:
            add_descriptions(found, store, spill_dir, _listed(answer["records"]))
        return answer

    answers, status = each_found(arguments, ask)
    drawn: list[Drawn] = []
    for answer in answers:
        if "error" not in answer:
            found = answer.pop("records")
            answer["cell"] = -(-answer["capacity"] // cells)
            answer["cells"] = cells_of(found, answer["capacity"], cells)
            drawn.append((answer, found))
    for path, draw in ((arguments.svg, _svg), (arguments.html, _html)):
        if path:
            try:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(draw(drawn))
            except OSError as problem:
                raise CommandError(f"cannot write {path}: {problem.strerror}") from problem
    if arguments.json:
        write_json({"stores": answers})
        return status
    letters = {name: kind.letter for name, kind in KINDS.items()}
    try:
        "".join(letters.values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        letters = {name: kind.plain for name, kind in KINDS.items()}
    for answer in answers:
        if "error" in answer:
            print(f"{printable(answer['label'])}: {printable(answer['error'])}\n")
        elif not pictures:
            print(_terminal(answer, letters))
    if not answers and not status:
        print("no stores")
    return status
