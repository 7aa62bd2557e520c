"""Test that building and importing the package on unsupported platforms fails with a one-sentence error."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from isolated import environment, run

ROOT = pathlib.Path(__file__).parents[3]

PRETEND = {
    "pages": ("os.sysconf = lambda name: 16384", "pages of 4096 bytes, not 16384"),
    "endian": ("sys.byteorder = 'big'", "little-endian machine, not a big-endian one"),
    "system": ("sys.platform = 'darwin'", "needs Linux, not darwin"),
    "interpreter": ("sys.implementation.name = 'pypy'", "needs CPython, not pypy"),
    "32 bit": ("struct.calcsize = lambda form: 4", "64-bit Python, not one of 32 bits"),
    "no GIL": ("sys._is_gil_enabled = lambda: False", "Python with the GIL"),
}


@pytest.mark.parametrize("what", PRETEND)
def test_import_is_refused(what):
    pretend, reason = PRETEND[what]
    script = f"""
        import os, struct, sys
        {pretend}
        try:
            import pyray_ser
        except ImportError as error:
            print(error)
        sys.platform = "linux"
        assert not [name for name in sys.modules if name.startswith(("pyray_ser._core", "pyray_ser._pickle"))]
    """
    said = run(script)
    assert reason in said and "\n" not in said


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no source tree beside the tests")
@pytest.mark.parametrize("what", PRETEND)
def test_build_is_refused(what, tmp_path):
    pretend, reason = PRETEND[what]
    # Fake setuptools: it may be missing, and setup.py must fail before it uses setuptools.
    code = f"""
import os, runpy, struct, sys
from unittest.mock import MagicMock
for name in ("setuptools", "setuptools.command", "setuptools.command.build_ext", "setuptools.modified"):
    sys.modules[name] = MagicMock()
sys.modules["setuptools.command.build_ext"].build_ext = object
import concurrent.futures, glob, pathlib, sysconfig
sysconfig.get_config_vars()
{pretend}
sys.argv = ["setup.py", "build"]
runpy.run_path({str(ROOT / "setup.py")!r})
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=240
    )
    assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_attach_and_creation_are_refused(debug_build):
    script = """
        import pyray_ser
        from pyray_ser import _core

        assert _core.failpoint("page_size", 5, 1, 22)
        try:
            pyray_ser.init(capacity=16 << 20)
        except Exception as error:
            print(type(error).__name__, error)
    """
    from unittest.mock import patch

    with patch.dict(os.environ, {"PYTHONPATH": debug_build}):
        said = run(script)
    assert re.fullmatch(r"\w+ .*pages of 4096 bytes.*", said), said


def test_one_version_of_the_compiler_of_cython_sources_is_named():
    """Builds use the tested version of Cython: in 3.3.1, a list comprehension that gets no memory frees twice."""
    import tomllib

    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("no source tree beside the tests")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    (cython,) = [line for line in needed if line.lower().startswith("cython")]
    assert re.fullmatch(r"cython==\d+\.\d+\.\d+", cython), cython
    assert cython.partition("==")[2].split(".")[:2] != ["3", "3"]
