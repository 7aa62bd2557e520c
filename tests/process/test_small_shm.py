"""Test a named store in Docker's 64 MB /dev/shm: its capacity fits, it spills, and errors name the full file system."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from isolated import environment


def run_with_small_shm(script: str) -> str:
    """Run a script in a new mount namespace in which /dev/shm has 64 MB."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    command = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    start = ["unshare", "-m", "sh", "-c", command, "sh", sys.executable, "-P", "-c", textwrap.dedent(script)]
    done = subprocess.run(start, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace to be had: {done.stderr.strip()}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_a_named_store_takes_its_capacity_from_its_file_system(tmp_path):
    run_with_small_shm(f"""
        import numpy as np, pyray_ser
        store = pyray_ser.init(name="small", spill_dir={str(tmp_path)!r})
        assert 32 << 20 < store.capacity < 64 << 20, store
        refs = [pyray_ser.put(np.full(2_500_000, i)) for i in range(6)]
        assert pyray_ser.stats()["spilled"]
        assert [int(pyray_ser.get(ref)[-1]) for ref in refs] == list(range(6))
        pyray_ser.shutdown()
        assert pyray_ser.init().capacity > 64 << 20  # an anonymous one is not in that file system
    """)


def test_init_warns_of_a_capacity_larger_than_the_file_system():
    run_with_small_shm("""
        import os, warnings, pyray_ser

        def warnings_of(**options):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                store = pyray_ser.init(**options)
            given = options.get("capacity", os.environ.get("PYRAY_SER_CAPACITY"))
            assert store.capacity == {"1G": 1 << 30, "32M": 32 << 20}.get(given, store.capacity)
            pyray_ser.shutdown()
            assert all(one.category is RuntimeWarning and one.filename == "<string>" for one in caught)
            return [str(one.message) for one in caught]

        [text] = warnings_of(name="given", capacity="1G")
        assert "1.0 GiB" in text and "64.0 MiB" in text and "'given'" in text or "/given" in text, text
        assert "--shm-size" in text and "without capacity" in text
        assert not warnings_of(name="fits", capacity="32M")
        assert not warnings_of(name="default")
        assert not warnings_of(capacity="1G")  # an anonymous store is not in that file system
        os.environ["PYRAY_SER_CAPACITY"] = "1G"
        assert len(warnings_of(name="variable")) == 1
    """)


def test_a_store_spills_when_others_fill_its_file_system(tmp_path):
    run_with_small_shm(f"""
        import numpy as np, pyray_ser
        with open("/dev/shm/other", "wb") as file:
            file.write(bytes(40 << 20))
        pyray_ser.init(name="small", spill_dir={str(tmp_path)!r})
        refs = [pyray_ser.put(np.full(1_000_000, i)) for i in range(10)]
        assert pyray_ser.stats()["spilled"]
        assert [int(pyray_ser.get(ref)[-1]) for ref in refs] == list(range(10))
    """)


def test_the_error_names_the_file_system_and_the_way_out():
    text = run_with_small_shm("""
        import numpy as np, pyray_ser
        with open("/dev/shm/other", "wb") as file:
            file.write(bytes(40 << 20))
        pyray_ser.init(name="small")
        refs = []
        try:
            for i in range(10):
                refs.append(pyray_ser.put(np.full(1_000_000, i)))
        except pyray_ser.exceptions.ObjectStoreFullError as error:
            print(error)
    """)
    assert "/small is full (64.0 MiB in all" in text and "/dev/shm/pyray_ser-" in text
    assert "hint: run the container with a larger --shm-size" in text
