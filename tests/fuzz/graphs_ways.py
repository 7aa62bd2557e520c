"""Copy a graph in several ways (each pickler, each form, the store, other processes), with or without disturbances.

A way is a function of an object and a `Context`. It yields copies, each with the properties that the copy must have.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import io
import itertools
import os
import pickle
import random
import struct
import subprocess
import sys
import tempfile
import threading

import cloudpickle
import graphs_classes as classes

import pyray_ser
from pyray_ser.inspection import debug_pickler

_names = itertools.count()


class Context:
    """
    The objects that one thread uses for all its copies.

    Parameters
    ----------
    child : Child, optional
        The process to which objects are sent.
    spill : bool
        Whether the store is so small that it spills objects.
    """

    most_spilled = 0  # the maximum number of objects that were spilled at one time, in any thread

    def __init__(self, child=None, spill=False):
        self.child = child
        self.spill = spill
        self.held = collections.deque()
        self.held_bytes = 0
        self.r = random.Random()
        self.by_value = False
        self.protocol = 5


class Child:
    """A process that receives references, gets each of their objects, and puts the object again."""

    def __init__(self):
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "graphs_child.py")
        self.process = subprocess.Popen([sys.executable, "-P", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lock = threading.Lock()

    def ask(self, refs):
        """Send references to the child; return references to the copies that it has created."""
        with self.lock:
            send(self.process.stdin, refs)
            answer = receive(self.process.stdout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def send(file, value):
    data = pickle.dumps(value)
    file.write(struct.pack("<Q", len(data)) + data)
    file.flush()


def receive(file):
    head = file.read(8)
    if len(head) < 8:
        raise EOFError("the other process has ended")
    return pickle.loads(file.read(*struct.unpack("<Q", head)))


# ---- ways ----------------------------------------------------------------------------------------------------------------


def through_dumps(obj, context):
    yield "dumps, loads", pyray_ser.loads(pyray_ser.dumps(obj))


def read_by_the_standard_library(obj, context):
    yield "dumps, pickle.loads", pickle.loads(pyray_ser.dumps(obj))


def through_an_older_protocol(obj, context):
    context.protocol = protocol = context.r.randrange(5)
    stream = pyray_ser.dumps(obj, protocol)
    yield f"dumps of protocol {protocol}, loads", pyray_ser.loads(stream)
    yield f"dumps of protocol {protocol}, pickle.loads", pickle.loads(stream)


def through_the_standard_pickler(obj, context):
    """Dump with the standard library and load with our unpickler."""
    dumps = cloudpickle.dumps if context.by_value else pickle.dumps
    context.protocol = context.r.choice((2, 4, 5))
    yield "pickle.dumps, loads", pyray_ser.loads(dumps(obj, protocol=context.protocol))


def through_a_pickler(obj, context):
    """Dump two values into one stream, with one memo."""
    file = io.BytesIO()
    context.protocol = context.r.choice((2, 4, 5, 5))
    pickler = pyray_ser.Pickler(file, context.protocol)
    pickler.dump(obj)
    pickler.dump([obj, "second"])
    if context.r.random() < 0.3:
        memo = pickler.memo.copy()
        pickler.clear_memo()
        pickler.memo = memo
        pickler.dump(obj)
    file.seek(0)
    unpickler = context.r.choice((pyray_ser.Unpickler, pyray_ser.Unpickler, pickle.Unpickler))(file)
    copy = unpickler.load()
    second = unpickler.load()
    yield "Pickler, first value", copy
    if second[0] is not copy and type(obj) in (list, dict, classes.Plain):
        raise AssertionError("the second value of a Pickler does not refer to the first")
    yield "Pickler, second value", second[0]


def through_a_file(obj, context):
    with tempfile.TemporaryFile() as file:
        pyray_ser.dump(obj, file)
        pyray_ser.dump("end", file)
        file.seek(0)
        yield "dump, load", pyray_ser.load(file)
        assert pyray_ser.load(file) == "end"


def through_buffers(obj, context):
    buffers = []
    stream = pyray_ser.dumps(obj, buffer_callback=buffers.append)
    yield "dumps with a buffer callback", pyray_ser.loads(stream, buffers=buffers)
    yield "dumps with a buffer callback, pickle.loads", pickle.loads(stream, buffers=buffers)


def through_serialize(obj, context):
    blob = pyray_ser.serialize(obj)
    yield "serialize", pyray_ser.deserialize(blob)


def through_frames(obj, context):
    frames = pyray_ser.dumps_frames(obj)
    yield "frames", pyray_ser.loads_frames(frames if context.r.random() < 0.5 else [bytes(frame) for frame in frames])


def _hold(context, ref, obj):
    """Keep this object, so that the store must spill; once enough objects are kept, return an earlier one."""
    context.held.append((ref, obj))
    context.held_bytes += ref.size or 0
    if context.held_bytes < (24 << 20) and len(context.held) < 4000:
        return None
    Context.most_spilled = max(Context.most_spilled, pyray_ser.stats()["spilled"])
    found, original = context.held.popleft()
    context.held_bytes -= found.size or 0
    return found, original


def through_put(obj, context):
    ref = pyray_ser.put(obj)
    copy = pyray_ser.get(ref, mmap_mode=context.r.choice(("r", "r", "c")))
    yield "put, get", copy
    if context.r.random() < 0.2:
        # Depending on the size of a buffer in the store, the second put refers to it, copies it, or writes it again.
        yield "put of what get returned", pyray_ser.get(pyray_ser.put([copy, 1]))[0]
    if context.spill:
        older = _hold(context, ref, obj)
        if older is not None:
            yield ("restored", pyray_ser.get(older[0]), older[1])


def through_a_name(obj, context):
    name = f"graph {os.getpid()} {next(_names)}"
    ref = pyray_ser.put(obj, name=name)
    yield "named put", pyray_ser.get_by_name(name, timeout=0)
    pyray_ser.free(ref)


def through_another_process(obj, context):
    if context.child is None:
        return
    if context.by_value:
        # Another process makes a new object of a class or function that was pickled by value, so the copies differ.
        return
    sent = pyray_ser.put(obj)
    try:
        (ref,) = context.child.ask([sent])
    finally:
        pyray_ser.free(sent)  # the pickled reference has kept the object alive until now
    yield "another process", pyray_ser.get(ref)
    pyray_ser.free(ref)


def through_the_debug_pickler(obj, context):
    yield "debug pickler", pyray_ser.loads(debug_pickler.dumps(obj))


# Name -> (function, weight, whether it preserves memoryviews, whether each array has its own memory).
WAYS = {
    "dumps": (through_dumps, 7, False, True),
    "written": (read_by_the_standard_library, 4, False, True),
    "older": (through_an_older_protocol, 3, False, True),
    "standard": (through_the_standard_pickler, 3, False, True),
    "pickler": (through_a_pickler, 3, False, True),
    "file": (through_a_file, 1, False, True),
    "buffers": (through_buffers, 2, False, False),
    "serialize": (through_serialize, 4, True, False),
    "frames": (through_frames, 2, True, False),
    "put": (through_put, 8, True, False),
    "name": (through_a_name, 1, True, False),
    "process": (through_another_process, 1, True, False),
    "debug": (through_the_debug_pickler, 0.3, False, True),
}

# ---- results of the standard library ----------------------------------------------------------------------------------------


def standard_copy(obj, protocol=5):
    """Copy a graph with the standard library or, if that fails, with cloudpickle; pass on an exception."""
    try:
        return pickle.loads(pickle.dumps(obj, protocol))
    except Exception:
        return pickle.loads(cloudpickle.dumps(obj, protocol=protocol))


# ---- disturbances ----------------------------------------------------------------------------------------------------------


class Garbage:
    """Cyclic garbage whose finalizer uses the picklers and creates the next object of this kind."""

    def __init__(self, work, budget):
        self.itself = self
        self.work = work
        self.budget = budget

    def __del__(self):
        if self.budget[0] > 0:
            self.budget[0] -= 1
            self.work()
            Garbage(self.work, self.budget)


def _nested(r, things):
    """Return a function for finalizers that dumps and loads objects of the same classes with different memo indices."""
    thing = r.choice(things) if things else None
    streams = []

    def work():
        form = r.random()
        if form < 0.5:
            streams.append(pyray_ser.dumps(["a", "b", "alpha", thing]))
        elif form < 0.7:
            streams.append(pyray_ser.dumps([thing, thing, [thing]], 4))
        elif form < 0.8:
            pyray_ser.serialize([thing])
        elif streams:
            pyray_ser.loads(streams[-1])
        del streams[:-2]

    return work


def _copies(things):
    """
    Return copies of those objects that can be copied.

    Up to Python 3.11, a finalizer may read the ``__dict__`` of an instance while the interpreter creates this dict. The
    instance then gets two dicts that share the attributes, and the process crashes when it frees one of them. Python
    3.12 runs finalizers at other points.
    """
    copies = []
    for thing in things:
        with contextlib.suppress(Exception):
            copies.append(pyray_ser.loads(pyray_ser.dumps(thing)))
    return copies


@contextlib.contextmanager
def disturbed(r, things):
    """Let finalizers that use the picklers run at allocations inside the `with` block."""
    before = gc.get_threshold()
    small = [
        thing for thing in things if type(thing).__module__ == classes.__name__ or type(thing) in classes.Namespaces
    ]
    if sys.version_info < (3, 12):
        small = _copies(small)
    budget = [r.choice((3, 10, 30))]
    Garbage(_nested(r, small), budget)
    gc.set_threshold(r.choice((1, 1, 2, 3, 7, 20, 50)), 2, 2)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        budget[0] = 0
