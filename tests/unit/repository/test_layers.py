"""Which folder may use which: C includes, imports of Python packages, and the maps that describe them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "pyray_ser"

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs a source checkout")

# A folder of csrc may include headers of itself and of these.
C_MAY_USE = {
    "common": set(),
    "ndarray": {"common"},
    "pickle": {"ndarray", "common"},
    "unpickle": {"ndarray", "common"},
    "store/platform": set(),
    "store": {"store/platform"},
}

# Imports at module level, from lower to higher. A package may import those before it, and itself.
PYTHON_ORDER = [
    {"_descriptors", "_interpreter", "_log", "_platform", "_version", "typing", "exceptions"},
    {"reconstruct"},
    {"pickling"},
    {"store"},
    {"inspection", "metrics"},
    {"api", "util"},
    {"tasks", "pool_hooks"},
    {"cli"},
    {"demo", "mypy_plugin", "__main__"},
]


def c_folder(path: Path) -> str:
    return path.parent.relative_to(CSRC).as_posix()


def headers() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in [*CSRC.rglob("*.h"), *CSRC.rglob("*.def")]:
        assert path.name not in found, f"two headers are called {path.name}: an include of it is ambiguous"
        found[path.name] = path
    return found


def c_edges() -> set[tuple[str, str, str]]:
    """(folder, folder it includes, where)."""
    known, edges = headers(), set()
    for path in [*CSRC.rglob("*.c"), *CSRC.rglob("*.h")]:
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            target = known.get(Path(name).name)
            if target is not None and c_folder(path) != c_folder(target):
                edges.add((c_folder(path), c_folder(target), path.relative_to(ROOT).as_posix()))
    return edges


def test_c_folders_include_downwards_only():
    upward = [edge for edge in sorted(c_edges()) if edge[1] not in C_MAY_USE.get(edge[0], set())]
    assert not upward, upward


def test_every_c_file_has_a_folder_with_a_rule():
    folders = {c_folder(path) for path in CSRC.rglob("*.[ch]")}
    assert folders == set(C_MAY_USE)


def test_the_map_of_the_store_names_every_file():
    text = (CSRC / "README.md").read_text()
    missing = [path.name for path in CSRC.glob("store/**/*.c") if f"`{path.name}`" not in text]
    assert not missing, missing
    named = set(re.findall(r"`(\w+\.c)`", text))
    gone = named - {path.name for path in CSRC.rglob("*.c")}
    assert not gone, gone


def level(name: str) -> int:
    for number, names in enumerate(PYTHON_ORDER):
        if name in names:
            return number
    raise AssertionError(f"pyray_ser.{name} has no place in PYTHON_ORDER")


def module_level_imports(path: Path) -> set[str]:
    """Top-level names under pyray_ser that a file imports when it is imported."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    package = parts[:-1]
    found = set()
    body = list(ast.parse(path.read_text()).body)
    while body:
        node = body.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            body.extend(child for child in ast.walk(node) if isinstance(child, (ast.Import, ast.ImportFrom)))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            words = [*base, *(node.module or "").split(".")] if node.level else (node.module or "").split(".")
            words = [word for word in words if word]
            if not node.level:
                if words[:1] != ["pyray_ser"]:
                    continue
                words = words[1:]
            found |= {words[0]} if words else {alias.name for alias in node.names}
    return found


def is_python(name: str) -> bool:
    """Whether pyray_ser.name is a module or package of Python, not a compiled one or a name in the package itself."""
    return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()


def test_python_packages_import_downwards_only():
    upward = []
    for path in PACKAGE.rglob("*.py"):
        mine = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if mine == "__init__":
            continue  # the face of the package stands above everything
        upward += [
            f"{path.relative_to(ROOT)} imports pyray_ser.{name}"
            for name in sorted(module_level_imports(path))
            if name != mine and is_python(name) and level(name) > level(mine)
        ]
    assert not upward, upward


def test_no_module_is_hidden_by_a_name_of_its_package():
    hidden = []
    for init in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(init.read_text())
        names = {
            alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        modules = {path.stem for path in init.parent.glob("*.py")} | {
            path.parent.name for path in init.parent.glob("*/__init__.py")
        }
        imported = {
            alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and not node.module
            for alias in node.names
        }
        hidden += [f"{init.parent.relative_to(ROOT)}: {name}" for name in sorted((names & modules) - imported)]
    assert not hidden, hidden
