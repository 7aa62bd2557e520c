"""Test `pyray-ser ls` and `show`: what an object is, who made it, and who holds it."""

import json
import os
import subprocess
import sys

import pytest
from cli_runs import answer, command
from isolated import environment, run

import pyray_ser
from pyray_ser import cli
from pyray_ser.cli import objects, segment, stores
from pyray_ser.cli.processes import command_of, memory_sizes


def shown(*arguments):
    return json.loads(command("show", *arguments, "--json"))["object"]


@pytest.mark.parametrize("crashed", [False, True], ids=["in use", "crashed"])
def test_ls_tells_what_objects_are_and_who_made_them(owner, crashed):
    if crashed:
        owner.crash()
    listed = answer("ls", owner.name)["objects"]
    # Spilled objects and those of a crashed store are described, too.
    assert {record["description"] for record in listed} == {"int64[500000]", "float64[1000]"}
    commands = {record["creator_command"] for record in listed}
    assert (commands == {None}) is crashed
    text = command("ls", owner.name)
    assert "int64[500000]" in text and ("COMMAND" in text) is not crashed
    assert crashed or os.path.basename(sys.executable) in text


def test_show_tells_everything(owner):
    listed = answer("ls", owner.name)["objects"]
    first = shown(owner.name, "1")
    assert {key for key in listed[0]} <= set(first)
    assert first["holders"] == [
        {
            "pid": owner.pid, "alive": True, "command": command_of(owner.pid), "reference": True, "view": False
        }
    ]  # fmt: skip
    assert [flight["sender_pid"] for flight in first["in_flight"]] == [owner.pid]
    assert first["layout"]["buffers"] == [
        {"size": 4_000_000, "offset": 4096, "in_object": None, "description": "int64[500000]"}
    ]
    viewed = shown(owner.name, "10")
    assert viewed["holders"][0]["view"] is True and viewed["id"] == listed[9]["id"]
    named = shown(owner.name, "weights\x1b[31m")
    assert [name["name"] for name in named["names"]] == ["weights\x1b[31m"] and named["names"][0]["version"] == 1
    assert shown(owner.name, named["id"])["serial"] == named["serial"]
    (spilled, *_) = [record for record in listed if record["spilled"]]
    moved = shown(owner.name, str(spilled["serial"]))
    assert moved["spill"]["bytes"] >= 4_000_000 and os.path.exists(moved["spill"]["path"])
    assert moved["description"] == "int64[500000]"
    for record in (first, viewed, named, moved):
        text = command("show", owner.name, str(record["serial"]))
        assert "HELD BY" in text and str(owner.pid) in text and "\x1b" not in text
    assert "weights\\x1b[31m" in command("show", owner.name, named["id"])


def test_show_reads_a_crashed_store(owner):
    owner.crash()
    found = shown(owner.name, "1")
    assert found["creator_alive"] is False and found["creator_command"] is None
    assert found["description"] == "int64[500000]"
    assert [(holder["pid"], holder["alive"]) for holder in found["holders"]] == [(owner.pid, False)]
    assert "gone" in command("show", owner.name, "1")


def test_show_tells_which_objects_refer_to_an_object():
    script = """
        import json, os, subprocess, sys
        import numpy as np
        import pyray_ser
        pyray_ser.init(capacity=64 << 20)
        inner = pyray_ser.put(np.zeros(100_000))
        outer = [pyray_ser.put([inner]), pyray_ser.put({"x": pyray_ser.get(inner), "y": 1})]
        def show(ref):
            tool = [sys.executable, "-P", "-m", "pyray_ser", "show", str(os.getpid()), ref.hex(), "--json"]
            return json.loads(subprocess.run(tool, capture_output=True, text=True, check=True).stdout)["object"]
        assert show(inner)["held_by"] == [ref.serial for ref in outer], show(inner)
        (buffer,) = show(outer[1])["layout"]["buffers"]
        assert buffer["in_object"] == inner.serial and buffer["description"] == "float64[100000]"
        assert show(outer[0])["description"] == "list of 1: ObjectRef"
    """
    run(script)


@pytest.mark.parametrize("options", ["spill_compress='zstd'", "spill_compress='lz4', spill_checksum=True", ""])
def test_spilled_objects_are_described(folder, options):
    pytest.importorskip("zstandard")
    pytest.importorskip("lz4")
    script = f"""
        import json, os, subprocess, sys
        import numpy as np
        import pyray_ser
        pyray_ser.init(capacity=8 << 20, spill_dir={folder!r}, {options})
        refs = [pyray_ser.put(np.zeros((250_000, 2))) for _ in range(3)] + [pyray_ser.put(np.zeros(2_000_000))]
        tool = [sys.executable, "-P", "-m", "pyray_ser", "ls", str(os.getpid()), "--json"]
        objects = json.loads(subprocess.run(tool, capture_output=True, text=True, check=True).stdout)["stores"][0]["objects"]
        assert sum(record["spilled"] for record in objects) > 1
        assert [record["description"] for record in objects] == ["float64[250000, 2]"] * 3 + ["float64[2000000]"], objects
    """
    run(script)


def test_show_says_what_it_cannot_find(owner, capsys):
    for words in (
        ["show", owner.name, "no such object"],
        ["show", "no such store", "1"],
        ["show", owner.name, "12345"],
    ):
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("pyray-ser show: ") and len(error.splitlines()) == 1


def test_ls_prints_a_limited_number_of_objects():
    script = """
        import json, os, subprocess, sys
        import pyray_ser
        pyray_ser.init(capacity=64 << 20)
        refs = [pyray_ser.put(i) for i in range(1500)]
        def ls(*words):
            tool = [sys.executable, "-P", "-m", "pyray_ser", "ls", str(os.getpid()), *words]
            return subprocess.run(tool, capture_output=True, text=True, check=True).stdout
        text = ls()
        assert "1500 objects" in text and "500 more objects" in text and text.count(" int ") == 1000, text
        assert ls("-n", "2000").count(" int ") == 1500
        (store,) = json.loads(ls("--json"))["stores"]
        assert [record["description"] for record in store["objects"]] == ["int"] * 1500
    """
    run(script)


def test_command_lines_are_escaped():
    code = "import sys, pyray_ser; pyray_ser.init(); ref = pyray_ser.put(1); print(flush=True); sys.stdin.read()"
    evil = "\x1b]0;title\x07 \u202e"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, evil, b"\xff"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
    ) as child:  # fmt: skip
        child.stdout.readline()
        for words in (["ls"], ["show", "1"], ["top", "--once"]):
            text = command(words[0], str(child.pid), *words[1:])
            assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
        assert "\\x1b]0;title\\x07" in command("show", str(child.pid), "1")
        found = answer("ls", str(child.pid))["objects"][0]["creator_command"]
        assert evil in found and "\\xff" in found
        child.communicate()
    assert command_of(child.pid) is None and memory_sizes(child.pid) is None


def test_a_closed_pipe_ends_the_tool(owner):
    for words in (["ls", owner.name], ["show", owner.name, "1"], ["top", owner.name]):
        read, write = os.pipe()
        os.close(read)
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "pyray_ser", *words],
                stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), timeout=90,
            )  # fmt: skip
        finally:
            os.close(write)
        assert done.returncode == 141 and not done.stderr


def test_a_file_that_is_not_the_store_is_not_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"PYRAYSER" + bytes(4096))
    for found in (
        stores.Found("1" * 16, path=str(path)),
        stores.Found("1" * 16, path=str(tmp_path)),
        stores.Found("1" * 16, path=str(tmp_path / "none")),
        stores.Found("1" * 16, holders={os.getpid(): 0, 2**22 + 1: 5}),
    ):
        with segment.open_segment(found) as opened:
            assert opened is None


def test_damaged_records_are_not_followed():
    store = pyray_ser.init()
    ref = pyray_ser.put(b"x" * 5000)
    pid, _, fd = store.locator
    found = stores.Found(f"{store.id:016x}", holders={pid: fd})
    (record,) = [record for record in store.records() if record["serial"] == ref.serial]
    with segment.open_segment(found) as opened:
        assert opened.read(record, 0, 4) == b"PRSO"
        assert opened.read(record, 0, 1 << 60) == opened.read(record, 0, record["size"])
        assert [holder.pid for holder in opened.holders(record)] == [os.getpid()]
        for wrong in (
            {"offset": 1 << 63}, {"offset": store.capacity}, {"size": 1 << 62}, {"state": "creating"}, {"spilled": True},
        ):  # fmt: skip
            assert opened.read({**record, **wrong}, 0, 4) == b""
        elsewhere = record["id"][:32] + "ffffffff" + record["id"][40:]
        assert opened.holders({**record, "id": elsewhere}) == []


def test_the_tool_holds_nothing_that_it_describes():
    store = pyray_ser.init()
    ref = pyray_ser.put(b"x" * 5000)
    pid, _, fd = store.locator
    found = stores.Found(f"{store.id:016x}", holders={pid: fd})
    before = store.records()
    objects.add_descriptions(found, store, None, objects.records(store))
    assert [record["pin_holders"] for record in store.records()] == [record["pin_holders"] for record in before]
    assert ref.state == "sealed"
