"""Test the command `pyray-ser` with stores in use and with stores whose processes have all crashed."""

import html.parser
import json
import os
import subprocess
import sys
import textwrap
import xml.etree.ElementTree

import pytest
from cli_runs import answer, command, timeless
from isolated import environment, run

from pyray_ser import cli
from pyray_ser.cli import doctor, output, stores
from pyray_ser.cli import map as picture


@pytest.mark.parametrize("crashed", [False, True], ids=["in use", "crashed"])
def test_every_command_shows_the_store(owner, crashed):
    if crashed:
        owner.crash()
    listed = answer("ls", owner.name)
    assert listed["used"] is not crashed and listed["pids"] == ([] if crashed else [owner.pid])
    assert listed["path"] == owner.path and listed["count"] == 11
    objects = listed["objects"]
    assert [record["serial"] for record in objects] == sorted(record["serial"] for record in objects)
    assert sum(record["size"] > 4_000_000 for record in objects) == 10
    assert {record["creator_alive"] for record in objects} == {not crashed}
    assert [record["name"] for record in objects if record["name"]] == ["weights\x1b[31m"]
    spilled = [record for record in objects if record["spilled"]]
    assert spilled and all(record["extent"] == 0 for record in spilled)

    (flight,) = listed["in_flight"]
    assert flight["sender_pid"] == owner.pid and flight["sender_alive"] is not crashed and flight["once"] is True
    assert flight["serial"] == objects[0]["serial"] and flight["object_gone"] is False

    text = command("ls", owner.name)
    assert "IN FLIGHT" in text and str(owner.pid) + (" (gone)" if crashed else " ") in text
    assert "spilled" in text and "weights\\x1b[31m" in text and "\x1b" not in text
    assert ("gone" in text) is crashed

    found = answer("stat", owner.name)
    assert found["clients"] == ([] if crashed else [owner.pid])
    assert found["stats"]["objects"] == 11 and found["stats"]["spilled"] == len(spilled)
    assert found["stats"]["backed"] > 20 << 20 and found["spill_dir"] == owner.spill_dir and found["names"] == 1
    assert owner.spill_dir in command("stat", owner.name)

    assert answer("check", owner.name)["ok"] is True
    drawn = answer("map", owner.name, "--cells", "320")
    assert drawn["bytes"]["pinned"] > 4_000_000 and drawn["bytes"]["spilled"] > 4_000_000
    assert set(drawn["cells"]) >= {"live", "pinned"} and len(drawn["cells"]) == 320
    assert "\u2588" in command("map", owner.name)
    assert "weights" in command("top", owner.name, "-n", "1", "--objects", "20")
    # The read-only commands have changed nothing.
    assert os.path.exists(owner.path) and timeless(answer("ls", owner.name)["objects"]) == timeless(objects)


def test_a_process_that_only_looks_at_a_store_is_not_counted_as_its_client(owner):
    (found,) = stores.selected([owner.name])
    with stores.opened(found) as (store, _):
        assert store.stats()["clients"] == 1


def test_ls_tells_where_objects_were_made(monkeypatch):
    script = """
        import json, os, subprocess, sys, time
        import numpy as np
        import pyray_ser

        store = pyray_ser.init(capacity=64 << 20)

        class Maker:
            def make(self):
                return pyray_ser.put([np.ones(1000)] * 2)

        def in_the_child():
            return pyray_ser.put("child")

        refs = [pyray_ser.put(5), Maker().make(), pyray_ser.seal(pyray_ser.empty(10))]
        ready, done = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            refs.append(in_the_child())
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        def ls(*words):
            tool = [sys.executable, "-P", "-m", "pyray_ser", "ls", str(os.getpid()), *words]
            return subprocess.run(tool, capture_output=True, text=True, check=True).stdout
        objects = json.loads(ls("--json"))["stores"][0]["objects"]
        text = ls()
        assert ("MADE AT" in text) == (len(sys.argv) > 1), text
        for record in objects:
            made = record["origin"]
            print(made and made.rpartition("/")[2])
        # Somebody closes all descriptors, and the number becomes another file's.
        if len(sys.argv) > 1:
            from pyray_ser.store import allocation_sites
            [(fd, _)] = allocation_sites._lists.values()
            os.close(fd)
            other = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE, 0o600)
            os.dup2(other, fd)
            kept = pyray_ser.put(6)
            assert os.fstat(fd).st_size == 0
            assert any("script.py" in (record["origin"] or "") for record in json.loads(ls("--json"))["stores"][0]["objects"])
            pyray_ser.shutdown()
            os.fstat(fd)
            assert not allocation_sites._lists
        os.write(done[1], b"x")
        os.waitpid(pid, 0)
    """
    assert run(script).split("\n") == ["None"] * 4
    monkeypatch.setenv("PYRAY_SER_ORIGINS", "1")
    asked = "import sys\nsys.argv.append('asked')\n" + textwrap.dedent(script)
    number, several, sealed, child = run(asked).split("\n")
    assert number.endswith(" <module>") and number.startswith("script.py:")
    assert several.endswith(" Maker.make") and sealed.endswith(" <module>") and child.endswith(" in_the_child")


def test_ls_shows_the_results_of_cached_functions():
    run(
        """
        import json, os, subprocess, sys
        import pyray_ser
        pyray_ser.init()
        @pyray_ser.cached
        def embeddings(n):
            return [n] * n
        for n in (5, 5, 5, 7):
            embeddings(n)
        command = [sys.executable, "-P", "-m", "pyray_ser", "ls", str(os.getpid())]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        ends = sorted(line.rpartition("of __main__.embeddings-")[2][16:].partition("  ")[0] for line in lines if "embeddings" in line)
        assert ends == ["", ", hits: 0", ", hits: 2"], lines
        assert "counts of __main__.embeddings-" in str(lines)
        (store,) = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)["stores"]
        (function,) = {record["function"] for record in store["objects"]}
        assert function.startswith("__main__.embeddings-") and "/" not in function
        """
    )


def test_ls_sorts_and_cuts(owner):
    found = answer("ls", owner.name, "--sort", "size", "-n", "3")
    sizes = [record["size"] for record in found["objects"]]
    assert len(sizes) == 3 and sizes == sorted(sizes, reverse=True) and found["count"] == 11


def test_names_that_the_output_cannot_show_are_escaped():
    script = r"""
        import os, subprocess, sys
        import pyray_ser

        pyray_ser.init(capacity=1 << 20)
        pyray_ser.put(1, name="\u2603")
        done = subprocess.run([sys.executable, "-P", "-m", "pyray_ser", "ls", str(os.getpid())], capture_output=True, text=True,
                              env={**os.environ, "PYTHONIOENCODING": "ascii"})
        print(done.returncode, r"\u2603" in done.stdout, done.stderr)
    """
    assert run(script) == "0 True"


def test_a_store_is_found_by_id_pid_and_path(owner):
    found = answer("stat", owner.name)
    for word in (found["id"], found["id"][:8].upper(), str(owner.pid), owner.path):
        assert answer("stat", word)["id"] == found["id"]
    # This command reads all stores of this user. Some of them may appear, disappear or be damaged meanwhile.
    everything = subprocess.run(
        [sys.executable, "-P", "-m", "pyray_ser", "stat", "--json"], capture_output=True, env=environment()
    )
    assert found["id"] in [store["id"] for store in json.loads(everything.stdout)["stores"]]


def test_a_store_without_a_name_is_found():
    code = "import sys, pyray_ser; store = pyray_ser.init(); ref = pyray_ser.put(b'x' * 5000); print(store.id, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as child:
        ident = f"{int(child.stdout.readline()):016x}"
        found = answer("ls", str(child.pid))
        assert found["id"] == ident and found["path"] is None
        assert found["count"] == 1 and found["objects"][0]["creator_pid"] == child.pid
        child.communicate()


def test_an_unknown_store_is_an_error():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pyray_ser", "ls", "no such store"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 2 and "no such store" in done.stderr and "Traceback" not in done.stderr


def test_clean_leaves_what_is_in_use(owner):
    assert owner.path not in command("clean", "--dry-run")
    command("clean")
    assert os.path.exists(owner.path)
    owner.process.stdin.write(b"\n")
    assert owner.process.poll() is None
    assert answer("check", owner.name)["ok"]


def test_clean_removes_what_is_dead(owner):
    owner.crash()
    assert len(os.listdir(owner.spill_dir)) == 1
    for dry in (["--dry-run"], []):
        found = json.loads(command("clean", "--json", *dry))
        assert found["dry_run"] is bool(dry) and not found["errors"]
        assert owner.path in [store["path"] for store in found["stores"]]
        assert {"path": owner.spill_dir, "stores": 1} in found["spill_directories"]
        assert os.path.exists(owner.path) is bool(dry) and bool(os.listdir(owner.spill_dir)) is bool(dry)
    assert owner.path not in command("clean")


def test_clean_touches_nothing_else(owner):
    # Create a file that is not a store in the directory of stores and in a spill directory.
    other = owner.path + "-notes"
    kept = os.path.join(owner.spill_dir, "0123456789abcdeg")
    try:
        for path in (other, kept):
            with open(path, "w") as file:
                file.write("mine")
        owner.crash()
        command("clean", "--spill-dir", owner.spill_dir)
        assert open(other).read() == open(kept).read() == "mine"
    finally:
        os.unlink(other)


def test_a_damaged_store_is_told(owner):
    owner.crash()
    with open(owner.path, "r+b") as file:
        file.seek(40)
        file.write(b"\xff" * 8)
    found = answer("check", owner.name, status=1)
    assert found["ok"] is False and "damaged" in found["error"]
    assert "damaged" in command("ls", owner.name, status=1)
    command("clean")
    assert not os.path.exists(owner.path)


SVG = "{http://www.w3.org/2000/svg}"


def test_pictures_in_files(owner, tmp_path):
    svg, html = tmp_path / "map.svg", tmp_path / "map.html"
    command("map", owner.name, "--svg", str(svg), "--html", str(html))
    drawing = xml.etree.ElementTree.parse(svg)
    legend, cells = {}, {}
    for element in drawing.iter(f"{SVG}rect"):
        (legend if element.get("width") == "12" else cells)[element.get("class")] = element.get("fill")
    assert legend == {name: kind.colour for name, kind in picture.KINDS.items()}
    assert {"free", "live", "pinned"} <= cells.keys() and cells.items() <= legend.items()
    assert "prefers-color-scheme: dark" in svg.read_text()
    assert owner.name in html.read_text() and "<table>" in html.read_text()


class Page(html.parser.HTMLParser):
    """An HTML parser that records external resources, rows of tables, and titles of groups of cells."""

    def __init__(self, text):
        super().__init__()
        self.outside, self.rows, self.tips = [], [], {}
        self._object = self._tip = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("link", "img", "iframe") or "src" in attrs or "href" in attrs:
            self.outside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "g":
            self._object = attrs["data-object"]
        self._tip = self._object if tag == "title" and self._object else None

    def handle_data(self, data):
        if self._tip:
            self.tips.setdefault(self._tip, []).append(data)
        elif self.rows and data.strip():
            self.rows[-1].append(data)


def test_the_page_of_the_map_lists_the_objects_and_names_them_at_their_cells(owner, tmp_path):
    path = tmp_path / "map.html"
    command("map", owner.name, "--html", str(path))
    page = Page(path.read_text())
    listed = answer("ls", owner.name)["objects"]
    assert not page.outside and "\x1b" not in path.read_text()
    heads, *rows = [row for row in page.rows if row]
    assert heads[:2] == ["serial", "size"] and len(rows) == len(listed)
    assert {row[0] for row in rows} == {str(record["serial"]) for record in listed}
    sizes = {str(record["serial"]): record["size"] for record in listed}
    assert [sizes[row[0]] for row in rows] == sorted(sizes.values(), reverse=True)
    in_memory = {record["serial"] for record in listed if not record["spilled"] and record["size"] > 1 << 20}
    assert {f"0-{serial}" for serial in in_memory} <= page.tips.keys()
    assert any("weights\\x1b[31m" in cell for row in rows for cell in row)
    for key, tips in page.tips.items():
        assert all(tip.startswith(f"object {key.removeprefix('0-')}") for tip in tips)


def test_the_page_of_the_map_lists_only_the_largest_of_many_objects(monkeypatch):
    monkeypatch.setattr(picture, "_LISTED", 2)
    records = [
        {
            "serial": n, "size": n << 10, "offset": n << 10, "extent": 1 << 10, "spilled": False, "state": "sealed", "age": n,
            "pin_holders": 0, "ref_holders": 1, "tokens_and_edges": 0, "name": "<b>&", "freed": False, "orphaned": False,
            "creator_pid": 1, "creator_alive": True, "origin": None, "uses": 0, "description": "bytes", "function": None,
            "creator_command": None,
        }
        for n in range(5)
    ]  # fmt: skip
    cells = picture.cells_of(records, 8 << 10, 8)
    answer = {
        "label": "<store>", "capacity": 8 << 10, "cell": 1 << 10, "cells": cells, "count": 5,
        "bytes": dict.fromkeys(picture.KINDS, 0),
    }  # fmt: skip
    text = picture._html([(answer, records)])
    page = Page(text)
    assert [row[0] for row in page.rows[1:] if row[0].isdigit()] == ["4", "3"]
    assert "3 smaller objects are not listed" in text
    assert "<b>" not in text and "<store>" not in text
    assert "no stores" in picture._html([])


def test_cells():
    def record(offset, extent, **more):
        return {"offset": offset, "extent": extent, "spilled": False, "state": "sealed", "pin_holders": 0, **more}

    records = [
        record(0, 100),
        record(100, 50, pin_holders=1),
        record(900, 100, state="creating"),
        record(300, 0, spilled=True),
    ]
    cells = picture.cells_of(records, 1000, 10)
    assert cells == ["live", "pinned", *["free"] * 7, "making"]
    assert picture.cells_of([record(0, 10**9)], 1000, 3) == ["live"] * 3
    assert picture.cells_of([], 7, 3) == ["free"] * 3


def test_doctor():
    found = json.loads(command("doctor", "--json"))
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert found["ok"] and by_name["trial"]["level"] == "ok"
    for name in ("versions", "kernel", "kernel features", "memory", "vm.max_map_count", "RemoveIPC", "stale stores"):
        assert name in by_name
    assert all(finding["remedy"] for finding in found["findings"] if finding["level"] == "fail")
    text = command("doctor")
    assert "trial" in text and "ulimit" in text


def test_doctor_names_stale_stores(owner):
    owner.crash()
    findings = json.loads(command("doctor", "--json"))["findings"]
    (stale,) = [finding for finding in findings if finding["name"] == "stale stores"]
    assert stale["level"] == "warn" and owner.path in stale["value"] and "clean" in stale["remedy"]


def test_doctor_reads_cgroup_limits(tmp_path):
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "a" / "memory.max").write_text("1000000\n")
    (tmp_path / "a" / "memory.current").write_text("400\n")
    (group / "memory.max").write_text("2000000\n")
    limits = doctor.cgroup_limits(str(tmp_path), "0::/a/b\n")
    assert limits == [(str(group), 2000000, None), (str(tmp_path / "a"), 1000000, 400)]
    old = tmp_path / "memory" / "c"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("5000\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert doctor.cgroup_limits(str(tmp_path), "3:cpu,memory:/c\n2:freezer:/c\n") == [(str(old), 5000, None)]


def test_doctor_reads_logind(tmp_path):
    assert doctor.removes_ipc((str(tmp_path),))
    (tmp_path / "logind.conf").write_text("[Login]\n#RemoveIPC=yes\nRemoveIPC=no\n")
    assert not doctor.removes_ipc((str(tmp_path),))
    (tmp_path / "logind.conf.d").mkdir()
    (tmp_path / "logind.conf.d" / "x.conf").write_text("[Login]\nRemoveIPC = yes\n")
    assert doctor.removes_ipc((str(tmp_path),))


def test_wrong_arguments(capsys):
    for wrong in (["nonsense"], ["top", "-i", "0"], ["ls", "--sort", "colour"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(wrong)
        assert caught.value.code == 2
    assert cli.main(["map", "--cells", "0"]) == 2
    assert cli.main(["map", "--svg", "/no/such/folder/x.svg"]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_figures_as_people_read_them():
    assert [output.bytes_text(n) for n in (0, 1023, 1024, 1536, 1 << 30, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.0 GiB",
        "1024.0 TiB",
    ]
    assert [output.age(n) for n in (-1, 59, 61, 3600, 90000, 10**6)] == [
        "0 s",
        "59 s",
        "1 min",
        "1 h 00",
        "25 h 00",
        "11 d",
    ]
    assert output.printable("a\x1b[0m\u00e4\n") == "a\\x1b[0m\u00e4\\n"


def test_bench_pool_measures_both(capsys):
    assert cli.main("bench pool --mb 16 --workers 2 --rounds 1 --json".split()) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["mb"] == 16 and set(figures["seconds"]) == set(figures["memory"]) == {"before", "after"}
    assert all(seconds > 0 for seconds in figures["seconds"].values())
    # Every measured amount of memory includes the table of 16 MiB.
    assert all(memory > 16 << 20 for memory in figures["memory"].values())
    assert cli.main("bench pool --workers 0".split()) == 2
    assert "--workers" in capsys.readouterr().err


WITHOUT_DASK = """
    import io, sys
    from contextlib import redirect_stderr

    sys.modules["distributed"] = None  # as if it was not installed
    from pyray_ser import cli

    for command in ("ls", "top"):
        errors = io.StringIO()
        with redirect_stderr(errors):
            status = cli.main([command, "--cluster", "tcp://127.0.0.1:8786"])
        print(status, errors.getvalue(), end="")
    cli.main(["top", "--once", "--json"])
    print("dask" in sys.modules)
"""


def test_a_cluster_needs_dask_and_nothing_else_imports_it():
    *errors, _, last = run(WITHOUT_DASK).splitlines()
    assert errors == [
        f"2 pyray-ser {name}: --cluster needs Dask; hint: pip install distributed" for name in ("ls", "top")
    ]
    assert last == "False"
