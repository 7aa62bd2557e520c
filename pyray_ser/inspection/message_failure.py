"""Find the path to the object that the pickler of a message could not write.

The standard pickler's error names the type of the object, but not its position. A message is pickled only once, so the
search must not run code of the program again, and calls no reduction written in Python. The contents of objects with
such reductions are searched only if nothing else in the message raises the same error. An object found there is
reported only if it is the only candidate.
"""

import copyreg
import functools
import pickle
import traceback
from collections import deque, namedtuple
from collections.abc import Callable, Mapping
from multiprocessing.reduction import ForkingPickler
from types import (
    ClassMethodDescriptorType,
    FunctionType,
    GetSetDescriptorType,
    MethodDescriptorType,
    MethodType,
    NoneType,
    WrapperDescriptorType,
)
from typing import Any

from .. import _log, _walk
from .._core import ObjectRef
from ..pickling.reducer_order import Reduction, find_global, find_in_mro, is_standard
from .path import Step, attributes, describe_long, path_text
from .tracing import way_to_failure

__all__ = ["add_path"]

Reducers = Mapping[type, Callable[[Any], Any]]

# The methods that pickling an instance calls, and the containers whose "__iter__" and "items" it calls.
_REDUCING = ("__reduce_ex__", "__reduce__")
_HOOKS = (*_REDUCING, "__getstate__", "__getnewargs_ex__", "__getnewargs__", "__getattribute__", "__getattr__")
_ITEMS = ("__iter__", "items")
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
# Types of functions that are implemented by the interpreter or by extensions.
_COMPILED = (NoneType, WrapperDescriptorType, MethodDescriptorType, ClassMethodDescriptorType, GetSetDescriptorType)
# Types whose reducers in the standard library's tables only read attributes of the object.
_PURE = (MethodType, functools.partial, type(list.append), type(int.__add__))
_NAMED_TUPLE = vars(namedtuple("_", ()))["__getnewargs__"].__code__
# The reduction that is used for objects that are not searched.
_LEAF = "", ("", "")


def _runs_python(cls: type, names: tuple[str, ...]) -> bool:
    """Return whether the program implements one of these attributes of a class."""
    for name in names:
        found = find_in_mro(cls, name)
        if type(found) in _COMPILED:
            continue
        if type(found) is FunctionType and (_is_pure(found) or found.__code__ is _NAMED_TUPLE):
            continue
        return True
    return False


def _is_named(cls: type) -> bool:
    return cls is FunctionType or issubclass(cls, type)


def _is_pure(function: Any) -> bool:
    """Return whether a function of the standard library has no side effects; those of multiprocessing do."""
    module = getattr(function, "__module__", None)
    return type(module) is str and is_standard(module) and not module.startswith("multiprocessing.")


def _parts(obj: Any) -> tuple[Any, ...]:
    """Return a reduction with all contents of an object, found without running its code."""
    cls = type(obj)
    args: tuple[Any, ...] = ()
    listitems = dictitems = None
    if issubclass(cls, (tuple, set, frozenset)):
        base: Any = next(base for base in (tuple, set, frozenset) if issubclass(cls, base))
        items = tuple(base.__iter__(obj))
        args = items if type(find_in_mro(cls, "_fields")) is tuple else (items,)
    elif issubclass(cls, (list, deque)):
        listitems = (list if issubclass(cls, list) else deque).__iter__(obj)
    elif issubclass(cls, dict):
        dictitems = iter(dict.items(obj))
    return object, args, dict(attributes(obj)), listitems, dictitems


class _Search:
    """One search for the object that raised an error."""

    def __init__(self, error: Exception, root: object, reducers: Reducers, by_value: bool) -> None:
        self._error = error
        self._text = str(error)
        self._reducers = reducers
        self._by_value = Reduction() if by_value else None
        # If an object's own code raised the error, the object is the first argument of a function in the traceback.
        self._root = root
        self._raising = []
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_argcount:
                first = frame.f_locals.get(frame.f_code.co_varnames[0])
                if first is not root and first is not None:
                    self._raising.append(first)
        # Whether to search the contents of an object whose own code determines its pickled state.
        self._guess = False
        self._found: list[str] = []

    def run(self) -> str:
        """Return the path, or an empty string if there is none or if it is ambiguous."""
        self._walk()
        if not self._found:
            self._guess = True
            self._walk()
            if len(self._found) > 1:
                return ""
        return self._found[0] if self._found else ""

    def _walk(self) -> None:
        _walk.Walker(self._reduce, lambda cls: _walk.ASK, self._failed, -1).walk(self._root)

    def _failed(self, steps: list[Step], skipped: int, obj: Any, error: Exception) -> None:
        if type(error) is type(self._error) and str(error) == self._text:
            # The message itself may be a resource, such as a process that is being started.
            self._found.append(way_to_failure(steps, skipped) or path_text(describe_long(steps, skipped)))

    def _reduce(self, obj: Any) -> tuple[Any, Any]:
        if any(obj is raising for raising in self._raising):
            raise self._error
        cls = type(obj)
        if cls is ObjectRef:
            return _LEAF  # its reduction would make the store hold its object for a message that is never sent
        reducer = self._reducers.get(cls)
        if reducer is not None:
            if cls not in _PURE or not getattr(reducer, "__module__", "").startswith("multiprocessing."):
                return _LEAF
            value = reducer(obj)
        elif self._by_value is not None and (_is_named(cls) or self._by_value.cloudpickle_rule(cls) is not None):
            _, value = self._by_value(obj)
            return (value, find_global(obj, value)) if type(value) is str else (value, None)
        elif _is_named(cls):
            return self._by_name(obj)
        elif _runs_python(cls, _REDUCING):
            return _LEAF
        elif _runs_python(cls, _HOOKS) or (issubclass(cls, _CONTAINERS) and _runs_python(cls, _ITEMS)):
            if not self._guess:
                return _LEAF
            value = _parts(obj)
        else:
            # Protocol 5 copies no buffers.
            value = obj.__reduce_ex__(5)
        return self._by_name(obj) if type(value) is str else (value, None)

    @staticmethod
    def _by_name(obj: Any) -> tuple[Any, Any]:
        pickle.dumps(obj, pickle.DEFAULT_PROTOCOL)
        return _LEAF


def add_path(error: Exception, root: object, reducers: Reducers | None = None, *, by_value: bool = False) -> None:
    """
    Add a note to an error with the path to the object that could not be pickled, if that object is found.

    Parameters
    ----------
    error : Exception
        The error of the pickler.
    root : object
        The object that was being pickled.
    reducers : mapping, optional
        Reducers in the pickler's dispatch table in addition to those of `copyreg` and multiprocessing.
    by_value : bool, optional
        Whether the pickler writes local functions and classes by value.
    """
    if isinstance(error, MemoryError):
        return
    try:
        forking: Any = ForkingPickler
        tables = {**copyreg.dispatch_table, **forking._extra_reducers, **(reducers or {})}
        path = _Search(error, root, tables, by_value).run()
        if path:
            error.add_note(f"at {path} of the object being pickled")
    except Exception as other:
        # A failure to report an error must not replace the error.
        _log.debug("no path to what could not be pickled: %r", other)
