"""Stress-test the life of a store: all operations run while `shutdown`, `fork`, finalizers and signals interfere.

Usage: python -P storm_lifetime.py SECONDS SEED

Each round opens a store (anonymous, named, or small with a spill directory) and lets several threads use all
operations. Meanwhile other threads close and open the store, fork children, and stop, continue or kill a peer process
that is attached to the store. The children use the store, drop it or are killed. A signal handler in the main thread
makes calls and raises exceptions; finalizers of reference cycles make calls.

An operation must return the right value, or raise a documented exception. A watchdog ends the program with a traceback
of every thread if a call exceeds its timeout by more than a generous grace period. After each round, the process must
have the same file descriptors, memory mappings, threads, child processes and files as before. A store that still
exists must be consistent and empty.

The environment variable STORM_GRACE sets the grace period in seconds.
"""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import gc
import logging
import mmap
import os
import pickle
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress

import cloudpickle  # noqa: F401  a handler that interrupts this import could not pickle by value
import numpy as np

import pyray_ser
from pyray_ser import exceptions as exc
from pyray_ser import util

# Seconds by which a call may exceed its timeout on a busy machine.
GRACE = float(os.environ.get("STORM_GRACE", "30"))
# Any operation on a store may raise these exceptions while other threads close or fill the store or free objects.
COMMON = (
    exc.StoreClosedError,
    exc.ObjectLostError,
    exc.GetTimeoutError,
    exc.StoreBusyError,
    exc.ObjectStoreFullError,
    exc.StoreFullError,
)
NAMED = (exc.NameNotFoundError, exc.NameExistsError)
# The message of a plain ValueError must contain one of these texts: `seal` and `abort` raise the error for a closed
# window, and `init` raises it if another store is in use.
REFUSALS = ("aborted", "closed", "sealed already", "gone", "not to its forked children", "uses <Store")
SIZES = (0, 3, 60, 700, 5_000, 40_000, 200_000)
KINDS = ("none", "int", "text", "bytes", "array", "strided", "nested")
NAMES = ("red", "green", "blue")
SHM = "/dev/shm"


class Struck(Exception):
    """An exception that the signal handler raises during a call, as a handler for a timeout would."""


# ---- values that can be verified without a reference copy


def make(kind, n):
    size = SIZES[n % len(SIZES)]
    if kind == "none":
        return None
    if kind == "int":
        return n
    if kind == "text":
        return f"{n} " * (size // 8)
    if kind in ("bytes", "window"):
        return bytes([n % 251]) * size
    if kind == "array":
        return np.full(size, n)
    if kind == "strided":
        return np.full((2, size), n).T[::2]
    return {
        "n": n,
        "list": [n, str(n), (n, None)] * 3,
        "arrays": [np.full(size, n), np.full(9, n)],
        "more": {n: b"x" * n},
    }


def wrong(kind, n, got):
    """Return a description of a wrong value, or None."""
    want = make(kind, n)
    if kind == "window":
        # A window that was pickled in-band comes back as bytes.
        fine = isinstance(got, memoryview | bytes) and bytes(got) == want
    elif isinstance(want, np.ndarray):
        fine = isinstance(got, np.ndarray) and got.shape == want.shape and bool((got == want).all())
    elif isinstance(want, dict):
        fine = got.keys() == want.keys() and all(got[key] == want[key] for key in ("n", "list", "more"))
        fine = fine and all(wrong_array(a, b) for a, b in zip(got["arrays"], want["arrays"], strict=True))
    else:
        fine = type(got) is type(want) and got == want
    return None if fine else f"{kind} {n} is {type(got).__name__} {got!r:.200}"


def wrong_array(got, want):
    return got.shape == want.shape and bool((got == want).all())


class Garbage:
    """An object that holds a view and makes calls in its finalizer."""

    def __init__(self, storm, entry, value):
        self.cycle, self.storm, self.entry, self.value = self, storm, entry, value

    def __del__(self):
        storm = self.storm
        if not storm.over:
            storm.count("finalizer")
            storm.check(*self.entry[1:], self.value)
            storm.operate(storm.random_here(), storm.LIGHT)


# ---- one process of the storm


class Storm:
    def __init__(self, seed):
        self.seed = seed
        self.main = threading.main_thread()
        self.struck = Counter()
        self.raised = Counter()
        self.failures = Counter()
        self.under_way = {}
        self.slowest = (0.0, "")
        self.inside = self.exposed = False
        self.over = False
        self.local = threading.local()
        self.serial = 0
        self.begin_round("", None)

    def begin_round(self, name, link):
        self.over = False
        self.stop = threading.Event()
        self.pool = [None] * 48
        self.views = [None] * 24
        self.windows = [None] * 6
        self.options = {}
        self.name = None
        self.label = name
        self.link = link

    def random_here(self):
        made = getattr(self.local, "random", None)
        if made is None:
            made = self.local.random = random.Random(f"{self.seed} {self.label} {threading.current_thread().name}")
        return made

    def count(self, what):
        self.struck[what] += 1

    def fail(self, what, error=None):
        text = what if error is None else f"{what}\n{''.join(traceback.format_exception(error))}"
        self.failures[text] += 1
        if self.failures[text] == 1:
            print(
                f"--- {self.label}, {threading.current_thread().name} of {os.getpid()}: {text}",
                file=sys.stderr,
                flush=True,
            )

    def check(self, kind, n, got):
        said = wrong(kind, n, got)
        if said is not None:
            self.fail(f"wrong value: {said}")

    def call(self, what, function, *args, limit=0.0, allowed=(), **kwargs):
        """Make one call under the watchdog; return whether it succeeded, and the result."""
        self.count(what)
        self.serial += 1
        key = self.serial, threading.get_ident()
        began = time.monotonic()
        main = threading.current_thread() is self.main
        exposed = self.exposed
        self.under_way[key] = what, began, limit
        # The handler raises only while `self.exposed` is true. Python runs no signal handler between a call
        # and the assignment of its result.
        try:
            if main:
                self.exposed = not self.inside
            result = function(*args, **kwargs)
            if main:
                self.exposed = exposed
        except BaseException as error:
            if main:
                self.exposed = exposed
            self.judge(what, error, allowed)
            return False, None
        finally:
            took = time.monotonic() - began - limit
            if took > self.slowest[0]:
                self.slowest = took, what
            del self.under_way[key]
        return True, result

    def judge(self, what, error, allowed):
        if isinstance(error, Struck):
            self.count("struck")
        elif isinstance(error, COMMON + allowed):
            self.raised[type(error).__name__] += 1
        elif type(error) is not ValueError or not any(text in str(error) for text in REFUSALS):
            self.fail(what, error)

    def watch(self):
        """Keep the C watchdog from ending the program as long as no call has exceeded its time limit."""
        while not self.stop.wait(0.5):
            now = time.monotonic()
            for what, began, limit in list(self.under_way.values()):
                if now - began > limit + GRACE:
                    print(
                        f"--- {what} takes {now - began:.1f} s, its timeout is {limit} s", file=sys.stderr, flush=True
                    )
                    faulthandler.dump_traceback(all_threads=True)
                    os._exit(3)
            faulthandler.dump_traceback_later(2 * GRACE, exit=True)

    # ---- operations

    def entry(self, rng):
        i = rng.randrange(len(self.pool))
        found = self.pool[i]
        if found is not None and found[0].state == "closed" and rng.random() < 0.7:
            self.pool[i] = found = None
        return found

    def keep(self, rng, entry):
        self.pool[rng.randrange(len(self.pool))] = entry

    def view(self, rng, kind, n, value):
        if rng.random() < 0.5:
            self.views[rng.randrange(len(self.views))] = kind, n, value

    def op_put(self, rng):
        kind, n = rng.choice(KINDS), rng.randrange(1000)
        timeout = rng.choice([None, 0, 0.01])
        fine, ref = self.call("put", pyray_ser.put, make(kind, n), timeout=timeout, limit=timeout or 0)
        if fine:
            self.keep(rng, (ref, kind, n))

    def op_put_of_views(self, rng):
        """Put an array whose memory is in the store, so that the new object refers to that memory."""
        found = self.views[rng.randrange(len(self.views))]
        if found is not None:
            kind, n, value = found
            fine, ref = self.call("put of a view", pyray_ser.put, value)
            if fine:
                self.keep(rng, (ref, kind, n))

    def op_put_of_refs(self, rng):
        entry = self.entry(rng)
        if entry is None:
            return
        ref, kind, n = entry
        fine, outer = self.call("put of a reference", pyray_ser.put, {"ref": ref})
        if not fine:
            return
        del ref, entry
        fine, value = self.call("get of a reference", pyray_ser.get, outer, timeout=0.05, limit=0.05)
        if fine:
            fine, got = self.call("get", pyray_ser.get, value["ref"], timeout=0.05, limit=0.05)
            if fine:
                self.check(kind, n, got)

    def op_put_named(self, rng):
        n = rng.randrange(1000)
        value = {"n": n, "array": np.full(500, n)}
        fine, ref = self.call("put named", pyray_ser.put, value, name=rng.choice(NAMES), allowed=NAMED)
        if fine and rng.random() < 0.5:
            self.call("free", pyray_ser.free, ref)

    def op_get_by_name(self, rng):
        fine, got = self.call(
            "get_by_name", pyray_ser.get_by_name, rng.choice(NAMES), timeout=0.03, limit=0.03, allowed=NAMED
        )
        if fine and not (got["array"] == got["n"]).all():
            self.fail(f"wrong named value {got!r:.200}")

    def op_names(self, rng):
        fine, found = self.call("names", pyray_ser.names)
        if fine and rng.random() < 0.3:
            self.call("free", pyray_ser.free, list(found.values()))

    def op_get(self, rng):
        entry = self.entry(rng)
        if entry is None:
            return
        ref, kind, n = entry
        timeout, mode = rng.choice([0, 0.02]), rng.choice("rrc")
        fine, got = self.call("get", pyray_ser.get, ref, timeout=timeout, mmap_mode=mode, limit=timeout)
        if fine:
            self.check(kind, n, got)
            if mode == "c" and isinstance(got, np.ndarray) and got.size:
                got[...] = -1  # mode "c": no other reader sees this write
            else:
                self.view(rng, kind, n, got)
        if fine and mode == "r" and rng.random() < 0.1:
            Garbage(self, entry, got)

    def op_get_many(self, rng):
        entries = [entry for entry in (self.entry(rng) for _ in range(5)) if entry is not None]
        fine, got = self.call("get of a list", pyray_ser.get, [ref for ref, _, _ in entries], timeout=0.02, limit=0.02)
        if fine:
            for (_, kind, n), value in zip(entries, got, strict=True):
                self.check(kind, n, value)

    def op_get_buffer(self, rng):
        entry = self.entry(rng)
        if entry is None:
            return
        ref, kind, n = entry
        fine, got = self.call("get_buffer", pyray_ser.get_buffer, ref, timeout=0.02, limit=0.02)
        if fine and kind == "bytes" and bytes(got) != make(kind, n):
            self.fail(f"wrong buffer of {kind} {n}")

    def op_views(self, rng):
        """Check a view from an earlier call, whose store may be closed by now."""
        i = rng.randrange(len(self.views))
        found = self.views[i]
        if found is not None:
            self.check(*found)
            if rng.random() < 0.5:
                self.views[i] = None

    def op_window(self, rng):
        n = rng.randrange(1000)
        kind = rng.choice(["window", "array"])
        size = SIZES[n % len(SIZES)]
        if kind == "window":
            fine, window = self.call("create", pyray_ser.create, size)
        else:
            fine, window = self.call("empty", pyray_ser.empty, size, int)
        if not fine:
            return
        ref = None
        if kind == "window":
            fine, ref = self.call("ref of a window", lambda: window.obj.ref)
        window[:] = bytes([n % 251]) * size if kind == "window" else n
        act = rng.random()
        if act < 0.6:
            fine, ref = self.call("seal", pyray_ser.seal, window)
            if fine:
                self.keep(rng, (ref, kind, n))
                fine, got = self.call("get", pyray_ser.get, ref, timeout=0.02, limit=0.02)
                if fine:
                    self.check(kind, n, got)
        elif act < 0.75:
            self.call("abort", pyray_ser.abort, window)
        elif act < 0.9:
            # Leave the window to other threads, which may wait for its object.
            self.windows[rng.randrange(len(self.windows))] = window
            if ref is not None:
                self.call("get unsealed", pyray_ser.get, ref, timeout=0.005, limit=0.005)

    def op_seal_late(self, rng):
        i = rng.randrange(len(self.windows))
        window, self.windows[i] = self.windows[i], None
        if window is not None:
            self.call("seal", rng.choice([pyray_ser.seal, pyray_ser.abort]), window)

    def op_free(self, rng):
        entry = self.entry(rng)
        if entry is not None:
            self.call("free", pyray_ser.free, rng.choice([entry[0], [entry[0]]]))

    def op_drop(self, rng):
        for _ in range(rng.randrange(8)):
            self.pool[rng.randrange(len(self.pool))] = None
        if rng.random() < 0.2:
            gc.collect(0)

    def op_scope(self, rng):
        entry = self.entry(rng)

        def within():
            with pyray_ser.scope():
                return pyray_ser.get(pickle.loads(pickle.dumps(entry[0])), timeout=0.02)

        if entry is not None:
            fine, got = self.call("scope", within, limit=0.02)
            if fine:
                self.check(*entry[1:], got)

    def op_pickle(self, rng):
        """Pickle a reference outside of any scope: the pickle then keeps the object alive until `free`."""
        entry = self.entry(rng)
        if entry is None:
            return
        fine, ref = self.call("pickle", lambda: pickle.loads(pickle.dumps(entry[0])))
        if fine:
            if ref != entry[0]:
                self.fail("another reference came back")
            self.call("free", pyray_ser.free, ref)

    def op_message(self, rng):
        entry = self.entry(rng)
        if entry is None:
            return
        fine, text = self.call("to_message", entry[0].to_message)
        if fine and self.link is not None and rng.random() < 0.5:
            with suppress(OSError):
                self.link.send(pickle.dumps((text, *entry[1:])))
            return
        if fine and rng.random() < 0.9:
            self.receive(rng, text, *entry[1:])

    def op_receive(self, rng):
        link = self.link
        if link is None:
            return
        try:
            data = link.recv(4096)
        except OSError:
            return
        if data:
            self.receive(rng, *pickle.loads(data))

    def receive(self, rng, text, kind, n):
        fine, ref = self.call("from_message", pyray_ser.ObjectRef.from_message, text)
        if fine:
            fine, got = self.call("get of a message", pyray_ser.get, ref, timeout=0.02, limit=0.02)
            if fine:
                self.check(kind, n, got)
                self.view(rng, kind, n, got)

    def op_hex(self, rng):
        entry = self.entry(rng)
        if entry is not None:
            fine, ref = self.call("from_hex", lambda: pyray_ser.ObjectRef.from_hex(entry[0].hex()))
            if fine and ref != entry[0]:
                self.fail("another reference came back")

    def op_serialize(self, rng):
        kind, n = rng.choice(KINDS), rng.randrange(1000)
        value = make(kind, n)
        fine, got = self.call("serialize", lambda: pyray_ser.deserialize(pyray_ser.serialize(value)))
        if fine:
            self.check(kind, n, got)
        found = self.views[rng.randrange(len(self.views))]
        if found is not None:
            kind, n, value = found
            fine, got = self.call("dumps_frames", lambda: pyray_ser.loads_frames(pyray_ser.dumps_frames(value)))
            if fine:
                self.check(kind, n, got)
            fine, got = self.call("dumps", lambda: pyray_ser.loads(pyray_ser.dumps(value)))
            if fine:
                self.check(kind, n, got)

    def op_wait(self, rng):
        refs = list({entry[0] for entry in (self.entry(rng) for _ in range(6)) if entry is not None})
        for window in self.windows:
            if isinstance(window, memoryview):
                fine, ref = self.call("ref of a window", lambda window=window: window.obj.ref)
                if fine and ref not in refs:
                    refs.append(ref)
        if refs:
            fine, got = self.call(
                "wait", pyray_ser.wait, refs, num_returns=rng.randint(1, len(refs)), timeout=0.02, limit=0.02
            )
            if fine and {*got[0], *got[1]} != set(refs):
                self.fail("wait lost a reference")

    def op_future(self, rng):
        entry = self.entry(rng)
        if entry is None:
            return
        fine, future = self.call("future", entry[0].future)
        if fine:
            fine, got = self.call("result", future.result, 5, limit=5)
            if fine:
                self.check(*entry[1:], got)

    def op_await(self, rng):
        entry = self.entry(rng)
        # In the main thread, an event loop would replace the wake-up descriptor of signals, and an exception that the
        # signal handler raises inside asyncio would not test this library.
        if entry is None or self.inside or threading.current_thread() is self.main:
            return

        async def get():
            return await entry[0]

        fine, got = self.call("await", lambda: asyncio.run(get()), limit=5)
        if fine:
            self.check(*entry[1:], got)

    def op_facts(self, rng):
        entry = self.entry(rng)
        if entry is not None:
            ref = entry[0]
            self.call("repr", repr, ref)
            self.call("size", lambda: ref.size)
            self.call("state", lambda: ref.state)
            self.call("contains", pyray_ser.contains, ref)

    def op_stats(self, rng):
        self.call("stats", pyray_ser.stats)
        if rng.random() < 0.3:
            self.call("objects", pyray_ser.objects)
            self.call("is_initialized", pyray_ser.is_initialized)

    def op_engine(self, rng):
        """Make the calls that the command-line tools make, on a store handle that other threads may close meanwhile."""
        found = pyray_ser._core.default()
        if found is not None:
            what = rng.choice(
                ["check", "look", "trim", "client_pids", "flights", "end_flights", "locator", "options", "records"]
            )
            self.call(f"Store.{what}", self.ask, found, what)

    @staticmethod
    def ask(store, what):
        asked = getattr(store, what)
        return asked() if callable(asked) else asked

    def op_inspect(self, rng):
        kind, n = rng.choice(KINDS), rng.randrange(1000)
        self.call("inspect_size", util.inspect_size, make(kind, n))
        fine, got = self.call("explain", pyray_ser.put, make(kind, n), explain=True)
        if fine:
            self.keep(rng, (got[0], kind, n))

    def op_init(self, rng):
        self.call("init", self.open)

    def op_garbage(self, rng):
        entry = self.entry(rng)
        if entry is not None:
            fine, got = self.call("get", pyray_ser.get, entry[0], timeout=0, limit=0)
            if fine:
                Garbage(self, entry, got)
                if rng.random() < 0.3:
                    gc.collect()

    LIGHT = (op_put, op_get, op_get, op_window, op_message, op_facts, op_free, op_future, op_scope, op_pickle, op_names)

    def open(self):
        return pyray_ser.init(self.name, **self.options)

    def operate(self, rng, operations=None):
        rng.choice(operations or self.OPERATIONS)(self, rng)

    def work(self):
        rng = self.random_here()
        while not self.stop.is_set():
            self.operate(rng)

    # ---- strokes

    def handle(self, *_):
        if self.inside or self.over:
            return
        exposed, self.exposed, self.inside = self.exposed, False, True
        try:
            self.count("signal")
            rng = self.random_here()
            act = rng.random()
            if act < 0.7:
                self.operate(rng, self.LIGHT)
            elif act < 0.75:
                self.call("shutdown in a handler", pyray_ser.shutdown)
            elif act < 0.8:
                self.call("init in a handler", self.open)
        finally:
            self.inside, self.exposed = False, exposed
        if exposed and act > 0.85:
            raise Struck

    def close(self):
        rng = self.random_here()
        while not self.stop.wait(rng.uniform(0, 0.6)):
            self.call("shutdown", pyray_ser.shutdown)
            if rng.random() < 0.7:
                self.call("init", self.open)

    def fork(self):
        rng = self.random_here()
        while not self.stop.wait(rng.uniform(0, 0.15)):
            act, seed = (
                rng.choice(["exit", "use", "use", "drop", "kill", "shutdown", "nothing but views"]),
                rng.random(),
            )
            self.count(f"child: {act}")
            pid = os.fork()
            if pid == 0:
                self.child(act, random.Random(seed))
            self.join(pid, f"child: {act}", (0, -signal.SIGKILL) if act == "kill" else (0,))

    def join(self, pid, what, fine):
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                status = os.waitstatus_to_exitcode(status)
                if status not in fine:
                    self.fail(f"{what} ended with {status}")
                return
            time.sleep(0.002)
        self.fail(f"{what} does not end")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)  # makes faulthandler print the tracebacks
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def child(self, act, rng):
        """Run the forked child; never return."""
        status = 1
        try:
            self.failures.clear()
            self.main = threading.main_thread()
            self.label += f", {act}"
            self.local = threading.local()
            self.under_way = {}
            self.inside = self.exposed = False
            self.link = None
            if act == "use":
                for _ in range(20):
                    self.operate(rng, self.CHILDS)
            elif act == "nothing but views":
                for found in self.views:
                    if found is not None:
                        self.check(*found)
            elif act == "drop":
                self.clear()
                gc.collect()
                for _ in range(5):
                    self.operate(rng, self.CHILDS)
            elif act == "shutdown":
                self.call("shutdown in a child", pyray_ser.shutdown)
                self.call("init in a child", self.open)
                for _ in range(5):
                    self.operate(rng, self.CHILDS)
                self.call("shutdown in a child", pyray_ser.shutdown)
            elif act == "kill":
                end = rng.uniform(0, 0.03)
                threading.Thread(
                    target=lambda: (time.sleep(end), os.kill(os.getpid(), signal.SIGKILL)), daemon=True
                ).start()
                while True:
                    self.operate(rng, self.CHILDS)
            status = 1 if self.failures else 0
        except BaseException as error:
            self.fail(f"child: {act}", error)
        finally:
            os._exit(status)

    def clear(self):
        for kept in (self.pool, self.views, self.windows):
            kept[:] = [None] * len(kept)

    # ---- the peer

    def start_peer(self, flag):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.serial += 1
        pid = os.fork()
        if pid == 0:
            self.peer(flag, theirs, self.serial)
        theirs.close()
        return pid, ours

    def peer(self, flag, link, serial):
        """Run a process that is attached to the same store; never return."""
        status = 1
        try:
            self.failures.clear()
            self.main = threading.main_thread()
            self.label += f", peer {serial}"
            self.local = threading.local()
            self.under_way = {}
            self.inside = self.exposed = False
            self.clear()
            if self.link is not None:
                self.link.close()
            self.link = link
            rng = self.random_here()
            while not flag[0]:
                self.operate(rng)
                if rng.random() < 0.003:
                    self.call("shutdown of the peer", pyray_ser.shutdown)
                    self.call("init of the peer", self.open)
            self.over = True
            self.clear()
            gc.collect()
            self.call("shutdown of the peer", pyray_ser.shutdown)
            status = 1 if self.failures else 0
        except BaseException as error:
            self.fail("peer", error)
        finally:
            os._exit(status)

    def trouble_peer(self, flag):
        rng = self.random_here()
        pid, self.link = self.start_peer(flag)
        while not self.stop.wait(rng.uniform(0, 0.1)):
            if rng.random() < 0.9:
                self.count("stopped peer")
                os.kill(pid, signal.SIGSTOP)
                self.stop.wait(rng.choice([0.01, 0.1, 0.5]))
                os.kill(pid, signal.SIGCONT)
            else:
                self.count("killed peer")
                os.kill(pid, signal.SIGKILL)
                self.join(pid, "peer", (0, -signal.SIGKILL))
                self.link.close()
                pid, self.link = self.start_peer(flag)
        flag[0] = 1
        self.join(pid, "peer", (0,))
        self.link.close()
        self.link = None

    # ---- rounds

    def round(self, number, seconds):
        rng = random.Random(f"{self.seed} {number}")
        self.begin_round(f"seed {self.seed} round {number}", None)
        self.local = threading.local()
        form = rng.choice(["anonymous", "anonymous", "named", "named", "spill", "named spill"])
        self.label += f" ({form})"
        self.count(f"round: {form}")
        self.options = {"capacity": (8 if "spill" in form else 48) << 20}
        folder = None
        if "spill" in form:
            folder = self.options["spill_dir"] = tempfile.mkdtemp(prefix="pyray_ser-storm-")
        if "named" in form:
            self.name = f"storm-{number}"
        self.call("init", self.open)
        flag = mmap.mmap(-1, 4096)
        targets = [(self.work, "worker 1"), (self.work, "worker 2"), (self.fork, "fork"), (self.watch, "watchdog")]
        if rng.random() < 0.8:
            targets.append((self.close, "close"))
        if rng.random() < 0.8:
            targets.append((lambda: self.trouble_peer(flag), "peer"))
        threads = [threading.Thread(target=self.guarded, args=(target,), name=name) for target, name in targets]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        mine = self.random_here()
        signal.signal(signal.SIGALRM, self.handle)
        period = mine.choice([0.002, 0.01, 0.05])
        signal.setitimer(signal.ITIMER_REAL, period, period)
        try:
            while time.monotonic() < end and not self.failures:
                if mine.random() < 0.01:
                    self.call("shutdown", pyray_ser.shutdown)
                    self.call("init", self.open)
                else:
                    self.operate(mine)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.over = True
            self.stop.set()
        for thread in threads:
            thread.join(3 * GRACE)
            if thread.is_alive():
                faulthandler.dump_traceback(all_threads=True)
                self.fail(f"thread {thread.name} does not end")
        flag.close()
        self.settle()
        if folder is not None:
            pyray_ser._core.spill_clean(folder, False)  # removes the spill files of killed processes
            left = [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]
            if left:
                self.fail(f"files are left in the spill directory: {left}")
            shutil.rmtree(folder)
        faulthandler.dump_traceback_later(4 * GRACE, exit=True)

    def guarded(self, target):
        try:
            target()
        except BaseException as error:
            self.fail(threading.current_thread().name, error)

    def settle(self):
        """Drop all references, check that the store is consistent and empty, and shut it down."""
        for kind_n_value in self.views:
            if kind_n_value is not None:
                self.check(*kind_n_value)
        self.clear()
        self.local = threading.local()
        kind_n_value = None
        gc.collect()
        gc.collect()
        # A put that ran before `init` may have opened a store that is not the one of this round.
        found = pyray_ser._core.default()
        if found is not None:
            self.settle_store(found)
        pyray_ser.shutdown()
        try:
            self.settle_store(self.open())
        except BaseException as error:
            self.fail("the store cannot be opened at the end of a round", error)
        pyray_ser.shutdown()
        gc.collect()

    def settle_store(self, store):
        try:
            store.look()
            store.check()
            store.end_flights()
            for record in store.records():
                if not record["freed"] and record["state"] in ("sealed", "spilled"):
                    with suppress(exc.ObjectLostError):
                        pyray_ser.free(pyray_ser.ObjectRef.from_hex(record["id"]))
            gc.collect()
            store.look()
            store.check()
            left = store.records()
            if left:
                self.fail(f"objects are left in {store!r}: {left}")
            if store.stats()["clients"] != 1:
                self.fail(f"clients are left: {store.client_pids()}")
        except BaseException as error:
            self.fail(f"the end of {store!r}", error)


Storm.OPERATIONS = tuple(getattr(Storm, name) for name in sorted(dir(Storm)) if name.startswith("op_"))
Storm.CHILDS = tuple(op for op in Storm.OPERATIONS if op is not Storm.op_await)


# ---- resources that must not be leaked


def measure():
    descriptors = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            descriptors[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    with open("/proc/self/maps") as file:
        maps = file.read().splitlines()
    shared = [line for line in maps if SHM in line or "memfd:" in line]
    store_directory = os.path.basename(os.environ["PYRAY_SER_STORE_DIR"])  # ignore the entries of other programs
    files = sorted(name for name in os.listdir(SHM) if name.startswith(store_directory))
    return descriptors, shared, len(maps), threading.active_count(), files


def children():
    try:
        os.waitpid(-1, os.WNOHANG)
    except OSError as error:
        return error.errno != errno.ECHILD
    return True


def compare(storm, before, number):
    end = time.monotonic() + 20
    while threading.active_count() > before[3] and time.monotonic() < end:
        time.sleep(0.01)  # the watcher thread ends by itself when it is no longer needed
    after = measure()
    if after[0] != before[0]:
        storm.fail(f"descriptors: {sorted(set(after[0].items()) ^ set(before[0].items()))}")
    if len(after[1]) > len(before[1]):
        storm.fail(f"maps of stores are left: {after[1]}")
    # Malloc arenas and thread stacks add a bounded number of mappings; a leak in every round exceeds this limit.
    if after[2] > before[2] + 150:
        storm.fail(f"{after[2]} maps, {before[2]} at the start")
    if after[3] > before[3]:
        storm.fail(f"threads are left: {threading.enumerate()}")
    if after[4] != before[4]:
        storm.fail(f"files in {SHM}: {set(after[4]) ^ set(before[4])}")
    if children():
        storm.fail("children are left")


def main():
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    # A child may put an object after this process has closed its store, and the child's reference may arrive here.
    logging.getLogger("pyray_ser").addFilter(lambda record: "put an object into a new store" not in record.getMessage())
    os.environ["PYRAY_SER_STORE_DIR"] = f"{SHM}/pyray_ser-storm-{os.getpid()}"
    os.environ.pop("PYRAY_SER_STORE", None)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    faulthandler.dump_traceback_later(4 * GRACE, exit=True)
    gc.set_threshold(300)
    storm = Storm(seed)
    sys.unraisablehook = lambda seen: (
        None
        if isinstance(seen.exc_value, Struck)
        else storm.fail(f"unraisable in {seen.object!r:.100}", seen.exc_value)
    )
    # Before the first measurement, create all resources that stay until the process ends.
    rng = random.Random(0)
    storm.open()
    for _ in range(5):
        for operation in Storm.OPERATIONS:
            if operation is not Storm.op_await:
                operation(storm, rng)
    asyncio.run(asyncio.sleep(0))
    storm.over = True
    storm.settle()
    end, number, before = time.monotonic() + seconds, 0, None
    while time.monotonic() < end and not storm.failures:
        storm.round(number, random.Random(f"{seed} {number} length").uniform(0.5, 3))
        if before is None:
            before = measure()
            if before[1] or len(before[4]) != len(set(before[4])):
                storm.fail(f"maps of stores are left by the first round: {before[1]}")
        else:
            compare(storm, before, number)
        number += 1
    faulthandler.cancel_dump_traceback_later()
    took, what = storm.slowest
    struck = ", ".join(f"{key} {count}" for key, count in sorted(storm.struck.items()))
    print(f"{number} rounds with seed {seed}; at most {took:.2f} s over a timeout ({what}); struck: {struck}; "
          f"raised: {dict(storm.raised)}")  # fmt: skip
    sys.exit("the storm found faults" if storm.failures else 0)


if __name__ == "__main__":
    main()
