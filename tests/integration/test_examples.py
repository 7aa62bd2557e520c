"""Test that every program in examples/ and in the README runs unchanged."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def _blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


PROGRAMS = {f"README.md-{number}": text for number, text in enumerate(_blocks("README.md"))}


def run(path):
    return subprocess.run([sys.executable, str(path)], text=True, capture_output=True, timeout=120)


def _case(value, name, text):
    """Return a parameter; a program that needs more packages belongs to the heavy tests, which install them."""
    more = any(word in text for word in ("import torch", "Needs gunicorn", "Needs pytest-xdist", "Needs mpi4py"))
    return pytest.param(value, id=name, marks=[pytest.mark.heavy] if more else [])


# This matches a warning of multiprocessing's resource tracker, and the source line that `warnings` adds.
LEAKED = re.compile(
    r".*UserWarning: resource_tracker: There appear to be (\d+) leaked semaphore objects .*\n  warnings\.warn.*\n"
)
GONE = re.compile(
    r".*UserWarning: resource_tracker: '/mp-\w+': \[Errno 2\] No such file or directory\n  warnings\.warn.*\n"
)


def without_unlinked_semaphores(stderr):
    """
    Return a program's stderr without the warnings that report unlinked semaphores as leaked.

    A DataLoader closes its queues and does not wait for their threads. If such a thread is the last holder of a queue's
    semaphores, the thread unlinks them and then informs the resource tracker. At the end of the program, CPython may
    stop the thread between the two steps. The warning about a semaphore that still exists stays in the result.
    """
    rest = LEAKED.sub("", stderr)
    leaked = sum(int(found[1]) for found in LEAKED.finditer(stderr))
    rest, gone = GONE.subn("", rest)
    return rest if leaked == gone else stderr


@pytest.mark.parametrize("path", [_case(path, path.stem, path.read_text()) for path in EXAMPLES])
def test_example(path):
    done = run(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if "DataLoader" in path.read_text():
        assert without_unlinked_semaphores(done.stderr) == ""
    else:
        assert done.stderr == ""


# In this script, the thread of the queue is the last holder of its semaphores, and the function `{stopped}` never
# returns in it.
QUEUE = """
import multiprocessing, threading
from multiprocessing import queues, resource_tracker, synchronize

def stopping(function):
    def call(*args):
        if threading.current_thread() is not threading.main_thread():
            reached.set()
            threading.Event().wait()
        return function(*args)
    return call

def feed(*args, original=queues.Queue._feed):
    original(*args)
    dropped.wait()

if __name__ == "__main__":
    dropped, reached = threading.Event(), threading.Event()
    queues.Queue._feed = staticmethod(feed)
    {stopped} = stopping({stopped})
    queue = multiprocessing.get_context("spawn").Queue()
    queue.cancel_join_thread()
    queue.put(1)
    queue.get()
    queue.close()
    del queue
    dropped.set()
    reached.wait()
"""


@pytest.mark.parametrize(
    ("stopped", "accepted"),
    [("resource_tracker._resource_tracker._send", True), ("synchronize.sem_unlink", False)],
    ids=["unlinked", "leaked"],
)
def test_only_semaphores_that_are_gone_are_forgiven(tmp_path, stopped, accepted):
    script = tmp_path / "queue_of_spawn.py"
    script.write_text(QUEUE.format(stopped=stopped))
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert "leaked semaphore" in done.stderr
    assert (without_unlinked_semaphores(done.stderr) == "") is accepted, done.stderr


@pytest.mark.parametrize("text", [_case(text, name, text) for name, text in PROGRAMS.items()])
def test_program_of_a_page(tmp_path, text):
    script = tmp_path / "program.py"
    script.write_text(text)
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_examples_are_listed():
    text = (ROOT / "examples" / "README.md").read_text()
    assert EXAMPLES
    assert set(re.findall(r"`(\w+\.py)`", text)) == {path.name for path in EXAMPLES}


# tests/unit/repository/test_docs.py checks those of the other pages.
@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not ((ROOT / page).parent / link).exists()]
    assert missing == []
