"""Test spill directories that several processes use, or that somebody removes or locks while a store uses them.

The processes create and clean up the same directory at the same time.
"""

from isolated import run

PRELUDE = """
    import os, shutil, sys, tempfile, time
    import numpy as np, pyray_ser
    from pyray_ser.exceptions import *

    folder = tempfile.TemporaryDirectory(prefix="pyray_ser-spill-", dir=os.environ.get("PYRAY_SER_TEST_DISK", "/var/tmp"))
    spill_dir = os.path.join(folder.name, "spill")
"""


def test_processes_make_and_close_stores_with_one_spill_directory():
    script = """
    import subprocess
    program = '''if True:
        import sys
        from pyray_ser import _core
        for _ in range(400):
            _core.create_store(capacity=4 << 20, max_objects=1024, spill_dir=sys.argv[1]).close()
    '''
    os.mkdir(spill_dir)
    started = [subprocess.Popen([sys.executable, "-P", "-c", program, spill_dir], stderr=subprocess.PIPE) for _ in range(4)]
    errors = [one.communicate()[1].decode() for one in started]
    print(errors, os.listdir(spill_dir))
    """
    assert run(PRELUDE + script, timeout=280) == "['', '', '', ''] []"


def test_error_names_the_spill_directory_that_was_removed():
    script = """
    pyray_ser.init(capacity=64 << 20, spill_dir=spill_dir)
    refs = [pyray_ser.put(np.full(1 << 20, i)) for i in range(12)]
    assert pyray_ser.stats()["spilled"]
    shutil.rmtree(spill_dir)
    full = 0
    for i in range(3):
        try:
            refs.append(pyray_ser.put(np.full(1 << 20, i)))
        except ObjectStoreFullError as error:
            assert spill_dir in str(error) and "was removed" in str(error), error
            full += 1
    pyray_ser.put(5)
    del refs
    pyray_ser.put(np.zeros(1 << 20))
    pyray_ser.shutdown()
    print(full > 0)
    """
    assert run(PRELUDE + script, timeout=120) == "True"


def test_put_of_more_than_the_store_holds_fails_without_waiting():
    script = """
    pyray_ser.init(capacity=16 << 20)
    try:
        pyray_ser.put(np.zeros(32 << 20, "u1"), timeout=3600)
    except ObjectStoreFullError as error:
        print(error.size > error.capacity)
    """
    assert run(PRELUDE + script, timeout=120) == "True"


def test_a_store_is_made_anew_if_its_last_process_closes_it_just_now():
    # The last process removes the store's spill directory first, and releases the file of the store later.
    script = """
    import signal, subprocess, threading
    name = f"closing-{os.getpid()}"
    program = '''if True:
        import sys, pyray_ser
        pyray_ser.init(name=sys.argv[1], spill_dir=sys.argv[2])
        print("ready", flush=True)
        sys.stdin.read()  # until the test ends
    '''
    os.mkdir(spill_dir)
    command = [sys.executable, "-P", "-c", program, name, spill_dir]
    last = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    last.stdout.readline()
    [own] = os.listdir(spill_dir)
    shutil.rmtree(os.path.join(spill_dir, own))
    try:
        pyray_ser.init(name=name, lock_timeout=0.1)
    except FileNotFoundError as error:
        print(own in str(error), spill_dir in str(error))
    threading.Timer(0.5, last.kill).start()
    threading.Timer(0.6, last.wait).start()
    pyray_ser.init(name=name, spill_dir=spill_dir, lock_timeout=60)
    print(pyray_ser.get(pyray_ser.put(1)), len(os.listdir(spill_dir)))
    """
    assert run(PRELUDE + script).splitlines() == ["True True", "1 1"]
