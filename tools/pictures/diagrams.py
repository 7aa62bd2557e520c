"""Draw the diagrams: the architecture, and the life of an object."""

from __future__ import annotations

from html import escape
from pathlib import Path

from palette import document

__all__ = ["draw"]

WIDTH = 640.0
TEXT, SMALL = 18.0, 16.0


def text(x: float, y: float, words: str, look: str = "f-ink", size: float = TEXT, anchor: str = "start") -> str:
    """Return a line of text; `anchor` is "start", "middle" or "end"."""
    return (
        f'<text x="{x:g}" y="{y:g}" class="{look}" font-size="{size:g}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, look: str, radius: float = 10, more: str = "") -> str:
    """Return a rectangle with round corners."""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} rx="{radius:g}" class="{look}" stroke-width="1.5" {more}/>'


def frame(x: float, y: float, width: float, height: float, radius: float = 14) -> str:
    """Return an outline without a filling."""
    return box(x, y, width, height, "s-line", radius, 'fill="none"')


def arrow(points: list[tuple[float, float]], colour: str, dashed: bool = False) -> str:
    """Return a line along the points, with the head of an arrow at the last one."""
    (x0, y0), (x1, y1) = points[-2:]
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    path = " ".join(f"{x:g},{y:g}" for x, y in [*points[:-1], (x1 - 8 * dx, y1 - 8 * dy)])
    head = " ".join(
        f"{x1 - 11 * dx * back - 6 * dy * side:.1f},{y1 - 11 * dy * back + 6 * dx * side:.1f}"
        for back, side in ((0, 0), (1, 1), (1, -1))
    )
    dashes = ' stroke-dasharray="6 5"' if dashed else ""
    return (
        f'<polyline points="{path}" fill="none" class="s-{colour}" stroke-width="2.5"{dashes}/>'
        f'<polygon points="{head}" class="f-{colour}"/>'
    )


def process(x: float, y: float, width: float, name: str, call: str) -> str:
    """Return the box of a process with the call that it makes."""
    middle = x + width / 2
    return (
        box(x, y, width, 84, "f-panel s-line")
        + text(middle, y + 34, name, "f-ink bold", TEXT, "middle")
        + text(middle, y + 63, call, "f-accent mono", SMALL, "middle")
    )


def segment(x: float, y: float, width: float, name: str, objects: list[tuple[str, float]]) -> str:
    """Return a segment of shared memory with its objects, given as labels and widths; "" is free memory."""
    parts = [box(x, y, width, 96, "f-pale s-accent"), text(x + 16, y + 29, name, "f-ink bold", TEXT)]
    at = x + 14
    for label, wide in objects:
        if label:
            parts.append(box(at, y + 42, wide, 40, "f-accent", 6))
            parts.append(text(at + wide / 2, y + 68, label, "f-on-accent", SMALL, "middle"))
        else:
            parts.append(box(at, y + 42, wide, 40, "s-accent", 6, 'fill="none" stroke-dasharray="5 5"'))
            parts.append(text(at + wide / 2, y + 68, "free", "f-soft", SMALL, "middle"))
        at += wide + 8
    return "".join(parts)


def architecture() -> str:
    """Draw the processes of a machine, their segment, and the segment of another machine."""
    top, wide = 56, 152
    left, middle, right = 24, 244, 464
    memory = 262
    parts = [
        frame(1, 1, 638, 434),
        text(24, 36, "One machine", "f-ink bold"),
        text(616, 36, "no daemon", "f-good bold", TEXT, "end"),
        process(left, top, wide, "program", "put(table)"),
        process(middle, top, wide, "worker", "get(ref)"),
        process(right, top, wide, "worker", "get(ref)"),
    ]
    for x in (left + wide, middle + wide):
        parts.append(arrow([(x + 7, top + 50), (x + 61, top + 50)], "soft"))
        parts.append(text(x + 34, top + 38, "ref", "f-soft mono", SMALL, "middle"))
    down, up = top + 91, memory - 7
    parts += [
        arrow([(left + 40, down), (left + 40, up)], "accent"),
        text(left + 54, 204, "copied once", "f-ink", TEXT),
        arrow([(middle + 40, up), (middle + 40, down)], "accent", dashed=True),
        text(middle + 54, 204, "read in place", "f-ink", TEXT),
        arrow([(right + 40, up), (right + 40, down)], "accent", dashed=True),
        text(right + 54, 204, "read-only", "f-ink", TEXT),
        segment(left, memory, 592, "one segment of shared memory", [("table  320 MB", 290), ("model", 110), ("", 148)]),
        text(left, 389, "install() hooks pools and executors:", "f-soft", TEXT),
        text(left, 414, "their pipes carry references of about 100 bytes.", "f-soft", TEXT),
        # The other machine.
        arrow([(left + 159, 438), (left + 159, 513)], "accent"),
        text(left + 175, 482, "Dask: one copy for each machine", "f-ink", TEXT),
        frame(1, 516, 638, 166),
        text(24, 551, "Another machine", "f-ink bold"),
        segment(left, 567, 372, "its own segment", [("table  320 MB", 268), ("", 68)]),
        process(right, 573, wide, "Dask worker", "get(ref)"),
        arrow([(left + 379, 615), (right - 7, 615)], "accent", dashed=True),
    ]
    title = "How pyray_ser shares objects"
    description = (
        "On one machine, a program puts a table into one segment of shared memory, a memfd or a file in /dev/shm; it "
        "is copied once. The program sends references of about 100 bytes to workers through pipes. The workers read the "
        "table in place, read-only. There is no daemon. install() hooks pools and executors, so that their pipes carry "
        "references. "
        "With Dask, another machine has its own segment with one copy of the table, which its workers read in place."
    )
    return document(WIDTH, 684, title, description, parts)


def bar(x: float, end: float, y: float, words: str, look: str, ink: str = "f-on-accent", more: str = "") -> str:
    """Return a bar of a time line with its label."""
    return box(x, y, end - x, 40, look, 6, more) + text((x + end) / 2, y + 26, words, ink, SMALL, "middle")


def object_life() -> str:
    """Draw the holders of an object over time, and the state of its memory."""
    first, sealed, got, killed, reaped, released, end = 114, 208, 302, 388, 532, 552, 639
    lanes = {name: 64 + 60 * number for number, name in enumerate(("program", "message", "worker A", "worker B"))}
    memory = 336
    parts = []
    for x, name, anchor in ((first, "put", "middle"), (sealed, "sealed", "middle"), (got, "get", "middle")):
        parts.append(text(x, 30, name, "f-ink mono" if name != "sealed" else "f-ink", SMALL, anchor))
    parts.append(text(released, 30, "last release", "f-ink", SMALL, "middle"))
    parts += [
        f'<path d="M{x},42 V{memory + 58}" class="s-line" stroke-width="1.5" stroke-dasharray="2 5"/>'
        for x in (first, sealed, got, released)
    ]
    parts += [text(0, y + 26, name, "f-ink", TEXT) for name, y in lanes.items()]
    parts += [
        bar(first, sealed, lanes["program"], "writes", "f-pale-warm s-warm", "f-warm"),
        bar(sealed + 3, 376, lanes["program"], "reference", "f-accent"),
        bar(sealed + 3, got, lanes["message"], "in flight", "f-pale s-accent", "f-accent"),
        bar(got + 3, released, lanes["worker A"], "view: reads in place", "f-accent"),
        bar(got + 3, killed, lanes["worker B"], "view", "f-accent"),
        bar(
            killed + 3,
            reaped,
            lanes["worker B"],
            "killed, reaped",
            "f-pale-bad s-bad",
            "f-bad",
            'stroke-dasharray="5 4"',
        ),
        # The memory.
        f'<path d="M0,{memory - 22} H639" class="s-line" stroke-width="1.5"/>',
        text(0, memory + 29, "memory", "f-ink bold", TEXT),
        bar(first, sealed, memory, "creating", "f-pale-warm s-warm", "f-warm"),
        bar(sealed + 3, released, memory, "sealed: read-only", "f-pale-good s-good", "f-good"),
        bar(released + 3, end, memory, "freed", "s-line", "f-soft", 'fill="none" stroke-dasharray="5 5"'),
        text(0, memory + 92, "A reference, a message in flight or a view holds the object.", "f-soft", TEXT),
        text(0, memory + 118, "When the last of them is gone, its memory is freed.", "f-soft", TEXT),
    ]
    title = "The life of an object"
    description = (
        "A time line. The program puts an object: it writes it, and seals it; from then on, nobody can change it. The "
        "program holds a reference. A message in flight with a reference holds the object, too, until worker A and "
        "worker B get it; each then has a view and reads in place. The program releases its reference. Worker B is "
        "killed, and worker A reaps it: it releases what worker B held. When worker A releases its view, which is the "
        "last one, the memory of the object is freed."
    )
    return document(WIDTH, memory + 128, title, description, parts)


def draw(folder: Path) -> list[Path]:
    """Write the diagrams, and return their paths."""
    made = []
    for name, picture in (("architecture", architecture()), ("object-life", object_life())):
        path = folder / f"{name}.svg"
        path.write_text(picture, encoding="utf-8")
        made.append(path)
    return made
