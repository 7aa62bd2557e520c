"""Do what user code (hooks, finalizers, other threads) may do, at every point where the picklers can run such code.

A build with ``PYRAY_SER_INTRUDER=1`` calls an intruder at each ``PRP_FOREIGN`` point (``csrc/common/foreign.h``). The
intruder of this module collects garbage, dumps and loads objects of the same class or of others, or changes the class.
It may also evict cache entries, copy or use the memo of the running pickler, let another thread run, or raise an
exception.
The disturbed call must return the same result as without the intruder, or raise the intruder's exception.

    python tests/fuzz/intruder.py                          every maker of objects, every action, every point
    python tests/fuzz/intruder.py --graphs 1000            random graphs and random points
    python tests/fuzz/intruder.py --only reduces --actions collect,raise
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import gc
import io
import itertools
import linecache
import mmap
import os
import pickle
import random
import sys
import threading
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cloudpickle
import graphs_classes as classes
import graphs_layouts
import graphs_make
import graphs_same
import numpy as np

import pyray_ser
from pyray_ser import _pickle, _unpickle

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RECORD = 256
POINTS = 40  # if an object has more points, try only this many, chosen at random


class Intrusion(BaseException):
    """An exception that an intruder raises; as with KeyboardInterrupt, no code may discard it as a failed attempt."""


class Refusal(ValueError):
    """An ordinary exception that an intruder raises; the picklers may discard it only after a call that may fail."""


class Intruder:
    """
    A callable that the picklers call at each point where Python code can run.

    Attributes
    ----------
    at : int
        The number of the point at which to act; 0 for none.
    rate : float
        The fraction of points at which to act when `at` is 0.
    action : callable
        A function of the intruder; may raise `Intrusion` or `Refusal`.
    points, acted : int
        Numbers of points passed and of actions executed in this call.
    counts : memoryview
        Numbers of points passed and of actions executed in all calls, at the start of the record.
    copies : list of dict
        Copies of the memo that actions made in this call.
    raised : tuple of (str, int) or None
        The place at which an action last raised an exception in this call.

    Parameters
    ----------
    record : mmap, optional
        `RECORD` bytes with the counts and the current action; if they are in a file, they survive a crash.
    """

    def __init__(self, seed=0, record=None):
        self.r = random.Random(seed)
        self.at = 0
        self.rate = 0.0
        self.action = None
        self.points = self.acted = 0
        self.record = bytearray(RECORD) if record is None else record
        self.counts = memoryview(self.record)[:16].cast("Q")
        self.copies = []
        self.raised = None
        self.busy = False
        self.places = collections.Counter()
        self.where = None
        self.running = None  # the running Pickler or Unpickler
        self.things = []
        self.streams = []
        self.classes = []
        self.rivals = []

    def __call__(self, file, line, may_raise):
        if self.busy:
            return
        self.points += 1
        self.counts[0] += 1
        if self.at:
            if self.points != self.at:
                return
        elif not self.rate or self.r.random() >= self.rate:
            return
        if self.action in _RAISING and not may_raise:
            return
        self.acted += 1
        self.counts[1] += 1
        self.where = (file, line)
        self.places[self.where] += 1
        # Do not disturb the intruder's own calls, because each of them may pass thousands of points.
        self.busy = True
        _pickle._set_intruder(None)
        _unpickle._set_intruder(None)
        try:
            self.action(self)
        finally:
            self.install()
            self.busy = False

    def start(self, action=None, at=0, rate=0.0, doing=""):
        self.action, self.at, self.rate = action, at, rate
        self.points = self.acted = 0
        self.raised = None
        self.copies.clear()
        self.record[16:] = doing.encode()[: RECORD - 16].ljust(RECORD - 16)

    def stop(self):
        """Stop acting."""
        self.at, self.rate = 0, 0.0

    def install(self):
        _pickle._set_intruder(self)
        _unpickle._set_intruder(self)

    @staticmethod
    def remove():
        _pickle._set_intruder(None)
        _unpickle._set_intruder(None)


# ---- actions -------------------------------------------------------------------------------------------------------------


class _Garbage:
    def __init__(self, thing):
        self.itself = self
        self.thing = thing

    def __del__(self):
        pyray_ser.dumps(["a", "alpha", self.thing])


def intrude_collect(intruder):
    """Run the garbage collector on garbage whose finalizer dumps an object of the graph."""
    _Garbage(intruder.things[-1] if intruder.things else None)
    gc.collect(0)


def intrude_same(intruder):
    """Dump and load the same objects, with different memo indices."""
    for thing in intruder.things[-2:]:
        try:
            pyray_ser.dumps(["a", "b", "alpha", thing, "beta"])
        except RecursionError:
            raise
        except Exception:
            continue
    for stream in intruder.streams[-2:]:
        pyray_ser.loads(stream)


def intrude_other(intruder):
    """Dump and load objects of other classes."""
    stream = intruder.r.choice(_OTHERS)
    pyray_ser.dumps(["x", pyray_ser.loads(stream)])


def intrude_evict(intruder):
    """Evict all cache entries by using many classes, names, keys and strings; for speed, usually use fewer."""
    if intruder.r.random() < 0.02:
        for stream in _MANY:
            pyray_ser.loads(stream)
        pyray_ser.dumps(_MANY_OBJECTS)
        return
    for stream in intruder.r.choice(intruder.rivals) if intruder.rivals else ():
        pyray_ser.loads(stream)
    pyray_ser.loads(intruder.r.choice(_PARTS))


def intrude_classes(intruder):
    """Change the classes of the graph, and undo the change."""
    for cls in intruder.classes:
        cls.changed_by_intruder = 1
        del cls.changed_by_intruder


def intrude_warm(intruder):
    """Change the classes, and make the picklers create new plans for them."""
    intrude_classes(intruder)
    intrude_same(intruder)


def intrude_thread(intruder):
    """Let another thread dump and load."""
    _THREAD.run(intruder)


def intrude_memo(intruder):
    """Copy, replace or clear the memo of the running pickler, or use the pickler again."""
    running = intruder.running
    if running is None:
        return
    try:
        form = intruder.r.random()
        copied = running.memo.copy()
        if form < 0.3:
            running.memo = copied
        elif form < 0.5:
            running.memo.clear()
        elif form < 0.6 and hasattr(running, "clear_memo"):
            running.clear_memo()
        elif form < 0.7 and hasattr(running, "dump"):
            running.dump(["again"])
        elif form < 0.7:
            running.load()
    except Intrusion:
        raise
    except Exception:
        return  # an error is a valid result


def intrude_copy(intruder):
    """Copy the memo of the running pickler without changing anything."""
    if intruder.running is not None:
        copy = intruder.running.memo.copy()
        # Leave out dtypes: a dtype with a second reference no longer accepts a state.
        intruder.copies.append({index: thing for index, thing in copy.items() if not isinstance(thing, np.dtype)})


def intrude_anyhow(intruder):
    """Execute a random one of the actions that must not change the result; choose cheap actions more often."""
    number = intruder.r.random()
    if number < 0.003:
        intrude_thread(intruder)  # rarely, because two thread switches are slow
    else:
        _ANY[int(number * len(_ANY))](intruder)


_ANY = (intrude_collect, intrude_same, intrude_same, intrude_other, intrude_evict, intrude_classes, intrude_warm)


def intrude_raise(intruder):
    intruder.raised = intruder.where
    raise Intrusion(intruder.where)


# These calls are allowed to fail: importing a module and reading its attributes may raise any exception, and numpy
# writes an array or scalar that exports no buffer in a different form.
_ASKING = (
    "PyDict_GetItemWithError(prp_g.sys_modules, module_str)",
    "PyDict_GetItemWithError(PyModule_GetDict(module), name)",
    "PyObject_GetAttr(module, name)",
    "PyImport_Import(module_str)",
    "PyUnicode_Split(name, separator, -1)",
    "PyObject_GetAttr(here, part)",
    "PyObject_GetBuffer(obj, &view, PyBUF_SIMPLE)",
    "PyPickleBuffer_FromObject(shown)",
    'Py_CompileString(text, "<namedtuple>", Py_eval_input)',  # if an audit hook raises, our code takes no shortcut
    # When a pickler meets a class for the first time, it tries whether a shortcut applies. If the attempt raises, it takes the
    # general way, which calls the class itself and passes on what that raises.
    "PyObject_GetAttr(method, prp_g.str_qualname)",
    "PyObject_GetAttr(method, prp_g.str_module)",
    "PyObject_GetAttr(sample, prp_g.str_value)",
    "PyObject_CallFunctionObjArgs(method, sample, prp_g.int_proto[5], NULL)",
    'PyObject_GetAttrString(object, "T")',
    # An allocation raises only MemoryError, even if it triggers a collection that runs Python code.
    "PyList_New(",
    "PyTuple_New(",
)


def intrude_refuse(intruder):
    file, line = intruder.where
    text = linecache.getline(os.path.join(ROOT, file), line)
    if not any(call in text for call in _ASKING):
        intruder.raised = intruder.where
        raise Refusal(intruder.where)


_RAISING = (intrude_raise, intrude_refuse)


class _Thread:
    """A thread that runs only while an intruder waits for it."""

    def __init__(self):
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.intruder = None
        self.thread = None

    def run(self, intruder):
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, daemon=True)
            self.thread.start()
        self.intruder = intruder
        self.go.release()
        self.done.acquire()

    def work(self):
        while True:
            self.go.acquire()
            try:
                intrude_same(self.intruder)
                intrude_other(self.intruder)
            except Exception:
                traceback.print_exc()
            self.intruder = None
            self.done.release()


_THREAD = _Thread()


def _objects_of_many_classes():
    found = []
    for number in range(256):
        crowd = classes.crowded(number / 256)
        for cls, names in crowd[:3]:
            obj = cls()
            for name in names:
                setattr(obj, name, name)
            found.append(obj)
    return found


_MANY_OBJECTS = _objects_of_many_classes()
_MANY = [
    pickle.dumps(_MANY_OBJECTS, 5),
    pickle.dumps([{f"k{i}": 1, f"l{i}": 2} for i in range(300)], 5),
    pickle.dumps([cls for cls, _ in classes.PLAIN[::3]], 4),
]
_PARTS = [
    *(pickle.dumps(_MANY_OBJECTS[i : i + 20], 5) for i in range(0, len(_MANY_OBJECTS), 20)),
    *(pickle.dumps([{f"k{i}": 1, f"l{i}": 2} for i in range(j, j + 20)], 5) for j in range(0, 300, 20)),
    *(pickle.dumps([cls for cls, _ in classes.PLAIN[i : i + 20]], 4) for i in range(0, 2000, 20)),
]
_OTHERS = [pickle.dumps(_MANY_OBJECTS[i : i + 4], 5) for i in range(0, 400, 4)]

# Name of an action -> (function, whether the result must be the same as without a disturbance).
ACTIONS = {
    "collect": (intrude_collect, True),
    "same": (intrude_same, True),
    "other": (intrude_other, True),
    "evict": (intrude_evict, True),
    "classes": (intrude_classes, True),
    "warm": (intrude_warm, True),
    "thread": (intrude_thread, True),
    "copy": (intrude_copy, True),
    "memo": (intrude_memo, False),
    "raise": (intrude_raise, True),
    "refuse": (intrude_refuse, True),
}


# ---- disturbed calls -------------------------------------------------------------------------------------------------------


def _dumps(intruder, obj, stream):
    return lambda: pyray_ser.dumps(obj), pickle.loads


def _dumps_old(intruder, obj, stream):
    return lambda: pyray_ser.dumps(obj, 2), pickle.loads


def _pickler(intruder, obj, stream):
    def work():
        file = io.BytesIO()
        intruder.running = pyray_ser.Pickler(file, 5)
        try:
            intruder.running.dump(obj)
        finally:
            intruder.running = None
        return file.getvalue()

    return work, pickle.loads


def _serialize(intruder, obj, stream):
    return lambda: pyray_ser.serialize(obj), pyray_ser.deserialize


def _loads(intruder, obj, stream):
    return lambda: pyray_ser.loads(stream), None


def _unpickler(intruder, obj, stream):
    def work():
        intruder.running = unpickler = pyray_ser.Unpickler(io.BytesIO(stream))
        try:
            result = unpickler.load()
        finally:
            intruder.running = None
        memo = unpickler.memo.copy() if intruder.copies else {}
        for index, thing in (pair for copy in intruder.copies for pair in copy.items()):
            # Only the index of a `Plain` may hold another object later, because some streams reuse this index.
            if thing is not memo.get(index) and type(thing) is not classes.Plain:
                raise AssertionError(f"a copy of the memo had {thing!r} at {index}, which is not what was loaded")
        return result

    return work, None


def _deserialize(intruder, obj, stream):
    blob = pyray_ser.serialize(obj)
    return lambda: pyray_ser.deserialize(blob), None


def _allowed(intruder, obj, stream):
    return lambda: pyray_ser.loads(stream, allow=lambda module, name: True), None


WORKS = {
    "dumps": _dumps,
    "dumps 2": _dumps_old,
    "Pickler": _pickler,
    "serialize": _serialize,
    "loads": _loads,
    "Unpickler": _unpickler,
    "deserialize": _deserialize,
    "loads allowed": _allowed,
}
READS = ("loads", "Unpickler", "loads allowed")  # calls that use the stream unchanged


def _from_intruder(error):
    """Return whether an intruder raised this exception or another exception that caused it."""
    while error is not None:
        if isinstance(error, (Intrusion, Refusal)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _outcome(intruder, work, read, expected, exact):
    """Return a description of what is wrong with one disturbed call, or None."""
    try:
        result = work()
    except BaseException as error:
        intruder.stop()
        if isinstance(error, KeyboardInterrupt):
            raise
        if _from_intruder(error):
            return None if intruder.raised else "an exception of another call"
        if not exact:
            return None
        return "".join(traceback.format_exception(error))
    intruder.stop()
    if intruder.raised:
        return f"the exception raised at {intruder.raised} was lost"
    try:
        copy = read(result) if read else result
    except Exception as error:
        return f"cannot be read: {type(error).__name__}: {error}" if exact else None
    if not exact:
        return None
    return graphs_same.difference(expected, copy)


def intrude(intruder, name, obj, pool, works=None, actions=None, points=POINTS, stream=None):
    """
    Disturb each kind of call for one object, at each point in turn or at random points.

    Parameters
    ----------
    intruder : Intruder
        An installed intruder.
    name : str
        The name of the object in reports.
    obj : object
    pool : list
        Objects of the same classes.
    works, actions : list of str, optional
        Names; default is all.
    points : int
        The number of points to try for each pair of call and action.
    stream : bytes, optional
        The stream to load; by default cloudpickle's stream of the object.

    Yields
    ------
    str
        A description of a fault.
    """
    if stream is None:
        stream = cloudpickle.dumps(obj)
    intruder.things = [obj]
    intruder.streams = [stream]
    intruder.classes = list({type(x) for x in (obj, *pool) if type(x).__module__ == classes.__name__})[:8]
    intruder.rivals = _rivals(intruder.classes)
    for work_name in WORKS if works is None else works:
        intruder.start(doing=f"{name}, {work_name}, undisturbed")
        intruder.busy = True
        try:
            work, read = WORKS[work_name](intruder, obj, stream)
            result = work()
            expected = read(result) if read else result
            work()
        except Exception:
            continue  # the tests of graphs check that the standard library rejects this object too
        finally:
            intruder.busy = False
        for action_name in actions or ACTIONS:
            action, exact = ACTIONS[action_name]
            intruder.start()
            work()
            found = intruder.points
            intruder.stop()
            numbers = range(1, found + 1) if found <= points else sorted(intruder.r.sample(range(1, found + 1), points))
            for at in numbers:
                doing = f"{name}, {work_name}, {action_name} at point {at}"
                intruder.start(action, at, doing=doing)
                wrong = _outcome(intruder, work, read, expected, exact)
                if wrong:
                    yield f"{doing}, {intruder.where}: {wrong}"
            if exact and action not in _RAISING and numbers:
                doing = f"{name}, {work_name}, {action_name} at random"
                intruder.start(action, rate=0.3, doing=doing)
                wrong = _outcome(intruder, work, read, expected, exact)
                if wrong:
                    yield f"{doing}, last at {intruder.where}: {wrong}"


def _rivals(found):
    """Return two lists of streams, of classes and instances that share a cache slot with the given classes.

    The instances in the first list have attributes, those in the second list have none.
    """
    namesakes = [pickle.dumps(classes.namesakes(cls)[:3], 4) for cls in found[:3]]
    filled, bare = [], []
    for cls in found[:3]:
        rivals = [entry for entry in classes.crowd_of(cls) if entry[0] is not cls]
        objects = []
        for rival, names in rivals[:3]:
            obj = rival()
            for name in names:
                setattr(obj, name, 1)
            objects.append(obj)
        filled.append(pickle.dumps(objects, 5))
        # The picklers cache almost nothing about a class whose instances have no attributes.
        bare.append(pickle.dumps([rival() for rival, _ in rivals[-3:]], 5))
    return [filled + namesakes, bare + namesakes] if filled else []


def _twin(obj):
    """Return the stream of an object with the same class and attributes but small values, or None if impossible."""
    try:
        twin = type(obj).__new__(type(obj))
        for name in list(getattr(obj, "__dict__", ()))[:5]:
            twin.__dict__[name] = name
        stream = pickle.dumps(twin, 5)
        pickle.loads(stream)
    except Exception:
        return None
    return stream


def intrude_at_random(intruder, name, obj, pool):
    """
    Disturb each kind of call for one object at random points, by random actions, and once by an exception.

    Returns
    -------
    list of str
        A description of a fault.
    """
    faults = []
    stream = cloudpickle.dumps(obj)
    intruder.classes = list({type(x) for x in (obj, *pool) if type(x).__module__ == classes.__name__})[:4]
    # Use small objects of the same classes, because the action at a point must be fast.
    twins = (_twin(x) for x in pool if type(x) in intruder.classes)
    intruder.streams = [twin for twin in twins if twin][-2:]
    intruder.things = [pickle.loads(twin) for twin in intruder.streams]
    intruder.rivals = _rivals(intruder.classes)
    for work_name in WORKS:
        intruder.busy = True
        try:
            work, read = WORKS[work_name](intruder, obj, stream)
            result = work()
            expected = read(result) if read else result
        except Exception:
            continue  # the tests of graphs check that the standard library rejects this object too
        finally:
            intruder.busy = False
        for action, rate in (
            (intrude_anyhow, 1.0),
            (intrude_anyhow, intruder.r.choice((0.02, 0.1, 0.4))),
            (intruder.r.choice(_RAISING), 0.1),
        ):
            doing = f"{name}, {work_name}, at random"
            intruder.start(action, rate=rate, doing=doing)
            wrong = _outcome(intruder, work, read, expected, True)
            if wrong:
                faults.append(f"{doing}, last at {intruder.where}: {wrong}")
    return faults


def corpus(seed, only=None):
    """Yield (name, object, objects within it) for the object of each maker, once alone and once twice in a list."""
    for name, function in graphs_make.MAKERS.items():
        if only and name not in only:
            continue
        builder = graphs_make.Builder(f"{name} {seed}")
        builder.pool.append(builder.attributes(classes.Plain()))
        made = function(builder)
        if builder.views:
            continue
        yield name, ["alpha", "beta", "gamma", made, made], [made]


def _streams():
    """
    Return streams that no pickler writes: they use a memo index twice, so that the load frees the first object.

    Returns
    -------
    dict
        Name -> (stream, instances of a class in it).
    """
    cls, names = classes.crowded(0.5)[0]

    def text(name):
        return pickle.BINUNICODE + len(name.encode()).to_bytes(4, "little") + name.encode()

    def framed(opcodes):
        # Within a frame, the unpickler can look ahead to the next opcodes for every kind of file.
        return pickle.PROTO + b"\4" + pickle.FRAME + len(opcodes).to_bytes(8, "little") + opcodes

    def instance(of):
        return f"c{of.__module__}\n{of.__qualname__}\n".encode() + pickle.EMPTY_TUPLE + pickle.NEWOBJ

    put = pickle.BINPUT + b"\0"
    old = instance(classes.Plain) + put + pickle.POP
    state = b"}(" + b"".join(text(name) + b"K\1" for name in names) + b"ub"
    bodies = {
        "instance at a used index": instance(cls) + put + state,
        "state at a used index": instance(cls) + state.replace(b"}", b"}" + put, 1),
        "list at a used index": b"]" + put + b"(K\1K\2e",
        "dict at a used index": b"}" + put + b"(K\1K\2K\3K\4u",
    }
    made = cls()
    for name in names:
        setattr(made, name, 1)
    return {name: (framed(b"](" + old + body + b"h\0e."), [made]) for name, body in bodies.items()}


STREAMS = _streams()


def run(
    seed=0,
    rounds=1,
    graphs=0,
    start=0,
    only=None,
    works=None,
    actions=None,
    points=POINTS,
    most=20,
    report=print,
    record=None,
):
    """
    Disturb dumps and loads of the corpus, then of random graphs.

    Returns
    -------
    tuple of (list of str, Intruder)
        Faults, and the intruder with its counts.
    """
    intruder = Intruder(seed, record)
    gc.collect()
    gc.freeze()
    intruder.install()
    faults = []

    def add(found):
        faults.extend(itertools.islice(found, most - len(faults)))
        return len(faults) >= most

    try:
        for name, (stream, pool) in STREAMS.items():
            if only and name not in only:
                continue
            reading = [work for work in works or READS if work in READS]
            # The load of each stream frees the object at only one point, so try all points.
            if add(intrude(intruder, name, pickle.loads(stream), pool, reading, actions, 1000, stream)):
                return faults, intruder
        for number in range(rounds):
            for name, obj, pool in corpus(seed + number, only):
                if add(intrude(intruder, name, obj, pool, works, actions, points)):
                    return faults, intruder
        for number in range(start, start + graphs):
            if number % 8 == 7:
                obj, pool = graphs_layouts.layout(number, large=0, memory_views=False, frames=False), []
            else:
                intruder.busy = True
                builder = graphs_make.graph(number, size=6, libraries=False)
                intruder.busy = False
                if builder.views:
                    continue
                obj, pool = builder.root, builder.pool
            faults += intrude_at_random(intruder, f"graph {number}", obj, pool)
            if len(faults) >= most:
                break
            if report and number % 1000 == 999:
                report("{} graphs, {} points, {} intruded".format(number + 1, *intruder.counts), flush=True)
    finally:
        intruder.remove()
        gc.unfreeze()
    return faults, intruder


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="how often each maker makes an object")
    parser.add_argument("--graphs", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the first graph")
    parser.add_argument("--only", help=f"only these: {', '.join((*STREAMS, *graphs_make.MAKERS))}")
    parser.add_argument("--calls", help=f"only these: {', '.join(WORKS)}")
    parser.add_argument("--actions", help=f"only these: {', '.join(ACTIONS)}")
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--most", type=int, default=20, help="stop after so many faults")
    parser.add_argument("--record", help="a file for the numbers of points and what is being done, for after a crash")
    parser.add_argument("--places", action="store_true", help="print how often each place was intruded")
    options = parser.parse_args(arguments)
    faulthandler.enable()
    if not hasattr(_pickle, "_set_intruder"):
        parser.error("pyray_ser was built without PYRAY_SER_INTRUDER=1; `make intruder` makes such a build")
    began = time.perf_counter()

    def words(text):
        return text.split(",") if text else None

    record = None
    if options.record:
        with open(options.record, "w+b") as file:
            file.truncate(RECORD)
            record = mmap.mmap(file.fileno(), RECORD)
    faults, intruder = run(
        options.seed,
        options.rounds,
        options.graphs,
        options.start,
        words(options.only),
        words(options.calls),
        words(options.actions),
        options.points,
        options.most,
        record=record,
    )
    for fault in faults:
        print(fault)
    if options.places:
        for (file, line), count in sorted(intruder.places.items()):
            print(f"{count:9} {file}:{line}")
    print(
        f"{len(faults)} faults; {intruder.counts[0]} points met, {intruder.counts[1]} intruded at {len(intruder.places)} places, "
        f"{time.perf_counter() - began:.1f} s"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
