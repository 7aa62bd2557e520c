"""Test that a living client is never declared dead, whatever /proc shows, and that every dead client is declared dead.

These tests cover the rows of docs/internals/liveness.md that need real processes, users and namespaces.
tests/c/test_reaping.c covers the rows that a record in shared memory can simulate.
"""

import os
import subprocess
import sys
import textwrap
import uuid

import pytest
from hygiene import run_path
from isolated import environment, run
from patience import patience

ROOT = os.geteuid() == 0
# If an ordinary user runs the tests, those that need root rights get them in a user namespace.
AS_ROOT = [] if ROOT else ["--user", "--map-root-user"]

PAIR = """
    import os, signal, sys, time, traceback
    import numpy as np
    import pyray_ser
    from pyray_ser.exceptions import ObjectStoreFullError

    def drop():
        {drop}

    def ended(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def living():
        {blind}

    store = pyray_ser.init(capacity=16 << 20)
    value = np.arange(100_000)
    ref = pyray_ser.put(value)
    view = pyray_ser.get(ref)
    # Modules that these calls import are not readable any more for who has dropped its rights.
    pyray_ser.get(pyray_ser.put(value + 1))
    try:
        pyray_ser.put(np.zeros(1 << 22))
    except ObjectStoreFullError as error:
        str(error)
    store.look(), store.stats()
    living()

    told, tell = os.pipe()
    go, let = os.pipe()

    def client():
        pid = os.fork()
        if pid == 0:
            os.close(told), os.close(let)
            try:
                drop()
                mine = pyray_ser.get(pyray_ser.put(value + 1))
                os.write(tell, b"r")
                os.read(go, 1)
                os._exit(0 if (mine == value + 1).all() and (view == value).all() else 3)
            except BaseException:
                traceback.print_exc()
                os.write(tell, b"x")
                os._exit(1)
        assert os.read(told, 1) == b"r"
        return pid

    def look_and_fill():
        pid = os.fork()
        if pid == 0:
            global ref, view
            try:
                drop()
                del ref, view
                store.look()
                kept = []
                try:
                    while True:
                        kept.append(pyray_ser.put(np.full(100_000, -1)))
                except ObjectStoreFullError:
                    store.look()
                os._exit(0 if store.stats()["reaped"] == reaped and len(kept) > 5 else 4)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        return pid

    reaped = store.stats()["reaped"]
    one = client()
    observer = look_and_fill()
    assert ended(observer) == 0, "a living client was reaped"
    assert (view == value).all(), "a view of the parent changed"
    os.write(let, b"g")
    assert ended(one) == 0, "a view of the client changed"

    two = client()
    os.kill(two, signal.SIGKILL)
    assert ended(two) == -signal.SIGKILL
    until = time.monotonic() + 60
    while store.stats()["clients"] > 1:
        assert time.monotonic() < until, "a dead client is still counted"
        store.look()
        time.sleep(0.01)
    store.check()
    assert store.stats()["orphaned"] == 0
    del ref, view
    assert store.stats()["objects"] == 0, store.stats()
    print("done")
"""

TO_NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
NOT_DUMPABLE = "import ctypes; assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0"
NO_PROC = 'assert __import__("ctypes").CDLL(None).mount(b"none", b"/proc", b"tmpfs", 0, None) == 0; assert not os.path.exists("/proc/self")'


def unshared(flags: list[str], script: str, before: str = "") -> None:
    """Run a line of shell and then a script in new namespaces; skip the test if the system does not allow them."""
    words = ["unshare", *AS_ROOT, *flags, "--fork", "--kill-child"]
    tried = subprocess.run([*words, "sh", "-c", before or "true"], capture_output=True, text=True)
    if tried.returncode:
        assert not ROOT, tried.stderr
        pytest.skip(f"no such namespace here: {tried.stderr.strip()}")
    done = subprocess.run(
        [*words, "sh", "-c", f'{before or "true"} && "$0" -P -c "$1"', sys.executable, textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=patience(240),
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("done"), done.stdout + done.stderr


HIDDEN = "mount -o remount,hidepid=2 /proc"


@pytest.mark.skipif(not ROOT, reason="only root may become another user")
@pytest.mark.parametrize("before", ["true", HIDDEN], ids=["proc", "hidepid"])
def test_workers_that_become_another_user_live(before):
    unshared(["--mount", "--pid", "--mount-proc"], PAIR.format(drop=TO_NOBODY, blind="pass"), before)


@pytest.mark.parametrize("before", ["true", HIDDEN], ids=["proc", "hidepid"])
def test_workers_that_are_not_dumpable_live(before):
    unshared(["--mount", "--pid", "--mount-proc"], PAIR.format(drop=NOT_DUMPABLE, blind="pass"), before)


def test_processes_of_a_pid_namespace_with_the_proc_of_another_live():
    # Start some processes first, so that the same pid means different processes in the two namespaces.
    unshared(["--pid"], PAIR.format(drop="pass", blind="pass"), "true; sleep 0; sleep 0; sleep 0")


def test_processes_that_lose_proc_live():
    unshared(["--mount", "--pid", "--mount-proc"], PAIR.format(drop="pass", blind=NO_PROC))


def test_workers_that_close_every_descriptor_live():
    closing = "low, high = sorted((go, tell)); os.closerange(3, low), os.closerange(low + 1, high), os.closerange(high + 1, 4096)"
    assert run(PAIR.format(drop=closing, blind="pass"), timeout=240) == "done"


@pytest.fixture
def name():
    """Yield the name of a store, and remove its file afterwards, because a failed run may leave the file."""
    name = f"test-liveness-{uuid.uuid4().hex}"
    yield name
    path = os.path.join(run_path(), name)
    if os.path.exists(path):
        os.unlink(path)


CLIENT = """
    import sys
    import numpy as np
    import pyray_ser

    store = pyray_ser.init({name!r}, capacity=16 << 20)
    value = np.arange(100_000)
    ref = pyray_ser.put(value, name="value")
    view = pyray_ser.get(ref)
    print("ready", flush=True)
    sys.stdin.readline()
    assert (view == value).all(), "a view changed"
    assert (pyray_ser.get(ref) == value).all()
    assert store.stats()["reaped"] == 0
    del view
    print("done")
"""

VISITOR = """
    import numpy as np
    import pyray_ser
    from pyray_ser.exceptions import ObjectStoreFullError

    store = pyray_ser.init({name!r})
    assert (pyray_ser.get_by_name("value", timeout=60) == np.arange(100_000)).all()
    store.look()
    kept = []
    try:
        while True:
            kept.append(pyray_ser.put(np.full(100_000, -1)))
    except ObjectStoreFullError:
        store.look()
    assert store.stats()["reaped"] == 0 and store.stats()["clients"] == 2
    print("done")
"""


@pytest.mark.parametrize(
    "flags",
    [
        ["--time", "--boottime", "100000"],
        ["--time", "--monotonic", "500", "--boottime", "7"],
        ["--pid", "--mount-proc"],
    ],
    ids=["boottime", "monotonic", "pid"],
)
def test_a_client_of_another_namespace_lives(flags, name):
    client = subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(CLIENT.format(name=name))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert client.stdout.readline() == "ready\n"
        unshared(flags, VISITOR.format(name=name))
        said, _ = client.communicate("\n", timeout=patience(120))
        assert (client.returncode, said) == (0, "done\n")
    finally:
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()


@pytest.mark.skipif(not ROOT, reason="only root may become another user")
def test_forks_of_a_process_that_became_another_user_are_clients():
    """Such a process cannot open the store again, so its children share its descriptor, but each counts as a client."""
    script = """
        import os, threading  # before modules are out of its reach, as they are in a virtual environment of root's
        import numpy as np
        import pyray_ser

        store = pyray_ser.init(capacity=64 << 20)
        ref = pyray_ser.put(np.arange(1000))
        view = pyray_ser.get(ref)
        pyray_ser.get(pyray_ser.put(np.zeros(1 << 17)))
        assert pyray_ser.get(pyray_ser.put([0])) == [0]
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
        before = len(os.listdir("/proc/self/fd"))

        def grandchild():
            pid = os.fork()
            if pid == 0:
                assert pyray_ser.get(pyray_ser.put([2])) == [2]
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0

        for number in range(40):
            kept = [pyray_ser.put(np.zeros(1 << 17)) for _ in range(3)]
            pid = os.fork()
            if pid == 0:
                try:
                    assert pyray_ser.get(ref).sum() == 499500 and pyray_ser.get(kept[1]).sum() == 0
                    assert pyray_ser.get(pyray_ser.put([1])) == [1]
                    grandchild()
                    if number % 2:
                        pyray_ser.shutdown()
                    os._exit(0)
                except BaseException as error:
                    print(type(error).__name__, error, flush=True)
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            del kept
        store.look()
        store.check()
        stats = store.stats()
        assert (stats["objects"], stats["orphaned"], stats["clients"]) == (1, 0, 1), stats
        assert len(os.listdir("/proc/self/fd")) == before
        print("done")
    """
    assert run(script, timeout=240) == "done"


def test_a_program_executed_in_place_of_a_client_is_no_client():
    """The new program has the same pid and start time, and /proc is unreadable, but the exec has released the lock."""
    script = """
        import os, sys
        import pyray_ser

        store = pyray_ser.init(capacity=16 << 20)
        go, let = os.pipe()
        os.set_inheritable(go, True)
        pid = os.fork()
        if pid == 0:
            ref = pyray_ser.put([1] * 1000)
            os.close(let)
            os.execv(sys.executable, [sys.executable, "-c", f"import os; os.read({go}, 1)"])
        import time
        until = time.monotonic() + 60
        while store.stats()["clients"] > 1 or store.stats()["reaped"] < 1:
            assert time.monotonic() < until, store.stats()
            store.look()
            time.sleep(0.01)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it lives"
        assert store.stats()["objects"] == 0
        os.close(let)
        assert os.waitpid(pid, 0)[1] == 0
        print("done")
    """
    assert run(script, timeout=120) == "done"


def test_a_pipe_that_a_hidden_client_may_read_is_not_taken_for_closed():
    """A process that cannot be examined may still receive the message, so the store keeps the token of the message."""
    script = """
        import os, signal
        import pyray_ser
        from pyray_ser.pool_hooks import pipes

        store = pyray_ser.init(capacity=16 << 20)
        read, write = os.pipe()
        note = pipes.note_of(os.fstat(read).st_ino)
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            pyray_ser.put([1])
            os.write(tell, b"r")
            signal.pause()
        os.read(told, 1)
        os.close(read)
        listed = os.listdir

        def hiding(path):
            if path == f"/proc/{pid}/fd":
                raise PermissionError(13, "hidden", path)
            return listed(path)

        os.listdir = hiding
        assert pipes.Readers().unread(note) == 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        store.look()
        assert pipes.Readers().unread(note) is None
        print("done")
    """
    assert run(script, timeout=120) == "done"


def test_the_creator_of_an_object_is_not_its_successor_in_the_slot():
    script = """
        import os, signal
        import pyray_ser

        store = pyray_ser.init(capacity=16 << 20)
        told, tell = os.pipe()

        def child(name):
            pid = os.fork()
            if pid == 0:
                kept = pyray_ser.put(b"x" * 2000, name=name)
                os.write(tell, b"r")
                signal.pause()
            os.read(told, 1)
            return pid

        def creators():
            return {row["name"]: row["creator_pid"] for row in pyray_ser.objects()}

        first = child("first")
        assert creators() == {"first": first}
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        store.look()
        assert creators() == {"first": None}
        for number in range(3):  # in its slot
            other = child(f"other{number}")
            found = creators()
            assert found["first"] is None and found[f"other{number}"] == other, (found, first, other)
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
            store.look()
        for name, ref in pyray_ser.names().items():
            pyray_ser.free(ref)
        print("done")
    """
    assert run(script, timeout=120) == "done"


def test_a_dead_creator_is_not_named_before_it_is_reaped():
    """After the death of the creator, its pid may belong to an unrelated process."""
    script = """
        import os, signal
        import pyray_ser

        store = pyray_ser.init(capacity=16 << 20)
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            kept = pyray_ser.put(b"x" * 2000, name="kept")
            os.write(tell, b"r")
            signal.pause()
        os.read(told, 1)
        mine = pyray_ser.put(b"y" * 2000, name="mine")
        reaped = store.stats()["reaped"]
        assert {row["name"]: row["creator_pid"] for row in pyray_ser.objects()} == {"kept": pid, "mine": os.getpid()}
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = {row["name"]: row["creator_pid"] for row in pyray_ser.objects()}
        assert store.stats()["reaped"] == reaped, "the test is about a client that is not reaped yet"
        assert found == {"kept": None, "mine": os.getpid()}, found
        for ref in pyray_ser.names().values():
            pyray_ser.free(ref)
        print("done")
    """
    assert run(script, timeout=120) == "done"
