"""Functions that format figures and tables for output."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["age", "bytes_text", "count", "cut", "error", "printable", "table", "write_json"]


def bytes_text(number: int) -> str:
    """Return a byte count with a unit."""
    if number < 1024:
        return f"{number} B"
    size = float(number)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1023.95 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"


def age(seconds: float) -> str:
    """Return a duration as text with its one or two largest units."""
    seconds = max(0, int(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d}"
    return f"{seconds // 86400} d"


def count(number: int, one: str, many: str) -> str:
    """Return a number with its noun, in the plural if needed."""
    return f"{number} {one if number == 1 else many}"


def printable(text: str) -> str:
    """Return text of another process without control characters for the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, width: int) -> str:
    """Return text without what is beyond `width` characters."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: str) -> str:
    """
    Return rows in columns.

    Parameters
    ----------
    heads : sequence of str
    rows : iterable of sequence of str
    right : str
        The alignment of the columns, one letter each: "r" for right, "l" for left.
    """
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def write_json(value: Any) -> None:
    """Print a value as JSON, on one line if the output is not a terminal."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, default=str))


def error(text: str) -> None:
    """Print a message to stderr, preceded by the program's name."""
    print(f"pyray-ser: {text}", file=sys.stderr)
