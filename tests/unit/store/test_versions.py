"""Test named objects that are replaced, renamed and deleted, and readers that follow their versions."""

import asyncio
import gc
import os
import threading
import time

import numpy as np
import pytest
from isolated import run
from patience import patience

import pyray_ser
from pyray_ser import exceptions as exc


@pytest.fixture
def name(request):
    """Yield a name for this test, and free the objects with such names afterwards."""
    made = f"{request.node.name}-{os.getpid()}"
    yield made
    for ref in pyray_ser.names(made).values():
        pyray_ser.free(ref)


# ---- replace --------------------------------------------------------------------------------------------------------------


def test_replacing_an_object(name):
    before = pyray_ser.stats()["objects"]
    pyray_ser.put(np.zeros(1000), name=name, replace=True)
    old = pyray_ser.get_by_name(name)
    pyray_ser.put(np.ones(1000), name=name, replace=True)
    assert (pyray_ser.get_by_name(name) == 1).all()
    assert (old == 0).all() and pyray_ser.stats()["objects"] == before + 2
    del old
    assert pyray_ser.stats()["objects"] == before + 1
    with pytest.raises(exc.NameExistsError):
        pyray_ser.put(2, name=name)
    assert (pyray_ser.get_by_name(name) == 1).all()


def test_a_reference_to_a_replaced_object_stays_valid(name):
    ref = pyray_ser.put("old", name=name)
    new, explanation = pyray_ser.put("new", name=name, replace=True, explain=True)
    assert pyray_ser.get(ref) == "old" and pyray_ser.get(new) == pyray_ser.get_by_name(name) == "new" and explanation
    assert pyray_ser.names()[name] == new


@pytest.mark.parametrize("ephemeral", [(True, False), (False, True), (True, True)])
def test_ephemeral_and_lasting_names_replace_each_other(name, ephemeral):
    before = pyray_ser.stats()["objects"]
    first = pyray_ser.put("first", name=name, ephemeral=ephemeral[0])
    second = pyray_ser.put("second", name=name, ephemeral=ephemeral[1], replace=True)
    assert pyray_ser.names(details=True)[name].ephemeral == ephemeral[1]
    assert pyray_ser.get_by_name(name) == "second"
    del first, second
    assert (name in pyray_ser.names()) != ephemeral[1]
    assert pyray_ser.stats()["objects"] == before + (not ephemeral[1])


def test_a_value_that_cannot_be_stored_replaces_nothing(name):
    pyray_ser.put("old", name=name)
    version = pyray_ser.names(details=True)[name].version
    with pytest.raises(exc.SerializationError):
        pyray_ser.put(threading.Lock(), name=name, replace=True)
    run("""
        import numpy as np
        import pyray_ser
        pyray_ser.init(capacity="4M")
        pyray_ser.put("old", name="name")
        try:
            pyray_ser.put(np.zeros(1_000_000), name="name", replace=True)
        except pyray_ser.exceptions.ObjectStoreFullError:
            assert pyray_ser.get_by_name("name") == "old"
        else:
            raise AssertionError("it fits")
    """)
    assert pyray_ser.get_by_name(name) == "old"
    assert pyray_ser.names(details=True)[name].version == version


def test_replace_needs_a_name():
    with pytest.raises(ValueError, match="name"):
        pyray_ser.put(1, replace=True)


def test_the_error_for_a_taken_name_says_who_has_it(name):
    pyray_ser.put(1, name=name)
    with pytest.raises(
        exc.NameExistsError, match=rf"since \d+ s, of an object made by process {os.getpid()} "
    ) as caught:
        pyray_ser.put(2, name=name)
    assert f"process {os.getpid()}" in caught.value.owner
    run(f"""
        import os, pyray_ser
        pyray_ser.init()
        pid = os.fork()
        if pid == 0:
            pyray_ser.put(1, name="kept")
            os._exit(0)
        os.waitpid(pid, 0)
        try:
            pyray_ser.put(2, name="kept")
        except pyray_ser.exceptions.NameExistsError as error:
            assert "a process that has ended" in str(error), error
        else:
            raise AssertionError({name!r})
    """)


# ---- delete, rename, names ------------------------------------------------------------------------------------------------


def test_deleting_a_name(name):
    before = pyray_ser.stats()["objects"]
    ref = pyray_ser.put("value", name=name)
    pyray_ser.delete(name)
    assert name not in pyray_ser.names() and pyray_ser.get(ref) == "value"
    del ref
    assert pyray_ser.stats()["objects"] == before
    pyray_ser.put("again", name=name)
    pyray_ser.delete(name)
    assert pyray_ser.stats()["objects"] == before
    with pytest.raises(exc.NameNotFoundError, match=name):
        pyray_ser.delete(name)
    with pytest.raises(TypeError):
        pyray_ser.delete(1)


def test_renaming(name):
    ref = pyray_ser.put("value", name=name)
    pyray_ser.put("other", name=f"{name}-other")
    pyray_ser.rename(name, f"{name}-new")
    assert name not in pyray_ser.names() and pyray_ser.names()[f"{name}-new"] == ref
    with pytest.raises(exc.NameNotFoundError, match=name):
        pyray_ser.rename(name, f"{name}-new")
    for target in (f"{name}-other", f"{name}-new"):
        with pytest.raises(exc.NameExistsError, match=target):
            pyray_ser.rename(f"{name}-new", target)
    assert pyray_ser.get_by_name(f"{name}-other") == "other" and pyray_ser.get_by_name(f"{name}-new") == "value"
    with pytest.raises(ValueError, match="bytes"):
        pyray_ser.rename(f"{name}-new", "")
    with pytest.raises(ValueError, match="reserved"):
        pyray_ser.rename(f"{name}-new", "pyray_ser/x")


def test_prefixes_and_details(name):
    for i in range(3):
        pyray_ser.put(i, name=f"{name}/{i}")
    assert {key: pyray_ser.get(ref) for key, ref in pyray_ser.names(f"{name}/").items()} == {
        f"{name}/{i}": i for i in range(3)
    }
    details = pyray_ser.names(f"{name}/", details=True)
    versions = [details[f"{name}/{i}"].version for i in range(3)]
    assert versions == sorted(set(versions)) and versions[0] > 0
    for entry in details.values():
        assert isinstance(entry, pyray_ser.NamedObject)
        assert abs(entry.time - time.time()) < patience(60) and not entry.ephemeral
    assert pyray_ser.names("no such prefix") == {}
    assert pyray_ser.names("\ud800") == {}


# ---- versions -------------------------------------------------------------------------------------------------------------


def test_waiting_for_a_newer_version(name):
    ref = pyray_ser.put("old", name=name)
    version = pyray_ser.names(details=True)[name].version
    for newer_than in (ref, version):
        with pytest.raises(exc.GetTimeoutError):
            pyray_ser.get_by_name(name, newer_than=newer_than, timeout=0.05)
        with pytest.raises(exc.GetTimeoutError):
            pyray_ser.get_by_name(name, newer_than=newer_than, timeout=0)
    assert pyray_ser.get_by_name(name, newer_than=version - 1, timeout=0) == "old"
    timer = threading.Timer(0.1, pyray_ser.put, ["new"], {"name": name, "replace": True})
    timer.start()
    assert pyray_ser.get_by_name(name, newer_than=ref, timeout=60) == "new"
    assert pyray_ser.get_by_name(name, newer_than=version, timeout=60) == "new"
    timer.join()
    with pytest.raises(exc.NameNotFoundError):
        pyray_ser.get_by_name(f"{name}-none", newer_than=1, timeout=0)


def test_a_forked_child_changes_names():
    """A child that becomes a client at its first use of the store can delete and rename immediately."""
    run("""
        import os
        import pyray_ser
        pyray_ser.init(max_clients=4)
        pyray_ser.put(1, name="a"), pyray_ser.put(2, name="b")
        children = []
        for _ in range(6):  # more than there are client slots
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(writing)
                os.read(reading, 1)
                status = 0
                for change in (lambda: pyray_ser.delete("a"), lambda: pyray_ser.rename("b", "c")):
                    try:
                        change()
                    except (pyray_ser.exceptions.NameNotFoundError, pyray_ser.exceptions.StoreFullError,
                            pyray_ser.exceptions.StoreClosedError):
                        pass
                    except BaseException:
                        import traceback
                        traceback.print_exc()
                        status = 1
                os._exit(status)
            os.close(reading)
            children.append((pid, writing))
        for _, writing in children:
            os.close(writing)
        for pid, _ in children:
            assert os.waitpid(pid, 0)[1] == 0
        pyray_ser.init().check()
        assert sorted(pyray_ser.names()) == ["c"]
    """)


def test_versions_rise_when_a_name_is_freed_deleted_or_renamed(name):
    seen = []

    def look():
        seen.append(pyray_ser.names(details=True)[name].version)

    pyray_ser.put(1, name=name)
    look()
    pyray_ser.free(pyray_ser.names()[name])
    pyray_ser.put(2, name=name)
    look()
    pyray_ser.delete(name)
    pyray_ser.put(3, name=name)
    look()
    pyray_ser.rename(name, f"{name}-2")
    pyray_ser.rename(f"{name}-2", name)
    look()
    assert seen == sorted(set(seen)) and len(seen) == 4


def test_a_watcher_returns_the_newest_version_once(name):
    pyray_ser.put(0, name=name)
    watcher = pyray_ser.watch(name, timeout=60)
    assert iter(watcher) is watcher and next(watcher) == 0
    for i in range(1, 5):
        pyray_ser.put(i, name=name, replace=True)
    assert next(watcher) == 4
    assert watcher.ref == pyray_ser.names()[name]
    assert watcher.version == pyray_ser.names(details=True)[name].version
    assert abs(watcher.time - time.time()) < patience(60) and name in repr(watcher)
    with pytest.raises(exc.GetTimeoutError):
        next(pyray_ser.watch(name, newer_than=watcher.version, timeout=0.05))
    timer = threading.Timer(0.1, pyray_ser.put, [5], {"name": name, "replace": True})
    timer.start()
    assert next(watcher) == 5
    timer.join()
    pyray_ser.delete(name)
    timer = threading.Timer(0.1, pyray_ser.put, [6], {"name": name})
    timer.start()
    assert next(watcher) == 6
    timer.join()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"mmap_mode": "w"}, ValueError),
        ({"name": ""}, ValueError),
        ({"name": 5}, TypeError),
    ],
    ids=str,
)
def test_a_watcher_with_wrong_arguments(name, wrong, error):
    with pytest.raises(error):
        pyray_ser.watch(**{"name": name, **wrong})


def test_an_async_watcher(name):
    async def publish():
        for i in range(20):
            pyray_ser.put(i, name=name, replace=True)
            await asyncio.sleep(0.01)

    async def main():
        seen = []
        task = asyncio.create_task(publish())
        async for value in pyray_ser.watch(name, timeout=60):
            seen.append(value)
            if value == 19:
                break
        await task
        with pytest.raises(exc.GetTimeoutError):
            async for _ in pyray_ser.watch(name, newer_than=1 << 60, timeout=0.05):
                pass
        return seen

    seen = asyncio.run(main())
    assert seen == sorted(set(seen)) and len(seen) > 5


def test_a_watcher_holds_one_version(name):
    before = pyray_ser.stats()["used"]
    watcher = pyray_ser.watch(name, timeout=60)
    for i in range(10):
        pyray_ser.put(np.full(100_000, i), name=name, replace=True)
        array = next(watcher)
        assert (array == i).all()
        gc.collect()
        assert pyray_ser.stats()["used"] - before < 2 * 810_000
    del array, watcher
    assert pyray_ser.stats()["used"] - before < 810_000


READER = """
import hashlib, sys
import pyray_ser

pyray_ser.init(sys.argv[1])
last, versions = -1, 0
watcher = pyray_ser.watch("weights", timeout=100)
for number, digest, array in watcher:
    assert number > last, (number, last)
    assert hashlib.sha1(array).hexdigest() == digest, number
    last, versions = number, versions + 1
    if versions == 1:
        print("reads", flush=True)
    if number == int(sys.argv[2]):
        break
print(versions, flush=True)
"""


@pytest.mark.parametrize(
    ("elements", "rounds"), [(100_000, 200), pytest.param(4_000_000, 100, marks=pytest.mark.heavy)]
)
def test_readers_in_other_processes_follow_a_publisher(tmp_path, elements, rounds):
    """No version is torn, versions only rise, and a stopped reader holds one version."""
    script = tmp_path / "reader.py"
    script.write_text(READER)
    output = run(
        f"""
        import hashlib, os, signal, subprocess, sys, time
        import numpy as np
        import pyray_ser
        store = f"publisher-{{os.getpid()}}"
        pyray_ser.init(store, capacity="1200M")
        array = np.zeros({elements})
        def publish(number):
            array[:] = number
            array[number % len(array)] = -1
            digest = hashlib.sha1(array).hexdigest()
            pyray_ser.put((number, digest, array), name="weights", replace=True)
        publish(0)
        command = [sys.executable, "-P", {str(script)!r}, store, "{rounds}"]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
        for reader in readers:
            assert reader.stdout.readline() == "reads\\n"
        readers[0].send_signal(signal.SIGSTOP)
        most = 0
        for number in range(1, {rounds} + 1):
            publish(number)
            most = max(most, pyray_ser.stats()["objects"])
        readers[0].send_signal(signal.SIGCONT)
        for reader in readers:
            assert reader.wait(100) == 0
        # The current version, the one that is being put, one of the stopped reader, and two of each other reader that
        # has not yet looked again.
        assert most <= 2 + 1 + 7 * 2, most
        pyray_ser.init().look()
        assert pyray_ser.stats()["objects"] == 1
        print(min(int(reader.stdout.readline()) for reader in readers[1:]))
        """,
        timeout=250,
    )
    assert int(output) >= 2
