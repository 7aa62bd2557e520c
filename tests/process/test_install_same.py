"""Test that each script prints the same output with `install` as without it."""

from __future__ import annotations

import os
import sys

import pytest
from isolated import run

# A long timeout, because the machine may be busy.
PATIENCE = 300

HEAD = """
import multiprocessing as mp, os, pickle, signal, sys, threading, time
import numpy as np
import pyray_ser
"""


def same(body: str, *, needs_store: bool = False, **options: object) -> str:
    """
    Run a script without and with `install`, compare the two outputs, and return the output.

    Parameters
    ----------
    body : str
        The script; it calls ``start()``, which calls `install` in one run and does nothing in the other.
    needs_store : bool
        Whether the script with `install` must have stored something.
    **options
        Options for `install`.
    """
    import textwrap

    body = textwrap.dedent(body)
    checked = "    assert pyray_ser.stats()['serial'] > 1, 'nothing went through the store'\n" if needs_store else ""
    without = run(HEAD + "def start(): pass\n" + body, timeout=PATIENCE, errors=True)
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    install = f"def start(): pyray_ser.install({arguments})\n"
    installed = run(HEAD + install + body + checked, timeout=PATIENCE, errors=True)
    assert installed == without
    assert without
    return without


def test_small_arrays_arrive_as_they_do_without():
    same(
        """
        def look(array):
            try:
                array[0] = 1
                done = "writable"
            except ValueError as error:
                done = str(error)
            return done, array.flags.owndata, array.flags.writeable, array.dtype.str
        if __name__ == "__main__":
            start()
            with mp.get_context("fork").Pool(1) as pool:
                for kind in (float, ">f8", "M8[s]", "U3"):
                    for size in (0, 3, 10, 400_000):
                        array = np.zeros(size + 1, kind)
                        print(kind, size, pool.apply(look, (array,)))
                        array.flags.writeable = False
                        print(kind, size, pool.apply(look, (array,)))
                print(pool.apply(look, (np.frombuffer(bytes(80)),)), pool.apply(look, (np.frombuffer(bytes(8_000_000)),)))
        """
    )


def test_a_message_is_pickled_once():
    same(
        """
        class Outbox:
            def __init__(self, items=()):
                self.items = list(items)
            def __reduce__(self):
                items, self.items = self.items, []
                return Outbox, (items,)
        def child(end):
            while (message := end.recv()) is not None:
                end.send([len(message[0].items), [len(part) for part in message[1:]]])
        if __name__ == "__main__":
            start()
            ours, theirs = mp.Pipe()
            process = mp.get_context("fork").Process(target=child, args=(theirs,))
            process.start()
            for n in (10, 100_000):
                ours.send([Outbox(f"message {i}" for i in range(n)), b"x" * (2 << 20), np.ones(300_000), "y" * (2 << 20)])
                print("sent", n, "arrived", ours.recv())
            ours.send(None)
            process.join()
        """,
        needs_store=True,
    )


def test_an_error_in_the_middle_of_a_message_reduces_nothing_again():
    same(
        """
        class Counted:
            calls = 0
            def __reduce__(self):
                Counted.calls += 1
                return Counted, ()
        class Refused:
            def __reduce__(self):
                raise ZeroDivisionError("not today")
        if __name__ == "__main__":
            start()
            queue = mp.get_context("fork").SimpleQueue()
            try:
                queue.put([np.ones(300_000), Counted(), Refused()])
            except ZeroDivisionError as error:
                print(error, Counted.calls)
            queue.put(1)
            print(queue.get())
        """
    )


def test_descriptors_that_are_sent_next_to_large_bytes_do_not_leak():
    same(
        """
        def work(end):
            while (message := end.recv()) is not None:
                message[0].close()
                end.send(1)
        if __name__ == "__main__":
            start()
            context = mp.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,))
            process.start()
            def count():
                return len(os.listdir("/proc/self/fd"))
            before = None
            for i in range(12):
                reader, writer = context.Pipe()
                ours.send((reader, {"k": [[[[[b"x" * (2 << 20)]]]]]}))
                ours.recv()
                reader.close()
                writer.close()
                before = before or count()
            from multiprocessing import resource_sharer
            # A thread of multiprocessing closes the last connection when it comes to it.
            for _ in range(600):
                if count() <= before and not resource_sharer._resource_sharer._cache:
                    break
                time.sleep(0.1)
            print(max(0, count() - before), len(resource_sharer._resource_sharer._cache))
            ours.send(None)
            process.join()
        """
    )


def test_raw_messages_load_as_often_as_the_program_likes():
    same(
        """
        def producer(end):
            end.send([np.arange(1_000_000), b"x" * (2 << 20)])
            end.recv()
        def forwarded(end):
            raw = end.recv_bytes()
            print(pickle.loads(raw)[0].sum(), pickle.loads(raw)[0].sum(), flush=True)
        if __name__ == "__main__":
            start()
            context = mp.get_context("fork")
            ours, theirs = mp.Pipe()
            process = context.Process(target=producer, args=(theirs,))
            process.start()
            theirs.close()
            raw = ours.recv_bytes()
            print(pickle.loads(raw)[0].sum())
            ours.send(0)
            process.join()
            for _ in range(3):
                array, data = pickle.loads(raw)
                print(array.sum(), len(data))
            last, end = mp.Pipe()
            process = context.Process(target=forwarded, args=(end,))
            process.start()
            last.send_bytes(raw)
            process.join()
        """,
        needs_store=True,
    )


def test_reducers_of_the_program_are_used():
    same(
        """
        import copyreg
        from multiprocessing.reduction import ForkingPickler
        class Frame:
            pass
        def build(shape):
            return "made by a reducer of the program", shape
        if __name__ == "__main__":
            start()
            queue = mp.get_context("fork").SimpleQueue()
            copyreg.pickle(np.ndarray, lambda array: (build, (array.shape,)))
            queue.put(np.zeros(300_000))
            print(queue.get())
            ForkingPickler.register(np.ndarray, lambda array: (build, ("later",)))
            queue.put(np.zeros(300_000))
            print(queue.get())
        """
    )


def test_a_process_with_its_own_reduction_starts():
    same(
        """
        import functools
        context = mp.get_context("spawn")
        def hello():
            print("hello from the child", flush=True)
        class Own(context.Process):
            def __reduce__(self):
                return functools.partial(Own, target=hello), (), {"_config": dict(self._config), "_parent_pid": self._parent_pid}
        if __name__ == "__main__":
            start()
            process = Own()
            process.start()
            process.join()
            print("exit code", process.exitcode)
        """
    )


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_arguments_of_processes_are_shared(method):
    same(
        f"""
        def private():
            with open("/proc/self/smaps_rollup") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("Pss_Anon:"))
        def work(array, data, end):
            look = array.flags.writeable, float(array.sum()), len(data), len(os.listdir("/proc/self/fd")) < 30
            array[-1] = 5
            end.send((look, float(array[-1]), private() < 100_000))
        def keep(array):
            global kept
            kept = array
        def tell(_):
            return float(kept.sum()), kept.flags.writeable
        if __name__ == "__main__":
            start()
            array = np.ones(15_000_000)
            context = mp.get_context("{method}")
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(array, b"x" * 2_000_000, theirs))
            process.start()
            look, last, shared = ours.recv()
            print(look, last, array[-1])
            # Without install it is a copy. The memory of a sanitizer hides the difference.
            assert shared == ("pyray_ser.pool_hooks" in sys.modules) or {SANITIZED}, shared
            process.join()
            with context.Pool(2, initializer=keep, initargs=(array,)) as pool:
                print(pool.map(tell, range(2)))
        """
    )


def test_signals_stay_the_programs_own_and_no_thread_is_started():
    same(
        """
        import warnings
        warnings.simplefilter("always")
        def child(end):
            array = end.recv()
            end.send(float(array.sum()))
            end.recv()
        if __name__ == "__main__":
            start()
            children = []
            for _ in range(2):
                ours, theirs = mp.Pipe()
                process = mp.get_context("fork").Process(target=child, args=(theirs,), daemon=True)
                process.start()
                ours.send(np.ones(1_000_000))
                print(ours.recv(), threading.active_count(), len(os.listdir("/proc/self/task")))
                children.append((ours, process))
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            os.kill(os.getpid(), signal.SIGUSR1)
            print("got", signal.sigwait({signal.SIGUSR1}))
            for ours, process in children:
                ours.send(0)
                process.join()
        """,
        needs_store=True,
    )


def test_what_was_sent_is_let_go_of():
    same(
        """
        import gc, weakref
        from concurrent.futures import ProcessPoolExecutor
        class Large:
            def __init__(self):
                self.data = np.zeros(1_000_000)
        def child(queue, answers):
            while (item := queue.get()) is not None:
                answers.put(type(item).__name__)
        def total(array):
            return float(array.sum())
        if __name__ == "__main__":
            start()
            context = mp.get_context("fork")
            queue, answers = context.Queue(), context.SimpleQueue()
            process = context.Process(target=child, args=(queue, answers))
            process.start()
            large = Large()
            alive = weakref.ref(large.data)
            queue.put(large)
            print(answers.get())
            del large
            for i in range(3):
                queue.put(i)
                print(answers.get())
            print("in the queue:", alive() is not None)
            queue.put(None)
            process.join()
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                array = np.ones(1_000_000)
                alive = weakref.ref(array)
                print(pool.submit(total, array).result())
                del array
                for _ in range(20):
                    pool.submit(total, np.ones(10)).result()
                gc.collect()
                print("in the executor:", alive() is not None)
        """,
        needs_store=True,
    )


def test_a_child_that_sends_first_imports_nothing_of_ours():
    body = """
    def child(end):
        before = set(sys.modules)
        end.send([np.ones(300_000), b"x" * (2 << 20)])
        found = end.recv()
        end.send(sorted(name for name in set(sys.modules) - before if name.startswith("pyray_ser")))
    if __name__ == "__main__":
        pyray_ser.install()
        ours, theirs = mp.Pipe()
        process = mp.get_context("fork").Process(target=child, args=(theirs,))
        process.start()
        ours.send(ours.recv())
        print(ours.recv())
        process.join()
    """
    import textwrap

    assert run(HEAD + textwrap.dedent(body), timeout=PATIENCE) == "[]"


def test_more_children_than_client_slots():
    same(
        """
        def total(array):
            return float(array.sum())
        if __name__ == "__main__":
            pyray_ser.init(max_clients=4)
            start()
            with mp.get_context("fork").Pool(6) as pool:
                print(pool.map_async(total, [np.ones(300_000)] * 12, chunksize=1).get(200))
        """
    )


def nobody_can_run_python() -> bool:
    import subprocess

    command = [sys.executable, "-c", "import numpy"]
    try:
        return subprocess.run(command, user=65534, group=65534, capture_output=True, timeout=PATIENCE).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_program_that_gives_up_its_rights(method):
    if method == "spawn" and not nobody_can_run_python():
        pytest.skip("this interpreter is not for everybody")
    same(
        f"""
        def total(array):
            return float(array.sum())
        if __name__ == "__main__":
            # The other user may not read the standard library: all of it is imported now.
            with mp.get_context("{method}").Pool(1) as pool:
                pool.map(abs, [1])
            start()
            os.chmod(os.path.dirname(os.path.abspath(__file__)), 0o755)
            os.setgid(65534)
            os.setuid(65534)
            os.environ["HOME"] = "/tmp"
            with mp.get_context("{method}").Pool(2) as pool:
                print(pool.map_async(total, [np.ones(1_000_000)] * 4).get(200))
        """
    )


def test_a_reader_that_is_no_client_copies_the_buffer_out_of_the_file():
    body = """
    from pyray_ser import _core
    from pyray_ser.pool_hooks import direct
    if __name__ == "__main__":
        store = pyray_ser.init()
        pyray_ser.install()
        array = np.arange(300_000)
        ref = pyray_ser.put(memoryview(array))
        blob, token = ref.travel(1, b"")
        offset = direct.place(store, ref)
        if os.fork() == 0:
            pyray_ser.shutdown()
            found = direct.read(blob, offset, array.nbytes)
            assert (np.frombuffer(found, array.dtype) == array).all()
            assert direct.read(blob, -1, array.nbytes) is None
            assert direct.read(blob, 1 << 50, array.nbytes) is None
            assert direct.read(bytes(56), offset, array.nbytes) is None
            print("read", flush=True)
            os._exit(0)
        os.wait()
    """
    import textwrap

    assert run(HEAD + textwrap.dedent(body), timeout=PATIENCE) == "read"


SANITIZED = bool(os.environ.get("PYRAY_SER_UNDER_SANITIZER"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("how", ["setuid", "chroot", "address_space", "nofile", "closerange", "fsize"])
def test_workers_that_restrict_themselves(method, how, tmp_path):
    if how == "address_space" and SANITIZED:
        pytest.skip("a sanitizer needs the address space itself")
    same(
        f"""
        import resource
        def twice(array):
            return array * 2
        def restrict(how):
            if how == "setuid":
                os.setgid(65534)
                os.setuid(65534)
            elif how == "chroot":
                os.chroot({str(tmp_path)!r})
                os.chdir("/")
            elif how == "nofile":
                resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1,) * 2)
            elif how == "address_space":
                resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
            elif how == "closerange":
                os.closerange(30, 256)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        if __name__ == "__main__":
            start()
            with mp.get_context("{method}").Pool(2, restrict, ("{how}",)) as pool:
                found = pool.map_async(twice, [np.ones(1_000_000)] * 4).get(200)
                print([float(array.sum()) for array in found])
        """
    )


@pytest.mark.skipif(SANITIZED, reason="a sanitizer needs the address space itself")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_that_leaves_the_store_after_a_message_was_sent(method):
    """The reader lowers the limit of its address space between the sending and the receiving of a message."""
    import textwrap

    body = f"""
        import resource
        def read(receiver, ready, sent):
            ready.set()
            assert sent.wait(100)
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
            for _ in range(3):
                found = receiver.recv()
                assert len(found["bytes"]) == 2_000_000
                print(found["array"].sum(), flush=True)
            raw = receiver.recv_bytes()
            print(*(pickle.loads(raw)["array"].sum() for _ in range(2)), flush=True)
        if __name__ == "__main__":
            pyray_ser.install()
            context = mp.get_context("{method}")
            receiver, sender = context.Pipe(duplex=False)
            ready, sent = context.Event(), context.Event()
            child = context.Process(target=read, args=(receiver, ready, sent))
            child.start()
            receiver.close()
            assert ready.wait(100)
            for i in range(4):
                sender.send({{"array": np.full(1_000_000, i + 1.0), "bytes": bytes(2_000_000)}})
            assert pyray_ser.stats()["serial"] >= 8, "the buffers are in the messages"
            sent.set()
            child.join(100)
            print(child.exitcode)
    """
    expected = ["1000000.0", "2000000.0", "3000000.0", "4000000.0 4000000.0", "0"]
    assert run(HEAD + textwrap.dedent(body), timeout=PATIENCE).split("\n") == expected


def test_install_from_sitecustomize_leaves_modules_that_are_run_by_name_alone(tmp_path):
    import subprocess

    package = tmp_path / "loky" / "backend"
    package.mkdir(parents=True)
    (tmp_path / "loky" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "popen_loky_posix.py").write_text(
        'class Popen:\n    def poll(self): pass\nif __name__ == "__main__": print("the worker runs")\n'
    )
    (tmp_path / "sitecustomize.py").write_text("import pyray_ser; pyray_ser.install()\n")
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYRAY_SER_STORE")}
    done = subprocess.run(
        [sys.executable, "-m", "loky.backend.popen_loky_posix"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "the worker runs"), done.stderr


def test_joblib_sees_arrays_that_changed_between_calls():
    pytest.importorskip("joblib")
    same(
        """
        from joblib import Parallel, delayed
        def first(array):
            return float(array[0])
        def write(array, i):
            array[i] = i + 1
        if __name__ == "__main__":
            start()
            for options in ({"max_nbytes": None}, {}):
                array, parallel, seen = np.zeros(400_000), Parallel(n_jobs=2, **options), []
                for step in range(3):
                    array[0] = 10 * step
                    seen.append(parallel([delayed(first)(array)])[0])
                    seen.append(Parallel(n_jobs=2, **options)([delayed(first)(array)])[0])
                print(options, seen)
            array = np.zeros(400_000)
            with Parallel(n_jobs=2, mmap_mode="r+") as parallel:
                parallel(delayed(write)(array, i) for i in range(4))
                print(parallel(delayed(lambda found: found[:4].tolist())(array) for _ in range(2)))
            from joblib.externals.loky import get_reusable_executor
            get_reusable_executor().shutdown(wait=True, kill_workers=True)
        """
    )


def test_joblib_takes_and_returns_arrays_of_all_kinds():
    pytest.importorskip("joblib")
    same(
        """
        from joblib import Parallel, delayed
        class Sub(np.ndarray):
            pass
        def look(array):
            flags = array.flags
            return (type(array).__name__, array.dtype.str, array.shape, array.strides, flags.c_contiguous, flags.f_contiguous,
                    flags.writeable, flags.aligned, flags.owndata, repr(array.flat[1]))
        def give(array):
            return array
        def values():
            n = 200_000
            for kind in ("f8", ">f8", "g", "M8[ns]", "m8[s]", "U5", "S5", "V7", "O", [("a", "i4"), ("b", "M8[s]")]):
                yield np.zeros(n, kind)
            yield np.asfortranarray(np.zeros((2, n)))
            yield np.zeros((2, n)).T
            yield np.arange(float(n))[::-1]
            yield np.broadcast_to(np.zeros(1), (n,))
            yield np.frombuffer(bytes(8 * n))
            yield np.zeros(n).view(Sub)
            yield np.zeros(n, [("a", "f8")]).view(np.recarray)
            yield np.ma.masked_less(np.arange(float(n)), 5)
            yield np.frombuffer(bytes(8 * n + 1), np.uint8)[1:].view(np.float64)
        if __name__ == "__main__":
            start()
            for options in ({"max_nbytes": None}, {}):
                with Parallel(n_jobs=2, **options) as parallel:
                    all_of_them = list(values())
                    for line in parallel([delayed(look)(value) for value in all_of_them]):
                        print(line)
                    for value in parallel([delayed(give)(value) for value in all_of_them]):
                        print(look(value))
            from joblib.externals.loky import get_reusable_executor
            get_reusable_executor().shutdown(wait=True, kill_workers=True)
        """,
        min_bytes=100_000,
    )


def test_loky_takes_buffers_of_all_sizes():
    pytest.importorskip("loky")
    same(
        """
        from loky import ProcessPoolExecutor
        class Exported:
            def __init__(self, data):
                self.data = data
            def __reduce_ex__(self, protocol):
                return Exported, (pickle.PickleBuffer(self.data),)
        def give(value):
            return (type(value).__name__, str(getattr(value, "flags", None))), value
        def values():
            for n in (100, 70_000, 500_000, 2_000_000):
                yield np.arange(n, dtype="u1")
                yield np.asfortranarray(np.ones((2, n)))
                yield Exported(bytes(n))
                yield Exported(bytearray(n))
        if __name__ == "__main__":
            start()
            with ProcessPoolExecutor(1) as pool:
                for seen, back in pool.map(give, values()):
                    data = getattr(back, "data", back)
                    print(seen, type(data).__name__, len(data), bytes(memoryview(data))[:5], getattr(back, "flags", None))
        """
    )
