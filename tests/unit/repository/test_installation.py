"""Test that the package under test is the complete installed one and not the source folder."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pyray_ser

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "pyray_ser"


def test_package_is_not_the_source_folder():
    assert not Path(pyray_ser.__file__).resolve().is_relative_to(SOURCE)


def test_source_root_is_not_importable():
    roots = [Path(entry or os.getcwd()).resolve() for entry in sys.path]
    assert ROOT not in roots


def test_child_process_started_in_the_source_root_finds_the_wheel():
    code = "import pyray_ser; print(pyray_ser.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert found.strip() == pyray_ser.__file__


def test_metadata_agrees_with_the_package():
    assert importlib.metadata.version("pyray_ser") == pyray_ser.__version__
    metadata = importlib.metadata.metadata("pyray_ser")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


def test_runtime_needs_numpy_and_cloudpickle_only():
    needed = importlib.metadata.requires("pyray_ser") or []
    always = {line.split(">")[0].strip() for line in needed if "extra ==" not in line}
    assert always == {"numpy", "cloudpickle"}


def test_dependency_groups_name_extras_that_exist():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = settings["project"]["optional-dependencies"]
    groups = settings["dependency-groups"]
    assert {"test", "lint", "bench", "docs", "types-page"} <= set(groups)
    own = [match for items in groups.values() for item in items if (match := re.fullmatch(r"pyray_ser\[(.*)\]", item))]
    assert {name for match in own for name in match[1].split(",")} == {"test", "test-heavy"} <= set(extras)


def test_every_extension_and_stub_of_the_source_is_installed():
    installed = Path(pyray_ser.__file__).parent
    extensions = {path.stem for path in (ROOT / "pyx" / "pyray_ser").glob("*.pyx")}
    built = {path.name.split(".")[0] for path in installed.glob("*.so")}
    assert extensions == built
    stubs = {path.relative_to(SOURCE) for path in SOURCE.rglob("*.pyi")} | {Path("py.typed")}
    assert {path for path in stubs if not (installed / path).exists()} == set()


def test_tests_are_no_package():
    # An __init__.py in tests/ would make folder names such as tests/typing shadow modules of Python.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_a_source_checkout_without_compiled_modules_says_so(tmp_path):
    sources = Path(__file__).resolve().parents[3] / "pyray_ser"
    shutil.copytree(sources, tmp_path / "pyray_ser", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-c", "import pyray_ser"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and "source checkout" in last and "make dev" in last
