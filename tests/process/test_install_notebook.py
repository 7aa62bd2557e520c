"""Test pools under `install()` in programs whose main module has no file: notebooks, ``python -c``, stdin."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import isolated
import pytest
from patience import patience

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import concurrent.futures, enum, multiprocessing as mp, os
import numpy as np
import pyray_ser

class Point:
    def __init__(self, x):
        self.x = x

    def doubled(self):
        return Point(2 * self.x)

class Color(enum.Enum):
    RED = 1

class Refused(Exception):
    pass

scale = 3

def scaled(x):
    return scale * x

def double(point):
    assert type(point) is Point
    return point.doubled()

def same(color):
    return color is Color.RED, color

def refuse(x):
    raise Refused(x)

def main(array):
    array[0] = 5
    return array

def start(value):
    global scale
    scale = value

def check(method):
    context = mp.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map(scaled, range(3)) == [0, 3, 6]
        found = pool.map(double, [Point(1), Point(2)])
        assert [type(point) for point in found] == [Point, Point] and found[1].x == 4
        assert pool.apply(same, (Color.RED,)) == (True, Color.RED)
        try:
            pool.apply(refuse, (1,))
        except Refused as error:
            assert error.args == (1,)
        else:
            raise AssertionError
        assert pool.apply(main, (np.zeros(1_000_000),))[0] == 5
    queue = context.SimpleQueue()
    process = context.Process(target=queue.put, args=(Point(7),))
    process.start()
    got = queue.get()
    assert type(got) is Point and got.x == 7
    process.join()
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert list(pool.map(scaled, range(3))) == [0, 3, 6]
"""
MAIN = """
if __name__ == "__main__":
    pyray_ser.install()
    for method in METHODS:
        check(method)
    print("done")
"""


def program(methods: tuple[str, ...]) -> str:
    return PROGRAM + MAIN.replace("METHODS", repr(methods))


METHODS = [("spawn",), ("forkserver",), ("fork",), ("fork", "spawn", "fork")]


@pytest.mark.parametrize("methods", METHODS, ids="-".join)
@pytest.mark.parametrize("how", ["-c", "stdin"])
def test_pools_run_functions_and_classes_of_a_program_without_a_file(how, methods, tmp_path):
    text = program(methods)
    done = subprocess.run(
        [sys.executable, "-P", *(["-c", text] if how == "-c" else ["-"])],
        input=text if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=patience(90),
        env=isolated.environment(),
        cwd=tmp_path,
    )
    assert done.stdout == "done\n" and not done.stderr, done.stdout + done.stderr


def test_under_fork_functions_still_use_the_globals_of_the_worker(tmp_path):
    text = (
        PROGRAM
        + """
pyray_ser.install()
mp.get_context("spawn").Pool(1).terminate()
with mp.get_context("fork").Pool(1, start, (10,)) as pool:
    print(pool.map(scaled, [1, 2]))
"""
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", text],
        capture_output=True,
        text=True,
        timeout=patience(90),
        env=isolated.environment(),
        cwd=tmp_path,
    )
    assert done.stdout == "[10, 20]\n", done.stderr


def test_programs_with_a_file_send_what_they_send_without():
    assert (
        isolated.run("""
        import multiprocessing as mp
        import pyray_ser
        from pyray_ser.pool_hooks import main_by_value
        from multiprocessing.reduction import ForkingPickler

        if __name__ == "__main__":
            pyray_ser.install()
            mp.get_context("spawn").Pool(1).terminate()
            print(main_by_value.pickler() is ForkingPickler)
        """)
        == "True"
    )


# ---- Jupyter


RUN_NOTEBOOK = """
import json, sys
import nbclient, nbformat

cells = json.load(sys.stdin)
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
nbclient.NotebookClient(book, timeout=None, kernel_name="tested").execute(cwd=".")
for cell in book.cells:
    for output in cell.outputs:
        print(output.get("text", "") or output.get("data", ""))
"""


def run_notebook(cells: list[str], folder: Path) -> str:
    """Run cells in a kernel of this interpreter, and return their output."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    kernel = folder / "kernels" / "tested"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-P", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "tested", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN_NOTEBOOK],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=patience(250),
        env={**isolated.environment(), "JUPYTER_PATH": str(folder)},
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.heavy
def test_pools_run_functions_and_classes_of_a_notebook(tmp_path):
    cells = [
        PROGRAM,
        "pyray_ser.install()",
        "for method in ('spawn', 'fork', 'forkserver'): check(method)",
        "print('done')",
    ]
    assert "done" in run_notebook(cells, tmp_path)


def python_blocks(page: str) -> list[str]:
    """Return the Python blocks of a page as cells; a block of examples with prompts becomes its statements."""
    import doctest

    cells = []
    for block in page.split("```python\n")[1:]:
        block = block.partition("```")[0]
        if block.lstrip().startswith(">>>"):
            for example in doctest.DocTestParser().get_examples(block):
                lines = example.source
                if example.exc_msg is not None:
                    lines = f"try:\n{textwrap.indent(lines, '    ')}except Exception as error:\n    print(error)\n"
                cells.append(lines)
        else:
            cells.append(block)
    return cells


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["README.md", "five-minutes.md"])
def test_the_programs_of_a_page_run_in_a_notebook(name, tmp_path):
    (path,) = [path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if path.name == name][:1]
    cells = python_blocks(path.read_text(encoding="utf-8"))
    assert cells
    run_notebook(cells, tmp_path)
