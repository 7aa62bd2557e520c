"""Test that programs for Ray work with one line changed: ``import pyray_ser as ray``. Each program runs separately."""

import subprocess
import sys
import textwrap

import isolated
import pytest

SNIPPETS = {
    "one array many times": """
        import numpy as np
        obj = [np.zeros(42)] * 99
        l = ray.get(ray.put(obj))
        assert l[0] is l[1]
        assert len({id(a) for a in l}) == 1
        print("done")
    """,
    "read-only": """
        import numpy as np
        arr = ray.get(ray.put(np.zeros(100)))
        try:
            arr[0] = 1
        except ValueError as error:
            assert str(error) == "assignment destination is read-only"
        else:
            raise AssertionError
        arr = arr.copy()
        arr[0] = 1
        print("done")
    """,
    "a connection with __reduce__": """
        import sqlite3, tempfile, os
        class DBConnection:
            def __init__(self, path):
                self.path = path
                self.conn = sqlite3.connect(path)
            def __reduce__(self):
                deserializer = DBConnection
                serialized_data = (self.path,)
                return deserializer, serialized_data
        with tempfile.TemporaryDirectory() as folder:
            original = DBConnection(os.path.join(folder, "db"))
            copied = ray.get(ray.put(original))
            assert copied.conn is not original.conn and copied.path == original.path
            assert copied.conn.execute("select 1").fetchone() == (1,)
            del DBConnection.__reduce__
            try:
                ray.put(original)
            except TypeError as error:
                assert "sqlite3.Connection" in str(error) and ".conn" in str(error)
            else:
                raise AssertionError
        print("done")
    """,
    "register, deregister, twice": """
        import threading
        class A:
            def __init__(self, x):
                self.x = x
                self.lock = threading.Lock()
        def fails():
            try:
                ray.get(ray.put(A(1)))
            except TypeError:
                return True
        def custom_serializer(a):
            return a.x
        def custom_deserializer(b):
            return A(b)
        assert fails()
        ray.util.register_serializer(A, serializer=custom_serializer, deserializer=custom_deserializer)
        assert ray.get(ray.put(A(1))).x == 1
        ray.util.deregister_serializer(A)
        assert fails()
        ray.util.deregister_serializer(A)
        print("done")
    """,
    "a helper for one object": """
        import threading
        class A:
            def __init__(self, x):
                self.x = x
                self.lock = threading.Lock()
        class SerializationHelperForA:
            def __init__(self, a):
                self.a = a
            def __reduce__(self):
                return A, (self.a.x,)
        got = ray.get(ray.put(SerializationHelperForA(A(1))))
        assert type(got) is A and got.x == 1
        try:
            ray.get(ray.put(A(1)))
        except TypeError:
            print("done")
    """,
    "inspect": """
        from pyray_ser.util import inspect_serializability
        import threading
        lock = threading.Lock()
        def test():
            print(lock)
        ok, failures = inspect_serializability(test, name="test")
        assert ok is False
        (failure,) = failures
        assert failure.obj is lock and failure.name == "lock" and failure.parent is test
        print("done")
    """,
}


def run(code):
    return subprocess.run(
        [sys.executable, "-P", "-c", "import pyray_ser as ray\n" + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env=isolated.environment(),
    )


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippet(name):
    done = run(SNIPPETS[name])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


def test_the_printed_report():
    text = run(SNIPPETS["inspect"]).stdout
    lines = text.splitlines()
    assert set(lines[0]) == {"="} and lines[1].startswith("Checking Serializability of <function test at 0x")
    assert "!!! FAIL serialization: cannot pickle '_thread.lock' object" in text
    assert "Detected 1 global variable" in text and "    Serializing 'lock' <unlocked _thread.lock object" in text
    assert "FailTuple(lock [obj=<unlocked _thread.lock" in text and "parent=<function test at 0x" in text
