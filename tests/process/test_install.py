"""Test that existing pool code works unchanged while large arrays and bytes travel through the store."""

from __future__ import annotations

import pytest
from isolated import run

# Each entry has a script, its requirements, and a check of the values that went through the store.
HEAD = """
import enum, multiprocessing as mp, os, signal, sys, threading, time
import numpy as np
import pyray_ser

def through_store(array):
    # The memory of an array that came through the store is a mapping of it, or a private one with a pin.
    base = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return type(base).__module__.startswith("pyray_ser")

def report(array):
    return through_store(array), array.flags.writeable, float(array.sum())

def ones(n):
    return np.ones(n)

def write(array):
    array[0] = 5
    return array

def wait_until(condition, patience=20.0):
    end = time.monotonic() + patience
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()

class Color(enum.Enum):
    RED = 1

def same(color, cls, function):
    return color is Color.RED, cls is Color, function is same, isinstance(color, Color)
"""


def script(body: str) -> str:
    import textwrap

    return textwrap.dedent(HEAD) + textwrap.dedent(body)


METHODS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("method", METHODS)
def test_pool(method):
    body = f"""
    if __name__ == "__main__":
        context = mp.get_context("{method}")
        pyray_ser.install()
        with context.Pool(2) as pool:
            array = np.ones(400_000)
            assert pool.map(report, [array, array[:10]]) == [(True, True, 400_000.0), (False, True, 10.0)]
            # results, although their arguments were small
            result = pool.apply(ones, (300_000,))
            assert through_store(result) and result.flags.writeable
            back = pool.apply(write, (array,))
            assert back[0] == 5 and array[0] == 1
            nested = pool.apply(dict, (), {{"a": [np.zeros(200_000)], "b": (b"x" * 2_000_000, bytearray(1_500_000))}})
            assert through_store(nested["a"][0]) and nested["b"][0] == b"x" * 2_000_000
            assert type(nested["b"][1]) is bytearray and len(nested["b"][1]) == 1_500_000
            assert pool.apply(same, (Color.RED, Color, same)) == (True, True, True, True)
            del result, back, nested
        assert wait_until(lambda: pyray_ser.stats()["in_flight"] == 0), pyray_ser.stats()
        pyray_ser.uninstall()
        print("done")
    """
    assert run(script(body)) == "done"


@pytest.mark.parametrize("method", METHODS)
def test_process_pool_executor(method):
    body = f"""
    from concurrent.futures import ProcessPoolExecutor
    if __name__ == "__main__":
        with pyray_ser.install(min_bytes=100_000, mmap_mode="r"):
            with ProcessPoolExecutor(2, mp_context=mp.get_context("{method}")) as pool:
                array = np.arange(50_000.0)
                assert pool.submit(report, array).result() == (True, False, array.sum())
                result = pool.submit(ones, 50_000).result()
                assert through_store(result) and not result.flags.writeable
                try:
                    pool.submit(write, array).result()
                except ValueError as error:
                    assert "read-only" in str(error)
                else:
                    raise SystemExit("it was written")
                del result
        print(wait_until(lambda: pyray_ser.stats()["in_flight"] == 0))
    """
    assert run(script(body)) == "True"


def test_queue_pipe_and_process():
    body = """
    def child(queue, end, array):
        queue.put((through_store(array), array.sum()))
        queue.put(np.full(300_000, 3.0))
        end.send({"deep": [np.full(300_000, 4.0)]})
        end.send(end.recv()[:5].copy())
    if __name__ == "__main__":
        for method in ("fork", "spawn"):
            context = mp.get_context(method)
            pyray_ser.install()
            queue, (mine, theirs) = context.Queue(), context.Pipe()
            process = context.Process(target=child, args=(queue, theirs, np.ones(10)))
            process.start()
            theirs.close()
            assert queue.get() == (False, 10.0)
            found = queue.get()
            assert through_store(found) and found[0] == 3
            deep = mine.recv()["deep"][0]
            assert through_store(deep) and deep[-1] == 4
            mine.send(np.arange(500_000))
            assert (mine.recv() == np.arange(5)).all()
            process.join(10)
            assert process.exitcode == 0
            # The sender is gone, and what it sent is still there to be read.
            del found, deep
            pyray_ser.uninstall()
        print(wait_until(lambda: pyray_ser.stats()["in_flight"] == 0))
    """
    assert run(script(body)) == "True"


def test_a_pool_started_before_goes_on():
    body = """
    if __name__ == "__main__":
        with mp.get_context("fork").Pool(1) as pool:
            pool.apply(ones, (10,))
            pyray_ser.install()
            # The worker has no store: it gets values, as before.
            assert pool.apply(report, (np.ones(400_000),)) == (False, True, 400_000.0)
            assert not through_store(pool.apply(ones, (400_000,)))
            pyray_ser.uninstall()
            assert not pool.apply(report, (np.ones(400_000),))[0]
        print("done")
    """
    assert run(script(body)) == "done"


def test_messages_under_way_still_load_after_uninstall():
    body = """
    if __name__ == "__main__":
        queue = mp.get_context("fork").SimpleQueue()
        pyray_ser.install()
        queue.put(np.ones(300_000))
        pyray_ser.uninstall()
        array = queue.get()
        import multiprocessing.connection, multiprocessing.queues, multiprocessing.process, multiprocessing.reduction
        assert multiprocessing.queues._ForkingPickler is multiprocessing.reduction.ForkingPickler
        assert multiprocessing.connection._ForkingPickler is multiprocessing.reduction.ForkingPickler
        assert "__reduce_ex__" not in vars(multiprocessing.process.BaseProcess)
        print(through_store(array))
    """
    assert run(script(body)) == "True"


def test_what_cannot_be_pickled_is_refused_as_without_install():
    body = """
    import pickle
    if __name__ == "__main__":
        pyray_ser.install()
        with mp.get_context("fork").Pool(1) as pool:
            assert pool.apply(same, (Color.RED, Color, same)) == (True, True, True, True)
            for refused, kind in ((threading.Lock(), TypeError), (lambda x: x, (pickle.PicklingError, AttributeError))):
                try:
                    pool.apply(ones, ([np.ones(300_000), refused],))
                except kind as error:
                    assert "pickle" in str(error), error
                else:
                    raise SystemExit(f"{refused} was pickled")
        print(pyray_ser.stats()["in_flight"])
    """
    assert run(script(body)) == "0"


def test_a_sender_may_close_its_end_before_anybody_reads():
    body = """
    def reads_late(end, answer):
        time.sleep(3)
        answer.send(report(end.recv()))
    if __name__ == "__main__":
        pyray_ser.install()
        for duplex in (True, False):
            # Spawned: nobody but the reader has the reading side.
            (theirs, mine), (back, answer) = mp.Pipe(duplex), mp.Pipe(False)
            process = mp.get_context("spawn").Process(target=reads_late, args=(theirs, answer))
            process.start()
            theirs.close()
            mine.send(np.ones(300_000))
            mine.close()
            assert back.recv() == (True, True, 300_000.0)
            process.join()
        print(wait_until(lambda: pyray_ser.stats()["in_flight"] == 0))
    """
    assert run(script(body)) == "True"


def test_the_bound_holds_for_all_senders_together():
    body = """
    def fill(queue, count, full):
        for _ in range(count):
            queue.put(np.ones(1_000_000))
        full.set()
    if __name__ == "__main__":
        pyray_ser.init(capacity=128 << 20)
        pyray_ser.install()
        context = mp.get_context("fork")
        queues = [context.Queue() for _ in range(4)]
        for queue in queues:
            full = context.Event()
            process = context.Process(target=fill, args=(queue, 3, full))
            process.start()
            full.wait()
            # The feeder thread of the queue sends one after another; a pipe takes no more than a few in-band bytes.
            wait_until(lambda: queue._reader.poll())
            time.sleep(0.3)
            assert pyray_ser.stats()["used"] < 33 << 20, pyray_ser.stats()
        shares = [through_store(queue.get()) for queue in queues for _ in range(3)]
        assert sum(shares) >= 4, shares
        print("bounded")
    """
    assert run(script(body)) == "bounded"


def test_past_the_bound_and_when_full_messages_go_as_before():
    body = """
    if __name__ == "__main__":
        pyray_ser.init(capacity=64 << 20)
        queue = mp.get_context("fork").Queue()
        pyray_ser.install()
        for _ in range(12):
            queue.put(np.ones(1_000_000))
        found = [queue.get() for _ in range(12)]
        assert all(array.sum() == 1_000_000 for array in found)
        shares = [through_store(array) for array in found]
        assert sum(shares) == 2 and pyray_ser.stats()["used"] < 20_000_000, (shares, pyray_ser.stats())
        del found
        pyray_ser.install(max_in_flight=1 << 40)
        held = [pyray_ser.put(np.ones(1_000_000)) for _ in range(7)]
        for _ in range(3):
            queue.put(np.ones(1_000_000))
        assert [queue.get().sum() for _ in range(3)] == [1_000_000] * 3
        print("done")
    """
    assert run(script(body)) == "done"


def test_sockets_get_it_in_band():
    body = """
    from multiprocessing.connection import Client, Listener
    import pickle, threading
    if __name__ == "__main__":
        pyray_ser.install()
        for family in ("AF_INET", "AF_UNIX"):
            with Listener(family=family) as listener:
                sent = []
                def client():
                    with Client(listener.address, family) as end:
                        end.send(np.ones(300_000))
                thread = threading.Thread(target=client)
                thread.start()
                with listener.accept() as end:
                    assert not through_store(end.recv())
                thread.join()
        print(pyray_ser.stats()["serial"])
    """
    assert run(script(body)) == "1"


def test_an_array_that_nobody_can_write_is_stored_once():
    body = """
    if __name__ == "__main__":
        pyray_ser.install()
        queue = mp.get_context("fork").SimpleQueue()
        stored = pyray_ser.get(pyray_ser.put(np.ones(1_000_000)))
        fixed = np.ones(1_000_000)
        fixed.flags.writeable = False
        for array, objects in ((stored, 0), (fixed, 1), (fixed[10:], 1), (np.ones(1_000_000), 3)):
            before = pyray_ser.stats()["used"]
            received = []
            for _ in range(3):
                queue.put(array)
                received.append(queue.get())
            assert all((found == array).all() and found.flags.writeable for found in received)
            grown = (pyray_ser.stats()["used"] - before) / 8_000_000
            assert objects - 0.1 < grown < objects + 0.2, (objects, grown)
            received[0][0] = 9
            assert array[0] == 1 and received[1][0] == 1
            del received
        print("done")
    """
    assert run(script(body)) == "done"


def test_a_read_only_array_that_was_written_to_all_the_same_is_sent_as_it_is():
    body = """
    if __name__ == "__main__":
        pyray_ser.install()
        queue = mp.get_context("fork").SimpleQueue()

        def sent(array):
            queue.put(array)
            return queue.get()

        owner = np.zeros(2_000_000)
        owner.flags.writeable = False
        assert sent(owner)[-1] == 0
        owner.flags.writeable = True  # an owner may
        owner[-1] = 5
        owner.flags.writeable = False
        assert sent(owner)[-1] == 5
        base = np.zeros(2_000_000)
        older = base[:]
        base.flags.writeable = False
        assert sent(base)[0] == 0
        older[0] = 7  # taken before the flag was cleared
        assert sent(base)[0] == 7
        ref = pyray_ser.put(np.zeros(2_000_000))
        private = pyray_ser.get(ref, mmap_mode="c")
        private.flags.writeable = False
        assert sent(private)[3] == 0
        private.flags.writeable = True
        private[3] = 8
        private.flags.writeable = False
        assert sent(private)[3] == 8
        print("done")
    """
    assert run(script(body)) == "done"


def test_lost_messages_are_freed():
    body = """
    def reads(end, ready):
        ready.set()
        end.recv()
        time.sleep(60)
    if __name__ == "__main__":
        context = mp.get_context("fork")
        pyray_ser.install()
        # read by somebody who died before loading it, or never read; then the pipes go
        ends = []
        for _ in range(5):
            mine, theirs = context.Pipe()
            ready = context.Event()
            process = context.Process(target=reads, args=(theirs, ready))
            process.start()
            ready.wait()
            os.kill(process.pid, signal.SIGSTOP)
            mine.send(np.ones(300_000))
            process.kill()
            process.join()
            ends += mine, theirs
        queue = context.SimpleQueue()
        queue.put(np.ones(300_000))
        # Counted while all pipes are open: from their closing on, the sweeper may be faster than this line.
        assert pyray_ser.stats()["in_flight"] == 6
        queue.close()
        for end in ends:
            end.close()
        del queue, mine, theirs, end, ends
        assert wait_until(lambda: pyray_ser.stats()["in_flight"] == 0), pyray_ser.stats()
        print(pyray_ser.stats()["used"] < 1_000_000)
    """
    assert run(script(body)) == "True"


def test_an_array_that_arrived_is_sent_on_as_it_came_unless_it_was_written_to():
    body = """
    def same(array):
        return array
    def changed(array, at):
        array[at] = 7
        return array
    def part(array):
        return array[1000:]
    if __name__ == "__main__":
        pyray_ser.install()
        with mp.get_context("fork").Pool(1) as pool:
            array = np.ones(1_000_000)
            def serials(function, *more):
                before = pyray_ser.stats()["serial"]
                back = pool.apply(function, (array, *more))
                assert back.flags.writeable and array.sum() == 1_000_000
                return back, pyray_ser.stats()["objects"]
            back, objects = serials(same)
            assert (back == 1).all() and objects == 1
            back[5] = 3
            assert pool.apply(report, (back,)) == (True, True, 1_000_002.0)
            for at in (0, 500_000, 999_999):
                back, objects = serials(changed, at)
                assert back[at] == 7 and back.sum() == 1_000_006
            back, objects = serials(part)
            assert back.shape == (999_000,) and (back == 1).all()
            del back
        print(wait_until(lambda: pyray_ser.stats()["in_flight"] == 0 and not pyray_ser.stats()["objects"]))
    """
    assert run(script(body)) == "True"


def test_pools_inside_workers_share_the_store():
    body = """
    from concurrent.futures import ProcessPoolExecutor
    def outer(array):
        with ProcessPoolExecutor(1, mp_context=mp.get_context("fork")) as pool:
            inner = pool.submit(report, array).result()
        return inner, os.environ.get("PYRAY_SER_STORE", "").split(":")[0]
    if __name__ == "__main__":
        pyray_ser.install()
        for method in ("fork", "spawn"):
            with ProcessPoolExecutor(1, mp_context=mp.get_context(method)) as pool:
                (shared, _, total), name = pool.submit(outer, np.ones(300_000)).result()
                assert shared and total == 300_000, method
                assert name == os.environ["PYRAY_SER_STORE"].split(":")[0]
        print("done")
    """
    assert run(script(body)) == "done"


def test_options_are_checked():
    import pyray_ser

    for options in ({"min_bytes": 0}, {"min_bytes": "one"}, {"mmap_mode": "w"}, {"max_in_flight": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            pyray_ser.install(**options)
    pyray_ser.uninstall()
    pyray_ser.uninstall()


def test_joblib():
    pytest.importorskip("joblib")
    body = """
    if __name__ == "__main__":
        pyray_ser.install()
        from joblib import Parallel, delayed
        # Without its memmapping: what arrives in shared memory came through the store.
        def shared_arguments():
            got = Parallel(2, max_nbytes=None)(delayed(report)(np.ones(300_000)) for _ in range(4))
            assert [rest for _, *rest in got] == [[True, 300_000.0]] * 4, got
            return all(shared for shared, _, _ in got)
        assert wait_until(shared_arguments, 60)
        def shared_results():
            results = Parallel(2)(delayed(ones)(300_000) for _ in range(4))
            assert all(array.sum() == 300_000 for array in results)
            return all(through_store(array) for array in results)
        # Until both workers have started they get values: each could read what the other sends.
        assert wait_until(shared_results, 60)
        pyray_ser.uninstall()
        results = Parallel(2)(delayed(ones)(300_000) for _ in range(2))
        from joblib.externals.loky import get_reusable_executor
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        print(sum(array.sum() for array in results))
    """
    assert run(script(body), errors=True) == "600000.0"


def test_joblib_goes_on_to_map_large_arguments_from_its_files(tmp_path):
    pytest.importorskip("joblib")
    body = f"""
    from joblib import Parallel, delayed
    def kind(array):
        return type(array).__name__, array.flags.writeable, float(array.sum())
    if __name__ == "__main__":
        pyray_ser.install()
        array = np.ones(300_000)
        mapped = np.memmap({str(tmp_path / "file")!r}, dtype=float, mode="w+", shape=(300_000,))
        for value, total in ((array, 300_000.0), (mapped, 0.0)):
            found = Parallel(2)(delayed(kind)(value) for _ in range(4))
            assert found == [("memmap", value is mapped, total)] * 4, found
        array[:] = 2
        assert Parallel(2)(delayed(kind)(array) for _ in range(2)) == [("memmap", False, 600_000.0)] * 2
        from joblib.externals.loky import get_reusable_executor
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        print("files")
    """
    assert run(script(body), errors=True) == "files"


@pytest.mark.heavy
def test_twenty_gigabytes_through_one():
    # Workers receive and return 200 arrays of 100 MB through a store of 1 GB. Memory stays bounded, values are correct.
    body = """
    def smaller(array):
        return array[:1_250_000] + array[-1]
    if __name__ == "__main__":
        pyray_ser.init(capacity=1 << 30)
        pyray_ser.install()
        largest = 0
        with mp.get_context("fork").Pool(2) as pool:
            arrays = (np.full(12_500_000, float(i)) for i in range(200))
            for i, result in enumerate(pool.imap(smaller, limited(arrays))):
                taken.release()
                assert result.shape == (1_250_000,) and result[0] == result[-1] == 2 * i
                largest = max(largest, pyray_ser.stats()["used"])
        assert largest <= 1 << 30
        # Some did go through the store.
        assert pyray_ser.stats()["serial"] > 1 and largest > 100_000_000
        del result
        print(wait_until(lambda: pyray_ser.stats()["in_flight"] == 0))
    """
    # Without a limit, imap would create all its arguments immediately.
    limit = """
    taken = threading.Semaphore(6)
    def limited(arrays):
        for array in arrays:
            taken.acquire()
            yield array
    """
    assert run(script(limit) + script(body).removeprefix(script("")), timeout=280) == "True"
