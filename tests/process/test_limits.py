"""Simulate limits of the machine: each must cause an error that names the limit, but no signal and no lost object."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from hygiene import run_path
from isolated import environment, run

# This command creates a user namespace. In it, any user may mount file systems and start a process as pid 1.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"]


def start(script: str, *before: str, **streams) -> subprocess.Popen:
    return subprocess.Popen(
        [*before, sys.executable, "-P", "-c", textwrap.dedent(script)],
        env=environment() | {"OPENBLAS_NUM_THREADS": "1"},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **streams,
    )


def finish(process: subprocess.Popen, timeout: float = 90) -> str:
    said, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, (process.returncode, said)
    return said.strip()


# ---- room -----------------------------------------------------------------------------------------------------------


def test_a_tiny_tmpfs(tmp_path):
    """The capacity of the store exceeds the 16 MiB of its tmpfs, as can happen in Docker."""
    script = f"""
        import subprocess
        import numpy as np
        import pyray_ser
        from pyray_ser.exceptions import ObjectStoreFullError

        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", {str(tmp_path)!r}], check=True)
        # one page of tables after the other is needed as well
        pyray_ser.init({str(tmp_path / "store")!r}, capacity=1 << 30)
        kept, why = [], None
        for number in range(100):
            try:
                kept.append(pyray_ser.put(np.full(1 << 17, number)))
            except ObjectStoreFullError as error:
                why = str(error)
                break
        assert 8 <= len(kept) <= 16, len(kept)
        for attempt in range(3):
            for size in (1 << 17, 1 << 21):
                try:
                    pyray_ser.put(np.ones(size))
                except ObjectStoreFullError:
                    continue
                raise AssertionError("there was no room")
        assert all((pyray_ser.get(ref) == number).all() for number, ref in enumerate(kept))
        held = pyray_ser.get(kept[0])
        del kept[1:]
        for _ in range(30):
            assert (pyray_ser.get(pyray_ser.put(np.full(1 << 18, 5))) == 5).all()
        assert (held == 0).all()
        # An outside process takes what is left.
        with open({str(tmp_path / "outsider")!r}, "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass
        refused = 0
        for size in (10, 1000, 1 << 14, 1 << 17, 1 << 18) * 20:
            try:
                kept.append(pyray_ser.put(np.full(size, size)))
            except ObjectStoreFullError:
                refused += 1
        assert refused
        assert all((got == len(got)).all() for got in pyray_ser.get(kept[1:]))
        print(why)
    """
    why = finish(start(script, *NAMESPACE))
    assert "tmpfs" in why or "page" in why or "room" in why, why


MEMORY_CGROUP = pathlib.Path("/sys/fs/cgroup")


@pytest.mark.parametrize("form", [{}, {"spill_checksum": True}, {"spill_compress": "lz4", "spill_checksum": True}])
def test_a_full_disk(tmp_path, form):
    """If the disk of the spill directory is full, `put` reports that the store is full, and no object is lost."""
    script = f"""
        import os
        import subprocess
        import numpy as np
        import pyray_ser
        from pyray_ser.exceptions import ObjectStoreFullError

        MB = 1 << 20
        def noise(i, n=4 * MB):
            return np.random.default_rng(i).integers(0, 256, n, "u1")
        memory, disk = {str(tmp_path / "memory")!r}, {str(tmp_path / "disk")!r}
        os.mkdir(memory), os.mkdir(disk)
        # A file system that nobody takes for memory, and that is small: an overlay over a small one.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=22m,mode=700", "tmpfs", memory], check=True)
        for name in ("lower", "upper", "work"):
            os.mkdir(f"{{memory}}/{{name}}")
        options = ",".join(f"{{name}}dir={{memory}}/{{name}}" for name in ("lower", "upper", "work"))
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", disk], check=True)
        store = pyray_ser.init(capacity=24 * MB, spill_dir=disk, **{form!r})
        refs, refused = [], 0
        for i in range(20):
            try:
                refs.append(pyray_ser.put(noise(len(refs))))
            except ObjectStoreFullError as error:
                assert "No space left" in str(error) and "spill directory" in str(error), error
                refused += 1
        assert len(refs) >= 8 and refused > 5, (len(refs), refused)
        for size in (40 * MB, 3 * MB, 100_000, 1000):
            try:
                refs.append(pyray_ser.put(noise(len(refs), size)))
            except ObjectStoreFullError:
                refused += 1
            else:
                assert size < 40 * MB
        store.check()
        for i, ref in enumerate(refs):
            value = pyray_ser.get(ref)
            assert (value == noise(i, len(value))).all()
        # Room again: on the disk, then in the store.
        spilled = [i for i, record in enumerate(pyray_ser.objects()) if record["spilled"]]
        assert spilled and pyray_ser._core.check_spilled(store) == (len(spilled), [])
        value = None
        del refs[:6], ref
        refs = [pyray_ser.put(noise(50 + i)) for i in range(3)]
        assert all((pyray_ser.get(ref) == noise(50 + i)).all() for i, ref in enumerate(refs))
        store.check()
    """
    process = start(script, *NAMESPACE, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors


@pytest.fixture
def memory_limit():
    """Make a cgroup of 400 MiB; return the file to which a process writes its pid to join."""
    limit = str(400 << 20)
    name = f"pyray_ser-test-{os.getpid()}"
    legacy = MEMORY_CGROUP / "memory"
    group = (legacy if legacy.is_dir() else MEMORY_CGROUP) / name
    try:
        group.mkdir()
        if legacy.is_dir():
            (group / "memory.limit_in_bytes").write_text(limit)
        else:
            (MEMORY_CGROUP / "cgroup.subtree_control").write_text("+memory")
            (group / "memory.max").write_text(limit)
            (group / "memory.swap.max").write_text("0")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"this user cannot make a cgroup with a limit: {error}")
    yield group / "cgroup.procs"
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{group} is still in use")


@pytest.mark.skipif("PYRAY_SER_UNDER_SANITIZER" in os.environ, reason="a sanitizer needs memory of its own")
def test_a_cgroup_limit(memory_limit):
    script = f"""
        import os
        open({str(memory_limit)!r}, "w").write(str(os.getpid()))
        import numpy as np
        import pyray_ser
        from pyray_ser.exceptions import ObjectStoreFullError

        pyray_ser.init(capacity=4 << 30)
        block = np.ones(4 << 20)
        kept = []
        try:
            for number in range(200):
                kept.append(pyray_ser.put(block))
        except ObjectStoreFullError as error:
            print(len(kept), "cgroup" in str(error) or "memory" in str(error))
        assert all((pyray_ser.get(ref) == 1).all() for ref in kept)
        del kept[1:]
        for _ in range(20):
            assert (pyray_ser.get(pyray_ser.put(block)) == 1).all()
    """
    count, says = finish(start(script)).split()
    assert 4 <= int(count) <= 12 and says == "True", (count, says)


# ---- memory, maps, descriptors ----------------------------------------------------------------------------------------


def test_no_address_space():
    """If the address space is limited, `put`, `get` and a private mapping raise MemoryError, and other calls work."""
    body = """
        import resource
        import numpy as np
        import pyray_ser

        pyray_ser.init(capacity=1 << 30)
        large = pyray_ser.put(np.ones(1 << 25))  # 256 MiB
        lists = pyray_ser.put([np.full(100, i) for i in range(1000)])
        text = pyray_ser.put("x" * (64 << 20))
        def used():
            return int(open("/proc/self/statm").read().split()[0]) * 4096
        def limit(room):
            resource.setrlimit(resource.RLIMIT_AS, (used() + room if room else resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        failed = set()
        def attempt(name, call):
            try:
                call()
            except MemoryError:
                failed.add(name)
        value = ["y" * 1000 for _ in range(100_000)]
        for room in (1, 1 << 16, 1 << 20, 16 << 20):
            limit(room)
            for _ in range(5):
                attempt("private mapping", lambda: pyray_ser.get(large, mmap_mode="c"))
                attempt("text", lambda: pyray_ser.get(text))
                attempt("list", lambda: pyray_ser.get(lists))
                attempt("put", lambda: pyray_ser.put(value))
                attempt("strided", lambda: pyray_ser.put(np.ones((100, 100))[::2, ::2]))
                # In place: needs no memory to speak of.
                assert pyray_ser.get(large)[-1] == 1
            limit(0)
        assert {"private mapping", "text"} <= failed, failed
        assert len(pyray_ser.get(text)) == 64 << 20 and pyray_ser.get(pyray_ser.put(value)) == value
        private = pyray_ser.get(large, mmap_mode="c")
        private[0] = 5
        assert pyray_ser.get(large)[0] == 1
        assert all((array == i).all() for i, array in enumerate(pyray_ser.get(lists)))
        from pyray_ser import _core
        _core.default().check()
        del large, lists, text, private
        print(pyray_ser.stats()["objects"], pyray_ser.stats()["unsealed"])
    """
    assert run(body) == "0 0"


@pytest.mark.skipif("PYRAY_SER_UNDER_SANITIZER" in os.environ, reason="a sanitizer needs the address space itself")
def test_a_default_capacity_shrinks_until_it_fits():
    """If address space or file size is limited, a store with the default capacity gets a smaller one and warns."""
    body = """
        import logging, resource, sys
        import numpy as np
        import pyray_ser

        which, room = getattr(resource, sys.argv[1]), int(sys.argv[2])
        if which == resource.RLIMIT_AS:
            room += int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(which, (room, room))
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
        store = pyray_ser.init()
        value = np.arange(4 << 17)
        refs = [pyray_ser.put(value) for _ in range(3)]
        assert all((pyray_ser.get(ref) == value).all() for ref in refs)
        store.check()
        try:
            pyray_ser.shutdown()
            pyray_ser.init(capacity=4 * room)
        except (MemoryError, OSError) as error:
            print("given:", error)
        print(store, room)
    """
    for which, room, why in (
        ("RLIMIT_AS", 1 << 30, "no address space"),
        ("RLIMIT_FSIZE", 512 << 20, "File too large"),
    ):
        process = subprocess.run(
            [sys.executable, "-P", "-c", textwrap.dedent(body), which, str(room)],
            env=environment() | {"OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert process.returncode == 0, (process.returncode, process.stdout, process.stderr)
        said = process.stdout
        assert said.startswith("pyray_ser WARNING limits of this process"), said
        assert "given:" in said and why in said, said


@pytest.mark.skipif("PYRAY_SER_UNDER_SANITIZER" in os.environ, reason="a sanitizer needs memory of its own")
def test_a_limit_of_private_memory_is_none_of_the_stores_capacity():
    body = """
        import logging, resource, subprocess, sys
        import pyray_ser

        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
        ask = "import pyray_ser; print(pyray_ser.init().capacity)"
        usual = int(subprocess.check_output([sys.executable, "-P", "-c", ask]))
        resource.setrlimit(resource.RLIMIT_DATA, (usual, usual))
        store = pyray_ser.init()
        ref = pyray_ser.put(b"x" * (8 << 20))
        assert pyray_ser.get(ref) == b"x" * (8 << 20)
        print(store.capacity == usual)
    """
    assert run(body) == "True"


def test_a_limit_of_the_size_of_files():
    """If RLIMIT_FSIZE is set while the store is in use, puts beyond the limit raise an error and cause no signal."""
    body = """
        import resource, signal
        import numpy as np
        import pyray_ser
        from pyray_ser.exceptions import ObjectStoreFullError

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # as in a program that is not Python
        store = pyray_ser.init(capacity=256 << 20)
        kept = [pyray_ser.put(np.full(1 << 20, number)) for number in range(3)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        refused = 0
        for size in (10, 1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 21):
            for make in (lambda: np.ones(size), lambda: np.ones(2 * size)[::2], lambda: [np.ones(size)] * 2):
                try:
                    assert np.all(pyray_ser.get(pyray_ser.put(make()))[0] == 1)
                except ObjectStoreFullError as error:
                    assert "RLIMIT_FSIZE" in str(error), error
                    refused += 1
        try:
            array = pyray_ser.empty(1 << 20)
            array[:] = 3
            assert (pyray_ser.get(pyray_ser.seal(array)) == 3).all()
        except ObjectStoreFullError:
            refused += 1
        assert all((pyray_ser.get(ref) == number).all() for number, ref in enumerate(kept))
        store.check()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (pyray_ser.get(pyray_ser.put(np.full(1 << 21, 4))) == 4).all()
        del kept, array
        store.check()
        print(refused > 3, pyray_ser.stats()["unsealed"])
    """
    assert run(body) == "True 0"


def test_no_memory_inside_a_put():
    """If any allocation in put or get fails, no object, no unsealed object and no reference is left behind."""
    body = """
        import numpy as np
        import _testcapi
        import pyray_ser
        from pyray_ser import _core

        pyray_ser.init(capacity=64 << 20)
        array = np.arange(100.0)
        values = [5, 1.5, "text", b"x" * 1000, array, array[::2], {"a": [array, (1, 2), "t" * 50]}, [array] * 20]
        refs = [pyray_ser.put(value) for value in values]
        for ref in refs:
            pyray_ser.get(ref)
        def attempt(call, argument, after):
            _testcapi.set_nomemory(after, after + 1)
            try:
                result = call(argument)
            except MemoryError:
                return True
            finally:
                _testcapi.remove_mem_hooks()
            return False
        failures = 0
        for call, arguments in ((pyray_ser.put, values), (pyray_ser.get, refs)):
            for argument in arguments:
                for after in range(60):
                    failures += attempt(call, argument, after)
        arrived = []  # a message that was made is loaded; one that was not must hold nothing
        for after in range(12):
            failures += attempt(lambda ref: arrived.append(type(ref).from_message(ref.to_message())), refs[0], after)
        stats = pyray_ser.stats()
        assert stats["objects"] == len(refs) and stats["unsealed"] == 0 and stats["in_flight"] == 0, stats
        _core.default().check()
        assert pyray_ser.get(refs[:4]) == values[:4] and (pyray_ser.get(refs[5]) == values[5]).all()
        print(failures)
    """
    pytest.importorskip("_testcapi", reason="a build of Python without its test modules")
    assert int(run(body)) > 20


def test_no_descriptor():
    """Open a store, and find the store of another process, while the table of descriptors is full."""
    body = """
        import os, resource
        import pyray_ser
        from pyray_ser import exceptions

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        pyray_ser.put(1), pyray_ser.shutdown()
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        said = []
        for _ in range(10):
            try:
                pyray_ser.put(1)
            except OSError as error:
                said.append(type(error).__name__)
            if taken:
                os.close(taken.pop())
        assert said and len(said) < 10, said
        ref = pyray_ser.put([1, 2])
        while len(taken) < 60:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        for _ in range(100):  # needs none
            assert pyray_ser.get(ref) == [1, 2] and pyray_ser.get(pyray_ser.put("x")) == "x"
        print("done")
    """
    assert run(body) == "done"


# ---- pid namespaces -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_namespaces(tmp_path):
    """Start two processes, both pid 1 in their namespaces, that use one named store and evaluate Python expressions."""
    path = pathlib.Path(run_path() + f"-{os.getpid()}")
    path.mkdir(mode=0o700)
    script = f"""
        import os, sys
        import numpy as np
        import pyray_ser
        from pyray_ser import _core
        assert os.getpid() == 1, os.getpid()
        pyray_ser.init({str(path / "store")!r}, capacity=64 << 20)
        print("ready", flush=True)
        names = {{}}
        for line in sys.stdin:
            try:
                exec(line, globals(), names)
                print(repr(names.pop("answer", None)), flush=True)
            except Exception as error:
                print(type(error).__name__, *error.args, flush=True)
    """
    started = []
    for _ in range(2):
        process = start(
            script, "unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"

    def ask(which: int, line: str) -> str:
        process = started[which]
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    ask.processes = started
    yield ask
    for process in started:
        process.stdin.close()
        process.stdout.close()
        process.wait(240)
    for left in path.iterdir():
        left.unlink()
    path.rmdir()


def kill_in_namespace(process: subprocess.Popen) -> None:
    """Kill the only child of `unshare`."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGKILL)
    process.wait(240)


def test_two_pid_namespaces(two_namespaces):
    ask = two_namespaces
    assert ask(0, "ref = pyray_ser.put(np.arange(100_000), name='shared'); answer = os.getpid()") == "1"
    assert ask(1, "view = pyray_ser.get_by_name('shared'); answer = int(view.sum())") == "4999950000"
    assert ask(1, "mine = pyray_ser.put(np.ones(50_000), name='other'); answer = pyray_ser.stats()['clients']") == "2"
    assert ask(0, "held = pyray_ser.get_by_name('other'); answer = float(held.sum())") == "50000.0"
    # Both processes are pid 1 in their namespaces. Neither process may mistake the other for itself, or declare the
    # other dead while the other sleeps.
    for which in (0, 1):
        assert (
            ask(which, "_core.default().look(); _core.default().check(); answer = pyray_ser.stats()['clients']") == "2"
        )
    # When one process ends, the store releases the unsealed objects and references of this process only.
    assert ask(1, "window = pyray_ser.create(1_000_000); answer = len(window)") == "1000000"
    assert (
        ask(0, "ref = None; pyray_ser.free(_core.find_name(_core.default(), 'other')); answer = float(held[-1])")
        == "1.0"
    )
    kill_in_namespace(ask.processes[1])
    deadline = time.monotonic() + 240
    while ask(0, "_core.default().look(); answer = pyray_ser.stats()['clients']") != "1":
        assert time.monotonic() < deadline, "a killed process of another pid namespace is still counted"
        time.sleep(0.5)
    assert ask(0, "answer = (float(held.sum()), pyray_ser.stats()['unsealed'])") == "(50000.0, 0)"
    assert ask(0, "held = None; pyray_ser.free(_core.find_name(_core.default(), 'shared'))") == "None"
    assert ask(0, "answer = pyray_ser.stats()['objects']") == "0"
    assert ask(0, "_core.default().check(); answer = pyray_ser.get(pyray_ser.put([1]))") == "[1]"


def test_a_stopped_process_of_another_pid_namespace_is_not_dead(two_namespaces):
    ask = two_namespaces
    assert ask(1, "ref = pyray_ser.put(np.ones(100_000)); answer = ref.hex()").strip("'")
    children = pathlib.Path(f"/proc/{ask.processes[1].pid}/task/{ask.processes[1].pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGSTOP)
    try:
        for _ in range(14):  # a process that had closed its descriptors would count as dead sooner
            assert ask(0, "_core.default().look(); answer = pyray_ser.stats()['clients']") == "2"
            time.sleep(0.5)
    finally:
        os.kill(int(children[0]), signal.SIGCONT)
    assert ask(1, "answer = float(pyray_ser.get(ref).sum())") == "100000.0"
