"""Test that every command writes JSON, and calls one thing by one name everywhere."""

import json

import pytest
from cli_runs import command

from pyray_ser import cli

# The arguments with which each command answers quickly; NAME is the name of a store.
ARGUMENTS = {
    "bench": ["--quick", "--rounds", "1", "--only", "get by name"],
    "check": ["NAME"],
    "clean": ["--dry-run"],
    "doctor": [],
    "inspect": ["json:dumps"],
    "ls": ["NAME"],
    "map": ["NAME", "--cells", "10"],
    "show": ["NAME", "1"],
    "stat": ["NAME"],
    "top": ["NAME", "--once"],
}
STORE = {"label", "id", "path", "pids", "used"}
OBJECT = {
    "id", "serial", "size", "extent", "offset", "state", "ref_holders", "pin_holders", "tokens_and_edges", "created", "age",
    "creator_pid", "creator_alive", "creator_command", "freed", "orphaned", "spilled", "name", "uses", "description", "function", "origin",
}  # fmt: skip


def test_every_command_is_tested_here():
    assert set(ARGUMENTS) == set(cli.COMMANDS)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_a_command_writes_json(owner, name):
    words = [owner.name if word == "NAME" else word for word in ARGUMENTS[name]]
    found = json.loads(command(name, *words, "--json"))
    assert isinstance(found, dict)
    stores = [found["store"]] if name == "show" else found.get("stores", [])
    if "NAME" in ARGUMENTS[name]:
        assert [store["label"] for store in stores] == [owner.name] and not STORE - set(stores[0])
    if name in ("ls", "show", "top"):
        objects = [found["object"]] if name == "show" else stores[0]["objects"]
        assert objects and not any(OBJECT - set(record) for record in objects)
