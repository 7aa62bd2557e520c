"""``pyray-ser top``: show stores, their processes and their largest objects, and update the display continuously."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from .. import _core
from . import cluster
from .look import clients, each_found
from .objects import ORDERS, add_descriptions, commands_of, extended, name_text, records, state_text
from .output import bytes_text, count, cut, printable, table, write_json
from .processes import memory_sizes
from .stat import ask as ask_counters
from .stores import Found, add_selection

__all__ = ["View", "add_arguments", "look", "process_rows", "run", "summary"]

CLEAR = "\x1b[H\x1b[2J"


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("must be a positive number")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON, one line per look")
    add_selection(parser)
    cluster.add_argument(parser)
    parser.add_argument("-i", "--interval", type=_positive, default=1.0, metavar="S", help="seconds between two looks")
    parser.add_argument("-n", "--count", type=int, metavar="N", help="end after N looks; default: at Ctrl-C")
    parser.add_argument("--once", action="store_true", help="look once; the same as -n 1, without the screen")
    parser.add_argument(
        "--objects", type=int, default=10, metavar="N", help="how many objects and processes of each store to show (10)"
    )
    parser.add_argument(
        "--sort", choices=sorted(ORDERS), default="size", help="order of the objects (size: largest first)"
    )
    parser.add_argument(
        "--filter", default="", metavar="TEXT",
        help="only objects with TEXT in their name, state, owner's pid or owner's command line",
    )  # fmt: skip


# ---- looking ---------------------------------------------------------------------------------------------------------------


class View:
    """
    The settings of the user, and the counters at the last update.

    Attributes
    ----------
    sort : str
    filter : str
    objects : int
        Maximum number of objects and processes that are shown for each store.
    """

    def __init__(self, sort: str, text: str, objects: int) -> None:
        self.sort = sort
        self.filter = text
        self.objects = max(0, objects)
        self._before: dict[str, tuple[float, int, int]] = {}

    def add_rates(self, answers: list[dict[str, Any]]) -> None:
        """Add to each store the change per second since the last update, or None at the first update."""
        now, seen = time.monotonic(), {}
        for answer in answers:
            answer["new_objects_per_second"] = answer["bytes_per_second"] = None
            if "stats" in answer:
                serial, used = answer["stats"]["serial"], answer["stats"]["used"]
                seen[answer["id"]] = (now, serial, used)
                if answer["id"] in self._before:
                    then, old_serial, old_used = self._before[answer["id"]]
                    seconds = max(now - then, 1e-9)
                    answer["new_objects_per_second"] = (serial - old_serial) / seconds
                    answer["bytes_per_second"] = (used - old_used) / seconds
        self._before = seen


def look(arguments: argparse.Namespace, view: View) -> tuple[list[dict[str, Any]], int]:
    """Query the stores once. Close them afterwards, so that this tool does not keep a store alive."""

    def ask(found: Found, store: _core.Store, spill_dir: str | None) -> dict[str, Any]:
        objects = records(store)
        command = commands_of(found)
        made: dict[int, list[int]] = {}
        for record in objects:
            if record["creator_alive"]:
                entry = made.setdefault(record["creator_pid"], [0, 0])
                entry[0] += 1
                entry[1] += record["size"]
        shown = [record for record in objects if _matches(record, view.filter, command)]
        shown.sort(key=ORDERS[view.sort])
        del shown[view.objects :]
        add_descriptions(found, store, spill_dir, shown)
        processes = []
        for pid in clients(store):
            memory = (memory_sizes(pid) if pid in found.holders else None) or {}
            number, size = made.get(pid, (0, 0))
            processes.append(
                {
                    "pid": pid, "command": command(pid), "pss": memory.get("pss"), "pss_shmem": memory.get("pss_shmem"),
                    "objects": number, "bytes": size,
                }
            )  # fmt: skip
        return {**ask_counters(store, spill_dir), "objects": shown, "processes": processes}

    answers, status = each_found(arguments, ask)
    view.add_rates(answers)
    return answers, status


def _matches(record: dict[str, Any], text: str, command: Any) -> bool:
    if not text:
        return True
    pid = record["creator_pid"]
    owner = f"{pid} {command(pid) or ''}" if record["creator_alive"] else "gone"
    return text.lower() in f"{name_text(record)}\n{state_text(record)}\n{owner}".lower()


# ---- as text -------------------------------------------------------------------------------------------------------------


def _bar(parts: list[tuple[str, int]], whole: int, width: int) -> str:
    """Return a bar of `width` characters, divided among the parts."""
    text = ""
    for letter, part in parts:
        share = round(width * part / whole) if whole else 0
        text += letter * max(share, int(part > 0))
    return f"[{text[:width].ljust(width)}]"


def summary(answer: dict[str, Any]) -> list[str]:
    """Return lines about a store, without its name and its bar."""
    stats = answer["stats"]
    lines = [
        f"{bytes_text(stats['used'])} of {bytes_text(stats['capacity'])}, {bytes_text(stats['backed'])} backed",
        f"{count(stats['objects'], 'object', 'objects')}, {stats['unsealed']} being made, {stats['spilled']} spilled "
        f"({bytes_text(stats['spilled_bytes'])}), {count(stats['in_flight'], 'ref', 'refs')} in flight, "
        f"{count(answer['names'], 'name', 'names')}, {count(len(answer['clients']), 'process', 'processes')}",
    ]
    if answer["new_objects_per_second"] is not None:
        change = answer["bytes_per_second"]
        lines.append(
            f"{answer['new_objects_per_second']:.0f} new objects/s, "
            f"{'+' if change >= 0 else '-'}{bytes_text(int(abs(change)))}/s"
        )
    return lines


PROCESS_HEADS, PROCESS_SIDES = ("PID", "PSS", "SHARED", "OBJECTS", "BYTES", "COMMAND"), "rrrrrl"


def process_rows(answer: dict[str, Any], limit: int) -> list[list[str]]:
    """Return the table cells of the processes of a store that use most memory, at most `limit`."""
    found = sorted(answer["processes"], key=lambda process: (-(process["pss"] or 0), process["pid"]))
    return [
        [
            str(process["pid"]),
            *("?" if process[key] is None else bytes_text(process[key]) for key in ("pss", "pss_shmem")),
            str(process["objects"]),
            bytes_text(process["bytes"]),
            cut(printable(process["command"] or "?"), 80),
        ]
        for process in found[:limit]
    ]


def _text(answer: dict[str, Any], limit: int) -> str:
    name = printable(answer["label"])
    if "error" in answer:
        return f"{name}\n  {printable(answer['error'])}\n"
    stats = answer["stats"]
    first, *more = summary(answer)
    bar = _bar([("#", stats["used"]), ("-", stats["reserved"])], stats["capacity"], 40)
    lines = [f"{name}  {bar} {first}", *(f"  {line}" for line in more)]
    tables = []
    if answer["objects"]:
        tables.append(table(*extended(answer["objects"])))
    if answer["processes"] and limit:
        tables.append(table(PROCESS_HEADS, process_rows(answer, limit), PROCESS_SIDES))
    lines += [f"  {line}" for text in tables for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def _texts(answers: list[dict[str, Any]], view: View) -> str:
    return "\n".join(_text(answer, view.objects) for answer in answers) or "no stores\n"


def run(arguments: argparse.Namespace) -> int:
    """Show the stores, or the hosts of a cluster, once or repeatedly."""
    view = View(arguments.sort, arguments.filter, arguments.objects)
    watch = None if arguments.cluster is None else cluster.Watch(arguments)
    if arguments.once:
        arguments.count = 1
    live = sys.stdout.isatty() and not arguments.json and not arguments.once
    if live and watch is None and os.environ.get("TERM", "dumb") != "dumb":
        try:
            from .top_screen import run_screen
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "rich":
                raise
        else:
            return run_screen(arguments, view)
    looks = 0
    while True:
        if watch is None:
            answers, status = look(arguments, view)
            answer: dict[str, Any] = {"stores": answers}
        else:
            answer, status = watch.look(), 0
        if arguments.json:
            write_json({"time": time.time(), **answer})
        else:
            text = _texts(answers, view) if watch is None else cluster.text(answer)
            print((CLEAR if live else "") + text, flush=True)
        looks += 1
        if arguments.count is not None and looks >= arguments.count:
            return status
        time.sleep(arguments.interval)
