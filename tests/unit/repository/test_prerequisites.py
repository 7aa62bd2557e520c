"""Test the first message of `make` on machines where a prerequisite is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CHECK = ROOT / "tools" / "check_prerequisites.sh"


def check(python, **env):
    done = subprocess.run(
        ["/bin/sh", str(CHECK), str(python)],
        text=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"], **env},
    )
    return done.returncode, done.stderr.splitlines()


@pytest.fixture
def crippled(tmp_path):
    """Create a `python` that first runs the given source, which makes a prerequisite unavailable."""

    def make(takes_away, name="python3"):
        (tmp_path / "sitecustomize.py").write_text(takes_away)
        python = tmp_path / name
        python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        return python

    return make


def test_complete_machine_is_silent():
    base = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    assert check(base) == (0, [])


def test_no_python():
    code, lines = check("/nowhere/python3", CC="true")
    assert code == 1
    assert lines == [
        "missing: no /nowhere/python3. Debian: apt-get install python3 python3-dev python3-venv. "
        "Fedora: dnf install python3 python3-devel."
    ]


def test_old_python(crippled):
    python = crippled("import sys; sys.version_info = (3, 9, 2, 'final', 0)")
    code, lines = check(python, CC="true")
    assert code == 1
    assert len(lines) == 1
    assert "is 3.9 and 3.11 is needed" in lines[0]


def test_no_headers(crippled):
    python = crippled("import sysconfig; sysconfig.get_path = lambda name: '/nowhere'")
    code, lines = check(python, CC="true")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].endswith("Debian: apt-get install python3-dev. Fedora: dnf install python3-devel.")


def test_no_ensurepip(crippled):
    python = crippled("import sys; sys.modules['ensurepip'] = None", name="python3.12")
    code, lines = check(python, CC="true")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].endswith("Debian: apt-get install python3.12-venv. Fedora: dnf install python3.12-libs.")


def test_no_compiler():
    base = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    code, lines = check(base, CC="false")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].endswith("Debian: apt-get install gcc libc6-dev. Fedora: dnf install gcc glibc-devel.")


def test_everything_missing_is_still_one_line(crippled):
    python = crippled("import sys, sysconfig; sysconfig.get_path = lambda name: '/'; sys.modules['ensurepip'] = None")
    code, lines = check(python, CC="false")
    assert (code, len(lines)) == (1, 1)
    assert "python3-dev python3-venv gcc libc6-dev" in lines[0]


def test_make_says_it_and_stops(tmp_path):
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", "test", "PYTHON=/nowhere/python3", f"BUILD={tmp_path}/build"],
        text=True,
        capture_output=True,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("missing: no /nowhere/python3.")
    assert not (tmp_path / "build").exists()
