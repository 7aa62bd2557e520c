"""``pyray-ser stat``: the counters of each store."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .. import _core
from .look import clients, each
from .output import bytes_text, printable, write_json
from .stores import add_selection

SIZES = {"capacity", "used", "reserved", "backed", "overhead", "largest_free", "spilled_bytes", "pulled_bytes"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_selection(parser)


def ask(store: _core.Store, spill_dir: str | None) -> dict[str, Any]:
    """Return the counters of a store, without counting this tool as a client."""
    stats = store.stats()
    pids = clients(store)
    stats["clients"] = len(pids)
    return {"stats": stats, "clients": pids, "spill_dir": spill_dir, "names": len(_core.names_of(store))}


def run(arguments: argparse.Namespace) -> int:
    """Print the counters."""
    answers, status = each(arguments, ask)
    for answer in answers:
        if "stats" in answer and not answer["used"]:  # the segment is a copy of the tables; the data are in the file
            answer["stats"]["backed"] = os.stat(answer["path"]).st_blocks * 512
    if arguments.json:
        write_json({"stores": answers})
        return status
    for answer in answers:
        print(printable(answer["label"]))
        if "error" in answer:
            print(f"  {printable(answer['error'])}\n")
            continue
        if not answer["used"]:
            print("  no process uses it: the next init(name=...) makes a new one, and pyray-ser clean removes it")
        lines = {"id": answer["id"], "path": answer["path"], "spill_dir": answer["spill_dir"]}
        lines["clients"] = " ".join(map(str, answer["clients"])) or "none"
        for key, value in answer["stats"].items():
            if key != "clients":
                lines[key] = bytes_text(value) if key in SIZES else str(value)
        lines["names"] = str(answer["names"])
        for key, value in lines.items():
            if value is not None:
                print(f"  {key:<14} {printable(str(value))}")
        print()
    if not answers and not status:
        print("no stores")
    return status
