"""Records of a store's objects, as the commands `ls`, `show` and `top` print them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from .. import _core
from ..store import allocation_sites, cached_results, spill_codec
from .description import describe, read_form
from .look import clients
from .output import age, bytes_text, cut, printable
from .processes import command_of
from .segment import Segment, open_segment
from .stores import Found

__all__ = ["ORDERS", "add_descriptions", "commands_of", "extended", "name_text", "records", "spill_of", "state_text"]

ORDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "age": lambda record: record["serial"],
    "size": lambda record: -record["size"],
    "name": lambda record: (record["name"] is None, record["name"] or "", record["serial"]),
    "owner": lambda record: (not record["creator_alive"], record["creator_pid"] or 0, record["serial"]),
    "refs": lambda record: (-record["ref_holders"], record["serial"]),
    "views": lambda record: (-record["pin_holders"], record["serial"]),
}
"""Name of an order -> key for sorting."""


def records(store: _core.Store) -> list[dict[str, Any]]:
    """Return the records of a store's objects, with whether the creator is still a client."""
    alive = set(clients(store))
    return [{**record, "creator_alive": record["creator_pid"] in alive} for record in store.records()]


def commands_of(found: Found) -> Callable[[int | None], str | None]:
    """
    Return a function from a client's pid to its command line.

    A client of another pid namespace has a pid that means another process here. So only processes that are known to
    have the store open have a command line.
    """

    @cache
    def command(pid: int | None) -> str | None:
        return command_of(pid) if pid in found.holders else None

    return command


def spill_of(store: _core.Store, spill_dir: str | None) -> tuple[str, Any] | None:
    """Return the spill directory, and the format of compressed files; None if their content cannot be read."""
    if spill_dir is None:
        return None
    if store.spill_compress is None:
        return spill_dir, None
    try:
        return spill_dir, spill_codec.Form(spill_codec.flags(False, store.spill_compress))
    except ImportError:
        return None  # `check --spill` tells which package is missing


def _description_of(segment: Segment, record: dict[str, Any], spill: tuple[str, Any] | None) -> str | None:
    """Return what an object is, or None if its first bytes do not tell or cannot be read."""
    form = read_form(lambda offset, size: segment.read(record, offset, size, spill), record["size"])
    return None if form is None else _describe(form.stream, tuple(buffer.size for buffer in form.buffers))


@lru_cache(maxsize=1024)
def _describe(stream: bytes, sizes: tuple[int, ...]) -> str | None:
    return describe(stream, list(sizes))[0]


def add_descriptions(found: Found, store: _core.Store, spill_dir: str | None, shown: list[dict[str, Any]]) -> None:
    """
    Add to records what each object is, where it was made, and the command line of its creator.

    For an entry of `pyray_ser.cached`, ``function`` is the name of the function.
    """
    made = allocation_sites.read(store.id, clients(store)) if shown else {}
    command = commands_of(found)
    spill = spill_of(store, spill_dir)
    with open_segment(found) as segment:
        for record in shown:
            record["description"] = None if segment is None else _description_of(segment, record, spill)
            record["function"] = _cached_function(record["name"])
            record["origin"] = made.get(record["serial"])
            record["creator_command"] = command(record["creator_pid"]) if record["creator_alive"] else None


# ---- as text -------------------------------------------------------------------------------------------------------------

_HEADS = ("SERIAL", "SIZE", "WHAT", "AGE", "STATE", "OWNER", "REFS", "VIEWS", "HELD", "NAME")
_SIDES = "rrlrlrrrrl"
_COMMAND_WIDTH = 60


def state_text(record: dict[str, Any]) -> str:
    """Return the state of an object in one word."""
    if record["spilled"]:
        return "spilled"
    return "freed" if record["freed"] else "orphaned" if record["orphaned"] else str(record["state"])


def name_text(record: dict[str, Any]) -> str:
    """Return the name of an object; for a result of `pyray_ser.cached`, the function and the number of hits."""
    name: str = record["name"] or ""
    function = _cached_function(name)
    if function is None:
        return name
    if name.endswith(f"/{cached_results.COUNTER}"):
        return f"counts of {function}"
    return f"result of {function}, hits: {record['uses']}"


def _cached_function(name: str | None) -> str | None:
    """Return the function of an entry of `pyray_ser.cached`, from the name of the entry."""
    if name is None or not name.startswith(cached_results.PREFIX):
        return None
    return name.removeprefix(cached_results.PREFIX).rpartition("/")[0]


def _row(record: dict[str, Any]) -> list[str]:
    """Return the table cells for one object."""
    return [
        str(record["serial"]),
        bytes_text(record["size"]),
        printable(record["description"] or "?"),
        age(record["age"]),
        state_text(record),
        str(record["creator_pid"]) if record["creator_alive"] else "gone",
        str(record["ref_holders"]),
        str(record["pin_holders"]),
        str(record["tokens_and_edges"]),
        printable(name_text(record)),
    ]


def extended(shown: list[dict[str, Any]]) -> tuple[list[str], list[list[str]], str]:
    """Return heads, rows and sides of a table of objects, with the columns that any of them fills."""
    heads, rows, sides = list(_HEADS), [_row(record) for record in shown], _SIDES
    for head, key in (("MADE AT", "origin"), ("COMMAND", "creator_command")):
        if any(record[key] for record in shown):
            heads.append(head)
            sides += "l"
            for cells, record in zip(rows, shown, strict=True):
                cells.append(cut(printable(record[key] or ""), _COMMAND_WIDTH if key == "creator_command" else 1000))
    return heads, rows, sides
