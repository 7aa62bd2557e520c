"""``pyray-ser check``: verify every invariant of each store, and optionally every spill file."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from .. import _core
from .look import each
from .output import printable, write_json
from .stores import add_selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--spill", action="store_true", help="read every spilled object, too: whether its file is there and undamaged"
    )
    add_selection(parser)


def _ask(spill: bool, store: _core.Store, spill_dir: str | None) -> dict[str, Any]:
    store.check()
    if not spill:
        return {"ok": True}
    if store.spill_dir is None and spill_dir is not None:
        # The opened store is a copy of the tables of a dead store, and a copy has no spill directory.
        from ..store.spill_codec import check_files

        count, damaged = check_files(store, spill_dir)
    else:
        count, damaged = _core.check_spilled(store)
    return {"ok": not damaged, "spilled": count, "damaged": damaged}


def _describe(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return str(answer["error"])
    if "spilled" not in answer:
        return "ok"
    damaged = answer["damaged"]
    lines = [f"ok, {answer['spilled']} spilled objects read back"] if not damaged else []
    lines += [f"{len(damaged)} of {answer['spilled']} spilled objects are lost or damaged"] if damaged else []
    lines += [f"  {record['id'][16:32]} {record['name'] or ''} {record['error']}" for record in damaged]
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    """Check the stores; return 1 if one is damaged."""
    answers, status = each(arguments, partial(_ask, arguments.spill))
    for answer in answers:
        answer.setdefault("ok", False)
    status = status or int(any(not answer["ok"] for answer in answers))
    if arguments.json:
        write_json({"stores": answers})
        return status
    for answer in answers:
        first, *more = (printable(line) for line in _describe(answer).split("\n"))
        print(f"{printable(answer['label'])}: {first}", *more, sep="\n")
    if not answers and not status:
        print("no stores")
    return status
