"""Build an index of the Python files in a folder, like those that editors and code search tools keep in memory."""

from __future__ import annotations

import ast
import io
import random
import sysconfig
import tokenize
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import Dataset, DemoError
from .report import Progress

# Indexing the tests would take three times as long; the other folders do not belong to the standard library.
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}

MEGABYTE = 1 << 20


def source_files(root: Path) -> list[Path]:
    """Return every .py file of the standard library below `root`."""
    return sorted(
        path for path in root.rglob("*.py") if not SKIPPED.intersection(path.relative_to(root).parts) and path.is_file()
    )


class Index:
    """Collects columns file by file; `finish` turns them into arrays."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.vocabulary: dict[str, int] = {}
        self.tokens = {name: array("i") for name in ("file", "line", "column", "kind", "word")}
        self.definitions: dict[str, list[Any]] = {name: [] for name in ("name", "file", "line", "end", "is_class")}
        self.names: dict[str, dict[str, Any]] = {}
        self.skipped = 0

    def add(self, path: Path, module: str) -> None:
        """Index one file. A file that Python itself cannot parse is counted and left out."""
        try:
            with tokenize.open(path) as file:
                text = file.read()
            tree = ast.parse(text)
            tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError, OSError):
            self.skipped += 1
            return
        number = len(self.files)
        self.files.append(module)
        self._add_tokens(tokens, number)
        self.names[module] = self._add_definitions(tree, number)

    def _add_tokens(self, tokens: list[tokenize.TokenInfo], number: int) -> None:
        words = self.vocabulary
        columns = self.tokens
        columns["file"].extend([number] * len(tokens))
        columns["line"].extend([token[2][0] for token in tokens])
        columns["column"].extend([token[2][1] for token in tokens])
        columns["kind"].extend([token[0] for token in tokens])
        columns["word"].extend([words.setdefault(token[1], len(words)) for token in tokens])

    def _add_definitions(self, node: ast.AST, number: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            rows = self.definitions
            rows["name"].append(child.name)
            rows["file"].append(number)
            rows["line"].append(child.lineno)
            rows["end"].append(child.end_lineno)
            rows["is_class"].append(isinstance(child, ast.ClassDef))
            found[child.name] = {"line": child.lineno, "members": self._add_definitions(child, number)}
        return found

    def finish(self) -> dict[str, Any]:
        """Return the index as a user would put it into the store: dicts and lists around one array per column."""
        return {
            "files": self.files,
            "vocabulary": self.vocabulary,
            "tokens": {name: np.array(column, dtype=np.int32) for name, column in self.tokens.items()},
            "definitions": {
                "name": np.array(self.definitions["name"], dtype=np.str_),
                "file": np.array(self.definitions["file"], dtype=np.int32),
                "line": np.array(self.definitions["line"], dtype=np.int32),
                "end": np.array(self.definitions["end"], dtype=np.int32),
                "is_class": np.array(self.definitions["is_class"], dtype=np.bool_),
            },
            "names": self.names,
        }


def index_standard_library(block_bytes: int, questions: int) -> Dataset:
    """Return the index of the running interpreter's standard library, and a block of `block_bytes`."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = source_files(root)
    if not paths:
        raise DemoError(f"no Python sources in {root}; name a file with --input")
    index = Index()
    with Progress(f"indexing {root}", len(paths)) as progress:
        for path in paths:
            index.add(path, ".".join(path.relative_to(root).with_suffix("").parts))
            progress.advance()
    value = index.finish()
    with Progress(f"filling a block of {block_bytes // MEGABYTE} MB", 1) as progress:
        block = np.arange(block_bytes // 8, dtype=np.int64)
        block *= 0x9E3779B97F4A7C15 - (1 << 64)  # all pages differ
        progress.advance()
    return Dataset(
        title=f"standard library of Python in {root}",
        value={"index": value, "block": block},
        questions=_questions(value, len(block), questions),
        facts={
            "files": f"{len(index.files):,}" + (f" ({index.skipped} not parseable)" if index.skipped else ""),
            "tokens": f"{len(value['tokens']['word']):,}",
            "definitions": f"{len(value['definitions']['line']):,}",
            "different words": f"{len(value['vocabulary']):,}",
            "block": f"{block.nbytes / 1e6:,.0f} MB",
        },
    )


def _questions(index: dict[str, Any], block_len: int, count: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Return a fixed mix of `count` questions, the same in every run."""
    pick = random.Random(2)
    words = sorted(word for word in index["vocabulary"] if word.isidentifier())
    part = min(block_len, MEGABYTE // 2)
    made: list[tuple[str, tuple[Any, ...]]] = []
    for number in range(count):
        kind = number % 4
        if kind == 0:
            made.append(("count_word", (pick.choice(words),)))
        elif kind == 1:
            made.append(("longest_definitions", (pick.randrange(len(index["files"])), 5)))
        elif kind == 2:
            made.append(("positions_of", (pick.choice(words),)))
        else:
            start = pick.randrange(block_len - part + 1)
            made.append(("block_sum", (start, start + part)))
    return made
