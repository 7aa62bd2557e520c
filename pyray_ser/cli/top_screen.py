"""The screen of ``pyray-ser top``, drawn by the package rich, with keys."""

from __future__ import annotations

import argparse
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .objects import ORDERS, extended
from .output import printable
from .top import PROCESS_HEADS, PROCESS_SIDES, View, look, process_rows, summary

__all__ = ["run_screen"]

_STATES = {"spilled": "magenta", "creating": "yellow", "freed": "red", "orphaned": "red"}


# ---- drawing ---------------------------------------------------------------------------------------------------------------


# Columns that may be cut, with the width that they keep; and columns that are left out of a narrow terminal, in this order.
_CUT = {"WHAT": 26, "NAME": 8, "MADE AT": 10, "COMMAND": 16}
_LEFT_OUT = ("MADE AT", "HELD", "COMMAND", "REFS", "VIEWS", "SHARED")
_GAP = 2


def _table(heads: Sequence[str], rows: list[list[str]], sides: str, width: int) -> Table:
    """Return a table that fits into `width`, in which numbers are never cut."""
    least = {}
    for index, head in enumerate(heads):
        widest = max([len(head), *(len(row[index]) for row in rows)])
        least[head] = min(widest, _CUT.get(head, widest))
    for head in _LEFT_OUT:
        if sum(least.values()) + _GAP * len(least) > width:
            least.pop(head, None)
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    shown = [index for index, head in enumerate(heads) if head in least]
    for index in shown:
        justify: Literal["right", "left"] = "right" if sides[index] == "r" else "left"
        made.add_column(heads[index], justify=justify, no_wrap=True, overflow="ellipsis", min_width=least[heads[index]])
    for row in rows:
        # Text, because a str would be read as markup.
        made.add_row(*(Text(row[index], style=_STATES.get(row[index], "")) for index in shown))
    return made


def _store(answer: dict[str, Any], limit: int, width: int) -> Iterator[RenderableType]:
    name = Text(printable(answer["label"]), style="bold cyan")
    if "error" in answer:
        yield name
        yield Text(f"  {printable(answer['error'])}", style="red")
        return
    stats = answer["stats"]
    first, *more = summary(answer)
    head = Table.grid(padding=(0, _GAP))
    head.add_row(name, ProgressBar(total=max(1, stats["capacity"]), completed=stats["used"], width=30), Text(first))
    yield head
    yield from (Text(f"  {line}", style="dim") for line in more)
    if answer["objects"]:
        yield Text()
        yield _table(*extended(answer["objects"]), width)
    if answer["processes"] and limit:
        yield Text()
        yield _table(PROCESS_HEADS, process_rows(answer, limit), PROCESS_SIDES, width)
    yield Text()


def draw(answers: list[dict[str, Any]], view: View, state: str, width: int) -> Group:
    """Return the screen for a terminal of `width` columns."""
    shown = f"sorted by {view.sort}" + (f", filter {printable(view.filter)!r}" if view.filter else "")
    keys = Text.assemble(
        ("q", "bold"), " quit  ", ("s", "bold"), " sort  ", ("/", "bold"), " filter  ", ("space", "bold"), " pause"
    )
    parts: list[RenderableType] = [Text.assemble(keys, ("   " + shown + state, "dim")), Text()]
    for answer in answers:
        parts += _store(answer, view.objects, width)
    if not answers:
        parts.append(Text("no stores"))
    return Group(*parts)


# ---- keys ------------------------------------------------------------------------------------------------------------------


class _Keys:
    """
    What the keys have set.

    Attributes
    ----------
    over, paused : bool
    typed : str or None
        The filter that is being typed.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.over = self.paused = False
        self.typed: str | None = None

    def press(self, key: str) -> None:
        """Handle one key."""
        if self.typed is not None:
            self._type(key)
        elif key in "qQ":
            self.over = True
        elif key == "s":
            orders = list(ORDERS)
            self.view.sort = orders[(orders.index(self.view.sort) + 1) % len(orders)]
        elif key == " ":
            self.paused = not self.paused
        elif key == "/":
            self.typed = ""

    def _type(self, key: str) -> None:
        assert self.typed is not None
        if key in "\r\n":
            self.view.filter, self.typed = self.typed, None
        elif key == "\x1b":
            self.typed = None
        elif key in "\x7f\b":
            self.typed = self.typed[:-1]
        elif key.isprintable():
            self.typed += key

    @property
    def state(self) -> str:
        """str : what the first line says about the keys."""
        if self.typed is not None:
            return f"   filter: {self.typed}_"
        return "   paused" if self.paused else ""


@contextmanager
def _keyboard() -> Iterator[int | None]:
    """Read keys as they are pressed; yield the descriptor, or None if standard input is no terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)  # Ctrl-C still interrupts
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _wait(fd: int | None, seconds: float) -> str:
    """Return the keys that were pressed, or "" after some seconds."""
    if fd is None:
        time.sleep(max(0.0, seconds))
        return ""
    if not select.select([fd], [], [], max(0.0, seconds))[0]:
        return ""
    data = os.read(fd, 64)
    return data.decode("utf-8", "replace") or "q"  # the terminal is gone


def run_screen(arguments: argparse.Namespace, view: View) -> int:
    """Show the stores until the user ends it."""
    keys = _Keys(view)
    answers, status = look(arguments, view)
    looks = 1
    console = Console()
    with _keyboard() as fd, Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as screen:
        while True:
            screen.update(draw(answers, view, keys.state, console.width), refresh=True)
            if not keys.paused and arguments.count is not None and looks >= arguments.count:
                return status
            for key in _wait(fd, arguments.interval):
                keys.press(key)
            if keys.over:
                return status
            if not keys.paused and keys.typed is None:
                answers, status = look(arguments, view)
                looks += 1
