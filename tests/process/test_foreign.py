"""Test references in a process that cannot reach their store: on another host, in another container."""

import os
import pickle
import select
import shutil
import subprocess
import sys
import textwrap
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from isolated import environment, run
from patience import patience

import pyray_ser

ROOT = os.geteuid() == 0
HOST = [
    "unshare", *([] if ROOT else ["--user", "--map-root-user"]), "--mount", "--pid", "--uts", "--ipc", "--mount-proc",
    "--fork", "--kill-child",
]  # fmt: skip


def on_another_host(script: str, *arguments: str, name: str = "otherhost") -> str:
    """Run a script with another host name, pid namespace and /dev/shm; skip if the system does not allow it."""
    before = f"hostname {name} && mount -t tmpfs tmpfs /dev/shm"
    tried = subprocess.run([*HOST, "sh", "-c", before], capture_output=True, text=True)
    if tried.returncode or shutil.which("unshare") is None:
        assert not ROOT, tried.stderr
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    done = subprocess.run(
        [
            *HOST,
            "sh",
            "-c",
            f'{before} && exec "$@"',
            "sh",
            sys.executable,
            "-P",
            "-c",
            textwrap.dedent(script),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=patience(120),
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def tokens() -> int:
    return pyray_ser.stats()["in_flight"]


SURVIVES = """
    import asyncio, copy, pickle, sys
    from multiprocessing.reduction import ForkingPickler
    import pyray_ser
    from pyray_ser import exceptions as exc

    came = bytes.fromhex(sys.argv[1])
    ref = pickle.loads(came)
    again = pickle.loads(came)
    assert ref == again and hash(ref) == hash(again) and ref is not again
    assert copy.copy(ref) is ref and copy.deepcopy(ref) is ref
    assert ref.state == expected_state, ref.state
    assert ref.hex() in repr(ref) and ref.state in repr(ref) and ref.hex() in ref._repr_html_()
    argument = ref.__reduce__()[1]
    for protocol in range(2, 6):
        dumped = pickle.dumps(ref, protocol)
        assert pickle.loads(dumped).__reduce__()[1] == argument
    assert ref.to_message() == argument[0] and argument[0] in came
    assert pyray_ser.loads(pyray_ser.dumps([ref, {"a": ref}]))[1]["a"].__reduce__()[1] == argument
    assert pyray_ser.deserialize(pyray_ser.serialize([ref]))[0].__reduce__()[1] == argument
    assert pickle.loads(ForkingPickler.dumps(ref)).__reduce__()[1] == argument
    assert pyray_ser.ObjectRef.from_message(ref.to_message()).__reduce__()[1] == argument
    try:
        import cloudpickle
    except ImportError:
        pass
    else:
        assert pickle.loads(cloudpickle.dumps({"x": ref}))["x"].__reduce__()[1] == argument
        assert cloudpickle.loads(cloudpickle.dumps(lambda: ref))().__reduce__()[1] == argument
    assert not pyray_ser.is_initialized(), "loading or pickling opened a store"
    assert not pyray_ser.contains(ref) and pyray_ser.wait([ref, pyray_ser.put(1)], num_returns=2)[1] == []

    async def awaited():
        await ref

    for read in (
        lambda: pyray_ser.get(ref), lambda: pyray_ser.get(ref, timeout=60), lambda: pyray_ser.get([ref, again]),
        lambda: pyray_ser.get(ref, mmap_mode="c"), lambda: pyray_ser.get_buffer(ref), lambda: ref.size,
        lambda: ref.future().result(), lambda: asyncio.run(awaited()),
    ):
        try:
            read()
        except exc.ObjectLostError as error:
            assert type(error) is expected_error, repr(error)
            assert expected_text in str(error), str(error)
        else:
            raise AssertionError("a foreign object was read")
    # In an object of this host's store the reference travels on, too.
    outer = pyray_ser.put([ref])
    assert pyray_ser.get(outer)[0].__reduce__()[1] == argument
    assert pyray_ser.stats()["in_flight"] == 0 and pyray_ser.stats()["edges"] == 0
    print(pickle.dumps(ref).hex())
"""
ELSEWHERE = 'expected_state, expected_error, expected_text = "foreign", exc.ForeignStoreError, "on {node}"'
CONTAINER = 'expected_state, expected_error, expected_text = "lost", exc.ObjectLostError, "no process is left"'


def survives(expected: str) -> str:
    head, tail = textwrap.dedent(SURVIVES).split("\ncame = ", 1)
    return f"{head}\n{expected}\ncame = {tail}"


class TestTravelling:
    @pytest.mark.parametrize("how", ["pickle", "multiprocessing"])
    def test_comes_back_from_another_host_as_it_went(self, how):
        with pyray_ser.scope():
            ref = pyray_ser.put(np.arange(1000))
            dump = pickle.dumps if how == "pickle" else ForkingPickler.dumps
            came = bytes(dump(ref))
            before = pyray_ser.stats(), tokens()
            went = on_another_host(survives(ELSEWHERE.format(node=os.uname().nodename)), came.hex())
            assert tokens() == before[1]
            del ref  # the first sender's token holds the object
            again = pickle.loads(bytes.fromhex(went))
            assert again.state == "sealed" and pyray_ser.get(again)[-1] == 999

    def test_comes_back_from_a_container_with_the_same_host_name(self):
        with pyray_ser.scope():
            ref = pyray_ser.put("value")
            came = pickle.dumps(ref)
            went = on_another_host(survives(CONTAINER), came.hex(), name=os.uname().nodename)
            del ref
            assert pyray_ser.get(pickle.loads(bytes.fromhex(went))) == "value"

    def test_the_hex_form_names_it_on_another_host(self):
        ref = pyray_ser.put("value")
        script = """
            import pickle, sys
            import pyray_ser
            from pyray_ser import exceptions as exc
            ref = pyray_ser.ObjectRef.from_hex(sys.argv[1])
            assert ref.hex() == sys.argv[1] and pyray_ser.ObjectRef.from_binary(ref.binary()) == ref
            try:
                pyray_ser.get(ref)
            except exc.ObjectLostError as error:
                print(pickle.dumps(ref).hex())
        """
        went = on_another_host(script, ref.hex())
        assert pyray_ser.get(pickle.loads(bytes.fromhex(went))) == "value"

    def test_a_message_taken_on_its_way_ends_its_token(self):
        before = tokens()
        ref = pyray_ser.put("value")
        message = ref.to_message()
        assert tokens() == before + 1
        script = """
            import sys
            import pyray_ser
            print(pyray_ser.ObjectRef.from_message(bytes.fromhex(sys.argv[1])).to_message().hex())
        """
        went = bytes.fromhex(on_another_host(script, message.hex()))
        assert went == message
        del ref
        again = pyray_ser.ObjectRef.from_message(went)
        assert tokens() == before and pyray_ser.get(again) == "value"


def test_loading_opens_no_pipe_of_the_process_that_has_the_senders_number(tmp_path):
    """On this host, the pid and descriptor in the message belong to another process."""
    with pyray_ser.scope():
        ref = pyray_ser.put(1)
        load, (message,) = ref.__reduce__()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[reading])
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    assert poll.poll(0) == []
    for node in (b"elsewhere", os.uname().nodename.encode()[:32]):
        place = child.pid.to_bytes(4, "little") + reading.to_bytes(4, "little")
        far = load(b"\x01" * 8 + message[8:32] + place + message[40:56] + node)
        assert far.state in ("foreign", "lost")
    opened = poll.poll(0)
    child.communicate(b"\n")
    os.close(reading)
    assert opened == [], "a pipe of an unrelated process was opened"


def test_loading_many_searches_once_for_each_sender():
    script = """
        import os, pickle
        import pyray_ser
        from pyray_ser.store import discovery

        ref = pyray_ser.put(1)
        with pyray_ser.scope():
            load, (message,) = ref.__reduce__()
        searches = []
        plain = discovery.find
        discovery.find = lambda *given: searches.append(given) or plain(*given)
        refs = [load(b"\\x01" * 8 + i.to_bytes(8, "little") + message[16:56] + b"elsewhere") for i in range(1, 500)]
        assert len(searches) == 1 and len(set(refs)) == 499
        assert all(ref.state == "foreign" for ref in refs)
        print("done")
    """
    assert run(script) == "done"
