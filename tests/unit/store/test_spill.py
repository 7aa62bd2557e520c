"""Test stores that are full: they spill objects to files and handle disk errors."""

import pytest
from isolated import run

PRELUDE = """
    import gc, hashlib, os, sys, tempfile
    import numpy as np, pyray_ser
    from pyray_ser.exceptions import *

    MB = 1 << 20
    # Not in the script's folder, which may lie in memory.
    folder = tempfile.TemporaryDirectory(prefix="pyray_ser-spill-", dir=os.environ.get("PYRAY_SER_TEST_DISK", "/var/tmp"))
    spill_dir = os.path.join(folder.name, "spill")

    def files():
        return sorted(os.path.join(where, name) for where, _, names in os.walk(spill_dir) for name in names if name != "lock")

    def block(i, n=MB):
        return np.full(n // 8, i, "i8")
"""


def in_store(script: str, capacity: int, **options) -> str:
    keywords = ", ".join(f"{key}={value!r}" for key, value in {"capacity": capacity << 20, **options}.items())
    return run(PRELUDE + f"    store = pyray_ser.init(spill_dir=spill_dir, {keywords})\n" + script, timeout=280)


def test_a_thousand_random_reads_over_ten_times_the_store():
    script = """
    refs = [pyray_ser.put(block(i, 4 * MB)) for i in range(200)]
    stats = pyray_ser.stats()
    assert stats["spilled"] >= 180 and stats["spilled_bytes"] > 700 * MB, stats
    assert sum(record["spilled"] for record in pyray_ser.objects()) == stats["spilled"] == len(files())
    for i in np.random.default_rng(7).integers(0, 200, 1000):
        value = pyray_ser.get(refs[i])
        assert len(value) == MB // 2 and value[0] == value[-1] == value[12345] == i and not value.flags.writeable
    private = pyray_ser.get(refs[0], mmap_mode="c")
    private += 1
    assert (private == 1).all() and (pyray_ser.get(refs[0]) == 0).all()
    store.check()
    del refs, value, private
    gc.collect()
    stats = pyray_ser.stats()
    assert stats["objects"] == stats["spilled"] == 0 and not files(), (stats, files())
    pyray_ser.shutdown()
    print(os.listdir(spill_dir))
    """
    assert in_store(script, 75) == "[]"


def test_an_object_larger_than_the_store():
    script = """
    value = np.arange(300 * MB // 8)
    ref = pyray_ser.put(value)
    got = pyray_ser.get(ref)
    assert (got == value).all()
    pyray_ser.get(ref, mmap_mode="c")[0] = 5
    assert pyray_ser.get(ref)[0] == 0
    del ref, got
    half = value[: 220 * MB // 8 : 2]
    strided = pyray_ser.put(half)
    assert (pyray_ser.get(strided) == half).all()
    several = pyray_ser.put([value[: 104 * MB // 8], "between", value[:MB]])
    a, text, b = pyray_ser.get(several)
    assert text == "between" and (a == value[: 104 * MB // 8]).all() and (b == value[:MB]).all()
    print(pyray_ser.stats()["spilled"])
    """
    assert in_store(script, 100) == "2"


def test_values_of_all_kinds_come_back():
    script = """
    values = [b"x" * (2 * MB), bytearray(3 * MB), {"a": block(3, 2 * MB), "b": [1, "two"]}, "text" * MB, [block(i) for i in range(3)]]
    refs = [pyray_ser.put(value) for value in values]
    inner = pyray_ser.put(block(9, 4 * MB))
    outer = pyray_ser.put([inner, pyray_ser.get(inner)[MB // 8:]])
    del inner
    more = [pyray_ser.put(block(i)) for i in range(60)]
    assert pyray_ser.stats()["spilled"] > 40
    for ref, value in zip(refs, values):
        assert repr(pyray_ser.get(ref)) == repr(value)
    ref, view = pyray_ser.get(outer)
    assert (pyray_ser.get(ref) == 9).all() and (view == 9).all() and len(view) == 3 * MB // 8
    store.check()
    """
    assert in_store(script, 24) == ""


def test_views_and_names_survive_the_pressure():
    script = """
    kept = pyray_ser.get(pyray_ser.put(block(1, 4 * MB)))
    pyray_ser.put(block(2, 4 * MB), name="weights")
    refs = []
    for i in range(20):
        refs.append(pyray_ser.put(block(i, 4 * MB)))
        assert (kept == 1).all()
    assert (pyray_ser.get_by_name("weights") == 2).all()
    print(pyray_ser.stats()["spilled"] > 10)
    """
    assert in_store(script, 24) == "True"


def test_a_store_full_of_views_is_full_and_nothing_is_lost():
    script = """
    views = []
    try:
        while len(views) < 100:
            views.append(pyray_ser.get(pyray_ser.put(block(len(views), 4 * MB))))
    except ObjectStoreFullError as error:
        assert "no room" in str(error), error
    assert 3 <= len(views) < 10
    assert all((view == i).all() for i, view in enumerate(views))
    store.check()
    """
    assert in_store(script, 24) == ""


def test_without_a_spill_directory_a_full_store_is_an_error():
    script = """
    import pyray_ser
    pyray_ser.init(capacity=16 << 20)
    refs = []
    try:
        while len(refs) < 100:
            refs.append(pyray_ser.put(bytes(4 << 20)))
    except pyray_ser.exceptions.ObjectStoreFullError as error:
        print("spill_dir" in str(error), pyray_ser.stats()["spilled"])
    """
    assert run(script) == "True 0"


def test_a_missing_or_cut_file_loses_that_object_alone():
    script = """
    refs = [pyray_ser.put(block(i, 4 * MB)) for i in range(12)]
    missing, cut, *rest = files()
    os.unlink(missing)
    assert os.stat(cut).st_mode & 0o777 == 0o400  # nobody shortens by mistake what is mapped
    os.chmod(cut, 0o600)
    os.truncate(cut, 100)
    seen = []
    for i, ref in enumerate(refs):
        try:
            assert (pyray_ser.get(ref) == i).all()
        except (ObjectLostError, CorruptObjectError) as error:
            assert "spilled" in str(error), error
            seen.append(type(error).__name__)
    print(*sorted(seen))
    store.check()
    """
    assert in_store(script, 16) == "CorruptObjectError ObjectLostError"


def test_a_damaged_header_is_told_from_a_lost_object():
    script = """
    refs = [pyray_ser.put(block(i, 4 * MB)) for i in range(8)]
    os.chmod(files()[0], 0o600)
    with open(files()[0], "r+b") as file:
        file.write(b"not ours")
    bad = []
    for i, ref in enumerate(refs):
        try:
            assert (pyray_ser.get(ref) == i).all()
        except CorruptObjectError:
            bad.append(i)
    print(len(bad))
    """
    assert in_store(script, 16) == "1"


def test_a_file_size_limit_is_an_error_and_loses_nothing():
    # RLIMIT_FSIZE simulates a full disk: the same write fails, but with EFBIG instead of ENOSPC.
    script = """
    import resource
    refs = [pyray_ser.put(block(i, 4 * MB)) for i in range(3)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (MB, resource.RLIM_INFINITY))
    try:
        for i in range(3, 12):
            refs.append(pyray_ser.put(block(i, 4 * MB)))
    except ObjectStoreFullError as error:
        print("full:", "spill directory" in str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.check()
    refs += [pyray_ser.put(block(i, 4 * MB)) for i in range(len(refs), 12)]
    for i, ref in enumerate(refs):
        assert (pyray_ser.get(ref) == i).all()
    print(pyray_ser.stats()["spilled"] > 5)
    """
    assert in_store(script, 16) == "full: True\nTrue"


def test_a_directory_in_memory_is_refused():
    script = """
    import pyray_ser
    try:
        pyray_ser.init(spill_dir="/dev/shm")
    except ValueError as error:
        print("tmpfs" in str(error), pyray_ser.is_initialized())
    """
    assert run(script) == "True False"


def test_options_from_the_environment(monkeypatch):
    monkeypatch.setenv("PYRAY_SER_CAPACITY", "24 MiB")
    script = """
    os.environ["PYRAY_SER_SPILL_DIR"] = spill_dir
    refs = [pyray_ser.put(block(i, 4 * MB)) for i in range(12)]
    assert 24 * MB <= pyray_ser.stats()["capacity"] < 26 * MB and len(files()) > 5
    for i, ref in enumerate(refs):
        assert (pyray_ser.get(ref) == i).all()
    pyray_ser.shutdown()
    for text in ("infG", "9" * 20, "-1", "much"):
        os.environ["PYRAY_SER_CAPACITY"] = text
        try:
            pyray_ser.put(1)
        except ValueError as error:
            assert text in str(error)
            last = error
    print(last)
    """
    assert run(PRELUDE + script) == (
        "PYRAY_SER_CAPACITY must be a size, not 'much'; hint: give bytes, or a number with K, M, G or T"
    )


def test_what_a_killed_process_spilled_is_removed_by_the_next_store():
    script = """
    import signal, subprocess
    from pyray_ser import _core
    code = "import os, sys, pyray_ser; pyray_ser.init(capacity=16 << 20, spill_dir=sys.argv[1]); refs = [pyray_ser.put(bytes(4 << 20)) for i in range(8)]; os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-P", "-c", code, spill_dir])
    assert done.returncode == -signal.SIGKILL and len(files()) > 3
    assert _core.spill_clean(spill_dir) == 1 and len(files()) > 3
    pyray_ser.init(capacity=16 * MB, spill_dir=spill_dir)
    assert not files() and len(os.listdir(spill_dir)) == 1
    pyray_ser.shutdown()
    print(os.listdir(spill_dir), _core.spill_clean(spill_dir))
    """
    assert run(PRELUDE + script) == "[] 0"


@pytest.mark.parametrize("point", ["spill_marked", "spill_written", "spill_committed"])
def test_the_disk_is_no_place_to_die(debug_build, monkeypatch, point):
    monkeypatch.setenv("PYTHONPATH", debug_build)
    script = f"""
    from pyray_ser import _core
    refs = [pyray_ser.put(block(i, 4 * MB)) for i in range(3)]
    pid = os.fork()
    if pid == 0:
        assert _core.failpoint("{point}", 1)
        more = [pyray_ser.put(block(i, 4 * MB)) for i in range(8)]
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 9
    store.look()
    store.check()
    refs += [pyray_ser.put(block(i, 4 * MB)) for i in range(3, 12)]
    for i, ref in enumerate(refs):
        assert (pyray_ser.get(ref) == i).all()
    del refs, ref
    gc.collect()
    print(files())
    """
    assert in_store(script, 24) == "[]"
