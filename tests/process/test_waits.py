"""Test that every lock and every wait of the package has a row in docs/internals/waits.md, and that no row is stale."""

from __future__ import annotations

import ast
from pathlib import Path

import pyray_ser

ROOT = Path(__file__).resolve().parents[2]
# These calls create a lock or may wait.
MAKERS = {"Lock", "RLock", "allocate_lock", "Condition", "Event", "Semaphore", "Barrier"}
WAITERS = {
    "accept", "acquire", "answer_challenge", "connect", "deliver_challenge", "flock", "join", "lockf", "poll", "recv", "recv_bytes",
    "select", "sleep", "wait", "wait_epoch", "wait_name", "waitpid",
}  # fmt: skip


def waits_in(path: Path) -> set[str]:
    """Return ``module.function`` of all places in a file that create a lock or may wait."""
    found: set[str] = set()

    def look(node: ast.AST, scope: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if isinstance(child, ast.Call) and is_wait(child):
                found.add(".".join((path.stem, *scope)))
            look(child, (*scope, child.name) if named else scope)

    look(ast.parse(path.read_text()), ())
    return found


def is_wait(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id in MAKERS | WAITERS or (function.id == "get" and bool(call.args))
    if not isinstance(function, ast.Attribute):
        return False
    of = ast.unparse(function.value)
    if function.attr == "join":
        # A join() of strings or paths does not count, because it does not wait.
        return not isinstance(function.value, ast.Constant) and of not in (
            "os.path",
            "os.pathsep",
            "call[:-len(b'\\x97\\x85R')]",
        )
    if function.attr == "get":
        # A get() of a queue or an object counts, because it may wait; a get() of a dict does not.
        return (not call.args and not call.keywords) or of in ("_core", "pyray_ser")
    return function.attr in MAKERS | WAITERS and of != "polars" and "alias" not in of


def rows() -> set[str]:
    text = (ROOT / "docs" / "internals" / "waits.md").read_text()
    return {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}


def test_each_lock_and_wait_is_in_the_table():
    package = Path(pyray_ser.__file__).parent
    found = set().union(*(waits_in(path) for path in sorted(package.rglob("*.py"))))
    assert not found - rows(), f"say in docs/internals/waits.md who ends these waits: {sorted(found - rows())}"
    assert not rows() - found, f"nothing waits there any more: {sorted(rows() - found)}"
