"""``pyray-ser show``: everything about one object."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from .. import _core
from . import CommandError
from .description import describe, read_form
from .look import clients, each_found
from .objects import add_descriptions, commands_of, name_text, records, spill_of, state_text
from .output import age, bytes_text, count, cut, printable, table, write_json
from .segment import open_segment, spill_file
from .stores import Found

# The maximum number of lines of each kind in the text output; --json has all of them.
_LINES = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "store",
        nargs=1,
        help="name or path of the store, the beginning of its id, or the pid of a process that uses it",
    )
    parser.add_argument("object", help="name or serial of the object, or the hex() of a reference to it")


def run(arguments: argparse.Namespace) -> int:
    """Show the object."""

    def ask(found: Found, store: _core.Store, spill_dir: str | None) -> dict[str, Any]:
        return {"object": _object(found, store, spill_dir, arguments.object)}

    answers, _ = each_found(arguments, ask)
    if len(answers) != 1:
        labels = ", ".join(printable(answer["label"]) for answer in answers)
        raise CommandError(f"{arguments.store[0]!r} selects several stores: {labels}")
    (answer,) = answers
    if "error" in answer:
        raise CommandError(f"{printable(answer['label'])}: {printable(answer['error'])}")
    found = answer.pop("object")
    if found is None:
        raise CommandError(
            f"no object of {printable(answer['label'])} has the name, serial or id {arguments.object!r}; "
            "pyray-ser ls lists them"
        )
    if arguments.json:
        write_json({"store": answer, "object": found})
    else:
        _print(answer, found)
    return 0


# ---- what is known ----------------------------------------------------------------------------------------------------


def _find(objects: list[dict[str, Any]], names: list[dict[str, Any]], word: str) -> dict[str, Any] | None:
    named = {name["id"] for name in names if name["name"] == word}
    for matches in (
        lambda record: record["id"] in named,
        lambda record: str(record["serial"]) == word,
        lambda record: record["id"] == word.lower(),
    ):
        for record in objects:
            if matches(record):
                return record
    return None


def _names(store: _core.Store) -> list[dict[str, Any]]:
    return [
        {"name": text, "id": identity.hex(), "version": version, "age": seconds, "ephemeral": not keeps, "uses": uses}
        for text, identity, version, seconds, keeps, uses, _, _ in _core.names_of(store)
    ]


def _object(found: Found, store: _core.Store, spill_dir: str | None, word: str) -> dict[str, Any] | None:
    objects, names = records(store), _names(store)
    record = _find(objects, names, word)
    if record is None:
        return None
    add_descriptions(found, store, spill_dir, [record])
    alive, command = set(clients(store)), commands_of(found)
    spill = spill_of(store, spill_dir)
    record["names"] = [
        {key: value for key, value in name.items() if key != "id"} for name in names if name["id"] == record["id"]
    ]
    record["in_flight"] = [flight for flight in store.flights() if flight["serial"] == record["serial"]]
    record["holders"], record["held_by"], record["layout"] = [], [], None
    with open_segment(found) as segment:
        if segment is not None:
            serials = {(_slot(other), _generation(other)): other["serial"] for other in objects}
            record["holders"] = [
                {
                    "pid": holder.pid, "alive": holder.pid in alive, "command": command(holder.pid),
                    "reference": holder.reference, "view": holder.view,
                }
                for holder in segment.holders(record)
            ]  # fmt: skip
            record["held_by"] = sorted(serials[key] for key in segment.outer_objects(record) if key in serials)
            form = read_form(lambda offset, size: segment.read(record, offset, size, spill), record["size"], True)
            if form is not None:
                text, arrays = describe(form.stream, [buffer.size for buffer in form.buffers])
                record["description"] = text
                record["layout"] = {
                    "stream_size": form.stream_size, "buffer_count": form.buffer_count,
                    "buffers": [
                        {
                            "size": buffer.size, "offset": buffer.offset, "in_object": buffer.serial,
                            "description": arrays.get(index),
                        }
                        for index, buffer in enumerate(form.buffers)
                    ],
                }  # fmt: skip
    record["spill"] = None
    if record["spilled"] and spill_dir is not None:
        path = spill_file(spill_dir, store.id, record)
        record["spill"] = {"path": path, "bytes": _size(path), "compression": store.spill_compress}
    return record


def _slot(record: dict[str, Any]) -> int:
    return int.from_bytes(bytes.fromhex(record["id"])[16:20], "little")


def _generation(record: dict[str, Any]) -> int:
    return int.from_bytes(bytes.fromhex(record["id"])[20:24], "little")


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


# ---- as text -------------------------------------------------------------------------------------------------------------


def _print(store: dict[str, Any], record: dict[str, Any]) -> None:
    owner = f"process {record['creator_pid']}" if record["creator_alive"] else "a process that is gone"
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["created"]))
    lines = [
        ("object", f"{record['serial']} of {store['label']}"),
        ("what", record["description"] or "unknown"),
        ("id", record["id"]),
        ("size", _size_text(record)),
        ("state", f"{state_text(record)}{'' if store['used'] else ', no process uses the store'}"),
        ("made", f"{made}, {age(record['age'])} ago, by {owner}"),
        ("command", record["creator_command"]),
        ("made at", record["origin"]),
        *(("name", _name(name, record)) for name in record["names"]),
    ]
    if record["spill"] is not None:
        spill = record["spill"]
        size = "the file is missing" if spill["bytes"] is None else bytes_text(spill["bytes"])
        packed = f", {spill['compression']}" if spill["compression"] else ""
        lines.append(("spill file", f"{spill['path']} ({size}{packed})"))
    for key, value in lines:
        if value is not None:
            print(f"{key:<11} {printable(str(value))}")
    _print_holders(record)
    _print_layout(record["layout"])


def _size_text(record: dict[str, Any]) -> str:
    text = f"{bytes_text(record['size'])} ({record['size']} bytes)"
    return f"{text}, {bytes_text(record['extent'])} of the store" if record["extent"] else text


def _name(name: dict[str, Any], record: dict[str, Any]) -> str:
    text = name_text({"name": name["name"], "uses": name["uses"]})
    kind = ", ephemeral" if name["ephemeral"] else ""
    return f"{text} (version {name['version']}, {age(name['age'])} old{kind})"


def _print_holders(record: dict[str, Any]) -> None:
    rows = []
    for holder in record["holders"]:
        holds = " and ".join(word for word, key in (("reference", "reference"), ("view", "view")) if holder[key])
        if holder["pid"] is None:
            rows.append(["the store", holds, "kept since a fork that got no client slot"])
        else:
            rows.append([f"process {holder['pid']}", holds, holder["command"] or ("" if holder["alive"] else "gone")])
    rows += [
        ["a message", "reference", f"of process {flight['sender_pid']}, {age(flight['age'])} ago"]
        for flight in record["in_flight"]
    ]
    rows += [["its name", "object", name["name"]] for name in record["names"] if not name["ephemeral"]]
    rows += [[f"object {serial}", "object", "refers to it"] for serial in record["held_by"]]
    print()
    if rows:
        shown = [[*cells[:2], cut(printable(cells[2]), 100)] for cells in rows[:_LINES]]
        print(table(("HELD BY", "AS", ""), shown, "lll"))
        _print_rest(len(rows))
    else:
        print("held by nothing: it is freed when its last reader has gone")


def _print_layout(layout: dict[str, Any] | None) -> None:
    if layout is None:
        return
    number = layout["buffer_count"]
    print(f"\npickle stream of {bytes_text(layout['stream_size'])}, {count(number, 'buffer', 'buffers')}")
    if number:
        rows = [
            [
                str(index), bytes_text(buffer["size"]), str(buffer["offset"]),
                "" if buffer["in_object"] is None else f"in object {buffer['in_object']}",
                printable(buffer["description"] or ""),
            ]
            for index, buffer in enumerate(layout["buffers"][:_LINES])
        ]  # fmt: skip
        print(table(("BUFFER", "SIZE", "OFFSET", "WHERE", "WHAT"), rows, "rrrll"))
        _print_rest(number)


def _print_rest(number: int) -> None:
    if number > _LINES:
        print(f"{number - _LINES} more: use --json")
