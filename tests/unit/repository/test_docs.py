"""Test that the code on the pages runs, and that the pages mention everything that is public."""

from __future__ import annotations

import argparse
import ast
import builtins
import doctest
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import isolated
import pages
import pytest
from patience import patience

import pyray_ser
from pyray_ser import cli, exceptions, util

DOCS = pages.DOCS
GUIDES = pages.guides()
HEAVY = [pytest.mark.heavy]


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


# ---- code runs --------------------------------------------------------------------------------------------------------

SESSIONS = [page for page in GUIDES if any(block.is_session for block in pages.blocks(page))]


@pytest.mark.parametrize("page", SESSIONS, ids=name_of)
def test_session_of_a_page_prints_what_the_page_says(page):
    text = page.read_text(encoding="utf-8")
    # Keep only the sessions, at their original line numbers.
    kept = [""] * len(text.splitlines())
    for block in pages.blocks(page):
        if block.is_session and block.language == "python":
            for number, line in enumerate(block.text.splitlines(), block.line - 1):
                kept[number] = line
    test = doctest.DocTestParser().get_doctest("\n".join(kept), {"__name__": "__main__"}, page.name, str(page), 0)
    assert test.examples
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    report = []
    pyray_ser.shutdown()  # pages count the objects of their store
    try:
        result = doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=report.append, clear_globs=True)
    finally:
        pyray_ser.shutdown()
    assert not result.failed, "".join(report)


def programs():
    for page in GUIDES:
        for program in pages.programs(page):
            text = pages.text_of(program)
            name = f"{name_of(page)}:{program[0].line}"
            yield pytest.param(text, id=name, marks=HEAVY if pages.is_heavy(text) else [])


def run(folder: Path, arguments: list[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=folder,
        # Dask warns if the port of its dashboard is in use, for example by another test.
        env=isolated.environment() | {"PYTHONWARNINGS": "ignore:Port 8787"},
        text=True,
        capture_output=True,
        timeout=patience(timeout),
    )


@pytest.mark.parametrize("text", list(programs()))
def test_program_of_a_page_runs(text, tmp_path):
    (tmp_path / "program.py").write_text(text, encoding="utf-8")
    done = run(tmp_path, ["program.py"])
    assert done.returncode == 0, done.stderr
    if not pages.is_heavy(text) and "progress(" not in text:  # torch warns about the number of CPUs
        assert done.stderr == ""
    if "print(" in text:
        assert done.stdout


def test_programs_about_names_compute_once():
    page = DOCS / "how-to" / "compute-once.md"
    table, rates, cached = (isolated.run(pages.text_of(program)) for program in pages.programs(page))
    assert table == "499999500000.0"
    assert rates == "{'rate': 1.25}"
    assert cached.startswith("332833500\n332833500\nCacheInfo(hits=1, misses=1,")


def test_reader_of_a_page_follows_the_writer():
    page = DOCS / "how-to" / "compute-once.md"
    writer, reader = (block.text for block in pages.python_blocks(page) if block.file)
    with ThreadPoolExecutor(2) as pool:
        printed, _ = pool.map(isolated.run, [reader, writer])
    # The reader may skip versions, but not the last one.
    assert printed.splitlines()[-1] == "2"


def test_every_block_of_a_guide_defines_what_it_uses():
    """A reader copies one block; sessions continue each other, and the tutorial is one program."""
    unknown = [
        f"{name_of(page)}:{block.line}: {name}"
        for page in GUIDES
        if name_of(page) != "start/tutorial.md"
        for block in pages.python_blocks(page)
        if block.reason is None
        for name in undefined_names(block.text)
    ]
    assert not unknown


def undefined_names(text: str) -> set[str]:
    """Return the names that a program reads, but neither defines nor imports anywhere."""
    nodes = list(ast.walk(ast.parse(text)))
    loaded = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return loaded - bound - set(dir(builtins)) - {"__name__", "__file__"}


# The tests that run the files which a page shows.
FILES = {
    "how-to/compute-once.md": {"reader.py": "test_docs.py", "writer.py": "test_docs.py"},
    "how-to/mpi.md": {"ranks.py": "test_mpi.py"},
    "how-to/web-workers.md": dict.fromkeys(["app.py", "forest.py", "main.py"], "test_web_workers.py"),
    "how-to/pytest-xdist.md": {"conftest.py": "test_docs.py", "test_table.py": "test_docs.py"},
}


def test_every_file_of_a_page_has_a_test():
    shown = {name_of(page): {block.file for block in pages.python_blocks(page) if block.file} for page in GUIDES}
    assert {page: files for page, files in shown.items() if files} == {
        page: set(files) for page, files in FILES.items()
    }


@pytest.mark.parametrize(
    "options", [[], pytest.param(["-n", "4"], marks=HEAVY)], ids=["one process", "several processes"]
)
def test_fixture_of_the_page_about_xdist(options, tmp_path):
    if options:
        pytest.importorskip("xdist")
    for block in pages.python_blocks(DOCS / "how-to" / "pytest-xdist.md"):
        (tmp_path / block.file).write_text(block.text)
    done = run(tmp_path, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *options])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_few_blocks_are_not_run():
    found = {
        (name_of(page), block.reason) for page in GUIDES for block in pages.blocks(page) if block.reason is not None
    }
    assert found == {
        ("how-to/containers.md", "it would leave a spill directory behind"),
        ("how-to/containers.md", "needs a volume that containers share"),
        ("how-to/migrate.md", "needs Ray"),
        ("how-to/migrate.md", "needs a version of pyarrow that still contains Plasma"),
    }


def test_blocks_of_python_are_marked_as_python():
    """Code in a block of another language would not be run."""
    wrong = [
        f"{name_of(page)}:{block.line}"
        for page in GUIDES
        for block in pages.blocks(page)
        if block.language != "python" and re.search(r"^(import|from) \w+|^>>> ", block.text, re.MULTILINE)
    ]
    assert not wrong


DOCSTRINGS = """
    import asyncio, doctest, multiprocessing, sys, types
    import numpy
    import pyray_ser
    from pyray_ser import util

    def names():
        for name in sorted(set(pyray_ser.__all__) - {"PickleBuffer"}):
            yield name, getattr(pyray_ser, name)
        for name in util.__all__:
            yield name, getattr(util, name)

    class Recorder:
        def __init__(self): self.seen = []
        def __call__(self, *args): return self.seen.append(args)

    def work(array):
        return array.sum()

    if __name__ == "__main__":
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        without, failed = [], []
        for name, thing in names():
            text = getattr(thing, "__doc__", None) or ""
            if isinstance(thing, (str, frozenset, types.ModuleType)):
                continue
            if ">>> " not in text:
                without.append(name)
                continue
            globs = {"__name__": "__main__", "pyray_ser": pyray_ser, "numpy": numpy, "np": numpy,
                     "multiprocessing": multiprocessing, "asyncio": asyncio}
            test = doctest.DocTestParser().get_doctest(text, globs, name, name, 0)
            report = []
            pyray_ser.shutdown()
            if name != "init":
                pyray_ser.init(num_workers=1, start_method="fork")
            result = doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=report.append)
            if result.failed:
                failed.append("".join(report))
        pyray_ser.shutdown()
        print("without:", *without)
        print("\\n".join(failed))
"""


def test_every_public_function_has_an_example_that_runs():
    without, _, failed = isolated.run(DOCSTRINGS, errors=True).partition("\n")
    assert not failed, failed
    assert without == "without:"


# ---- commands ---------------------------------------------------------------------------------------------------------


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers below a parser, by the word that selects them."""
    return {
        name: below
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, below in action.choices.items()
    }


def wrong_in(command: str) -> str | None:
    """Return what is wrong with a command line that begins with ``pyray-ser``, or None."""
    words = shlex.split(command, comments=True)[1:]
    if not words or words[0] in ("COMMAND", "--version"):
        return None
    if words[0] not in cli.COMMANDS:
        return f"{command}: no command {words[0]}"
    parser = argparse.ArgumentParser(prog="pyray-ser")
    import_module(f"pyray_ser.cli.{words[0]}").add_arguments(parser)
    known = {"--help"}
    for word in words[1:]:
        known |= {option for action in parser._actions for option in action.option_strings}
        parser = parsers(parser).get(word, parser)
        known |= {option for action in parser._actions for option in action.option_strings}
        if word.startswith("-") and word.partition("=")[0] not in known:
            return f"{command}: no option {word}"
    return None


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_commands_on_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    lines = [
        line.removeprefix("$ ")
        for block in pages.blocks(page)
        if block.language in ("", "text", "sh", "bash", "console")
        for line in block.text.splitlines()
    ]
    lines += re.findall(r"`(pyray-ser [^`]+)`", text)
    wrong = [wrong_in(line) for line in lines if line.startswith("pyray-ser ")]
    assert not [line for line in wrong if line]


# ---- everything public is described -----------------------------------------------------------------------------------


def code_of(folders: tuple[str, ...]) -> str:
    """Return all code on the pages of some folders: code blocks, and names in backticks."""
    found = []
    for folder in folders:
        for page in [DOCS / "types.md"] if folder == "types" else sorted((DOCS / folder).rglob("*.md")):
            found += [block.text for block in pages.blocks(page)]
            found += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M))
    return "\n".join(found)


def missing(names: list[str], text: str) -> list[str]:
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]


REFERENCE = ("reference", "types")
READING = ("how-to", "explanation")
NAMES = sorted({*pyray_ser.__all__, *util.__all__, *exceptions.__all__} - {"__version__"})


def variables() -> list[str]:
    """Return the environment variables that the package reads."""
    package = Path(pyray_ser.__file__).parent
    found = {
        name for path in package.rglob("*.py") for name in re.findall(r"\bPYRAY_SER_[A-Z_]*[A-Z]\b", path.read_text())
    }
    assert {"PYRAY_SER_CAPACITY", "PYRAY_SER_STORE_DIR"} <= found
    return sorted(found)


def test_the_reference_has_every_public_name():
    assert not missing(NAMES, code_of(REFERENCE))


def test_every_public_name_occurs_in_a_guide_or_an_explanation():
    assert not missing([name for name in NAMES if name != "PyraySerError"], code_of(READING))


def test_the_reference_has_every_public_name_on_one_page():
    page = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert not [name for name in [*pyray_ser.__all__, *util.__all__] if f"`{name}`" not in page and name[:2] != "__"]


def test_every_function_of_the_package_is_on_a_page_of_the_api():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference" / "api").glob("*.md"))
    modules = {"exceptions", "typing", "util"}
    directive = r"^\.\. (?:auto)?(?:function|class|data|module):: (?:[\w.]+\.)?{}\b"
    names = [name for name in {*pyray_ser.__all__, *util.__all__} - modules if name[:2] != "__"]
    assert not [name for name in names if not re.search(directive.format(name), text, re.MULTILINE)]


def table_below(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without its head."""
    text = page.read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def documented_types(function) -> dict[str, str]:
    """Return the types of the parameters, as the docstring has them."""
    parameters = inspect.getdoc(function).partition("Parameters\n")[2].partition("\nReturns\n")[0]
    return dict(re.findall(r"^(\w+) : (.*?)(?:, optional)?$", parameters, re.MULTILINE))


@pytest.mark.parametrize("function", [pyray_ser.init, pyray_ser.install], ids=lambda function: function.__name__)
def test_the_table_of_options_agrees_with_the_signature(function):
    rows = table_below(DOCS / "reference" / "index.md", f"### Options of `{function.__name__}`")
    types = documented_types(function)
    parameters = inspect.signature(function).parameters.values()
    assert [row[0] for row in rows] == [f"`{parameter.name}`" for parameter in parameters]
    for parameter, (_, kind, default, purpose) in zip(parameters, rows, strict=True):
        assert kind == types[parameter.name]
        assert purpose
        if parameter.default is None:
            # A function decides about this default, and its docstring says how.
            after = inspect.getdoc(function).partition(f"\n{parameter.name} : ")[2]
            described = re.split(r"\n\w+ : |\nReturns\n", after)[0]
            assert default and not [n for n in re.findall(r"\d+", default) if n not in described]
        else:
            assert default.replace('"', "'").startswith(f"`{parameter.default!r}`")


def test_every_error_has_a_remedy():
    page = (DOCS / "reference" / "exceptions.md").read_text(encoding="utf-8")
    assert not [name for name in exceptions.__all__ if f"| `{name}` |" not in page and name != "PyraySerError"]


def test_every_command_is_described():
    commands = [f"pyray-ser {name}" for name in cli.COMMANDS]
    page = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    assert not [name for name in cli.COMMANDS if f"| `{name}" not in page]
    assert not missing(commands, code_of(READING))


def tool(name: str):
    """Return a program in `tools` as a module."""
    spec = importlib.util.spec_from_file_location(name, pages.ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_lists_the_arguments_of_all_commands():
    writer = tool("commands_page")
    text = writer.PAGE.read_text(encoding="utf-8")
    assert "| `-n`, `--limit N` |" in text and "### pyray-ser top" in text
    assert text == writer.render(text), "run tools/commands_page.py"


def test_every_environment_variable_is_described():
    assert not missing(variables(), code_of(REFERENCE))
    # The library sets the last one, for its child processes.
    assert not missing([name for name in variables() if name != "PYRAY_SER_STORE"], code_of(READING))


# ---- links and the site -----------------------------------------------------------------------------------------------


def is_missing_picture(page: Path, link: str) -> bool:
    """Return whether a link leads to a picture, in a checkout without pictures."""
    return not (DOCS / "pictures").is_dir() and (page.parent / link).resolve().parent == DOCS / "pictures"


@pytest.mark.parametrize("path", sorted(DOCS.glob("**/*.md")), ids=name_of)
def test_links_between_pages_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if not (path.parent / link).exists() and not is_missing_picture(path, link)]


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_page_is_in_a_table_of_contents(page):
    listed = {
        (contents.parent / f"{entry}.md").resolve()
        for contents in DOCS.rglob("*.md")
        for block in pages.blocks(contents)
        if block.language == "{toctree}"
        for entry in re.findall(r"^(?:.*<)?([\w./-]+)>?$", block.text, re.MULTILINE)
    }
    assert page == DOCS / "index.md" or page.resolve() in listed


def test_a_link_without_target_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">x</a> <a href="b.html#gone">x</a> <img src="c.svg">')
    (tmp_path / "b.html").write_text('<h2 id="there">x</h2> <a href="https://example.com/">x</a> <a href="#">x</a>')
    assert tool("check_links").broken(tmp_path) == [
        "a.html:1: b.html#gone: no such anchor",
        "a.html:1: c.svg: no such file",
    ]
