"""Test pickling on small stacks, and the code that finds the end of the C stack."""

import collections
import fractions
import functools
import shutil
import subprocess
import sys
import threading

import pytest

import pyray_ser

DEEP = """
import sys, pyray_ser

class Node:
    def __init__(self, child):
        self.child = child

    def __reduce__(self):
        return Node, (self.child,)

node = None
for _ in range(200_000):
    node = Node(node)
sys.modules["deep"] = sys.modules["__main__"]
Node.__module__ = "deep"
try:
    pyray_ser.dumps(node)
except RecursionError:
    print("refused", flush=True)
import os
os._exit(0)
"""


@pytest.mark.parametrize("kib", [64, 96, 128, 1024])
def test_reductions_are_pickled_on_a_small_thread_stack(kib):
    values = [fractions.Fraction(1, 3), collections.OrderedDict(a=1), functools.partial(print, 1)]
    got = []

    def work():
        try:
            got.extend(pyray_ser.loads(pyray_ser.dumps(value)) for value in values)
        except Exception as error:
            got.append(error)

    before = threading.stack_size(kib * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert [repr(value) for value in got] == [repr(value) for value in values]


def without_proc():
    """Return a command that runs another command with an empty /proc, or None if this user may not do that."""
    if not shutil.which("unshare"):
        return None
    for options in (["-m"], ["-rm"]):
        command = ["unshare", *options, "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return None


@pytest.mark.parametrize("proc", [True, False])
def test_a_deep_nest_of_reductions_is_refused_with_and_without_proc(proc):
    command = [] if proc else without_proc()
    if command is None:
        pytest.skip("no right to mount over /proc")
    done = subprocess.run([*command, sys.executable, "-P", "-c", DEEP], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
