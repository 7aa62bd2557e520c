"""Draw the bar charts from the figures in bench/data, which are those of bench/RESULTS.md."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from palette import COLOURS, document

__all__ = ["draw"]

# One unit of the picture is one point of matplotlib.
WIDTH, UNIT = 640.0, 72.0
TEXT, SMALL = 17.0, 15.0
BAR, STEP, CLOSE = 24.0, 36.0, 28.0
TITLE, AXIS, GAP = 44.0, 56.0, 26.0
# matplotlib draws with these colours; `_classes` replaces each by the class of a colour that differs in dark mode.
MARKS = {name: f"#0000{number:02x}" for number, name in enumerate(COLOURS, 1)}
SVG = "{http://www.w3.org/2000/svg}"

mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pyray_ser", "font.size": TEXT})


@dataclass
class Bar:
    """One bar: its name, its length, the text at its end, and the name of its colour."""

    name: str
    value: float
    label: str
    colour: str = "other"
    close: bool = False
    """True if the bar belongs to the one above."""


@dataclass
class Panel:
    """Bars with a common axis."""

    title: str
    unit: str
    bars: list[Bar]
    note: str = ""
    names: float = 150.0
    room: float = 96.0

    @property
    def rows(self) -> list[float]:
        """The distances of the bars from the top, in units."""
        found: list[float] = []
        for bar in self.bars:
            found.append(found[-1] + (CLOSE if bar.close else STEP) if found else STEP / 2)
        return found

    @property
    def height(self) -> float:
        return TITLE + self.rows[-1] + STEP / 2 + AXIS


def figure(panels: list[list[Panel]], title: str, description: str) -> str:
    """Return a picture of rows of panels as SVG."""
    heights = [max(panel.height for panel in row) for row in panels]
    total = sum(heights) + GAP * (len(panels) - 1)
    canvas = Figure(figsize=(WIDTH / UNIT, total / UNIT), dpi=UNIT)
    FigureCanvasSVG(canvas)
    top = 0.0
    for row, height in zip(panels, heights, strict=True):
        wide = (WIDTH - GAP * (len(row) - 1)) / len(row)
        for number, panel in enumerate(row):
            _panel(canvas, panel, number * (wide + GAP), top, wide, total)
        top += height + GAP
    file = io.BytesIO()
    canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return document(WIDTH, total, title, description, [_classes(file.getvalue())])


def _panel(canvas: Figure, panel: Panel, left: float, top: float, wide: float, total: float) -> None:
    """Draw a panel at a place that is given in units from the left and from the top."""
    inner = wide - panel.names - panel.room
    rows = panel.rows
    height = rows[-1] + STEP / 2
    place = ((left + panel.names) / WIDTH, 1 - (top + TITLE + height) / total, inner / WIDTH, height / total)
    axes = canvas.add_axes(place)
    axes.patch.set_visible(False)
    longest = max(bar.value for bar in panel.bars)
    axes.set_xlim(0, longest)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=longest > 4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_ylim(height, 0)
    for row, bar in zip(rows, panel.bars, strict=True):
        # A bar that is too short to be seen gets two units.
        axes.barh(row, max(bar.value, 2 * longest / inner), BAR, color=MARKS[bar.colour])
        look = {"color": MARKS["accent"], "weight": "bold"} if bar.colour == "accent" else {"color": MARKS["ink"]}
        axes.annotate(
            bar.label, (bar.value, row), (8, 0), textcoords="offset points", va="center", annotation_clip=False, **look
        )
        axes.annotate(
            bar.name, (0, row), (-panel.names, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", **look,
        )  # fmt: skip
    axes.tick_params(axis="x", labelcolor=MARKS["soft"], labelsize=SMALL, length=0, pad=8)
    axes.set_yticks([])
    axes.spines["bottom"].set_color(MARKS["line"])
    axes.spines["left"].set_color(MARKS["line"])
    axes.spines[["top", "right"]].set_visible(False)
    canvas.text(
        left / WIDTH,
        1 - (top + 20) / total,
        panel.title,
        va="baseline",
        color=MARKS["ink"],
        fontsize=TEXT + 1,
        weight="bold",
    )
    if panel.note:
        canvas.text(
            (left + wide) / WIDTH, 1 - (top + 20) / total, panel.note, va="baseline", ha="right", color=MARKS["soft"],
            fontsize=SMALL,
        )  # fmt: skip
    canvas.text(
        (left + panel.names) / WIDTH, 1 - (top + TITLE + height + 46) / total, panel.unit, va="baseline",
        color=MARKS["soft"], fontsize=SMALL,
    )  # fmt: skip


def _classes(svg: bytes) -> str:
    """Return the drawing of an SVG file of matplotlib, with classes instead of colours and fonts."""
    names = {mark: name for name, mark in MARKS.items()}
    ET.register_namespace("", SVG[1:-1])
    root = ET.fromstring(svg)
    for element in root.iter():
        style = dict(re.findall(r"([\w-]+):\s*([^;]+)", element.attrib.pop("style", "")))
        classes = []
        for kind, letter in (("fill", "f"), ("stroke", "s")):
            colour = style.get(kind)
            if colour in names:
                classes.append(f"{letter}-{names[colour]}")
                del style[kind]
        if element.tag == f"{SVG}text":
            if "fill" in style or not classes:
                raise ValueError(
                    f"the text {element.text!r} has the colour {style.get('fill')}, not one of the palette"
                )
            element.set("font-size", style.pop("font-size").removesuffix("px"))
            style.pop("font-family")
            if style.pop("font-weight", None):
                classes.append("bold")
            element.attrib.pop("transform", None)  # a rotation by 0 degrees
        if classes:
            element.set("class", " ".join(classes))
        if style:
            element.set("style", ";".join(f"{key}:{value}" for key, value in style.items()))
        # Nothing is drawn outside of its axes.
        element.attrib.pop("clip-path", None)
        element.attrib.pop("id", None)
    text = "".join(ET.tostring(part, encoding="unicode") for part in root if part.tag == f"{SVG}g")
    return re.sub(r' xmlns="[^"]*"', "", text)


# ---- the charts ---------------------------------------------------------------------------------------------------------


def _load(data: Path, name: str) -> dict:
    return json.loads((data / f"{name}.json").read_text(encoding="utf-8"))


def _times(ratio: float) -> str:
    """Return a ratio with one decimal place, or as a whole number from 100 on."""
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.1f}x"


def pool(data: Path) -> str:
    """Draw the time and the memory of the README's pool, before and after."""
    found = _load(data, "pool")
    seconds, memory = found["seconds"], {which: bytes / 1e9 for which, bytes in found["memory"].items()}
    panels = []
    for title, axis, unit, values in (
        ("Time", "seconds", "s", seconds),
        ("Memory of all processes", "gigabytes", "GB", memory),
    ):
        before = Bar("before", values["before"], f"{values['before']:.2f} {unit}")
        after = Bar("after", values["after"], f"{values['after']:.2f} {unit}", "accent")
        panels.append(Panel(title, axis, [before, after], names=66, room=82))
    description = (
        f"A multiprocessing pool of {found['workers']} processes computes the means of the columns of an array of "
        f"{found['mb']} MB. Before: {seconds['before']:.2f} s and {memory['before']:.2f} GB. After, with the two lines "
        f"for pyray_ser: {seconds['after']:.2f} s and {memory['after']:.2f} GB."
    )
    return figure([panels], "A pool before and after two lines", description)


def comparison(data: Path) -> str:
    """Draw the times of other stores, relative to ours."""
    found = {claim["what"]: claim for claim in _load(data, "comparison")["claims"]}
    subjects = [
        ("100 MB put", "Put an array of 100 MB", "ms", 1e3),
        ("small put", "Put an array of 80 B", "µs", 1),
        ("small get", "Get an array of 80 B", "µs", 1),
        ("cold start", "First put and get of a new process", "", 0),
    ]
    panels, words = [], []
    for what, title, unit, factor in subjects:
        rows = [
            (name.removeprefix(f"{what}, ").removesuffix(" over ours"), claim)
            for name, claim in found.items()
            if name.startswith(what)
        ]
        rows.sort(key=lambda row: row[1]["figure"])
        bars = [Bar("pyray_ser", 1, "1x", "accent")]
        bars += [Bar(name.removesuffix(" by hand"), claim["figure"], _times(claim["figure"])) for name, claim in rows]
        if factor:
            ours = float(rows[0][1]["detail"]["note"].split(" and ")[1].split()[0].replace(",", "")) / factor
            bars[0].label += f"  ({ours:.2g} {unit})"
        panels.append([Panel(title, "times as long as pyray_ser", bars, room=110)])
        words.append(f"{title}: " + ", ".join(f"{bar.name} {bar.label}" for bar in bars))
    description = "Times of other libraries, in multiples of the time of pyray_ser. " + ". ".join(words) + "."
    return figure(panels, "pyray_ser and other stores", description)


def tasks(data: Path) -> str:
    """Draw the times of tasks and actors under Ray and with pyray_ser."""
    titles = {
        "no-op task": "A task that does nothing",
        "no-op actor call": "A call of an actor that does nothing",
        "task with an argument of 1 MB": "A task with an argument of 1 MB",
        "first result from a cold interpreter": "The first result of a new program",
    }
    panels, words = [], []
    for row in _load(data, "tasks")["rows"]:
        what = row["what"].removesuffix(", Ray over ours")
        unit = row["unit"].replace("us", "µs")
        names = {"µs": "microseconds", "ms": "milliseconds", "s": "seconds"}
        bars = [
            Bar("pyray_ser", row["ours"], f"{row['ours']:,g} {unit}", "accent"),
            Bar("Ray", row["theirs"], f"{row['theirs']:,g} {unit}"),
        ]
        panels.append([Panel(titles[what], names[unit], bars, f"{row['ratio']:g} times as fast", names=110, room=100)])
        words.append(f"{titles[what]}: " + ", ".join(f"{bar.name} {bar.label}" for bar in bars))
    return figure(panels, "Tasks and actors of pyray_ser and of Ray", ". ".join(words) + ".")


def pickler(data: Path) -> str:
    """Draw the speed of the pickler relative to those of Python and of Apache Fory."""
    found = _load(data, "pickler")["rows"]
    shown = {
        "dict of 3": "dict of 3 items",
        "JSON of 1 MB": "JSON of 1 MB",
        "100,000 floats": "100,000 floats",
        "10,000 plain": "10,000 objects",
        "10,000 namedtuples": "10,000 namedtuples",
        "1,000 ndarrays": "1,000 arrays",
    }
    rows, words = [], []
    for side in ("dumps", "loads"):
        bars = [Bar("pyray_ser", 1, "1x", "accent")]
        for key, name in shown.items():
            of = found[key][side]
            bars.append(Bar(name, of["_pickle"][0], f"{_times(of['_pickle'][0])} pickle"))
            bars.append(Bar("", of["fory"][0], f"{_times(of['fory'][0])} Fory", "line", close=True))
            words.append(f"{side} of {name}: pickle {bars[-2].label}, {bars[-1].label}")
        title = {"dumps": "Pickle (dumps)", "loads": "Unpickle (loads)"}[side]
        rows.append([Panel(title, "times as long as pyray_ser", bars, names=182, room=118)])
    description = "Times of pickle and Apache Fory, in multiples of the time of pyray_ser. " + "; ".join(words) + "."
    return figure(rows, "The pickler of pyray_ser, pickle and Apache Fory", description)


def draw(data: Path, folder: Path) -> list[Path]:
    """Write the charts, and return their paths."""
    made = []
    for chart in (pool, comparison, tasks, pickler):
        path = folder / f"{chart.__name__}.svg"
        path.write_text(chart(data), encoding="utf-8")
        made.append(path)
    return made
