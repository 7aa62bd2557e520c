"""Test that no descriptor of the library has the number of standard input, output or error."""

import re
from pathlib import Path

import pytest
from isolated import run

ROOT = Path(__file__).resolve().parents[3]
C_CALL = re.compile(
    r"(?<![\w.>\"])(open|openat|memfd_create|fopen|opendir|pipe|socket|eventfd|dup|epoll_create1|creat)\("
)
PYTHON_CALL = re.compile(
    r"os\.(open|pipe|pipe2|dup|memfd_create|eventfd|pidfd_open)\("
    r"|socket\.socket\((?!fileno=\w+\.fileno\(\))|\.accept\(\)|socketpair\(|select\.epoll\("
)


def bare(files, call, *helpers):
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.partition(" /*")[0].partition("  #")[0]
            if code.lstrip().startswith(("*", "/*", "#", ">>>")) or any(helper in code for helper in helpers):
                continue
            if call.search(code):
                yield f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the sources are not here")
def test_every_call_that_makes_a_descriptor_moves_it_above_the_standard_ones():
    sources = sorted((ROOT / "csrc/store").rglob("*.c"))
    found = list(bare(sources, C_CALL, "prs_above_standard("))
    # This call of openat is correct, because `prs_above_standard(` is on the line before.
    found = [line for line in found if "openat(at < 0" not in line]
    python = [
        path for part in ("store", "tasks", "pool_hooks") for path in sorted((ROOT / "pyray_ser" / part).rglob("*.py"))
    ]
    # The class `Descriptor` moves its descriptor above the standard ones.
    found += bare(python, PYTHON_CALL, "above_standard(", "map(above_standard", "Descriptor(")
    assert not found, "\n".join(found)


PROGRAM = """
    import os, sys
    import numpy as np

    end = os.dup2(1, 200)
    for number in {closed}:
        os.close(number)
    import pyray_ser

    store = pyray_ser.init("closed-descriptors-%d" % os.getpid()) if {named} else pyray_ser.init(capacity=64 << 20)
    ref = pyray_ser.put(np.arange(100_000))
    window = pyray_ser.empty(1000)
    pyray_ser.seal(window)
    pid = os.fork()
    if pid == 0:
        os._exit(int(pyray_ser.get(ref)[7]) != 7)
    failed = os.waitpid(pid, 0)[1]
    taken = [number for number in {closed} if os.path.lexists("/proc/self/fd/%d" % number)]
    for number in {closed}:
        try:
            os.write(number, b"a message of some library")
        except OSError:
            pass
    ok = pyray_ser.get(ref)[7] == 7 and pyray_ser.get(pyray_ser.put(np.arange(100_000)))[8] == 8
    store.check()
    pyray_ser.shutdown()
    os.dup2(end, 1)
    print((failed, taken, bool(ok)), flush=True)
"""


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("closed", [(2,), (0, 1, 2), (0,)])
def test_store_of_a_program_without_standard_descriptors(closed, named):
    assert run(PROGRAM.format(closed=closed, named=named)) == "(0, [], True)"


CALLS = """
    import os, time
    import pyray_ser

    @pyray_ser.remote
    class Actor:
        def same(self, value): return value
        def low(self): return low()

    @pyray_ser.remote
    def same_of(actor, value): return pyray_ser.get(actor.same.remote(value), timeout=60)

    def low():
        found = []
        for number in range(3):
            try:
                found.append(os.readlink("/proc/self/fd/%d" % number).partition(":")[0])
            except OSError:
                continue
        return found

    end = os.dup2(1, 200)
    for number in range(3):
        os.close(number)
    pyray_ser.init(num_workers=1)
    actor = Actor.remote()
    ok = pyray_ser.get(same_of.remote(actor, 7), timeout=60) == 7
    found = {*low(), *pyray_ser.get(actor.low.remote(), timeout=60)}
    with pyray_ser.install(min_bytes=1):
        import multiprocessing
        with multiprocessing.get_context("fork").Pool(1) as pool:
            sent = pool.apply(bytes, (100_000,))
    found.update(low())
    os.dup2(end, 1)
    # Those are of multiprocessing: its pipes, and what a child reads instead of standard input.
    print(ok, len(sent), sorted(found - {"pipe", "/dev/null"}), flush=True)
"""


def test_tasks_and_pools_of_a_program_without_standard_descriptors():
    assert run(CALLS) == "True 100000 []"
