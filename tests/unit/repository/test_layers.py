"""Test the dependencies between folders (C includes, parts of the core, Python imports) and the tables of files."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "pyray_ser"
PYX = ROOT / "pyx" / "pyray_ser"

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs a source checkout")

# A folder of csrc may include its own headers and those of the folders listed here.
C_MAY_USE = {
    "common": set(),
    "ndarray": {"common"},
    "pickle": {"ndarray", "common"},
    "unpickle": {"ndarray", "common"},
    "store/platform": set(),
    "store": {"store/platform"},
}

# The packages, from lowest to highest layer. At module level, a package may import itself and earlier packages.
PYTHON_ORDER = [
    {"_descriptors", "_fork", "_interpreter", "_log", "_platform", "_version", "typing", "exceptions"},
    {"reconstruct"},
    {"pickling"},
    {"store"},
    {"inspection", "metrics"},
    {"api", "util"},
    {"tasks", "pool_hooks", "distributed", "integrations"},
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
    """Return a triple (folder, included folder, location) for each C include."""
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


def core_parts() -> list[str]:
    """Return the parts of the core in the order in which `_core.pyx` includes them."""
    return re.findall(r'^include "_core/(\w+)\.pxi"$', (PYX / "_core.pyx").read_text(), re.MULTILINE)


def code_of(part: str) -> str:
    """Return the code of a part of the core without comments and strings."""
    text = re.sub(r'"""(?:.|\n)*?"""', "", (PYX / "_core" / f"{part}.pxi").read_text())
    # Keep the fields of f-strings, because the names in them count as used.
    text = re.sub(
        r'([rbf]*)"(?:[^"\\\n]|\\.)*"',
        lambda found: " ".join(re.findall(r"\{([^{}!:]*)", found[0])) if found[1] == "f" else "",
        text,
    )
    return re.sub(r"#.*", "", text)


def blocks_of(code: str) -> list[str]:
    """Return the statements at module level, each with all its lines."""
    return re.findall(r"^[^\s)}].*\n(?:(?:[ \t)}].*)?\n)*", code, re.MULTILINE)


def split_names(text: str) -> set[str]:
    """Return the last word of each item of a list of declarations: `int a=1, char *b` yields a and b."""
    return {found for item in text.split(",") for found in re.findall(r"(\w+)\s*(?:\[[^]]*\])*\s*(?:=|$)", item)[:1]}


def names_defined_by(block: str) -> set[str]:
    """Return the functions, classes, globals and imported names that a module-level statement defines."""
    first, _, rest = block.partition("\n")
    if " cimport " in first or first.startswith(("import ", "from ")):
        return {words.split()[-1] for words in re.split(r"c?import", block, maxsplit=1)[1].strip(" (\n)").split(",")}
    if first.startswith("cdef enum"):
        return set(re.findall(r"^(?:cdef enum |    )(\w+)", block, re.MULTILINE))
    if first.startswith("cdef extern"):
        return set(re.findall(r"^    (?! )(?:.*?[ *])?(\w+) ?(?:\(|:|\n)", rest, re.MULTILINE))
    if found := re.match(r"(?:cdef )?(?:class|struct|def) (\w+)", first) or re.match(r"ctypedef .*\(\*(\w+)\)", first):
        return {found[1]}
    if first.startswith("cdef ") and (found := re.match(r"cdef [^=]*?(\w+)\(", first)):
        return {found[1]}
    return split_names(first) if re.match(r"(cdef |\w+ = )", first) else set()


def names_used_by(block: str) -> set[str]:
    """Return the names in a module-level statement that are not attributes, keywords of calls or local names."""
    used: set[str] = set()
    if re.match(r".* cimport |import |from |cdef extern", block):
        return used
    if block.startswith("cdef struct"):
        block = re.sub(r"\w+ *$", "", block, flags=re.MULTILINE)
    for function in re.split(r"^(?= *(?:cdef|def) [^=(\n]*\()", block, flags=re.MULTILINE):
        local: set[str] = set()
        if found := re.match(r" *(?:cdef|def) [^=(\n]*\(((?:.|\n)*?)\)[^()]*:\n", function):
            shared = set(re.findall(r"\w+", " ".join(re.findall(r"^ +global (.*)", function, re.MULTILINE))))
            local = split_names(found[1])
            for words in re.findall(r"^ +cdef (?!class)([^(\n]*?)(?:\n|=[^,\n]*\()", function, re.MULTILINE):
                local |= split_names(words)
            local |= set(re.findall(r"(?:^ +|, )(\w+)(?=(?:, \w+)* = )", function, re.MULTILINE))
            local |= set(re.findall(r"\b(?:for|as|import) (\w+)", function))
            local -= shared
        body = re.sub(r"^( *(?:cdef|def) [^=(\n]*?)\w+\(", r"\1(", function)
        used |= set(re.findall(r"(?<![\w.])[A-Za-z_]\w*(?!\w*=[^=])", body)) - local
    return used


def declared_ahead() -> set[str]:
    """Return the extension types that the prelude declares; all parts may use them."""
    return set(re.findall(r"^cdef class (\w+)$", code_of("prelude"), re.MULTILINE))


def core_uses() -> dict[str, dict[str, set[str]]]:
    """Return {part: {other part: the names of the other part that the part uses}}."""
    defined, used = {}, {}
    for part in core_parts():
        blocks = blocks_of(code_of(part))
        defined[part] = set().union(*map(names_defined_by, blocks)) - declared_ahead()
        used[part] = set().union(*map(names_used_by, blocks))
    return {
        part: {other: used[part] & defined[other] for other in defined if other != part and used[part] & defined[other]}
        for part in defined
    }


def test_the_core_includes_every_part():
    assert sorted(core_parts()) == sorted(path.stem for path in (PYX / "_core").glob("*"))
    table = re.findall(r"^    (\w+)  ", (PYX / "_core.pyx").read_text(), re.MULTILINE)
    assert table == core_parts(), "the table in _core.pyx names the parts in their order"


def test_no_part_of_the_core_uses_a_later_one():
    order = core_parts()
    later = [
        f"{part}.pxi uses {', '.join(sorted(names))} of {other}.pxi"
        for part, uses in core_uses().items()
        for other, names in uses.items()
        if order.index(other) > order.index(part)
    ]
    assert not later, "\n".join(later)


def test_each_part_of_the_core_says_which_parts_it_uses():
    order, wrong = core_parts(), []
    for part, uses in core_uses().items():
        expected = ", ".join(sorted(uses, key=order.index)) or "nothing"
        head = (PYX / "_core" / f"{part}.pxi").read_text().partition("\n")[0]
        if head != f"# uses: {expected}":
            wrong.append(f"{part}.pxi begins with {head!r}, not '# uses: {expected}'")
    assert not wrong, "\n".join(wrong)


def test_the_core_calls_python_in_policy_alone():
    upcall = re.compile(r"^\s*(?:from|import) pyray_ser\b(?!.* cimport ).*|import_module|sys\.modules", re.MULTILINE)
    found = {path.name for path in (PYX / "_core").glob("*.pxi") if upcall.search(path.read_text())}
    assert found == {"policy.pxi"}
    assert not upcall.search((PYX / "_core.pyx").read_text())


def level(name: str) -> int:
    for number, names in enumerate(PYTHON_ORDER):
        if name in names:
            return number
    raise AssertionError(f"pyray_ser.{name} has no place in PYTHON_ORDER")


def module_level_imports(path: Path) -> set[str]:
    """Return the top-level names under pyray_ser that a file imports at module level."""
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
    """Return whether pyray_ser.name is a Python module or package, not a compiled one or a name in the package."""
    return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()


def test_python_packages_import_downwards_only():
    upward = []
    for path in PACKAGE.rglob("*.py"):
        mine = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if mine == "__init__":
            continue  # the top-level module of the package may import all packages
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
