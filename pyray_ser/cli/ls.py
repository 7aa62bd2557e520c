"""``pyray-ser ls``: the objects of each store, and the references in flight that hold some of them."""

from __future__ import annotations

import argparse
from typing import Any

from .. import _core
from ..store import allocation_sites, cached
from .look import clients, each
from .output import age, bytes_text, count, printable, table, write_json
from .stores import add_selection

ORDERS = {"age": lambda record: record["serial"], "size": lambda record: -record["size"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_selection(parser)
    parser.add_argument("--sort", choices=sorted(ORDERS), default="age", help="oldest or largest first")
    parser.add_argument("-n", "--limit", type=int, metavar="N", help="the first N only")


def _ask(store: _core.Store, spill_dir: str | None) -> dict[str, Any]:
    return {"objects": records(store), "in_flight": store.flights(), "clients": clients(store)}


def records(store: _core.Store) -> list[dict[str, Any]]:
    """Return the records of a store's objects, with the creation site and whether the creator is still a client."""
    alive = set(clients(store))
    made = allocation_sites.read(store.id, sorted(alive))
    return [
        {**record, "creator_alive": record["creator_pid"] in alive, "origin": made.get(record["serial"])}
        for record in store.records()
    ]


def row(record: dict[str, Any]) -> list[str]:
    """Return the table cells for one object."""
    state = "freed" if record["freed"] else "orphaned" if record["orphaned"] else record["state"]
    return [
        str(record["serial"]),
        bytes_text(record["size"]),
        age(record["age"]),
        "spilled" if record["spilled"] else state,
        str(record["creator_pid"]) if record["creator_alive"] else "gone",
        str(record["ref_holders"]),
        str(record["pin_holders"]),
        str(record["tokens_and_edges"]),
        printable(_name_text(record)),
    ]


def _name_text(record: dict[str, Any]) -> str:
    """Return the name of an object; for a result of `pyray_ser.cached`, the function and the number of hits."""
    name: str = record["name"] or ""
    if not name.startswith(cached.PREFIX):
        return name
    function, _, digest = name.removeprefix(cached.PREFIX).rpartition("/")
    return f"counts of {function}" if digest == cached.COUNTER else f"result of {function}, hits: {record['uses']}"


HEADS = ("SERIAL", "SIZE", "AGE", "STATE", "OWNER", "REFS", "VIEWS", "HELD", "NAME")


def flight_row(flight: dict[str, Any]) -> list[str]:
    """Return the table cells for one reference in flight."""
    return [
        str(flight["serial"]),
        str(flight["sender_pid"]) + ("" if flight["sender_alive"] else " (gone)"),
        age(flight["age"]),
        "message" if flight["once"] else "bytes kept",
        "freed" if flight["object_gone"] else "held",
    ]


FLIGHT_HEADS = ("IN FLIGHT", "SENDER", "AGE", "AS", "OBJECT")


def run(arguments: argparse.Namespace) -> int:
    """List the objects."""
    answers, status = each(arguments, _ask)
    for answer in answers:
        answer.setdefault("objects", [])
        answer.setdefault("in_flight", []).sort(key=lambda flight: -flight["age"])
        answer["objects"].sort(key=ORDERS[arguments.sort])
        # Count only sealed objects, as the commands stat and top do.
        unsealed = sum(record["state"] == "creating" for record in answer["objects"])
        answer["count"], answer["unsealed"] = len(answer["objects"]) - unsealed, unsealed
        if arguments.limit is not None:
            del answer["objects"][max(0, arguments.limit) :]
    if arguments.json:
        write_json({"stores": answers})
        return status
    for answer in answers:
        number = len(answer.get("clients", answer["pids"]))
        use = count(number, "process", "processes") if answer["used"] else "no process left"
        objects = count(answer["count"], "object", "objects")
        if answer["unsealed"]:
            objects += f", {answer['unsealed']} being made"
        print(f"{printable(answer['label'])}  ({objects}, {use})")
        if "error" in answer:
            print(f"  {printable(answer['error'])}")
        elif answer["objects"]:
            rows = [row(record) for record in answer["objects"]]
            heads, sides = list(HEADS), "rrrlrrrrl"
            if any(record["origin"] for record in answer["objects"]):
                heads, sides = [*heads, "MADE AT"], sides + "l"
                for cells, record in zip(rows, answer["objects"], strict=True):
                    cells.append(printable(record["origin"] or ""))
            print(table(heads, rows, sides))
        if flights := answer["in_flight"][: arguments.limit if arguments.limit is None else max(0, arguments.limit)]:
            print(table(FLIGHT_HEADS, [flight_row(flight) for flight in flights], "rrrll"))
        print()
    if not answers and not status:
        print("no stores")
    return status
