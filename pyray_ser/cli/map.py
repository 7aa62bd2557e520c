"""``pyray-ser map``: a picture of the segment."""

from __future__ import annotations

import argparse
import shutil
import sys
from html import escape
from typing import Any

from .. import _core
from . import CommandError
from .look import each
from .output import bytes_text, printable, write_json
from .stores import add_selection

# Kinds of cells, with the letter that is printed in a terminal and the colour in an image. A cell has the kind to which
# most of its bytes belong, but it is "free" only if all of its bytes are free.
KINDS = {
    "free": ("\u00b7", "#e8e8e8"),
    "live": ("\u2592", "#5b8fc9"),
    "pinned": ("\u2588", "#1f3f66"),
    "making": ("+", "#e0a030"),
    "spilled": ("s", "#9a6fb0"),
}
PLAIN = {"free": ".", "live": "o", "pinned": "#", "making": "+", "spilled": "s"}


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


def cells_of(records: list[dict[str, Any]], capacity: int, count: int) -> list[str]:
    """
    Divide the data area into cells.

    Returns
    -------
    list of str
        The kind of each cell.
    """
    size = -(-capacity // count)
    filled: list[dict[str, int]] = [{} for _ in range(count)]
    for record in records:
        kind = kind_of(record)
        start, end = record["offset"], min(record["offset"] + record["extent"], capacity)
        if kind == "spilled":
            continue  # the object is not in memory
        while start < end:
            cell = start // size
            stop = min(end, (cell + 1) * size)
            filled[cell][kind] = filled[cell].get(kind, 0) + stop - start
            start = stop
    return [max(cell, key=lambda kind: cell[kind]) if cell else "free" for cell in filled]


def _ask(store: _core.Store, spill_dir: str | None) -> dict[str, Any]:
    records = store.records()
    sums = dict.fromkeys(KINDS, 0)
    for record in records:
        sums[kind_of(record)] += record["size"] if record["spilled"] else record["extent"]
    capacity = store.capacity
    sums["free"] = max(0, capacity - sums["live"] - sums["pinned"] - sums["making"])
    return {"capacity": capacity, "bytes": sums, "objects": len(records), "records": records}


def _caption(answer: dict[str, Any]) -> str:
    return ", ".join(f"{kind} {bytes_text(n)}" for kind, n in answer["bytes"].items())


def _terminal(answer: dict[str, Any], letters: dict[str, str]) -> str:
    width = max(16, shutil.get_terminal_size((80, 24)).columns - 2)
    row = "".join(letters[cell] for cell in answer["cells"])
    lines = [row[i : i + width] for i in range(0, len(row), width)]
    legend = "  ".join(f"{letters[kind]} {kind} {bytes_text(n)}" for kind, n in answer["bytes"].items())
    head = f"{printable(answer['label'])}: {bytes_text(answer['capacity'])}, {bytes_text(answer['cell'])} a cell"
    return "\n".join([head, *lines, legend]) + "\n"


def _svg(answers: list[dict[str, Any]]) -> str:
    side, columns, gap = 9, 100, 46
    parts, y = [], 0
    for answer in answers:
        title = escape(f"{printable(answer['label'])}: {bytes_text(answer['capacity'])}; {_caption(answer)}")
        parts.append(f'<text x="0" y="{y + 14}">{title}</text>')
        y += 22
        for i, kind in enumerate(answer["cells"]):
            if kind != "free":
                x, line = i % columns * side, y + i // columns * side
                parts.append(
                    f'<rect x="{x}" y="{line}" width="{side - 1}" height="{side - 1}" fill="{KINDS[kind][1]}"/>'
                )
        rows = -(-len(answer["cells"]) // columns)
        frame = f'<rect x="-1" y="{y - 1}" width="{columns * side + 1}" height="{rows * side + 1}"'
        parts.append(f'{frame} fill="none" stroke="#999"/>')
        y += rows * side + gap - 22
    x = 0
    for kind, (_, colour) in KINDS.items():
        parts.append(f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{colour}"/>')
        parts.append(f'<text x="{x + side + 4}" y="{y + side}">{kind}</text>')
        x += 90
    width, height = columns * side + 4, y + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'
    )


def _html(answers: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(printable(answer['label']))}</td><td>{answer['objects']}</td>"
        + "".join(f"<td>{bytes_text(n)}</td>" for n in answer["bytes"].values())
        + "</tr>"
        for answer in answers
    )
    heads = "".join(f"<th>{kind}</th>" for kind in KINDS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>pyray_ser stores</title>'
        "<style>body{font-family:sans-serif;margin:2em}td,th{text-align:right;padding:.2em .8em}</style></head><body>"
        f"{_svg(answers)}<table><tr><th>store</th><th>objects</th>{heads}</tr>{rows}</table></body></html>\n"
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw the stores."""
    if arguments.cells is not None and not 1 <= arguments.cells <= 1_000_000:
        raise CommandError("--cells is between 1 and 1000000")
    drawn = bool(arguments.svg or arguments.html)
    count = arguments.cells or (2000 if drawn else 10 * max(16, shutil.get_terminal_size((80, 24)).columns - 2))
    answers, status = each(arguments, _ask)
    shown = [answer for answer in answers if "error" not in answer]
    for answer in shown:
        answer["cell"] = -(-answer["capacity"] // count)
        answer["cells"] = cells_of(answer.pop("records"), answer["capacity"], count)
    for path, draw in ((arguments.svg, _svg), (arguments.html, _html)):
        if path:
            try:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(draw(shown))
            except OSError as problem:
                raise CommandError(f"cannot write {path}: {problem.strerror}") from problem
    if arguments.json:
        write_json({"stores": answers})
        return status
    try:
        "".join(letter for letter, _ in KINDS.values()).encode(sys.stdout.encoding or "ascii")
        letters = {kind: letter for kind, (letter, _) in KINDS.items()}
    except UnicodeEncodeError:
        letters = PLAIN
    for answer in answers:
        if "error" in answer:
            print(f"{printable(answer['label'])}: {printable(answer['error'])}\n")
        elif not drawn:
            print(_terminal(answer, letters))
    if not answers and not status:
        print("no stores")
    return status
