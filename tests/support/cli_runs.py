"""A process with a named store for tests of the command line, and functions that run a command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid

import pytest
from isolated import environment

from pyray_ser.store import named_stores

OWNER = """
import os, sys, numpy as np, pyray_ser
from multiprocessing.reduction import ForkingPickler
pyray_ser.init(name=sys.argv[1], capacity=32 << 20, spill_dir=sys.argv[2])
refs = [pyray_ser.put(np.full(500_000, i)) for i in range(10)]
view = pyray_ser.get(refs[-1])
pyray_ser.put(np.zeros(1000), name="weights\\x1b[31m")
message = bytes(ForkingPickler.dumps(refs[0]))
print(os.getpid(), flush=True)
sys.stdin.read()
"""
PRIMER = f"import sys; sys.argv[:1] = ['-c']; exec({OWNER!r})"


class Owner:
    """A process with a named store of 32 MiB that holds 10 objects of 4 MB (one of them viewed) and a named object."""

    def __init__(self, spill_dir):
        self.name = f"test-{uuid.uuid4().hex}"
        self.path = named_stores.path_of(self.name)
        self.spill_dir = str(spill_dir)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", PRIMER, self.name, self.spill_dir],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        self.pid = int(self.process.stdout.readline())

    def crash(self):
        self.process.kill()
        self.close()
        return self

    def close(self):
        self.process.communicate()


def timeless(records):
    """Return records of objects without their creation time, which two calls may round to different seconds."""
    return [{key: value for key, value in record.items() if key not in ("age", "created")} for record in records]


@pytest.fixture
def folder():
    """Return a directory on a disk, because /tmp may be a file system in memory."""
    path = tempfile.mkdtemp(prefix="pyray_ser-spill-", dir=os.environ.get("PYRAY_SER_TEST_DISK", "/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def owner(folder):
    made = Owner(folder)
    yield made
    made.close()
    if os.path.exists(made.path):
        os.unlink(made.path)
        named_stores.remove_directory(named_stores.directory())


def command(*arguments, status=0):
    """Run the command in a new process and return its output."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pyray_ser", *arguments],
        capture_output=True, text=True, timeout=90, env={**environment(), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert status or not done.stderr, done.stderr
    return done.stdout


def answer(*arguments, status=0):
    """Return the only store in the JSON output of the command."""
    (store,) = json.loads(command(*arguments, "--json", status=status))["stores"]
    return store
