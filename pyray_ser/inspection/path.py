"""Convert the steps of a walk through an object to a path as a user would write it.

A walk goes through containers and through the parts of reductions: argument tuples, state
dictionaries, closure cells. A user thinks in terms of attributes, keys, indices, closures, globals
and default arguments. `describe` translates.

A path is a sequence of `Part`. Accesses (``.model``, ``['k']``, ``[1]``) directly follow one another; the other parts
(``closure 'cfg'``) are separated by arrows::

    task -> closure 'cfg' -> .model.cache['k'][1]
"""

from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, MappingProxyType, MemberDescriptorType, MethodType
from typing import Any

from .._walk import instance_dict
from ..pickling.reducer_order import find_in_mro
from . import frames
from .part import Part
from .text import class_name, key_text

__all__ = ["HALF", "Part", "Way", "attributes", "describe", "describe_long", "path_text"]

# (object, kind of step, key, child), see _walk.Walker. The compiled pickler uses the kind "attribute" in place of the
# two steps state and value.
Step = tuple[Any, str, Any, Any]


# The maximum number of steps that are described together. The longest case is from a pandas frame to an item of a
# column, see `frames`.
_WINDOW = 10
# If a path has more than twice this number of steps, only this many steps at each end are described.
HALF = 50
# Kinds of steps that lead to a complete object, not to a part of a reduction.
_WHOLE = frozenset({"attribute", "state", "args", "listitem", "dictvalue"})


def path_text(parts: list[Part], root: str | None = None) -> str:
    """Write a path in one line; `root` is the user's name for the root object."""
    text = root or ""
    access = bool(root)  # whether the next access follows directly
    for part in parts:
        if part.is_access and (access or not text):
            text += part.text
        else:
            text += f" -> {part.text}" if text else part.text
        access = part.leads
    return text


def describe(steps: list[Step]) -> list[Part]:
    """Translate the steps to an object into parts; steps inside a reduction get no separate part."""
    return [part for _, parts in _groups(steps) for part in parts]


def describe_long(steps: list[Step], skipped: int = 0) -> list[Part]:
    """
    Act as `describe`, but describe only the beginning and the end of a very long path, with ``...`` between them.

    Parameters
    ----------
    steps : list of tuple
    skipped : int, optional
        Number of steps after the first `HALF` that the walk has already dropped.
    """
    if len(steps) <= HALF or (not skipped and len(steps) <= 2 * HALF):
        return describe(steps)
    # The end begins at the next complete object, because steps inside a reduction make no sense alone.
    rest = steps[-HALF:] if not skipped else steps[HALF:]
    begin = next((i for i, step in enumerate(rest) if step[1] in _WHOLE and i < _WINDOW), 0)
    return [*describe(steps[:HALF]), Part("...", "...", rest[begin][0]), *describe(rest[begin:])]


class Way:
    """
    A path to which one step is added at a time; each step is described in constant time.

    Attributes
    ----------
    count : int
        Number of parts of the description so far.
    last : Part or None
        The last of these parts.
    """

    __slots__ = ("_before", "_steps", "_tail", "count", "last")

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._before = self.count = 0
        self._tail: list[Part] = []
        self.last: Part | None = None

    def down(self, step: Step) -> "Way":
        """Return this path with one more step."""
        made = Way()
        steps = [*self._steps, step]
        groups = _groups(steps)
        # Steps that are too old to belong to the newest part keep their previous description.
        settled = 0
        before = self._before
        for i, (start, parts) in enumerate(groups):
            if start >= len(steps) - _WINDOW:
                break
            settled = groups[i + 1][0] if i + 1 < len(groups) else len(steps)
            before += len(parts)
        made._tail = [part for start, parts in groups if start >= settled for part in parts]
        made._steps = steps[settled:]
        made._before = before
        made.count = before + len(made._tail)
        made.last = next((part for _, parts in reversed(groups) for part in reversed(parts)), self.last)
        return made

    def near(self) -> list[Step]:
        """Return the most recent steps that can still be described as one part."""
        return self._steps

    def since(self, known: int) -> list[Part]:
        """Return those parts from index `known` on that are still kept."""
        return self._tail[max(known - self._before, 0) :]


def _groups(steps: list[Step]) -> list[tuple[int, list[Part]]]:
    """Group steps that are described together; return the start of each group and a list of its parts."""
    groups: list[tuple[int, list[Part]]] = []
    i = 0
    while i < len(steps):
        obj, kind, key, child = steps[i]
        used = 1
        if i and issubclass(type(obj), type) and steps[i - 1][3] is not obj:
            # The compiled pickler makes only one step from an instance to the parts of its class.
            groups.append((i, [_reconstructor(steps[i - 1][0], obj)]))
        if kind in ("item", "listitem"):
            parts = [Part(f"[{key}]", str(key), obj)]
        elif kind in ("value", "dictvalue"):
            parts = [_keyed(obj, key)]
        elif kind in ("key", "dictkey"):
            parts = [Part(f"key {key_text(key)}", key_text(key), obj)]
        elif kind == "attribute":
            parts = [Part(f".{key}", str(key), obj)]
        elif kind == "element":
            parts = [_element(obj, child)]
        else:
            found = frames.describe(obj, steps[i : i + _WINDOW])
            if found is not None:
                parts, used = found
            else:
                part, used = _reduction(obj, steps[i : i + _WINDOW])
                parts = [] if part is None else [part]
        groups.append((i, parts))
        i += used
    return groups


def _keyed(obj: Any, key: Any) -> Part:
    return Part(f"[{key_text(key)}]", key if type(key) is str else key_text(key), obj)


def _element(obj: Any, child: Any) -> Part:
    name = f"element {key_text(child)}"
    return Part(name, name, obj)


# Each of the following functions takes an object and the steps that begin in the reduction of this object. It returns
# the part, or None if users do not see these steps as a part, and the number of steps that the part describes.
Found = tuple[Part | None, int]


def _reduction(obj: Any, steps: list[Step]) -> Found:
    cls = type(obj)
    kind = steps[0][1]
    if kind == "class":
        kind = "callable"
    if kind == "callable":
        return _reconstructor(obj, steps[0][3]), 1
    if kind == "setter":
        return Part("state setter", "state setter", obj), 1
    if cls is FunctionType:
        return _function(obj, steps)
    if cls is CellType:
        return None, min(2, len(steps))
    if cls is CodeType:
        return (None, 1) if len(steps) == 1 else (Part("constants", "constants", obj), 2)
    if issubclass(type(obj), type):
        return _class(obj, steps)
    if kind == "state":
        return _state(obj, steps)
    return _arguments(obj, steps)


def _reconstructor(obj: Any, child: Any) -> Part:
    name = root_name(child)
    if name is None:
        return Part("reconstructor", "reconstructor", obj)
    return Part(f"function {name}" if type(child) is FunctionType else f"class {name}", name, obj)


def _function(obj: FunctionType, steps: list[Step]) -> Found:
    """Describe a step in a function pickled by value: code, then a state of ``(attributes, {'__globals__': ...,
    '__closure__': ...})``."""
    if steps[0][1] != "state":
        # The arguments are code, an empty namespace and empty cells.
        return None, min(2, len(steps))
    if len(steps) < 3 or steps[1][1] != "item":
        return None, len(steps)
    key = steps[2][2]
    if steps[1][2] == 0:
        return Part(f".{key}", str(key), obj), 3
    if len(steps) < 4:
        return None, 3
    inner = steps[3][2]
    code = obj.__code__
    if key == "__globals__":
        return Part(f"global {inner!r}", str(inner), obj), 4
    if key == "__closure__":
        name = code.co_freevars[inner]
        used = min(6, len(steps))  # the three steps lead to the cell, its arguments, and the item
        if len(steps) < 6:
            return None, used
        return Part(f"closure {name!r}", name, obj), used
    if key == "__defaults__":
        arguments = code.co_varnames[: code.co_argcount]
        name = arguments[len(arguments) - len(obj.__defaults__ or ()) + inner]
        return Part(f"default {name!r}", name, obj), 4
    if key == "__kwdefaults__":
        return Part(f"default {inner!r}", str(inner), obj), 4
    if key == "__annotations__":
        return Part(f"annotation {inner!r}", str(inner), obj), 4
    return Part(f"{key}", str(key), obj), 3


def _class(obj: type, steps: list[Step]) -> Found:
    """Describe a step in a class pickled by value, with its bases in the arguments and its namespace in the state."""
    if len(steps) < 3:
        return None, len(steps)
    if steps[0][1] == "state":
        key = steps[2][2]
        return Part(f".{key}", str(key), obj), 3
    child = steps[2][3]
    if issubclass(type(child), type) and child in vars(type)["__mro__"].__get__(obj):
        name = root_name(child) or "?"
        return Part(f"base {name}", name, obj), 3
    return Part("class arguments", "class arguments", obj), 2


def _state(obj: Any, steps: list[Step]) -> Found:
    state = steps[0][3]
    if len(steps) == 1:
        # The child is the state itself: a plain object that `__getstate__` returned, or the dictionary of the object.
        if type(state) in (dict, tuple):
            return None, 1
        return _held(obj, state) or Part("state", "state", obj), 1
    kind, key, child = steps[1][1:]
    if type(state) is dict:
        if kind == "value" and type(key) is str:
            return Part(f".{key}", key, obj), 2
        return _held(obj, child) or (_keyed(obj, key) if kind == "value" else None), 2
    if type(state) is tuple:
        if len(state) == 2 and all(part is None or type(part) is dict for part in state):
            # For a class with slots, the state that `object` returns is (__dict__, {slot: value}).
            if len(steps) == 2:
                return None, 2
            key = steps[2][2]
            return Part(f".{key}", str(key), obj), 3
        part = _held(obj, child)
        if part is None and len(steps) > 2 and type(child) is dict and steps[2][1] == "value":
            # Types such as partial and deque put their __dict__ into a tuple.
            part = _held(obj, steps[2][3])
            if part is not None:
                return part, 3
        return part or Part(f"state[{key}]", str(key), obj), 2
    if type(state) is list and kind == "item":
        # The state of a frozen dataclass with slots is a list of the values of its fields.
        return _held(obj, child) or Part(f"state[{key}]", str(key), obj), 2
    return _held(obj, state) or Part("state", "state", obj), 1


def _arguments(obj: Any, steps: list[Step]) -> Found:
    if len(steps) == 1:
        return None, 1
    kind, key, child = steps[1][1:]
    if kind in ("value", "key"):  # the keyword arguments of NEWOBJ_EX
        return _held(obj, child) or Part(f"keyword {key!r}", str(key), obj), 2
    cls = type(obj)
    fields = find_in_mro(cls, "_fields")
    if (
        issubclass(type(obj), tuple)
        and type(fields) is tuple
        and key < len(fields)
        and tuple.__getitem__(obj, key) is child
    ):
        return Part(f".{fields[key]}", str(fields[key]), obj), 2
    part = _held(obj, child)
    if part is not None:
        return part, 2
    if issubclass(type(obj), BaseException) and key < len(obj.args):
        return Part(f".args[{key}]", str(key), obj), 2
    if _is_copy(obj, child):
        if len(steps) == 2:
            return None, 2
        inner_kind, inner_key, inner_child = steps[2][1:]
        if inner_kind == "value":
            return _keyed(obj, inner_key), 3
        if inner_kind == "key":
            return Part(f"key {key_text(inner_key)}", key_text(inner_key), obj), 3
        if issubclass(type(obj), (set, frozenset)):
            return _element(obj, inner_child), 3
        return Part(f"[{inner_key}]", str(inner_key), obj), 3
    if cls in (classmethod, staticmethod):
        return None, 2
    return Part(f"__reduce__ argument {key}", f"__reduce__ argument {key}", obj), 2


def _is_copy(obj: Any, child: Any) -> bool:
    """Return whether an argument of a reduction is a container with the object's own items."""
    if issubclass(type(obj), (dict, MappingProxyType)):
        return type(child) is dict
    if issubclass(type(obj), (set, frozenset)):
        return type(child) in (list, tuple, set)
    return issubclass(type(obj), (list, tuple)) and type(child) in (list, tuple)


def _held(obj: Any, child: Any) -> Part | None:
    """Return the attribute by which an object holds another, without running code of its class."""
    cls = type(obj)
    if cls is MethodType or cls.__name__ == "builtin_function_or_method":
        return Part(".__self__", "__self__", obj) if obj.__self__ is child else None
    if cls is property:
        for name in ("fget", "fset", "fdel"):
            if getattr(obj, name) is child:
                return Part(f".{name}", name, obj)
    for name, value in attributes(obj):
        if value is child:
            return Part(f".{name}", str(name), obj)
    return None


def attributes(obj: Any) -> Iterator[tuple[Any, Any]]:
    """Yield names and values of an object's attributes, without running code of its class."""
    yield from (instance_dict(obj) or {}).items()
    for base in vars(type)["__mro__"].__get__(type(obj)):
        for name, descriptor in vars(type)["__dict__"].__get__(base).items():
            if type(descriptor) is MemberDescriptorType:
                try:
                    yield name, descriptor.__get__(obj)
                except AttributeError:  # a slot that is not set
                    continue


def root_text(obj: Any) -> str | None:
    """Return the first part of a path that starts at an object without a name."""
    name = root_name(obj)
    return f"class {name}" if name is not None and type(obj) is not FunctionType else name


def root_name(obj: Any) -> str | None:
    """Return the name of the root object if it has one, as functions, classes and modules do."""
    if type(obj) is FunctionType:
        return obj.__name__
    if issubclass(type(obj), type):
        return class_name(obj).rpartition(".")[2]
    return None
