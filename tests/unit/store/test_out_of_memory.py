"""Test that each call raises MemoryError if one of its allocations fails, and frees nothing twice.

`make asan` detects errors that a release build may miss.
"""

import os

import pytest
from isolated import run

SCRIPT = """
    import gc, sys
    import _testcapi
    import numpy as np
    import pyray_ser

    refs = [pyray_ser.put([i]) for i in range(40)]
    arrays = [pyray_ser.put(np.full(3000, i)) for i in range(10)]
    frames = pyray_ser.dumps_frames([{"a": 1}, np.arange(5000), np.ones(20000)])
    value = [np.arange(3000), {"a": [1, 2, (3, 4)]}, "x" * 2000]
    stream = pyray_ser.dumps(value)
    calls = {
        "get": lambda: pyray_ser.get(refs),
        "get arrays": lambda: pyray_ser.get(arrays),
        "put": lambda: pyray_ser.put(value),
        "loads_frames": lambda: pyray_ser.loads_frames(frames),
        "dumps_frames": lambda: pyray_ser.dumps_frames(value),
        "loads": lambda: pyray_ser.loads(stream),
        "dumps": lambda: pyray_ser.dumps(value),
        "serialize": lambda: pyray_ser.deserialize(pyray_ser.serialize(value)),
        "wait": lambda: pyray_ser.wait(refs, num_returns=40),
        "stats": pyray_ser.stats,
        "objects": pyray_ser.objects,
        "names": pyray_ser.names,
    }
    if sys.version_info >= (3, 12):
        # CPython itself crashes if it cannot allocate the function of a generator expression, of which wait() has one.
        del calls["wait"]
    for name, call in calls.items():
        call()
        failed = 0
        for n in range(1, 250):
            gc.disable()
            _testcapi.set_nomemory(n, n + 1)
            try:
                call()
            except MemoryError:
                failed += 1
            finally:
                _testcapi.remove_mem_hooks()
        call()
        print(name, failed > 0 or name == "stats", file=sys.stderr)
    gc.enable()
    gc.collect()
    print("done")
"""


def test_a_failed_allocation_is_an_error_and_nothing_else():
    pytest.importorskip("_testcapi")
    allocator = {} if os.environ.get("PYRAY_SER_UNDER_SANITIZER") else {"PYTHONMALLOC": "pymalloc_debug"}
    before = {name: os.environ.get(name) for name in allocator}
    os.environ.update(allocator)
    try:
        assert run(SCRIPT, timeout=240, errors=True) == "done"
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text
