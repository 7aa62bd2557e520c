"""Test that error messages name the event, the object, what keeps the object alive, and what to do next."""

import os
import subprocess
import sys

import pytest
from isolated import environment, run

from pyray_ser import exceptions


def test_a_full_store_says_what_keeps_each_object_alive():
    text = run("""
        import pickle, pyray_ser
        pyray_ser.init(capacity=16 << 20)
        def fill(keep):
            kept = []
            try:
                while True:
                    kept.append(keep())
            except pyray_ser.exceptions.ObjectStoreFullError as error:
                print(error)
            return kept
        kept = fill(lambda: pickle.dumps(pyray_ser.put(bytes(4 << 20))))
        for blob in kept:
            pyray_ser.free(pickle.loads(blob))
        refs = fill(lambda: pyray_ser.put(bytes(4 << 20)))
        del refs
        pyray_ser.put(bytes(7 << 20), name="table")
        window = pyray_ser.create(7 << 20)
        fill(lambda: pyray_ser.put(bytes(4 << 20)))
    """)
    pickled, refs, named = text.splitlines()
    assert "1 pickled reference: free() it or use scope()" in pickled and "references in" not in pickled
    assert "references in 1 process" in refs and "pickled" not in refs
    assert "its name 'table': free(names()['table'])" in named and "still being made: seal() or abort() it" in named
    for line in (pickled, refs, named):
        assert "made by process" in line and ". hint: " in line and "spill_dir" in line


def test_objects_that_refer_to_others_are_counted():
    text = run("""
        import pyray_ser
        pyray_ser.init(capacity=16 << 20)
        inner = pyray_ser.put(bytes(12 << 20))
        outer = pyray_ser.put([inner])
        del inner
        try:
            pyray_ser.put(bytes(8 << 20))
        except pyray_ser.exceptions.ObjectStoreFullError as error:
            print(error)
    """)
    assert "1 object that refers to it" in text


def test_a_store_with_a_spill_directory_is_not_told_to_give_one():
    assert "give a spill_dir" not in str(exceptions.ObjectStoreFullError(size=1, capacity=10, spills=True))
    assert "give a spill_dir" in str(exceptions.ObjectStoreFullError(size=1, capacity=10))


def test_a_worker_that_this_program_ended_did_not_lack_memory():
    run("""
        import pyray_ser, time
        @pyray_ser.remote
        def slow(path):
            open(path, "w").close()
            time.sleep(600)
        if __name__ == "__main__":
            import os
            pyray_ser.init(num_workers=1)
            ref = slow.remote("begun")
            while not os.path.exists("begun"):
                time.sleep(0.01)
            pyray_ser.shutdown()
            try:
                pyray_ser.get(ref)
            except pyray_ser.exceptions.WorkerDiedError as error:
                text = str(error)
            assert "was ended by shutdown()" in text and "before it finished slow" in text and "memory" not in text, text
    """)


def test_a_worker_that_never_came_to_its_task_says_so():
    text = run(
        """
        import pyray_ser
        pyray_ser.init(start_method="spawn", num_workers=1)
        @pyray_ser.remote
        def f(x):
            return x
        pyray_ser.get(f.remote(1))
    """,
        status=1,
        errors=True,
    )
    assert text == ""


def test_the_hint_for_a_worker_that_never_came_to_its_task():
    text = str(exceptions.WorkerDiedError(pid=5, exitcode=1, task="f", began=False))
    assert "before it could run f" in text and "__main__" in text and "before it finished" not in text


def test_get_of_an_object_that_only_this_thread_could_seal_says_so():
    run("""
        import threading, pyray_ser
        window = pyray_ser.create(10)
        ref = window.obj.ref
        try:
            pyray_ser.get(ref)
        except pyray_ser.exceptions.GetTimeoutError as error:
            assert "only this thread could seal it" in str(error) and "hint: seal()" in str(error), error
        # Another thread could.
        thread = threading.Timer(0.5, pyray_ser.seal, [window])
        thread.start()
        assert len(pyray_ser.get(ref)) == 10
        thread.join()
    """)


def test_get_of_what_another_process_makes_waits():
    run("""
        import os, pyray_ser
        window = pyray_ser.create(10)
        ref = window.obj.ref
        pid = os.fork()
        if not pid:
            assert len(pyray_ser.get(ref, timeout=80)) == 10 and len(pyray_ser.get(ref)) == 10
            os._exit(0)
        pyray_ser.seal(window)
        assert os.waitpid(pid, 0)[1] == 0
    """)


def test_a_name_that_nobody_can_put_is_not_waited_for():
    run("""
        import pyray_ser
        ref = pyray_ser.put(1, name="there")
        try:
            pyray_ser.get_by_name("typo")
        except pyray_ser.exceptions.NameNotFoundError as error:
            text = str(error)
        assert "no process is left that could put one" in text and "'there'" in text and "hint: put(..., name='typo')" in text, text
    """)


def test_a_name_that_somebody_may_put_is_waited_for():
    run(
        """
        import os, threading, time, pyray_ser
        from pyray_ser.store import endless
        endless.PATIENCE = 0.1
        pyray_ser.init()
        thread = threading.Timer(1.0, pyray_ser.put, [7], {"name": "late"})
        thread.start()
        assert pyray_ser.get_by_name("late") == 7
        thread.join()
        pid = os.fork()
        if not pid:
            time.sleep(1)
            pyray_ser.put(8, name="later")
            os._exit(0)
        assert pyray_ser.get_by_name("later") == 8
        os.waitpid(pid, 0)
    """,
        errors=True,
    )


COMMANDS = ["ls", "stat", "doctor", "map", "check", "clean --dry-run", "top -n1", "ls --json", "--help", "--version"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_cannot_write_says_so_in_one_line(command):
    start = [sys.executable, "-P", "-m", "pyray_ser", *command.split()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            start, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), timeout=120, check=False
        )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("pyray-ser") and "No space left on device" in done.stderr


@pytest.mark.parametrize("command", ["ls", "top -n1", "--version"])
def test_a_command_without_standard_output_says_so(command):
    start = f"{sys.executable} -P -m pyray_ser {command} >&-"
    done = subprocess.run(
        start, shell=True, capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert done.returncode == 2 and "standard output is closed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error_to_speak_of():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pyray_ser", "ls"],
            stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), timeout=120, check=False,
        )  # fmt: skip
    finally:
        os.close(write)
    assert done.returncode == 141 and done.stderr == ""


def test_ls_stat_and_top_count_alike():
    text = run("""
        import os, subprocess, sys, pyray_ser
        refs = [pyray_ser.put(bytes(5000)) for _ in range(3)]
        window = pyray_ser.create(10)
        for command in ("ls", "stat", "top -n1"):
            start = [sys.executable, "-P", "-m", "pyray_ser", *command.split(), str(os.getpid())]
            print(subprocess.run(start, capture_output=True, text=True, check=True).stdout)
    """)
    assert "(3 objects, 1 being made, 1 process)" in text
    assert "  3 objects, 1 being made," in text and ", 1 process\n" in text
    assert "objects        3\n" in text and "unsealed       1\n" in text


@pytest.mark.parametrize("which", ["the directory", "the store's own folder in it"])
def test_a_spill_directory_that_is_gone_is_named_as_the_cause(tmp_path, which):
    run(f"""
        import os, shutil, numpy as np, pyray_ser
        folder = {str(tmp_path / "spill")!r}
        pyray_ser.init(capacity=16 << 20, spill_dir=folder)
        refs = [pyray_ser.put(np.full(1 << 19, i)) for i in range(5)]
        assert pyray_ser.stats()["spilled"]
        shutil.rmtree(folder if {which!r} == "the directory" else os.path.join(folder, os.listdir(folder)[0]))
        try:
            for i in range(10):
                refs.append(pyray_ser.put(np.full(1 << 19, i)))
        except pyray_ser.exceptions.ObjectStoreFullError as error:
            text = str(error)
        assert folder in text and "No such file or directory" in text, text
    """)
