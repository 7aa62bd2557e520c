"""``pyray-ser ls``: the objects of each store, and the references in flight that hold some of them."""

from __future__ import annotations

import argparse
from typing import Any

from .. import _core
from . import cluster
from .look import clients, each_found
from .objects import ORDERS, add_descriptions, extended, records
from .output import age, count, printable, table, write_json
from .stores import Found, add_selection

# How many objects are printed unless the user asks for another number.
_LIMIT = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_selection(parser)
    cluster.add_argument(parser)
    parser.add_argument(
        "--sort", choices=sorted(ORDERS), default="age", help="order of the objects (age: oldest first)"
    )
    parser.add_argument(
        "-n", "--limit", type=int, metavar="N",
        help=f"the first N of each store only; default {_LIMIT}, and all with --json",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """List the objects, or the hosts of a cluster."""
    if arguments.cluster is not None:
        hosts = cluster.Watch(arguments).look()
        if arguments.json:
            write_json(hosts)
        else:
            print(cluster.text(hosts), end="")
        return 0
    limit = arguments.limit
    if limit is None and not arguments.json:
        limit = _LIMIT
    limit = limit if limit is None else max(0, limit)

    def ask(found: Found, store: _core.Store, spill_dir: str | None) -> dict[str, Any]:
        objects = records(store)
        # Count only sealed objects, as the commands stat and top do.
        unsealed = sum(record["state"] == "creating" for record in objects)
        number = len(objects) - unsealed
        objects.sort(key=ORDERS[arguments.sort])
        del objects[len(objects) if limit is None else limit :]
        # Describe only what is shown: a store may have many objects.
        add_descriptions(found, store, spill_dir, objects)
        flights = sorted(store.flights(), key=lambda flight: -flight["age"])
        return {
            "objects": objects, "count": number, "unsealed": unsealed, "in_flight": flights, "clients": clients(store)
        }  # fmt: skip

    answers, status = each_found(arguments, ask)
    for answer in answers:
        for key, nothing in (("objects", []), ("count", 0), ("unsealed", 0), ("in_flight", [])):
            answer.setdefault(key, nothing)
    if arguments.json:
        write_json({"stores": answers})
        return status
    for answer in answers:
        _print(answer, limit)
    if not answers and not status:
        print("no stores")
    return status


# ---- as text -------------------------------------------------------------------------------------------------------------

_FLIGHT_HEADS = ("IN FLIGHT", "SENDER", "AGE", "AS", "OBJECT")


def _flight_row(flight: dict[str, Any]) -> list[str]:
    return [
        str(flight["serial"]),
        str(flight["sender_pid"]) + ("" if flight["sender_alive"] else " (gone)"),
        age(flight["age"]),
        "message" if flight["once"] else "bytes kept",
        "freed" if flight["object_gone"] else "held",
    ]


def _print(answer: dict[str, Any], limit: int | None) -> None:
    number = len(answer.get("clients", answer["pids"]))
    use = count(number, "process", "processes") if answer["used"] else "no process left"
    objects = count(answer["count"], "object", "objects")
    if answer["unsealed"]:
        objects += f", {answer['unsealed']} being made"
    print(f"{printable(answer['label'])}  ({objects}, {use})")
    if "error" in answer:
        print(f"  {printable(answer['error'])}")
    elif answer["objects"]:
        print(table(*extended(answer["objects"])))
    left = answer["count"] + answer["unsealed"] - len(answer["objects"])
    if left > 0 and limit:
        print(f"{count(left, 'more object', 'more objects')}: choose with --sort and --limit, or use --json")
    if flights := answer["in_flight"][:limit]:
        print(table(_FLIGHT_HEADS, [_flight_row(flight) for flight in flights], "rrrll"))
    print()
