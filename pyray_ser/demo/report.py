"""Print progress while the demo runs, and a table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType


class Progress:
    """Shows one line per step on stderr: a progress bar on a terminal, otherwise a line when the step is done."""

    WIDTH = 24

    def __init__(self, text: str, steps: int) -> None:
        self._text = text
        self._steps = max(steps, 1)
        self._done = 0
        self._start = self._shown = 0.0
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        self._start = time.perf_counter()
        self._show()
        return self

    def advance(self) -> None:
        self._done += 1
        if time.perf_counter() - self._shown > 0.1:
            self._show()

    def _show(self) -> None:
        self._shown = time.perf_counter()
        if self._terminal:
            full = self.WIDTH * self._done // self._steps
            bar = "#" * full + "." * (self.WIDTH - full)
            print(f"\r\033[K[{bar}] {self._text}", end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken = time.perf_counter() - self._start
        before = "\r\033[K" if self._terminal else ""
        ending = "" if kind is None else " (not finished)"
        print(f"{before}{taken:7.1f} s  {self._text}{ending}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a time with a suitable unit."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.2f} us"


def size(count: int) -> str:
    """Return a number of bytes with a suitable unit."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:,.2f} {unit}"
    return f"{count} B"


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table with the first column aligned left and the others aligned right."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]

    def form(line: tuple[str, ...]) -> str:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([form(heads), rule, *map(form, rows)])
