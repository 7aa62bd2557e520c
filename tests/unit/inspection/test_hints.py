"""Test that wrong hints about the location of a store, for example in the environment, do no harm."""

import os
import subprocess
import sys
import textwrap

import pytest
from isolated import environment, run


def with_hint(hint: str, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)],
        env=environment() | {"PYRAY_SER_STORE": hint},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0 and not done.stderr, (hint, done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


HERE = os.getpid()
STRANGE = [
    "",
    ":",
    "::::",
    "text",
    "1:2:3",
    "xyz:1:1:1:",
    "0:0:0:0:",
    f"{'f' * 16}:1:1:1:",
    f"{'f' * 16}:{HERE}:0:-1:",
    f"{'f' * 16}:-5:0:0:",
    f"{'f' * 16}:{2**31}:0:0:",
    f"{'f' * 40}:{2**70}:{2**70}:{2**70}:",
    f"-1:{HERE}:1:1:",
    "1:1:1:1:/dev/null",
    "1:1:1:1:/dev/zero",
    "1:1:1:1:/etc/passwd",
    "1:1:1:1:/nowhere/at/all",
    "1:1:1:1:/proc/self/mem",
    "1:1:1:1:/",
    "1:1:1:1:" + "x" * 5000,
    "1:1:1:1:relative",
    "1:1:1:1:\udcff\udcfe",
    "\u0661:\u0662:\u0663:\u0664:",  # int() accepts these non-ASCII digits
    "1:1:1:1e5:",
]


@pytest.mark.parametrize("hint", STRANGE, ids=range(len(STRANGE)))
def test_a_hint_that_makes_no_sense_is_passed_over(hint):
    script = """
        import pyray_ser
        assert pyray_ser.get(pyray_ser.put([1, 2])) == [1, 2]
        print(pyray_ser.stats()["clients"])
    """
    assert with_hint(hint, script) == "1"


def test_a_hint_with_one_part_wrong_finds_nothing_else():
    """If one part of a hint is wrong, a process finds the store whose identity is in the hint, or none."""
    script = """
        import os, subprocess, sys
        import pyray_ser
        store = pyray_ser.init(capacity=16 << 20)
        ref = pyray_ser.put("here")
        code = "import pyray_ser; pyray_ser.put(1); print(pyray_ser.init().id, pyray_ser.stats()['objects'] > 0)"
        def child(hint):
            done = subprocess.run([sys.executable, "-P", "-c", code], env=os.environ | {"PYRAY_SER_STORE": hint},
                                  capture_output=True, text=True, check=True)
            return int(done.stdout.split()[0]) == store.id
        ident, pid, start, fd, path = os.environ["PYRAY_SER_STORE"].split(":", 4)
        assert child(os.environ["PYRAY_SER_STORE"])
        other = f"{int(ident, 16) ^ 1:016x}"
        print(child(f"{other}:{pid}:{start}:{fd}:{path}"), child(f"{ident}:{pid}:{int(start) + 1}:{fd}:{path}"),
              child(f"{ident}:1:{start}:{fd}:{path}"), child(f"{ident}:{pid}:{start}:0:{path}"))
    """
    # The library accepts a wrong start time, because a process has another start time in another time namespace. If
    # the descriptor is wrong, the library searches the other descriptors of that process.
    assert run(script) == "False True False True"


def test_a_path_of_another_store_is_not_taken_for_it(tmp_path):
    script = """
        import os, subprocess, sys
        import pyray_ser
        path = os.environ["PYRAY_SER_STORE_DIR"] + f"-hints-{os.getpid()}"
        store = pyray_ser.init(path, capacity=16 << 20)
        code = "import pyray_ser; pyray_ser.put(1); print(pyray_ser.init().id)"
        hint = f"{store.id ^ 1:016x}:1:1:1:{path}"
        done = subprocess.run([sys.executable, "-P", "-c", code], env=os.environ | {"PYRAY_SER_STORE": hint},
                              capture_output=True, text=True, check=True)
        assert int(done.stdout) != store.id
        # A symbolic link to the right store is not accepted either.
        os.symlink(path, path + "-link")
        hint = f"{store.id:016x}:1:1:1:{path}-link"
        done = subprocess.run([sys.executable, "-P", "-c", code], env=os.environ | {"PYRAY_SER_STORE": hint},
                              capture_output=True, text=True, check=True)
        os.unlink(path + "-link")
        print(int(done.stdout) != store.id, os.path.exists(path), store.client_pids() == [os.getpid()])
    """
    assert run(script) == "True True True"


def test_core_dumps_leave_the_data_out():
    """Core dumps exclude every mapping of a store or a spill file, and every private copy-on-write mapping."""
    script = """
        import os, tempfile
        import numpy as np
        import pyray_ser

        MB = 1 << 20
        folder = tempfile.TemporaryDirectory(prefix="pyray_ser-spill-", dir=os.environ.get("PYRAY_SER_TEST_DISK", "/var/tmp"))
        pyray_ser.init(capacity=24 * MB, spill_dir=os.path.join(folder.name, "spill"))
        refs = [pyray_ser.put(np.full(MB // 2, i)) for i in range(10)]
        views = [pyray_ser.get(ref) for ref in refs[:2] + refs[-1:]]
        private = [pyray_ser.get(ref, mmap_mode="c") for ref in refs[:1] + refs[-1:]]
        small = pyray_ser.put(b"x" * 100)
        window, sealed = pyray_ser.empty(1000), pyray_ser.empty(1000)
        kept = pyray_ser.seal(sealed)

        at, ours, left_out, where = "", 0, [], {}
        with open("/proc/self/smaps") as file:
            for line in file:
                words = line.split()
                if not words[0].endswith(":"):
                    at = line.rstrip()
                    low, high = (int(part, 16) for part in words[0].split("-"))
                    where[low, high] = None
                elif words[0] == "VmFlags:":
                    where[low, high] = "dd" in words
                    if "pyray_ser:" in at or folder.name in at:
                        ours += 1
                        if "dd" not in words:
                            left_out.append(at)
        assert ours >= 6 and not left_out, (ours, left_out)
        for array in (*views, *private, window, sealed):
            address = array.__array_interface__["data"][0]
            assert [flag for (low, high), flag in where.items() if low <= address < high] == [True], array.nbytes
        pyray_ser.abort(window)
        print("none")
    """
    assert run(script) == "none"


def test_one_logger_says_what_is_opened_closed_and_removed():
    script = """
        import logging, os, subprocess, sys
        import pyray_ser
        records = []
        class Keep(logging.Handler):
            def emit(self, record):
                records.append((record.name, record.levelname, record.getMessage()))
        logging.getLogger().addHandler(Keep())
        logging.getLogger("pyray_ser").setLevel(logging.DEBUG)
        path = os.environ["PYRAY_SER_STORE_DIR"] + f"-logger-{os.getpid()}"
        code = "import os, sys, pyray_ser; pyray_ser.init(sys.argv[1], capacity=16 << 20); os.kill(os.getpid(), 9)"
        subprocess.run([sys.executable, "-P", "-c", code, path])
        pyray_ser.init(path, capacity=16 << 20)
        pyray_ser.put(1)
        pyray_ser.shutdown()
        ours = [record for record in records if record[0] == "pyray_ser"]
        assert all(name.partition(".")[0] == "pyray_ser" for name, _, _ in records), records
        said = [(level, text.split()[0]) for _, level, text in ours]
        print(*(f"{level} {word}" for level, word in said), sep=", ")
    """
    assert run(script) == "INFO removed, DEBUG using, DEBUG closing"
