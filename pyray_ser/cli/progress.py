"""A progress bar on the terminal: of the package rich if it is installed, otherwise one line of text."""

from __future__ import annotations

import shutil
import sys
from types import TracebackType
from typing import Any

__all__ = ["Progress"]


class Progress:
    """
    A progress bar on standard error; it shows nothing unless that is a terminal.

    Parameters
    ----------
    total : int
        Number of steps.
    """

    def __init__(self, total: int) -> None:
        self._total = max(1, total)
        self._bar: Any = None
        self._task: Any = None
        self._live = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self._live:
            try:
                from rich.console import Console
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
                from rich.progress import Progress as Bar
            except ImportError:
                return self
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def show(self, done: int, text: str) -> None:
        """Show how many steps are done, and what runs now."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif self._live:
            line = f"[{done}/{self._total}] {text}"
            width = shutil.get_terminal_size((80, 24)).columns - 1
            sys.stderr.write(f"\r\x1b[K{line[:width]}")
            sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
