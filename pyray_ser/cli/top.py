"""``pyray-ser top``: show stores and their largest objects, and update the display continuously."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from .. import _core
from .look import each
from .ls import HEADS, records, row
from .output import bytes_text, count, printable, table, write_json
from .stat import ask as ask_counters
from .stores import add_selection

CLEAR = "\x1b[H\x1b[2J"


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("must be a positive number")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_selection(parser)
    parser.add_argument("-i", "--interval", type=_positive, default=1.0, metavar="S", help="seconds between two looks")
    parser.add_argument("-n", "--count", type=int, metavar="N", help="end after N looks; default: at Ctrl-C")
    parser.add_argument("--objects", type=int, default=10, metavar="N", help="how many of the largest objects to show")


def _bar(parts: list[tuple[str, int]], whole: int, width: int) -> str:
    """Return a bar of `width` characters, divided among the parts."""
    text = ""
    for letter, part in parts:
        share = round(width * part / whole) if whole else 0
        text += letter * max(share, int(part > 0))
    return f"[{text[:width].ljust(width)}]"


def _show(answer: dict[str, Any], rates: tuple[float, float] | None, limit: int) -> str:
    name = printable(answer["label"])
    if "error" in answer:
        return f"{name}\n  {printable(answer['error'])}\n"
    stats = answer["stats"]
    bar = _bar([("#", stats["used"]), ("-", stats["reserved"])], stats["capacity"], 40)
    lines = [
        f"{name}  {bar} {bytes_text(stats['used'])} of {bytes_text(stats['capacity'])}, "
        f"{bytes_text(stats['backed'])} backed",
        f"  {count(stats['objects'], 'object', 'objects')}, {stats['unsealed']} being made, {stats['spilled']} spilled "
        f"({bytes_text(stats['spilled_bytes'])}), {count(stats['in_flight'], 'ref', 'refs')} in flight, "
        f"{count(answer['names'], 'name', 'names')}, {count(len(answer['clients']), 'process', 'processes')}",
    ]
    if rates is not None:
        lines.append(
            f"  {rates[0]:.0f} new objects/s, {'+' if rates[1] >= 0 else '-'}{bytes_text(int(abs(rates[1])))}/s"
        )
    if answer["objects"]:
        cells = table(HEADS, [row(record) for record in answer["objects"][:limit]], "rrrlrrrrl")
        lines += ["  " + line for line in cells.splitlines()]
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> int:
    """Show the stores repeatedly. Close them between updates, so that this tool does not keep a store alive."""

    def ask(store: _core.Store, spill_dir: str | None) -> dict[str, Any]:
        largest = sorted(records(store), key=lambda record: -record["size"])
        return {**ask_counters(store, spill_dir), "objects": largest[: max(0, arguments.objects)]}

    before: dict[str, tuple[float, int, int]] = {}
    looks = status = 0
    live = sys.stdout.isatty() and not arguments.json
    while True:
        answers, status = each(arguments, ask)
        now = time.monotonic()
        text = []
        seen = {}
        for answer in answers:
            rates = None
            if "stats" in answer:
                serial, used = answer["stats"]["serial"], answer["stats"]["used"]
                seen[answer["id"]] = (now, serial, used)
                if answer["id"] in before:
                    then, old_serial, old_used = before[answer["id"]]
                    rates = (serial - old_serial) / (now - then), (used - old_used) / (now - then)
            text.append(_show(answer, rates, arguments.objects))
        before = seen
        if arguments.json:
            write_json({"time": time.time(), "stores": answers})
        else:
            print((CLEAR if live else "") + ("\n".join(text) or "no stores\n"), flush=True)
        looks += 1
        if arguments.count is not None and looks >= arguments.count:
            return status
        time.sleep(arguments.interval)
