"""Test `pyray-ser bench`: the lines, comparisons, Ray's side with a stand-in for Ray, and that nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from isolated import environment
from patience import patience

from pyray_ser import cli
from pyray_ser.cli import bench_lines, bench_side

# A package with Ray's functions that runs everything in the calling process.
STAND_IN = """
import asyncio, inspect, os, sys
__version__ = "9.9"
def init(include_dashboard, log_to_driver, logging_level, configure_logging):
    print("a message of the library")
    if os.environ.get("STAND_IN") == "init fails":
        raise RuntimeError("no room")
    if os.environ.get("STAND_IN") == "dies":
        sys.exit("the library has died")
def shutdown():
    open(os.environ["STAND_IN_END"], "a").write("x") if "STAND_IN_END" in os.environ else None
def put(value): return ("ref", value)
def get(refs): return [get(ref) for ref in refs] if isinstance(refs, list) else refs[1]
def wait(refs): return refs[:1], refs[1:]
def kill(actor): assert isinstance(actor, Handle)
class Method:
    def __init__(self, function): self.function = function
    def remote(self, *arguments):
        value = self.function(*arguments)
        return put(asyncio.run(value) if inspect.iscoroutine(value) else value)
class Handle:
    def __init__(self, instance): self.instance = instance
    def __getattr__(self, name): return Method(getattr(self.instance, name))
class Class:
    def __init__(self, cls): self.cls = cls
    def remote(self, *arguments):
        if os.environ.get("STAND_IN") == "no clients" and self.cls.__name__ == "Client":
            raise RuntimeError("too many\\x1b[31m clients")
        return Handle(self.cls(*arguments))
def remote(*things, **options):
    if options:
        assert options == {"num_cpus": 0}
        return remote
    return (Class if inspect.isclass(things[0]) else Method)(things[0])
"""
OWN = {name for name, _, own, _ in bench_side.LINES if own}


@pytest.fixture
def interpreter(tmp_path):
    """Return an interpreter that has the stand-in for Ray."""
    package = tmp_path / "site" / "ray.py"
    package.parent.mkdir()
    package.write_text(STAND_IN)
    program = tmp_path / "python-with-ray"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_the_lines_have_the_names_that_ray_prints():
    names = [name for name, *_ in bench_side.LINES]
    assert len(set(names)) == len(names)
    for name in (
        "single client get calls (Plasma Store)", "single client put gigabytes", "single client tasks and get batch",
        "1:1 actor calls sync", "1:n async-actor calls async", "n:n actor calls with arg async",
    ):  # fmt: skip
        assert name in names and name not in OWN


def test_every_line_is_measured(capsys):
    assert cli.main(["bench", "--quick", "--json", "--mb", "1", "--rounds", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [line["name"] for line in result["lines"]] == [name for name, *_ in bench_side.LINES]
    for line in result["lines"]:
        assert len(line["rounds"]) == 2 and 0 < line["min"] <= line["median"] <= line["max"]
        assert line["unit"] == ("GB/s" if "gigabytes" in line["name"] else "1/s")
    assert result["cpus"] and result["settings"]["mb"] == 1


def test_lines_are_chosen_and_compared(tmp_path, capsys):
    assert cli.main(["bench", "--quick", "--only", "cached", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (line,) = result["lines"]
    line["median"] /= 2
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(result))
    assert cli.main(["bench", "--quick", "--only", "*c[ao]*hit", "--compare", str(earlier), "--json"]) == 0
    (compared,) = json.loads(capsys.readouterr().out)["lines"]
    assert compared["earlier"] == line["median"]
    assert compared["ratio_to_earlier"] == compared["median"] / line["median"]
    earlier.write_text(json.dumps({"lines": []}))
    assert cli.main(["bench", "--quick", "--only", "cached", "--compare", str(earlier)]) == 0
    text = capsys.readouterr().out
    assert "EARLIER" in text and "cached hit" in text and text.rstrip().endswith("-")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "no such line"], "no line matches"),
        (["--compare", "/no/such/file"], "cannot read /no/such/file"),
        (["--compare", "/proc/self/status"], "is not a file that `pyray-ser bench --json` wrote"),
        (["--ray", "/no/such/python"], "cannot run /no/such/python"),
        (["--rounds", "0"], "--rounds must be 1 or more"),
        (["pool", "--mb", "-1"], "--mb must be 1 or more"),
    ],
)
def test_wrong_arguments_are_errors_in_one_line(words, says, capsys):
    assert cli.main(["bench", "--quick", *(["--only", "cached"] if "--only" not in words else []), *words]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


def test_ray_is_measured_in_its_interpreter(interpreter, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("STAND_IN_END", str(tmp_path / "ended"))
    words = ["bench", "--quick", "--mb", "1", "--rounds", "1", "--ray", interpreter]
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ray"]["version"] == "9.9"
    for line in result["lines"]:
        if line["name"] in OWN:
            assert line["ray"] is None and line["ratio_to_ray"] is None
        else:
            assert line["ratio_to_ray"] == line["median"] / line["ray"]["median"]
    assert (tmp_path / "ended").read_text() == "x"
    monkeypatch.setenv("STAND_IN", "no clients")
    assert cli.main([*words, "--only", "n:n"]) == 0
    text = capsys.readouterr().out
    assert "RAY 9.9" in text and "failed" in text and "too many\\x1b[31m clients" in text


@pytest.mark.parametrize(
    ("how", "says"), [("init fails", "RuntimeError: no room"), ("dies", "the library has died")], ids=["init", "end"]
)
def test_a_library_that_fails_is_an_error(interpreter, capsys, monkeypatch, how, says):
    monkeypatch.setenv("STAND_IN", how)
    assert cli.main(["bench", "--quick", "--rounds", "1", "--only", "cached", "--ray", interpreter]) == 2
    assert says in capsys.readouterr().err


def test_an_interpreter_without_ray_is_an_error(capsys):
    assert cli.main(["bench", "--quick", "--rounds", "1", "--only", "cached", "--ray", sys.executable]) == 2
    error = capsys.readouterr().err
    assert "No module named 'ray'" in error and "pip install ray" in error and len(error.splitlines()) == 1


def test_a_line_that_fails_is_shown_and_the_status_is_1(capsys, monkeypatch):
    def broken(arguments, lines):
        answers = {
            "cached hit": {"unit": "1/s", "error": "ValueError: no"},
            "get by name": {"unit": "1/s", "rounds": [2.0]},
        }
        return {"settings": {"rounds": 1}, "libraries": {"pyray_ser": {"lines": answers}}}

    monkeypatch.setattr(bench_lines, "_measure", broken)
    assert cli.main(["bench"]) == 1
    text = capsys.readouterr().out
    assert "failed" in text and "cached hit, pyray_ser: ValueError: no" in text


def session_of(pid):
    """Return the processes whose session a process leads."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(entry)) == pid:
                found.append(int(entry))
        except ProcessLookupError:
            continue
    return found


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_nothing_is_left_when_the_command_is_ended(end, tmp_path):
    """Workers, actors and the store end with the command, even if it is killed."""
    command = [sys.executable, "-P", "-m", "pyray_ser", "bench", "--only", "n:n actor calls async", "--rounds", "1000"]
    settings = {**environment(), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings) as tool:
        deadline = time.monotonic() + patience(60)
        side = None
        while side is None or len(session_of(side)) < 3:
            assert time.monotonic() < deadline and tool.poll() is None
            with open(f"/proc/{tool.pid}/task/{tool.pid}/children") as file:
                side = next(map(int, file.read().split()), None)
            time.sleep(0.05)
        tool.send_signal(end)
        _, errors = tool.communicate(timeout=patience(60))
    assert tool.returncode == (130 if end == signal.SIGINT else -signal.SIGKILL) and not errors
    assert end == signal.SIGKILL or not list(tmp_path.iterdir())
    while session_of(side):
        assert time.monotonic() < deadline + patience(60), session_of(side)
        time.sleep(0.05)


def test_progress_is_shown_on_a_terminal_only():
    code = "from pyray_ser.cli.progress import Progress\nwith Progress(3) as bar:\n    bar.show(1, 'a line')"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout and not done.stderr
    import pty

    for setup in ("", "import sys; sys.modules['rich'] = None\n"):
        main, other = pty.openpty()
        subprocess.run(
            [sys.executable, "-P", "-c", setup + code], stderr=other, check=True, env={**os.environ, "TERM": "xterm"}
        )
        os.close(other)
        text = os.read(main, 65536).decode()
        os.close(main)
        assert "a line" in text
