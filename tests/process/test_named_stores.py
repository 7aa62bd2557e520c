"""Test that unrelated processes find a named store, that other users do not, and that its last process removes it."""

import contextlib
import os
import uuid

import pytest
from hygiene import run_path
from isolated import run

PRELUDE = """
    import os, signal, stat, subprocess, sys, time
    import numpy as np, pyray_ser
    from pyray_ser import _core
    from pyray_ser.store import named_stores
    from pyray_ser.exceptions import *

    name = "NAME"
    path = named_stores.path_of(name)

    def stranger(code, *arguments, status=0):
        environment = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
        done = subprocess.run([sys.executable, "-P", "-c", "import os, sys, pyray_ser\\n" + code, *arguments],
                              capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        return done.stdout.strip()
"""


@pytest.fixture
def named():
    name = f"test-{uuid.uuid4().hex}"

    def script(text, **options):
        return run((PRELUDE + text).replace("NAME", name), **options)

    yield script
    folder = run_path()
    with contextlib.suppress(OSError):
        os.unlink(f"{folder}/{name}")
        os.rmdir(folder)


def test_a_stranger_finds_store_and_objects(named):
    text = """
    pyray_ser.init(name=name)
    pyray_ser.put(np.arange(100_000), name="weights")
    print(stranger('''
    pyray_ser.init(name=sys.argv[1])
    print(pyray_ser.get_by_name("weights").sum())
    pyray_ser.put("by a stranger", name="answer")
    '''.replace("    ", ""), name))
    print(pyray_ser.get_by_name("answer", timeout=0))
    """
    assert named(text).split("\n") == ["4999950000", "by a stranger"]


def test_a_named_object_outlives_its_killed_producer(named):
    text = """
    pyray_ser.init(name=name)
    stranger("pyray_ser.init(name=sys.argv[1]); pyray_ser.put(b'x' * 1000000, name='big'); os.kill(os.getpid(), 9)", name, status=-9)
    assert len(pyray_ser.get_by_name("big", timeout=0)) == 1000000
    store = pyray_ser.init()
    store.look()
    store.check()
    print(pyray_ser.stats()["clients"])
    """
    assert named(text) == "1"


def test_waiting_for_a_name_that_another_process_gives(named):
    text = """
    pyray_ser.init(name=name)
    code = "import time, sys, pyray_ser; pyray_ser.init(name=sys.argv[1]); time.sleep(0.2); pyray_ser.put('now', name='later'); sys.stdin.read()"
    environment = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
    child = subprocess.Popen([sys.executable, "-P", "-c", code, name], stdin=subprocess.PIPE, env=environment)
    print(pyray_ser.get_by_name("later", timeout=60))
    child.communicate()
    """
    assert named(text) == "now"


@pytest.mark.parametrize("end", ["pyray_ser.shutdown()", "pass"], ids=["shutdown", "exit"])
def test_the_last_process_removes_the_file(named, end):
    text = f"""
    pyray_ser.init(name=name)
    assert named_stores.in_use(path)
    stranger("pyray_ser.init(name=sys.argv[1]); pyray_ser.put(1, name='one')\\n{end}", name)
    assert os.path.exists(path) and pyray_ser.get_by_name("one") == 1
    pyray_ser.shutdown()
    assert not os.path.exists(path)
    stranger("pyray_ser.init(name=sys.argv[1])\\n{end}", name)
    print(os.path.exists(path))
    """
    assert named(text) == "False"


def test_a_process_that_found_the_store_by_a_reference_removes_the_file(named):
    text = """
    code = "import os, sys, pyray_ser; pyray_ser.init(name=sys.argv[1]); print(pyray_ser.put('text').to_message().hex(), flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-P", "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ref = pyray_ser.ObjectRef.from_message(bytes.fromhex(child.stdout.readline()))
    assert pyray_ser.get(ref) == "text"
    (store,) = _core.open_stores()
    assert store.path == path
    child.communicate()
    assert os.path.exists(path) and pyray_ser.get(ref) == "text"
    pyray_ser.shutdown()
    print(os.path.exists(path))
    """
    assert named(text) == "False"


def test_a_process_that_found_the_store_by_a_reference_removes_the_file_at_its_exit(named):
    text = """
    code = "import sys, pyray_ser; message = bytes.fromhex(sys.stdin.readline())\\n"
    code += "print(pyray_ser.get(pyray_ser.ObjectRef.from_message(message)), flush=True); sys.stdin.read()"
    environment = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
    child = subprocess.Popen([sys.executable, "-P", "-c", code], text=True, env=environment,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pyray_ser.init(name=name)
    child.stdin.write(pyray_ser.put("text").to_message().hex() + "\\n")
    child.stdin.flush()
    assert child.stdout.readline() == "text\\n"
    pyray_ser.shutdown()
    assert os.path.exists(path)
    child.communicate()
    print(child.returncode, os.path.exists(path))
    """
    assert named(text) == "0 False"


def test_a_crashed_store_is_made_anew(named):
    text = """
    stranger("pyray_ser.init(name=sys.argv[1]); pyray_ser.put('old', name='value'); os.kill(os.getpid(), 9)", name, status=-9)
    assert os.path.exists(path) and not named_stores.in_use(path)
    pyray_ser.init(name=name)
    print(pyray_ser.names())
    """
    assert named(text) == "{}"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(3)", 3),
        ("raise ValueError", 1),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -2),
        ("signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(4)); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", 4),
    ],
    ids=["exit", "error", "interrupt", "handled"],
)  # fmt: skip
def test_an_end_that_runs_atexit_removes_the_file(named, end, status):
    text = f"""
    code = "import signal, time; pyray_ser.init(name=sys.argv[1]); pyray_ser.put(b'x' * 1000000, name='value'); {end}"
    stranger(code, name, status={status})
    print(os.path.exists(path))
    """
    assert named(text) == "False"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.kill(os.getpid(), signal.SIGHUP)", -1),
        ("os._exit(0)", 0),
    ],
    ids=["SIGTERM", "SIGKILL", "SIGHUP", "_exit"],
)
def test_what_a_sudden_end_left_goes_with_the_next_store_of_any_name(named, end, status):
    text = f"""
    code = "pyray_ser.init(name=sys.argv[1], capacity=1 << 24); pyray_ser.put(b'x' * 1000000); import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); {end}"
    stranger(code, name + "-left", status={status})
    left = named_stores.path_of(name + "-left")
    assert os.path.exists(left)
    keeper = subprocess.Popen(
        [sys.executable, "-P", "-c", "import sys, pyray_ser; pyray_ser.init(name=sys.argv[1]); print(1, flush=True); sys.stdin.read()", name + "-kept"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    keeper.stdout.readline()
    assert not os.path.exists(left)
    with open(named_stores.directory() + "/" + name + "-no-store", "w") as file:
        file.write("somebody's")
    pyray_ser.init(name=name)
    assert os.path.exists(named_stores.path_of(name + "-kept")), "one that is in use was removed"
    os.unlink(file.name)
    keeper.communicate(timeout=240)
    print("done")
    """
    assert named(text) == "done"


def test_a_process_that_closed_all_descriptors_still_counts(named):
    text = """
    code = "store = pyray_ser.init(name=sys.argv[1]); pyray_ser.put(5, name='n'); os.closerange(3, 1000); print('ready', flush=True); sys.stdin.read()"
    environment = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
    child = subprocess.Popen([sys.executable, "-P", "-c", "import os, sys, pyray_ser\\n" + code, name],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    child.stdout.readline()
    assert named_stores.in_use(path)
    pyray_ser.init(name=name)
    print(pyray_ser.get_by_name("n", timeout=0))
    child.communicate()
    """
    assert named(text) == "5"


def test_many_processes_open_one_name_at_once(named):
    text = """
    environment = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
    code = "import sys, pyray_ser; store = pyray_ser.init(name=sys.argv[1], capacity=16 << 20); print(store.id, flush=True); sys.stdin.read()"
    children = [subprocess.Popen([sys.executable, "-P", "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(6)]
    ids = {child.stdout.readline() for child in children}
    for child in children:
        child.communicate()
    print(len(ids), os.path.exists(path))
    """
    assert named(text) == "1 False"


def test_what_is_not_ours_is_neither_used_nor_removed(named):
    text = """
    import tempfile
    folder = tempfile.mkdtemp(prefix=os.path.basename(os.environ["PYRAY_SER_STORE_DIR"]) + "-", dir="/dev/shm")
    try:
        mine = os.path.join(folder, "notes")
        with open(mine, "w") as file:
            file.write("not a store, but dear to somebody")
        os.symlink(mine, os.path.join(folder, "link"))
        os.mkfifo(os.path.join(folder, "fifo"), 0o600)
        for what in ("notes", "link", "fifo"):
            try:
                pyray_ser.init(name=os.path.join(folder, what))
            except (StoreAccessError, StoreVersionError, CorruptObjectError) as error:
                assert what in str(error) or "store" in str(error), error
            else:
                raise SystemExit(f"{what} was taken")
            assert not pyray_ser.is_initialized()
        assert open(mine).read().startswith("not a store")
        os.chmod(folder, 0o777)
        try:
            pyray_ser.init(name=os.path.join(folder, "new"))
        except StoreAccessError as error:
            assert "other users" in str(error), error
        else:
            raise SystemExit("a directory open to all was taken")
        os.chmod(folder, 0o700)
        pyray_ser.init(name=os.path.join(folder, "new"))
        assert os.path.exists(os.path.join(folder, "new"))
        pyray_ser.shutdown()
        print(sorted(os.listdir(folder)))
    finally:
        import shutil
        shutil.rmtree(folder)
    """
    assert named(text) == "['fifo', 'link', 'notes']"


def test_a_squatted_directory_is_refused(named):
    text = """
    import tempfile
    folder = tempfile.mkdtemp(prefix=os.path.basename(os.environ["PYRAY_SER_STORE_DIR"]) + "-", dir="/dev/shm")
    named_stores.directory = lambda: folder
    try:
        for mode, reason in ((0o777, "mode"), (0o750, "mode")):
            os.chmod(folder, mode)
            try:
                pyray_ser.init(name=name)
            except StoreAccessError as error:
                assert reason in str(error), error
            else:
                raise SystemExit("taken")
        os.chmod(folder, 0o700)
        if os.getuid() == 0:
            os.chown(folder, 65534, 65534)
            try:
                pyray_ser.init(name=name)
            except StoreAccessError as error:
                assert "65534" in str(error), error
            else:
                raise SystemExit("taken")
        print("refused")
    finally:
        os.rmdir(folder)
    """
    assert named(text) == "refused"


LEAVES = """
import sys, pyray_ser
pyray_ser.init(name=sys.argv[1], capacity=1 << 20)
print("in", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["pyray_ser.shutdown()", "pass"], ids=["shutdown", "exit"])
def test_who_leave_at_once_leave_nothing(named, end):
    text = f"""
    environment = {{key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}}
    for round in range(8):
        children = [subprocess.Popen([sys.executable, "-P", "-c", {LEAVES + end!r}, name], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, env=environment) for _ in range(4)]
        assert all(child.stdout.readline() for child in children)
        for child in children:
            child.stdin.write(b"now")
            child.stdin.close()
        assert [child.wait(timeout=60) for child in children] == [0] * 4
        assert not os.path.exists(path), round
    print("gone")
    """
    assert named(text) == "gone"


def test_one_that_announced_its_end_and_died_counts_no_more(named):
    text = """
    code = "import os, sys, pyray_ser; s = pyray_ser.init(name=sys.argv[1]); print(s.leave(), flush=True); sys.stdin.read()"
    environment = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
    child = subprocess.Popen([sys.executable, "-P", "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert child.stdout.readline() == b"True\\n"  # alone
    pyray_ser.init(name=name)
    child.kill()
    child.wait()
    store = pyray_ser.init()
    store.look()
    # Another takes its place in the table, and has announced nothing.
    other = subprocess.Popen([sys.executable, "-P", "-c", code.replace("s.leave()", "s.client_pids()"), name],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    other.stdout.readline()
    stays = store.leave()
    other.communicate()
    print(stays, store.leave())
    """
    assert named(text) == "False True"


def test_a_store_found_by_its_hint_is_attached_under_the_lock(named):
    text = """
    import fcntl
    pyray_ser.init(name=name)
    fd = os.open(named_stores.directory(), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    child = subprocess.Popen([sys.executable, "-P", "-c", "import pyray_ser; print(pyray_ser.init(lock_timeout=60).path, flush=True)"], stdout=subprocess.PIPE)
    os.set_blocking(child.stdout.fileno(), False)
    time.sleep(0.5)
    early = child.stdout.read()
    os.set_blocking(child.stdout.fileno(), True)
    os.close(fd)
    print(early, child.communicate()[0].decode().strip() == path)
    """
    assert named(text) == "None True"


def test_the_directory_is_that_of_the_effective_user(named):
    text = """
    pyray_ser.init(name=name)  # imports what the other user may not read
    pyray_ser.shutdown()
    if os.getuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)
    del os.environ["PYRAY_SER_STORE_DIR"]
    before = named_stores.directory()
    print(before == f"/dev/shm/pyray_ser-{os.geteuid()}")
    pyray_ser.init(name=name)
    print(os.stat(before).st_uid == os.geteuid())
    pyray_ser.shutdown()
    """
    assert named(text) == "True\nTrue"


def test_the_umask_does_not_close_the_directory(named):
    text = (
        OWN_DIRECTORY
        + """
    os.umask(0o777)
    pyray_ser.init(name=name)
    print(oct(os.stat(folder).st_mode & 0o777))
    pyray_ser.shutdown()
    os.mkdir(folder)
    try:
        pyray_ser.init(name=name)
    except StoreAccessError as error:
        print("0000" in str(error))
    os.rmdir(folder)
    """
    )
    assert named(text) == "0o700\nTrue"


OWN_DIRECTORY = """
    folder = os.environ["PYRAY_SER_STORE_DIR"] + f"-{os.getpid()}"
    named_stores.directory = lambda: folder
    path = named_stores.path_of(name)
"""


def test_the_directory_goes_with_its_last_store(named):
    text = (
        OWN_DIRECTORY
        + """
    os.mkdir(folder, 0o700)  # by one that died before it made its store
    pyray_ser.init(name=name)
    other = os.path.join(folder, "other")
    os.mkdir(other)
    pyray_ser.shutdown()
    assert os.listdir(folder) == ["other"]
    os.rmdir(other)
    pyray_ser.init(name=name)
    pyray_ser.shutdown()
    assert not os.path.lexists(folder)
    try:
        pyray_ser.init(name=name, spill_dir="/dev/shm")  # no store comes of it
    except ValueError as error:
        print("spill directory" in str(error), os.path.lexists(folder))
    """
    )
    assert named(text) == "True False"


def test_a_directory_removed_while_its_lock_was_awaited_is_made_anew(named):
    text = (
        OWN_DIRECTORY
        + """
    import fcntl, threading
    os.mkdir(folder, 0o700)
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    opener = threading.Thread(target=pyray_ser.init, kwargs={"name": name, "lock_timeout": 240})
    opener.start()
    time.sleep(0.2)
    assert opener.is_alive()
    os.rmdir(folder)
    os.close(fd)
    opener.join(240)
    print(os.listdir(folder) == [name], os.stat(folder).st_mode & 0o777 == 0o700)
    pyray_ser.shutdown()
    """
    )
    assert named(text) == "True True"


def test_a_link_to_nowhere_in_place_of_the_directory_is_refused(named):
    text = (
        OWN_DIRECTORY
        + """
    os.symlink(folder + "-nowhere", folder)
    try:
        pyray_ser.init(name=name)
    except StoreAccessError as error:
        print("symbolic link" in str(error))
    finally:
        os.unlink(folder)
    """
    )
    assert named(text) == "True"


COME_AND_GO = """
import sys, pyray_ser
from pyray_ser.store import named_stores
named_stores.directory = lambda: sys.argv[1]
for k in range(60):
    pyray_ser.init(name=sys.argv[2], capacity=1 << 20)
    pyray_ser.put(k)
    pyray_ser.shutdown()
"""


def test_stores_come_and_go_in_one_directory(named):
    text = f"""
    code = {COME_AND_GO!r}
    folder = os.environ["PYRAY_SER_STORE_DIR"] + f"-{{os.getpid()}}"
    environment = {{key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}}
    children = [subprocess.Popen([sys.executable, "-P", "-c", code, folder, f"{{name}}-{{k // 2}}"], env=environment) for k in range(6)]
    print([child.wait(timeout=120) for child in children], os.path.lexists(folder))
    """
    assert named(text) == "[0, 0, 0, 0, 0, 0] False"


def test_a_stopped_opener_is_an_error_that_names_the_directory(named):
    text = """
    import fcntl
    pyray_ser.init(name=name, lock_timeout=0.2)
    pyray_ser.shutdown()
    os.makedirs(named_stores.directory(), mode=0o700, exist_ok=True)
    fd = os.open(named_stores.directory(), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    started = time.monotonic()
    try:
        pyray_ser.init(name=name, lock_timeout=0.2)
    except StoreBusyError as error:
        print(named_stores.directory() in str(error), time.monotonic() - started < 60)
    os.close(fd)
    pyray_ser.init(name=name)
    """
    assert named(text) == "True True"


def test_children_of_every_kind_share_it(named):
    text = """
    import multiprocessing

    def work(box):
        box.put(pyray_ser.get_by_name("given") + 1)

    if __name__ == "__main__":
        pyray_ser.init(name=name)
        pyray_ser.put(41, name="given")
        for method in ("fork", "spawn"):
            context = multiprocessing.get_context(method)
            box = context.Queue()
            child = context.Process(target=work, args=(box,))
            child.start()
            print(box.get(timeout=60))
            child.join()
        pyray_ser.shutdown()
        print(os.path.exists(path))
    """
    assert named(text) == "42\n42\nFalse"


LAST_CHILD = """
import multiprocessing, os, sys, time, pyray_ser
def work(parent):
    print("child", flush=True)
    while os.getppid() == parent:
        time.sleep(0.01)
    pyray_ser.put(1, name="last words")
pyray_ser.init(name=sys.argv[1])
multiprocessing.get_context("fork").Process(target=work, args=(os.getpid(),)).start()
time.sleep(0.2)
os.kill(os.getpid(), 9)
"""


def test_a_child_of_multiprocessing_may_be_the_last(named):
    text = f"""
    assert stranger({LAST_CHILD!r}, name, status=-9) == "child"
    until = time.monotonic() + 240
    while os.path.exists(path) and time.monotonic() < until:
        time.sleep(0.02)
    print(os.path.exists(path))
    """
    assert named(text) == "False"


@pytest.mark.parametrize("intruder", ["init", "shutdown", "init and shutdown"])
@pytest.mark.parametrize("interrupted", ["init", "shutdown"])
def test_a_handler_may_open_and_close_a_named_store_at_each_line_of_a_call(named, interrupted, intruder):
    """Open and close a store between any two lines of a call, as a signal handler can.

    Some of these lines run while the call holds the lock of the directory.
    """
    text = f"""
    from pyray_ser.exceptions import StoreClosedError
    import faulthandler
    faulthandler.dump_traceback_later(80, exit=True)
    FOLDER = os.path.dirname(named_stores.__file__)

    def opens():
        pyray_ser.init(name=name)

    def both():
        opens()
        pyray_ser.shutdown()

    calls = {{"init": opens, "shutdown": pyray_ser.shutdown, "init and shutdown": both}}
    state = {{}}

    def trace(frame, event, arg):
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            state["lines"] += 1
            if state["lines"] == state["strike"]:
                sys.settrace(None)
                calls[{intruder!r}]()
        return trace

    both()  # imports what they need
    strike = 0
    while strike == 0 or state["lines"] >= strike:
        strike += 1
        if {interrupted!r} == "shutdown":
            opens()
        state.update(lines=0, strike=strike)
        sys.settrace(trace)
        try:
            calls[{interrupted!r}]()
        except StoreClosedError:  # by the handler
            assert "shutdown" in {intruder!r}
        finally:
            sys.settrace(None)
        if {interrupted!r} == {intruder!r} == "init":
            assert pyray_ser.is_initialized() and os.path.exists(path)
        pyray_ser.shutdown()
        assert not os.path.exists(path), strike
    print("fine" if strike > 20 else strike)
    """
    assert named(text) == "fine"


def test_a_child_forked_by_a_handler_waits_for_the_lock_that_its_parent_holds(named):
    text = """
    from pyray_ser.exceptions import StoreBusyError
    folder = named_stores.directory()
    os.makedirs(folder, 0o700, exist_ok=True)
    with named_stores.guard(folder):
        with named_stores.guard(folder):
            pid = os.fork()
            if pid == 0:
                try:
                    with named_stores.guard(folder, 0.1):
                        os._exit(1)
                except StoreBusyError:
                    os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        # The end of the inner one leaves the lock to the outer one.
        print(stranger("from pyray_ser.store import named_stores\\n"
                       "try:\\n    named_stores.guard(sys.argv[1], 0.1).__enter__()\\n"
                       "except pyray_ser.exceptions.StoreBusyError: print('busy')", folder))
    named_stores.remove_directory(folder)
    """
    assert named(text).split() == ["0", "busy"]
