"""``pyray-ser check``: verify every invariant of each store."""

from __future__ import annotations

import argparse
from typing import Any

from .. import _store
from .look import each
from .output import printable, write_json
from .stores import add_selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_selection(parser)


def _ask(store: _store.Store, spill_dir: str | None) -> dict[str, Any]:
    store.check()
    return {"ok": True}


def run(arguments: argparse.Namespace) -> int:
    """Check the stores; 1 if one does not check out."""
    answers, status = each(arguments, _ask)
    for answer in answers:
        answer.setdefault("ok", False)
    if arguments.json:
        write_json({"stores": answers})
        return status
    for answer in answers:
        print(f"{printable(answer['label'])}: {'ok' if answer['ok'] else printable(answer['error'])}")
    if not answers and not status:
        print("no stores")
    return status
