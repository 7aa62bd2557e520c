"""Test that type checkers and editors see lazily imported names, and the types of remote functions and classes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from isolated import environment, run

import pyray_ser

PROGRAM = """
from collections.abc import Iterator

import pyray_ser


@pyray_ser.remote
def add(x: int, y: int = 0) -> float:
    return x + y


@pyray_ser.remote
def items(n: int) -> Iterator[str]:
    yield from map(str, range(n))


@pyray_ser.remote
async def later(n: int) -> bytes:
    return b""


@pyray_ser.remote(num_returns=2)
def two() -> tuple[int, int]:
    return 1, 2


@pyray_ser.remote(max_retries=2)
def again(x: str) -> str:
    return x


@pyray_ser.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def inc(self) -> int:
        return 1


reveal_type(pyray_ser.get(add.remote(1, y=2)))  # float
reveal_type(pyray_ser.get([add.remote(1)]))  # list[float]
reveal_type(add.remote(pyray_ser.put(1)))  # TaskRef[float]
reveal_type(add.local(1))  # float
reveal_type(list(add.map([1], [2])))  # list[float]
reveal_type(list(later.map([1], chunksize=2)))  # list[bytes]
reveal_type(pyray_ser.Executor(2).submit(len, "x").result())  # int
reveal_type(items.remote(3))  # ResultStream[str]
reveal_type(later.remote(3))  # TaskRef[bytes]
reveal_type(two.remote())  # list[TaskRef[Any]]
reveal_type(again.remote("x"))  # TaskRef[str]
reveal_type(add.options(name="a").remote(1))  # TaskRef[float]
reveal_type(pyray_ser.dumps(1))  # bytes
reveal_type(pyray_ser.put(1))  # ObjectRef[int]
reveal_type(Counter.remote(1))  # ActorHandle[Counter]
reveal_type(Counter.remote(pyray_ser.put(1)))  # ActorHandle[Counter]
reveal_type(Counter.options(max_restarts=1).remote(3))  # ActorHandle[Counter]
reveal_type(Counter.local)  # type[Counter]
counter = Counter.remote()
counter.inc.remote()
pyray_ser.install()
pyray_ser.util.inspect_size(1).to_text()
pyray_ser.util.register_serializer(complex, serializer=str, deserializer=complex)
add.remote("x")  # error
again.remote()  # error
pyray_ser.misspelled  # error
"""
PACKAGES = str(Path(pyray_ser.__file__).parents[1])


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def expected():
    """Return line number -> expected type on that line, without module names."""
    return {
        i: line.rpartition("# ")[2]
        for i, line in enumerate(PROGRAM.splitlines(), 1)
        if "# " in line and "reveal" in line
    }


def errors():
    return {i for i, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# error")}


def plain(text):
    for module in ("pyray_ser.tasks.typed.", "pyray_ser._core.", "builtins.", "program."):
        text = text.replace(module, "")
    return text


def check(found, wrong):
    for line, wanted in expected().items():
        assert plain(found[line]) == wanted, PROGRAM.splitlines()[line - 1]
    assert wrong == errors()


@pytest.mark.heavy
def test_mypy_knows_names_that_are_imported_late_and_what_is_remote(program):
    pytest.importorskip("mypy")
    (program.parent / "mypy.ini").write_text(
        "[mypy]\nplugins = pyray_ser.mypy_plugin\nstrict = True\nfollow_imports = silent\n"
    )
    paths = {"MYPYPATH": PACKAGES, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mypy", "--show-column-numbers", "--no-error-summary", program.name],
        cwd=program.parent,
        env=environment() | paths,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found, wrong = {}, set()
    for line in done.stdout.splitlines():
        if not line.startswith("program.py:"):
            continue
        _, number, _, kind, text = line.split(":", 4)
        if "Revealed type is" in text:
            found[int(number)] = text.partition('"')[2].rstrip('"')
        elif kind.strip() == "error":
            wrong.add(int(number))
    assert found, done.stdout + done.stderr
    check(found, wrong)


@pytest.mark.heavy
def test_pyright_knows_names_that_are_imported_late_and_what_is_remote(program):
    import json

    command = shutil.which("pyright", path=os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", ""))
    if command is None:
        pytest.skip("pyright is not installed")
    (program.parent / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [PACKAGES]}))
    done = subprocess.run(
        [command, "--outputjson", "--project", str(program.parent), str(program)],
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        pytest.skip(f"pyright does not run here: {done.stdout[-500:]}{done.stderr[-500:]}")
    found, wrong = {}, set()
    for message in report["generalDiagnostics"]:
        line = message["range"]["start"]["line"] + 1
        if message["severity"] == "information":
            found[line] = message["message"].rpartition(' is "')[2].rstrip('"')
        elif message["severity"] == "error":
            wrong.add(line)
    check(found, wrong)


def test_jedi_completes_names_that_are_imported_late():
    pytest.importorskip("jedi")
    # Run in a separate process, because jedi starts a child process that does not end.
    run("""
        import jedi, pyray_ser
        def completions(code):
            return {completion.name for completion in jedi.Script(code).complete()}
        missing = {name for name in pyray_ser.__all__ if not name.startswith("_")} - completions("import pyray_ser\\npyray_ser.")
        assert not missing, missing
        assert "inspect_size" in completions("import pyray_ser\\npyray_ser.util.")
        function = "import pyray_ser\\n@pyray_ser.remote\\ndef f(x: int) -> str: ...\\nf."
        assert {"remote", "options", "local"} <= completions(function)
        assert {"remote", "options", "local"} <= completions("import pyray_ser\\n@pyray_ser.remote\\nclass A: pass\\nA.")
        (signature,) = jedi.Script("import pyray_ser\\npyray_ser.dumps(").get_signatures()
        assert signature.params[0].name == "obj"
    """)


def test_what_is_declared_for_type_checkers_exists():
    import ast
    import inspect

    stub = Path(pyray_ser.__file__).parent / "tasks" / "typed.pyi"
    declared = {
        node.name: {
            child.name
            for child in node.body
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and child.name != "__init__"
        }
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    from pyray_ser.tasks import actor, function, refs, streams

    real = {
        "TaskRef": refs.TaskRef,
        "ResultStream": streams.ResultStream,
        "RemoteFunction": function.RemoteFunction,
        "ActorMethod": actor.ActorMethod,
        "ActorHandle": actor.ActorHandle,
        "ActorClass": actor.ActorClass,
    }
    assert declared.keys() == real.keys()
    for name, methods in declared.items():
        missing = [method for method in methods if inspect.getattr_static(real[name], method, None) is None]
        assert not missing, (name, missing)
