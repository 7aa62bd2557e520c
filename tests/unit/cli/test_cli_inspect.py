"""Test `pyray-ser inspect`: exit status, output formats, and error messages of one line."""

import json
import os
import subprocess
import sys

import pytest

MODULE = """
import threading
good = {"a": [1, 2], "text": "x" * 5000}
class Service:
    def __init__(self):
        self.cache = {"lock": threading.Lock()}
    @property
    def broken(self):
        raise RuntimeError("not now")
service = Service()
table = {"service": Service}
def task():
    return service
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "mine.py").write_text(MODULE)
    (folder / "fails.py").write_text("raise KeyError('no such thing')")
    (folder / "leaves.py").write_text("raise SystemExit(3)")
    return folder


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pyray_ser", "inspect", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_what_can_be_pickled(folder):
    done = run(folder, "mine:good")
    assert done.returncode == 0, done.stderr
    assert "Checking Serializability" in done.stdout and "['text']" in done.stdout and "in-band" in done.stdout


def test_what_cannot(folder):
    done = run(folder, "mine:service")
    assert done.returncode == 1
    assert "service.cache['lock']" in done.stdout and "hint:" in done.stdout
    done = run(folder, "mine:task")
    # The module can be imported, so the pickler writes the name of the function and does not visit its global.
    assert done.returncode == 0
    assert "This function is pickled by its name, mine:task:" in done.stdout
    assert "its code and the global variables that it uses, and they were not checked" in done.stdout


def test_a_class_is_reported_as_pickled_by_name(folder):
    done = run(folder, "mine:Service")
    assert done.returncode == 0, done.stderr
    assert "This class is pickled by its name, mine:Service: a process that loads it imports it.\n" in done.stdout
    assert "its attributes and its instances, and they were not checked" in done.stdout
    assert "hint: inspect an instance of the class" in done.stdout
    assert json.loads(run(folder, "mine:Service", "--json").stdout)["pickled_by_name"] == "mine:Service"


def test_an_object_that_holds_a_class_is_not_reported_as_pickled_by_name(folder):
    done = run(folder, "mine:table")
    assert done.returncode == 0 and "by its name" not in done.stdout
    assert json.loads(run(folder, "mine:table", "--json").stdout)["pickled_by_name"] is None


def test_json(folder):
    done = run(folder, "mine:service", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["serializable"] is False
    assert found["failures"][0]["path"] == "service.cache['lock']"


def test_html(folder):
    done = run(folder, "mine:good", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    page = (folder / "page.html").read_text()
    assert page.startswith("<!doctype html>") and "['text']" in page.replace("&#x27;", "'")
    done = run(folder, "mine:good", "--html", "no/such/folder/page.html")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nothing_of_that_name:x", "cannot import 'nothing_of_that_name'"),
        ("mine:absent", "has no 'absent'"),
        ("mine:service.broken", "not now"),
        ("mine", "not of the form"),
        (":x", "not of the form"),
        ("fails:x", "KeyError: 'no such thing'"),
        ("leaves:x", "SystemExit"),
    ],
)
def test_targets_that_cannot_be_had_are_errors_in_one_line(folder, target, says):
    done = run(folder, target)
    assert done.returncode == 2
    assert done.stderr.startswith("pyray-ser inspect: ") and says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_no_command_and_version(folder):
    done = subprocess.run(
        [sys.executable, "-m", "pyray_ser", "--version"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("pyray_ser ")
