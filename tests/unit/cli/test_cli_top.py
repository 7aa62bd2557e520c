"""Test `pyray-ser top`: once, as JSON, as plain text on a terminal, and as a screen with keys."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from cli_runs import command
from isolated import environment
from patience import patience

from pyray_ser.cli import top


def looks(*arguments):
    return [json.loads(line) for line in command("top", *arguments, "--json").splitlines()]


def test_top_as_json(owner):
    first, second = looks(owner.name, "-n", "2", "-i", "0.05", "--objects", "3")
    for found in (first, second):
        (store,) = found["stores"]
        assert [record["size"] for record in store["objects"]] == [4_000_000 + 4096] * 3
        (process,) = store["processes"]
        assert process["pid"] == owner.pid and process["objects"] == 11 and process["bytes"] > 40_000_000
        assert process["pss"] >= process["pss_shmem"] > 0 and os.path.basename(sys.executable) in process["command"]
    assert first["stores"][0]["new_objects_per_second"] is None
    assert second["stores"][0]["new_objects_per_second"] == 0


def test_top_sorts_and_filters(owner):
    def serials(*words):
        ((found,),) = (look["stores"] for look in looks(owner.name, "--once", *words))
        return [record["serial"] for record in found["objects"]]

    assert serials("--sort", "age") == list(range(1, 11))
    assert serials("--sort", "views")[0] == 10
    (named,) = serials("--filter", "WEIGHTS\x1b[31m")  # the owner's command line has "weights", too
    assert serials("--sort", "name")[0] == named
    assert set(serials("--filter", "spilled")) < set(range(1, 12))
    assert len(serials("--filter", str(owner.pid), "--objects", "100")) == 11
    assert serials("--filter", "no such text") == []


def test_top_shows_processes(owner):
    text = command("top", owner.name, "--once")
    assert "PSS" in text and re.search(rf"^ *{owner.pid} +[\d.]+ [KM]iB +[\d.]+ [KM]iB +11 ", text, re.M)


def test_top_shows_a_crashed_store(owner):
    owner.crash()
    text = command("top", owner.name, "--once")
    assert "int64[500000]" in text and "gone" in text and "PSS" not in text


def test_text_of_a_process_that_cannot_be_examined():
    process = {"pid": 7, "command": None, "pss": None, "pss_shmem": None, "objects": 1, "bytes": 2048}
    assert top.process_rows({"processes": [process]}, 5) == [["7", "?", "?", "1", "2.0 KiB", "?"]]


class Terminal:
    """The command on its own terminal."""

    def __init__(self, *words, block_rich=False, term="xterm"):
        # The terminal controls the session, so that it sends Ctrl-C.
        code = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        code += "sys.modules['rich'] = None; " if block_rich else ""
        code += "from pyray_ser.cli import main; sys.exit(main(sys.argv[1:]))"
        self.fd, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *words],
            stdin=other, stdout=other, stderr=other,
            env={**environment(), "TERM": term, "COLUMNS": "200", "LINES": "50"}, start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)

    def _read(self):
        """Return whether the command still runs, after it has shown more or a moment has passed."""
        if select.select([self.fd], [], [], 0.2)[0]:
            try:
                self.text += os.read(self.fd, 65536).decode("utf-8", "replace")
            except OSError:
                return False  # no process has the terminal open
        return True

    def wait_for(self, text):
        """Read until the terminal has shown a text; forget what it has shown."""
        deadline = time.monotonic() + patience(60)
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.text!r}"
            assert self._read(), f"the command ended: {self.text!r}"
        self.text = ""

    def press(self, keys):
        os.write(self.fd, keys.encode())

    def end(self):
        """Read the rest; return the exit status."""
        deadline = time.monotonic() + patience(60)
        while self._read():
            assert time.monotonic() < deadline, f"the command does not end: {self.text!r}"
        return self.process.wait(patience(30))


def test_the_screen_has_keys(owner):
    pytest.importorskip("rich")
    with Terminal("top", owner.name, "-i", "0.2") as terminal:
        terminal.wait_for("sorted by size")
        terminal.press("s")
        terminal.wait_for("sorted by name")
        terminal.press("/weightsX\x7f\n")
        terminal.wait_for("filter 'weights'")
        terminal.press("/ignored\x1b")
        terminal.wait_for("filter 'weights'")
        terminal.press(" ")
        terminal.wait_for("paused")
        terminal.press("q")
        assert terminal.end() == 0
        assert "weights\x1b" not in terminal.text and "Traceback" not in terminal.text


def test_the_screen_ends_at_ctrl_c_and_after_n_looks(owner):
    pytest.importorskip("rich")
    with Terminal("top", owner.name, "-i", "0.2") as terminal:
        terminal.wait_for("sorted by size")
        terminal.press("\x03")
        assert terminal.end() == 130 and "Traceback" not in terminal.text
    with Terminal("top", owner.name, "-i", "0.1", "-n", "2") as terminal:
        assert terminal.end() == 0


@pytest.mark.parametrize("how", [{"block_rich": True}, {"term": "dumb"}], ids=["no rich", "dumb terminal"])
def test_top_without_rich_is_plain_text(owner, how):
    with Terminal("top", owner.name, "-i", "0.1", "-n", "2", "--sort", "name", **how) as terminal:
        assert terminal.end() == 0
        assert "weights\\x1b[31m" in terminal.text and "sorted by" not in terminal.text
