"""Test get_or_put: one caller computes a named value, and all others read it."""

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
from pyray_ser.store import compute_once


@pytest.fixture
def name(request):
    """Yield a name for this test, and free the objects with such names afterwards."""
    made = f"{request.node.name}-{os.getpid()}"
    yield made
    for ref in pyray_ser.names(made).values():
        pyray_ser.free(ref)


class Factory:
    """A factory that records its calls and its threads."""

    def __init__(self, value, pause=0.0):
        self.value = value
        self.pause = pause
        self.calls = 0

    def __call__(self):
        self.calls += 1
        time.sleep(self.pause)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def claims():
    store = pyray_ser.init()
    return [entry[0] for entry in pyray_ser._core.names_of(store) if entry[0].startswith("pyray_ser/computing/")]


@pytest.mark.parametrize("value", [None, 0, "", [1, [2]], np.arange(100_000.0)], ids=lambda v: type(v).__name__)
def test_the_factory_runs_once(name, value):
    factory = Factory(value)
    for _ in range(3):
        got = pyray_ser.get_or_put(name, factory)
        assert repr(got) == repr(value) and type(got) is type(value)
    assert factory.calls == 1
    assert not claims()
    assert repr(pyray_ser.get_by_name(name)) == repr(value)


def test_a_value_that_was_put_needs_no_factory(name):
    pyray_ser.put("put", name=name)
    factory = Factory("computed")
    assert pyray_ser.get_or_put(name, factory) == "put"
    assert factory.calls == 0


def test_the_caller_that_computes_reads_the_stored_value_too(name):
    mine = np.zeros(100_000)
    got = pyray_ser.get_or_put(name, lambda: mine)
    assert got is not mine and not got.flags.writeable
    mine[0] = 1
    assert got[0] == pyray_ser.get_by_name(name)[0] == 0
    private = pyray_ser.get_or_put(name, lambda: None, mmap_mode="c")
    private[0] = 2
    assert got[0] == 0


def test_threads_compute_once(name):
    factory = Factory(np.arange(50_000.0), pause=0.2)
    sums = []
    threads = [
        threading.Thread(target=lambda: sums.append(pyray_ser.get_or_put(name, factory).sum())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert factory.calls == 1
    assert sums == [factory.value.sum()] * 8
    assert not claims()


def test_an_exception_reaches_its_own_caller_and_the_next_waiter_computes(name):
    bad, good = Factory(ValueError("bad"), pause=0.2), Factory("good")
    found = []
    thread = threading.Thread(target=lambda: found.append(pyray_ser.get_or_put(name, good, timeout=100)))

    def fails():
        thread.start()
        return bad()

    with pytest.raises(ValueError, match="bad"):
        pyray_ser.get_or_put(name, fails)
    thread.join()
    assert found == ["good"] and (bad.calls, good.calls) == (1, 1)
    assert not claims()


def test_a_value_that_cannot_be_put_leaves_the_name_free(name):
    with pytest.raises(exc.SerializationError):
        pyray_ser.get_or_put(name, lambda: [threading.Lock()])
    assert not claims()
    assert pyray_ser.get_or_put(name, lambda: 1) == 1


def test_a_waiter_is_woken_without_delay(name):
    begun, ended = threading.Event(), []

    def computes():
        begun.set()
        time.sleep(0.3)
        ended.append(time.monotonic())
        return 1

    thread = threading.Thread(target=pyray_ser.get_or_put, args=(name, computes))
    thread.start()
    begun.wait()
    pyray_ser.get_or_put(name, computes)
    after = time.monotonic() - ended[0]
    thread.join()
    assert len(ended) == 1
    assert after < patience(1.0)


def test_a_factory_that_asks_for_its_own_name(name):
    def factory():
        return pyray_ser.get_or_put(name, factory)

    with pytest.raises(RuntimeError, match="asks for"):
        pyray_ser.get_or_put(name, factory)
    assert not claims()


def test_a_factory_that_asks_for_other_names(name):
    def factory():
        return pyray_ser.get_or_put(f"{name}-1", lambda: 1) + pyray_ser.get_or_put(f"{name}-2", lambda: 2)

    assert pyray_ser.get_or_put(name, factory) == 3
    # The value is known now, so its factory may ask for it.
    assert pyray_ser.get_or_put(f"{name}-3", lambda: pyray_ser.get_or_put(name, factory)) == 3


def test_a_timeout_names_the_process_that_computes(name):
    begun, go_on = threading.Event(), threading.Event()

    def computes():
        begun.set()
        go_on.wait()
        return 1

    thread = threading.Thread(target=pyray_ser.get_or_put, args=(name, computes))
    thread.start()
    begun.wait()
    try:
        for timeout in (0, 0.2):
            with pytest.raises(exc.GetTimeoutError, match=f"process {os.getpid()} .* has not finished computing"):
                pyray_ser.get_or_put(name, computes, timeout=timeout)
    finally:
        go_on.set()
        thread.join()
    assert pyray_ser.get_or_put(name, computes, timeout=0) == 1


def test_a_value_that_others_put_meanwhile_wins(name):
    def factory():
        pyray_ser.put("other", name=name)
        return "mine"

    assert pyray_ser.get_or_put(name, factory) == "other"


def test_a_value_that_is_freed_is_computed_again(name):
    factory = Factory(1)
    pyray_ser.get_or_put(name, factory)
    pyray_ser.free(pyray_ser.names()[name])
    assert pyray_ser.get_or_put(name, factory) == 1
    pyray_ser.delete(name)
    assert pyray_ser.get_or_put(name, factory) == 1
    assert factory.calls == 3


@pytest.mark.parametrize("length", [1, 100, 195, 196, 215])
def test_names_of_every_length(length):
    text = "ä" * (length // 2) + "n" * (length % 2)
    assert pyray_ser.get_or_put(text, lambda: length) == length
    pyray_ser.free(pyray_ser.names()[text])


def test_arguments_that_cannot_be(name):
    with pytest.raises(TypeError, match="callable"):
        pyray_ser.get_or_put(name, 1)
    with pytest.raises(TypeError, match="name"):
        pyray_ser.get_or_put(1, lambda: 1)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            pyray_ser.get_or_put(name, lambda: 1, timeout=wrong)
    for wrong in ("", "n" * 216):
        with pytest.raises(ValueError, match="bytes"):
            pyray_ser.get_or_put(wrong, lambda: 1)
    with pytest.raises(ValueError, match="reserved"):
        pyray_ser.get_or_put("pyray_ser/mine", lambda: 1)
    with pytest.raises(ValueError, match="reserved"):
        pyray_ser.put(1, name="pyray_ser/mine")
    with pytest.raises(ValueError, match="reserved"):
        pyray_ser.put(1, name="pyray_ser/mine", replace=True)


# ---- async ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_async_callers_compute_once_and_do_not_block_the_loop(name, kind):
    calls, beats = [], []

    async def coroutine():
        calls.append(1)
        await asyncio.sleep(0.3)
        return np.arange(1000.0)

    def function():
        calls.append(1)
        time.sleep(0.3)
        return np.arange(1000.0)

    async def beat():
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def main():
        heart = asyncio.create_task(beat())
        factory = {"coroutine": coroutine, "function": function}[kind]
        found = await asyncio.gather(*(pyray_ser.get_or_put_async(name, factory) for _ in range(50)))
        heart.cancel()
        return [value.sum() for value in found]

    assert asyncio.run(main()) == [np.arange(1000.0).sum()] * 50
    assert len(calls) == 1
    assert len(beats) > 8
    assert not claims()


def test_async_and_blocking_callers_wait_for_each_other(name):
    async def coroutine():
        await asyncio.sleep(0.2)
        return "coroutine"

    async def main():
        first = asyncio.create_task(pyray_ser.get_or_put_async(name, coroutine))
        await asyncio.sleep(0.05)
        thread = asyncio.to_thread(pyray_ser.get_or_put, name, lambda: "thread")
        return await asyncio.gather(first, thread)

    assert asyncio.run(main()) == ["coroutine"] * 2


def test_a_cancelled_task_gives_back_its_claim(name):
    async def forever():
        await asyncio.sleep(1000)

    async def main():
        first = asyncio.create_task(pyray_ser.get_or_put_async(name, forever))
        await asyncio.sleep(0.05)
        assert len(claims()) == 1
        second = asyncio.create_task(pyray_ser.get_or_put_async(name, lambda: "second"))
        await asyncio.sleep(0.05)
        first.cancel()
        assert await second == "second"
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())
    assert not claims()


def test_an_async_timeout_and_a_coroutine_that_asks_for_its_own_name(name):
    async def slow():
        await asyncio.sleep(0.5)
        return 1

    async def asks():
        return await pyray_ser.get_or_put_async(f"{name}-1", asks)

    async def main():
        first = asyncio.create_task(pyray_ser.get_or_put_async(name, slow))
        await asyncio.sleep(0.05)
        with pytest.raises(exc.GetTimeoutError, match="has not finished"):
            await pyray_ser.get_or_put_async(name, slow, timeout=0.1)
        with pytest.raises(RuntimeError, match="asks for"):
            await pyray_ser.get_or_put_async(f"{name}-1", asks)
        return await first

    assert asyncio.run(main()) == 1


# ---- processes ------------------------------------------------------------------------------------------------------------

HEAD = """
import os, signal, sys, time
import numpy as np
import pyray_ser

def shared(log, pause=0.2):
    def factory():
        with open(log, "a") as file:
            file.write("x")
        time.sleep(pause)
        return np.arange(1_000_000.0)
    return factory
"""


@pytest.mark.parametrize("count", [8, pytest.param(64, marks=pytest.mark.heavy)])
def test_unrelated_processes_compute_once(tmp_path, count):
    elements = 1_000_000 if count < 64 else 25_000_000
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys, time
import numpy as np
import pyray_ser

def factory():
    with open(sys.argv[2], "a") as file:
        file.write("x")
    time.sleep(0.5)
    return np.arange({elements}.0)

pyray_ser.init(sys.argv[1], capacity="1G")
print("ready", flush=True)
sys.stdin.readline()
array = pyray_ser.get_or_put("value", factory)
print(array.sum(), flush=True)
sys.stdin.readline()
for line in open("/proc/self/smaps_rollup"):
    if line.startswith("Pss_Shmem:"):
        print(line.split()[1], flush=True)
sys.stdin.readline()
""")
    run(
        f"""
        import os, subprocess, sys
        names = [sys.executable, "-P", {str(script)!r}, f"compute-once-{{os.getpid()}}", {str(tmp_path / "log")!r}]
        processes = [subprocess.Popen(names, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range({count})]
        def each():
            found = [process.stdout.readline().strip() for process in processes]
            return found
        def go_on():
            for process in processes:
                process.stdin.write("\\n")
                process.stdin.flush()
        assert each() == ["ready"] * {count}
        go_on()
        expected = float({elements} * ({elements} - 1) // 2)
        assert {{float(text) for text in each()}} == {{expected}}
        go_on()
        resident = sum(int(text) for text in each()) * 1024
        assert resident < {elements} * 8 * 1.1 + 2e6 * {count}, resident
        go_on()
        assert [process.wait() for process in processes] == [0] * {count}
        assert open({str(tmp_path / "log")!r}).read() == "x"
    """,
        timeout=200,
    )


def test_the_next_waiter_takes_over_when_the_process_that_computes_is_killed(tmp_path):
    log = str(tmp_path / "log")
    run(
        HEAD
        + f"""
if __name__ == "__main__":
    pyray_ser.init()
    first = os.fork()
    if first == 0:
        pyray_ser.get_or_put("value", shared({log!r}, 1000))
    while not os.path.exists({log!r}):
        time.sleep(0.01)
    waiters = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            assert pyray_ser.get_or_put("value", shared({log!r})).sum() == np.arange(1_000_000.0).sum()
            os._exit(0)
        waiters.append(pid)
    time.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    assert [os.waitpid(pid, 0)[1] for pid in waiters] == [0] * 4
    os.waitpid(first, 0)
    assert open({log!r}).read() == "xx"
    store = pyray_ser.init()
    store.look()
    assert list(pyray_ser.names()) == ["value"] and pyray_ser.stats()["objects"] == 1
"""
    )


def test_a_child_that_outlives_the_process_that_computes_does_not_keep_the_claim(tmp_path):
    log = str(tmp_path / "log")
    run(
        HEAD
        + f"""
if __name__ == "__main__":
    pyray_ser.init()
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        def factory():
            child = os.fork()
            if child == 0:
                os.close(writing)
                os.read(reading, 1)  # until the main process ends
                os._exit(0)
            with open({log!r}, "w") as file:
                file.write("x")
            time.sleep(1000)
        pyray_ser.get_or_put("value", factory)
    while not os.path.exists({log!r}):
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert pyray_ser.get_or_put("value", shared({log!r}, 0), timeout=60).sum() > 0
"""
    )


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("form", ["blocking", "async"])
def test_factories_of_processes_that_ask_for_each_other_get_one_error(count, form):
    run(
        f"""
import asyncio, os, sys
import pyray_ser

pyray_ser.init()
names = [f"value-{{i}}" for i in range({count})]
begun = [os.pipe() for _ in names]

def factory(i):
    for _, writing in begun:
        os.write(writing, b"x")
    for _ in names:
        os.read(begun[i][0], 1)
    return pyray_ser.get_or_put(names[(i + 1) % {count}], lambda: "other") + "!"

async def coroutine(i):
    for _, writing in begun:
        os.write(writing, b"x")
    for _ in names:
        os.read(begun[i][0], 1)
    return await pyray_ser.get_or_put_async(names[(i + 1) % {count}], lambda: "other") + "!"

children = []
for i, name in enumerate(names):
    pid = os.fork()
    if pid == 0:
        try:
            if {form!r} == "blocking":
                value = pyray_ser.get_or_put(name, lambda: factory(i))
            else:
                value = asyncio.run(pyray_ser.get_or_put_async(name, lambda: coroutine(i)))
            assert value == "other" + "!" * ({count} - i), value
        except RuntimeError as error:
            text = str(error)
            assert "would wait for itself" in text and str(os.getpid()) in text, text
            assert all(repr(other) in text for other in names), text
            assert text.count("which process") == {count} - 1, text
            os._exit(3)
        os._exit(0)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert codes == [3] + [0] * ({count} - 1), codes
store = pyray_ser.init()
store.look()
left = [entry[0] for entry in pyray_ser._core.names_of(store)]
assert not [name for name in left if name.startswith("pyray_ser/")], left
""",
        timeout=100,
    )


def waits():
    store = pyray_ser.init()
    return [entry[0] for entry in pyray_ser._core.names_of(store) if entry[0].startswith("pyray_ser/waiting/")]


def test_factories_of_threads_that_ask_for_each_other_get_one_error(name):
    barrier, found = threading.Barrier(2), {}

    def computes(mine, other):
        def factory():
            barrier.wait()
            return pyray_ser.get_or_put(other, lambda: "other")

        try:
            found[mine] = pyray_ser.get_or_put(mine, factory)
        except RuntimeError as error:
            found[mine] = type(error)

    pairs = [(f"{name}-1", f"{name}-2"), (f"{name}-2", f"{name}-1")]
    threads = [threading.Thread(target=computes, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {f"{name}-1": RuntimeError, f"{name}-2": "other"}
    assert not waits() and not claims()


def test_a_killed_process_leaves_no_trace_of_its_wait():
    run(
        """
import os, signal, time
import pyray_ser

store = pyray_ser.init()
def waiting():
    return [entry[0] for entry in pyray_ser._core.names_of(store) if entry[0].startswith("pyray_ser/waiting/")]
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(reading, 1)
    pyray_ser.get_or_put("outer", lambda: pyray_ser.get_or_put("inner", lambda: 1))
    os._exit(0)
def computes():
    os.write(writing, b"x")
    while not waiting():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 2
assert pyray_ser.get_or_put("inner", computes) == 2
# The end of the process must not look like a factory that still waits for "inner".
assert pyray_ser.get_or_put("outer", lambda: pyray_ser.get_or_put("inner", lambda: 3)) == 2
store.look()
assert not waiting()
""",
        timeout=100,
    )


def test_a_timeout_in_a_factory_ends_before_factories_wait_for_each_other(name):
    barrier, found = threading.Barrier(2), {}

    def patient():
        barrier.wait()
        return pyray_ser.get_or_put(f"{name}-2", lambda: "other")

    def impatient():
        barrier.wait()
        with pytest.raises(exc.GetTimeoutError):
            pyray_ser.get_or_put(f"{name}-1", lambda: "other", timeout=0.5)
        return "alone"

    def computes(mine, factory):
        found[mine] = pyray_ser.get_or_put(mine, factory)

    pairs = [(f"{name}-1", patient), (f"{name}-2", impatient)]
    threads = [threading.Thread(target=computes, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found.values()) == {"alone"}
    assert not waits()


@pytest.mark.heavy
def test_random_kills_while_processes_compute(tmp_path):
    log = str(tmp_path / "log")
    run(
        HEAD
        + f"""
import random

if __name__ == "__main__":
    random.seed(7)
    pyray_ser.init()
    expected = np.arange(1_000_000.0).sum()
    deaths = computed = 0
    for round in range(170):
        open({log!r}, "w").close()
        name = f"value {{round}}"
        pids = []
        for i in range(4):
            pid = os.fork()
            if pid == 0:
                assert pyray_ser.get_or_put(name, shared({log!r}, 0.01)).sum() == expected
                os._exit(0)
            pids.append(pid)
        for pid in pids[:3]:
            # Shorter than the factory, so that most kills meet a process that computes or waits, on a fast machine, too.
            time.sleep(random.random() * 0.01)
            os.kill(pid, signal.SIGKILL)
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        died = sum(status != 0 for status in statuses)
        assert statuses[3] == 0 and all(status in (0, 9) for status in statuses), statuses
        deaths += died
        runs = len(open({log!r}).read())
        assert 1 <= runs <= died + 1, (runs, died)
        assert pyray_ser.get_by_name(name).sum() == expected
        pyray_ser.init().look()
        pyray_ser.free(pyray_ser.names()[name])
        stats = pyray_ser.stats()
        assert stats["objects"] == 0 and stats["in_flight"] == 0, stats
    assert pyray_ser.init().check() is None
    assert deaths > 100, deaths
""",
        timeout=200,
    )


def test_a_claim_says_who_computes(name):
    begun, go_on = threading.Event(), threading.Event()

    def computes():
        begun.set()
        go_on.wait()

    thread = threading.Thread(target=pyray_ser.get_or_put, args=(name, computes))
    thread.start()
    begun.wait()
    (claim,) = claims()
    assert claim == compute_once._claim_name(name) == f"pyray_ser/computing/{name}"
    (record,) = [record for record in pyray_ser.objects() if record["name"] == claim]
    assert record["creator_pid"] == os.getpid()
    assert claim not in pyray_ser.names()
    go_on.set()
    thread.join()
    gc.collect()
    assert not claims()


def test_an_interrupt_ends_the_wait_and_the_computation(name):
    """SIGINT raises KeyboardInterrupt in both, and gives back the claim."""
    run(
        HEAD
        + f"""
if __name__ == "__main__":
    import threading
    pyray_ser.init()
    name = {name!r}
    begun = threading.Event()
    def computes():
        begun.set()
        time.sleep(3)
        return 1
    thread = threading.Thread(target=pyray_ser.get_or_put, args=(name, computes))
    thread.start()
    begun.wait()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        pyray_ser.get_or_put(name, lambda: 2)
    except KeyboardInterrupt:
        print("interrupted while it waited")
    thread.join()
    pyray_ser.free(pyray_ser.names()[name])
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        pyray_ser.get_or_put(name, lambda: time.sleep(100))
    except KeyboardInterrupt:
        print("interrupted while it computed")
    assert pyray_ser.get_or_put(name, lambda: 3) == 3
"""
    )


# ---- odd factories --------------------------------------------------------------------------------------------------------


def test_an_async_factory_may_return_a_coroutine(name):
    async def download():
        return "downloaded"

    assert asyncio.run(pyray_ser.get_or_put_async(name, lambda: download())) == "downloaded"


def test_a_task_that_outlives_its_factory_may_ask_for_the_same_name(name):
    async def download():
        return "again"

    async def later(done):
        await done.wait()
        return await pyray_ser.get_or_put_async(name, download)

    async def main():
        done, tasks = asyncio.Event(), []

        async def factory():
            tasks.append(asyncio.create_task(later(done)))
            return "first"

        assert await pyray_ser.get_or_put_async(name, factory) == "first"
        pyray_ser.delete(name)
        done.set()
        return await tasks[0]

    assert asyncio.run(main()) == "again"


def test_a_coroutine_that_is_closed_with_its_loop_gives_back_its_claim(name):
    async def forever():
        await asyncio.sleep(1000)

    loop = asyncio.new_event_loop()
    coroutine = pyray_ser.get_or_put_async(name, forever)
    task = loop.create_task(coroutine)
    loop.run_until_complete(asyncio.sleep(0.05))
    assert len(claims()) == 1
    coroutine.close()  # as the interpreter does if the task is never awaited
    assert not claims()
    task._log_destroy_pending = False
    loop.close()


def test_a_child_that_leaves_the_factory_does_not_give_back_the_claim():
    run(
        """
        import os
        import pyray_ser
        pyray_ser.init()
        def factory():
            pid = os.fork()
            if pid == 0:
                raise SystemExit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            found = [entry[0] for entry in pyray_ser._core.names_of(pyray_ser.init())]
            assert found == ["pyray_ser/computing/name"], found
            return 1
        try:
            assert pyray_ser.get_or_put("name", factory) == 1
        except SystemExit as leaving:
            os._exit(leaving.code)
        """
    )
