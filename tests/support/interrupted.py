"""Run programs with Python code inside a dump or a load, and interrupt each program at each of its lines.

An interrupt is an exception raised by a trace function at the n-th line that is run, for n = 1, 2, ... until the
program ends without the exception. Each attempt runs in a new process, forked from one that has pickled nothing, so
that work done once per process is also interrupted. The call must raise the exception, unless other Python code catches
it. Two cases are exempt: the interpreter only reports an exception in a weakref callback, and an `except Exception` of
another library, which the test recognizes by the frames, may catch the exception.
"""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import datetime
import enum
import functools
import io
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import cloudpickle
import numpy as np

import pyray_ser._ndarray  # numpy and our code import some modules only once; import them before any interrupt
import pyray_ser.util
from pyray_ser import _pickle, _unpickle

# ---- classes and objects ------------------------------------------------------------------------------------------------


class Hooks:
    """A class with every method that a pickler or an unpickler may call on an instance."""

    def __init__(self, value=1):
        self.value = value

    def __getnewargs_ex__(self):
        return (), {}

    def __getstate__(self):
        return {"value": self.value}

    def __setstate__(self, state):
        self.value = state["value"]

    def __getattr__(self, name):
        raise AttributeError(name)


class Reduced:
    """A class whose reduction has six parts."""

    def __init__(self):
        self.items = [1, 2]

    def __reduce__(self):
        return Reduced, (), {"a": 1}, None, None, set_state


def set_state(obj, state):
    obj.__dict__.update(state)


class OldReduced:
    """A class whose lookup of `__reduce_ex__` fails."""

    def __getattribute__(self, name):
        if name == "__reduce_ex__":
            raise AttributeError(name)
        return object.__getattribute__(self, name)

    def __reduce__(self):
        return dict, ()


class Items(dict):
    """A dict class that defines its own iteration."""

    def items(self):
        yield from list(dict.items(self))


class Sequence(list):
    def __iter__(self):
        yield from [1, 2, 3]

    def append(self, item):
        list.append(self, item)

    def extend(self, items):
        list.extend(self, items)


class Key:
    """A class whose __hash__ and __eq__ are written in Python."""

    def __init__(self, name):
        self.name = name

    def __hash__(self):
        return 7

    def __eq__(self, other):
        return isinstance(other, Key) and self.name == other.name

    def __reduce__(self):
        return Key, (self.name,)

    def __repr__(self):
        return f"Key({self.name})"


class Unpicklable:
    """A class whose reduction raises an exception with methods in Python."""

    def __reduce__(self):
        raise Refusal("no")

    def __repr__(self):
        return "an object " + "without a pickle"


class Refusal(Exception):
    def add_note(self, note):
        super().add_note(note + "!")


class TypeRefusal(TypeError):
    @property
    def args(self):
        return ("cannot",)

    @args.setter
    def args(self, value):
        self.said = value


class Unnamed:
    """A class whose reduction is a name that does not exist."""

    def __reduce__(self):
        return "nowhere.to.be.found"

    __repr__ = Unpicklable.__repr__


class Meta(type):
    def __getattribute__(cls, name):
        return type.__getattribute__(cls, name)

    def __hash__(cls):
        return id(cls)

    def __eq__(cls, other):
        return cls is other


class OfMeta(metaclass=Meta):
    def __init__(self):
        self.a = 1


@dataclasses.dataclass
class Record:
    x: int = 1
    y: str = "y"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: int = 1
    y: str = "y"


@dataclasses.dataclass(slots=True)
class Slotted:
    x: int = 1
    y: str = "y"


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Name(str):
    def __eq__(self, other):
        return str.__eq__(self, other)

    __hash__ = str.__hash__


class Odd(enum.Enum):
    """An enum whose values are compared by Python code."""

    ONE = Name("one")


class Flags(enum.Flag):
    A = 1
    B = 2


Point = collections.namedtuple("Point", "x y")


class Zone(datetime.tzinfo):
    def utcoffset(self, when):
        return datetime.timedelta(0)

    def __reduce__(self):
        return Zone, ()


class Registered:
    pass


class Tabled:
    pass


class Failing(enum.Enum):
    """An enum whose members cannot be pickled."""

    A = 1

    def __reduce_ex__(self, protocol):
        return Failing, (self.value,)


class LazyModule(types.ModuleType):
    """A module that creates its attributes on first access."""

    def __getattr__(self, name):
        if name == "made":
            return made
        raise AttributeError(name)


def made():
    pass


made.__module__ = made.__qualname__ = "made"


class Finder:
    """An import hook for the module `found_late`."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "found_late":
            import importlib.machinery

            return importlib.machinery.ModuleSpec(name, Finder)
        return None

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        module.thing = late


def late():
    pass


late.__module__, late.__qualname__ = "found_late", "thing"


class File:
    """A file in Python with all methods that an unpickler calls."""

    def __init__(self, data=b""):
        self.file = io.BytesIO(data)

    def write(self, data):
        return self.file.write(data)

    def read(self, n=-1):
        return self.file.read(n)

    def readline(self):
        return self.file.readline()

    def readinto(self, to):
        return self.file.readinto(to)

    def peek(self, n):
        raise NotImplementedError


class HookedPickler(_pickle.Pickler):
    dispatch_table = collections.ChainMap({Tabled: lambda obj: (Tabled, ())}, copyreg.dispatch_table)

    def persistent_id(self, obj):
        return "pid" if type(obj) is str and obj == "persistent" else None

    def reducer_override(self, obj):
        if type(obj) is Record:
            return Record, (obj.x, obj.y)
        return NotImplemented


class HookedUnpickler(_unpickle.Unpickler):
    def persistent_load(self, pid):
        return pid

    def find_class(self, module, name):
        return super().find_class(module, name)


def allow(module, name):
    return module.startswith("inter") or module == "builtins"


def closure():
    offset = 3
    return lambda x: x + offset


def local_class():
    class Local:
        field = 3

        def method(self):
            return self.field

    return Local


# ---- programs -----------------------------------------------------------------------------------------------------------

PROGRAMS: dict[str, Callable[[], Callable[[], Any]]] = {}


def program(function):
    """Register a function that prepares a program and returns the function to interrupt."""
    PROGRAMS[function.__name__] = function
    return function


def all_objects():
    return {
        "hooks": Hooks(),
        "reduced": Reduced(),
        "old_reduced": OldReduced(),
        "items": Items(a=1),
        "sequence": Sequence([1, 2, 3]),
        "keys": {Key("a"): 1, Key("b"): 2},
        "set": {Key("a"), Key("b")},
        "meta": OfMeta(),
        "meta_class": OfMeta,
        "record": Record(),
        "frozen": [Frozen(), Frozen(2)],
        "slotted": [Slotted(), Slotted(2)],
        "enum": [Colour.RED, Colour.BLUE, Odd.ONE, Failing.A],
        "flags": Flags.A | Flags.B,
        "namedtuple": [Point(1, 2), Point(3, 4)],
        "zone": datetime.datetime(2020, 1, 1, tzinfo=Zone()),
        "error": ValueError("x"),
        "partial": functools.partial(print, 1),
        "scalar": [np.float64(1.5), np.datetime64("2020-01-01")],
        "array": np.arange(4),
        "fortran": np.zeros((3, 4), order="F"),
        "strings": np.array(["a", "b"]),
        "objects": np.array([Hooks(), None], dtype=object),
        "by_name": [made, late],
    }


def _for_each_object():
    for name, obj in all_objects().items():

        def dumps(obj=obj):
            return lambda: _pickle.dumps(obj)

        def letter(obj=obj):
            return lambda: HookedPickler(File(), 2).dump(obj)

        def put(obj=obj):
            return lambda: _pickle._put(obj)

        def loads(obj=obj):
            stream = pickle.dumps(obj)
            return lambda: _unpickle.loads(stream)

        def loads_allowed(obj=obj):
            stream = pickle.dumps(obj, 2)
            return lambda: HookedUnpickler(File(stream), allow=lambda module, name: True).load()

        for function in dumps, letter, put, loads, loads_allowed:
            PROGRAMS[f"{function.__name__} {name}"] = function


def install():
    """Define the names of the objects that are pickled by name."""
    sys.modules["made"] = LazyModule("made")
    sys.meta_path.append(Finder)


@program
def dumps_lambda():
    function = closure()
    return lambda: _pickle.dumps(function)


@program
def dumps_local_class():
    cls = local_class()
    return lambda: _pickle.dumps(cls())


@program
def loads_lambda():
    stream = cloudpickle.dumps(closure())
    return lambda: _unpickle.loads(stream)


@program
def dumps_module_by_value():
    module = types.ModuleType("by_value")
    exec("def function():\n    return 1", module.__dict__)
    sys.modules["by_value"] = module
    cloudpickle.register_pickle_by_value(module)
    return lambda: _pickle.dumps(module.function)


@program
def dumps_asks_cloudpickle():
    """Make the pickler call cloudpickle's function that lists the modules to pickle by value."""
    registered = cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES

    def list_registry():
        return registered.copy()

    cloudpickle.list_registry_pickle_by_value = list_registry
    cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES = None  # as in a version of cloudpickle that lacks this set
    return lambda: _pickle.dumps(Record)


@program
def dumps_cloudpickle_with_properties():
    """Pickle with a CloudPickler whose dispatch_table is a property."""

    class Pickler(cloudpickle.CloudPickler):
        @property
        def dispatch_table(self):
            return table

    table = cloudpickle.CloudPickler.dispatch_table
    cloudpickle.CloudPickler = Pickler
    return lambda: _pickle.dumps({1: 2}.keys())


@program
def dumps_registered():
    pyray_ser.util.register_serializer(Registered, serializer=lambda obj: {}, deserializer=lambda state: Registered())
    return lambda: _pickle.dumps([Registered(), Registered()])


@program
def dumps_copyreg():
    copyreg.pickle(Tabled, lambda obj: (Tabled, ()))
    return lambda: _pickle.dumps(Tabled())


@program
def dumps_buffers():
    taken = []
    return lambda: _pickle.dumps(np.arange(4), buffer_callback=lambda buffer: taken.append(buffer))


@program
def loads_extension():
    copyreg.add_extension("made", "made", 77)
    stream = pickle.dumps(made, 2)
    return lambda: _unpickle.loads(stream)


@program
def loads_keys_of_a_file():
    stream = pickle.dumps({Key("a"): b"x" * 200_000, "name": Hooks()}, 4)
    return lambda: _unpickle.load(File(stream))


@program
def loads_protocol_0():
    stream = pickle.dumps([Hooks(), "text", 10**30], 0)
    return lambda: _unpickle.load(File(stream))


@program
def loads_persistent():
    file = io.BytesIO()
    HookedPickler(file).dump(["persistent", Tabled(), Record()])
    return lambda: HookedUnpickler(File(file.getvalue()), allow=allow).load()


def refused(value):
    """Register a value that cannot be pickled, to interrupt the composition of the error message, too."""

    def call(dumps):
        try:
            dumps(value())
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except Exception:
            return
        raise AssertionError("not refused")

    PROGRAMS[f"refused dumps {value.__name__}"] = lambda: lambda: call(_pickle.dumps)
    PROGRAMS[f"refused letter {value.__name__}"] = lambda: lambda: call(
        lambda obj: _pickle.Pickler(File(), 2).dump(obj)
    )
    PROGRAMS[f"refused put {value.__name__}"] = lambda: lambda: call(_pickle._put)
    return value


@refused
def with_note():
    return [{Key("k"): Unpicklable()}]


@refused
def without_name():
    return [Unnamed()]


@refused
def without_module():
    obj = local_class()
    obj.__qualname__ = obj.__name__ = 7  # type: ignore[assignment]
    return [obj]


@refused
def with_args():
    class Reducer:
        def __reduce__(self):
            raise TypeRefusal

    return [{Key("k"): Reducer()}]


@refused
def by_value_too():
    return {"lock": [sys.exc_info, (lambda: 0).__code__.co_positions()]}


def refused_load():
    class From(types.ModuleType):
        def __repr__(self):
            return "a module " + "in Python"

    sys.modules["from_here"] = From("from_here")
    stream = b"\x80\x04\x8c\x09from_here\x8c\x07nowhere\x93."

    def call():
        try:
            _unpickle.loads(stream)
        except AttributeError:
            pass

    return call


PROGRAMS["refused load"] = refused_load
_for_each_object()

# ---- interrupting -------------------------------------------------------------------------------------------------------

ENDED, CAME_OUT, SWALLOWED, REPORTED, CAUGHT = range(5)


def _catches(frame, skip_exceptions: bool) -> bool:
    if frame.f_code.co_qualname == "_slotnames":
        return True  # `copyreg._slotnames` has a bare `except:`
    while frame is not None and skip_exceptions:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(("cloudpickle", "importlib", "_frozen_importlib")):
            return True
        frame = frame.f_back
    return False


def attempt(run: Callable[[], Any], n: int, error: type[BaseException], skip_catching: bool) -> tuple[int, str]:
    """Run the program and raise `error` at line n."""
    lines = 0
    at = ""
    caught = False
    reported = []
    sys.unraisablehook = lambda args: reported.append(args.exc_type)

    def trace(frame, event, arg):
        nonlocal lines, at, caught
        if event == "line":
            lines += 1
            if lines == n:
                at = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"
                if _catches(frame, skip_catching):
                    caught = True
                else:
                    raise error("interrupted")
        return trace

    sys.settrace(trace)
    try:
        run()
    except error as came:
        sys.settrace(None)
        return (CAME_OUT if str(came) == "interrupted" else SWALLOWED), at
    except BaseException as other:
        sys.settrace(None)
        return (REPORTED if reported else SWALLOWED), f"{at}: {other!r}"
    sys.settrace(None)
    if lines < n:
        return ENDED, at
    return CAUGHT if caught else REPORTED if reported else SWALLOWED, at


def in_a_child(function: Callable[[], str]) -> str:
    """Run the function in a new process and return its result."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(receiving)
            with open(sending, "w") as pipe:
                pipe.write(function())
            status = 0
        finally:
            os._exit(status)
    os.close(sending)
    with open(receiving) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the process ended with status {status}"
    return answer


def interrupt(name: str, error: type[BaseException], lines: Iterable[int]) -> str:
    """Interrupt one program; print a line for each interrupt that the call lost, and then how many it raised."""
    run = PROGRAMS[name]()
    said = []
    came_out = 0
    for n in lines:
        answer = in_a_child(lambda n=n: "{}{}".format(*attempt(run, n, error, issubclass(error, Exception))))
        status, at = int(answer[0]), answer[1:]
        if status == ENDED:
            return "\n".join([*said, str(came_out)])
        came_out += status == CAME_OUT
        if status == SWALLOWED:
            said.append(f"{name}: {error.__name__} did not come out of line {n}, {at}")
    raise ValueError(f"{name} has more lines than are to be interrupted")


def main(error: type[BaseException], lines: Iterable[int], names: list[str] | None = None) -> None:
    """Interrupt all programs at these lines; print those that continued, and how many times the exception was raised.

    `lines` must contain numbers beyond the last line of the longest program.
    """
    install()
    total = 0
    for name in names or PROGRAMS:
        if error is RecursionError and name.startswith("refused"):
            continue  # a RecursionError inside repr must not replace the error that is being reported
        *said, came_out = in_a_child(lambda name=name: interrupt(name, error, lines)).splitlines()
        total += int(came_out)
        for line in said:
            print(line, flush=True)
    print(total, "came out")
