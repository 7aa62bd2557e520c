"""The report of `install`: which data went through shared memory, which did not, and why."""

from __future__ import annotations

import os
from html import escape
from typing import Any

from ..inspection.text import size_text
from .counts import REASONS, counts

__all__ = ["Report", "log_at_exit"]


class Report:
    """
    What a process has sent and received since it called `install`; made by ``install().report()``.

    The report is a snapshot. ``print`` shows it as text, notebooks as a table, and `as_dict` returns the numbers. It covers
    only the calling process: workers count what they send themselves.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._messages = counts.messages, counts.message_bytes
        self._shared = counts.shared, counts.shared_bytes
        self._reused = counts.reused, counts.reused_bytes
        self._arguments = counts.arguments, counts.arguments_bytes
        self._received = counts.received, counts.received_bytes
        self._refused = {reason: tuple(found) for reason, found in list(counts.refused.items())}

    def as_dict(self) -> dict[str, Any]:
        """
        Return the numbers as a dict that `json` can write.

        Returns
        -------
        dict
            ``pid``; ``messages`` with ``count`` and ``bytes``; ``shared``, ``reused`` (those of ``shared`` that were in
            the store already), ``arguments`` (of processes that start with an empty interpreter) and ``received`` with
            ``buffers`` and ``bytes``; ``in_band``, a dict from each reason to ``buffers`` and ``bytes``; and
            ``other_bytes``, the bytes in messages that belong to no counted buffer.
        """
        return {
            "pid": self._pid,
            "messages": {"count": self._messages[0], "bytes": self._messages[1]},
            "shared": _pair(self._shared),
            "reused": _pair(self._reused),
            "arguments": _pair(self._arguments),
            "received": _pair(self._received),
            "in_band": {reason: _pair(found) for reason, found in self._refused.items()},
            "other_bytes": self._other(),
        }

    def _other(self) -> int:
        return max(0, self._messages[1] - sum(nbytes for _, nbytes in self._refused.values()))

    def summary(self) -> str:
        """Return the report as one line."""
        in_band = sum(number for number, _ in self._refused.values())
        return (
            f"process {self._pid} sent {self._messages[0]} messages: {_text(self._shared)} through shared memory, "
            f"{in_band} buffers and {size_text(self._other())} of other data inside messages"
        )

    def _rows(self) -> list[tuple[str, str, str]]:
        """Return what was sent, the number of buffers, and the size."""
        rows = [("through shared memory", *_columns(self._shared))]
        if self._reused[0]:
            rows.append(("    of these, in the store already: not copied", *_columns(self._reused)))
        if self._arguments[0]:
            rows.append(("arguments of processes, in shared memory", *_columns(self._arguments)))
        for reason, text in REASONS.items():
            if reason in self._refused:
                rows.append((f"inside messages: {text}", *_columns(self._refused[reason])))
        rows.append(("inside messages: strings, numbers and other objects", "", size_text(self._other())))
        rows.append(("received through shared memory", *_columns(self._received)))
        return rows

    def _title(self) -> str:
        return f"install() in process {self._pid}: {self._messages[0]} messages sent, {size_text(self._messages[1])}"

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(what) for what, _, _ in rows)
        lines = [f"  {what:{width}}  {number:>9}  {size:>8}".rstrip() for what, number, size in rows]
        head = f"  {'':{width}}  {'buffers':>9}  {'size':>8}"
        return "\n".join([self._title(), head, *lines, f"  ({_NOTE})"])

    def __repr__(self) -> str:
        return f"<report of {self.summary()}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{escape(what)}</td><td>{number}</td><td>{escape(size)}</td></tr>"
            for what, number, size in self._rows()
        )
        head = "<tr><th style='text-align:left'>sent</th><th>buffers</th><th>size</th></tr>"
        return (
            f"<table><caption>{escape(self._title())}</caption><thead>{head}</thead><tbody>{rows}</tbody></table>"
            f"<p>{escape(_NOTE)}</p>"
        )


_NOTE = "each process counts what it sends itself; results are counted by the workers that send them"


def _pair(found: tuple[int, ...]) -> dict[str, int]:
    return {"buffers": found[0], "bytes": found[1]}


def _columns(found: tuple[int, ...]) -> tuple[str, str]:
    return str(found[0]), size_text(found[1])


def _text(found: tuple[int, ...]) -> str:
    return f"{found[0]} buffers ({size_text(found[1])})"


_owner = 0


def log_at_exit() -> None:
    """Log the summary at level INFO when the interpreter of this process ends. The call may be repeated."""
    global _owner
    if _owner == os.getpid():
        return
    _owner = os.getpid()
    import atexit

    atexit.register(_log)


def _log() -> None:
    from .. import _log as log

    if _owner == os.getpid():
        log.info("install(): %s", Report().summary())
