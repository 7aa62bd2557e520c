"""Manage the serializers that users register for classes that they cannot change.

A registration has priority over all other rules except those for built-in types. It is a reducer that returns
``(deserializer, (serializer(obj),))``, so the result is a plain pickle. The stream contains the deserializer, by
reference if it can be imported and by value otherwise, so a reader need not register it.

What the picklers use
---------------------
``serializers``
    ``{type: reducer}``, exact types. Empty for most programs: test its size first.
``inherited``
    ``{type: reducer}``, the registrations made with ``subclasses=True``.
``version``
    A list of one integer, which is incremented by each change. Data derived from the two tables is stale if the number
    has changed.
``find(cls)``
    Return the reducer for a class from either table, or None. It also loads the entry points for the package of the
    class, so picklers call it once for each class.
"""

import os
import sys
import threading
import warnings
from collections.abc import Callable
from copyreg import dispatch_table as _copyreg_table
from pickle import PickleBuffer
from types import FunctionType
from typing import Any

from .. import _core

__all__ = ["deregister_serializer", "find", "inherited", "register_serializer", "serializers", "version"]

GROUP = "pyray_ser.reducers"

serializers: dict[type, Callable[[Any], tuple[Any, ...]]] = {}
inherited: dict[type, Callable[[Any], tuple[Any, ...]]] = {}
# The counter starts above 0, because 0 means "never looked up" to the compiled pickler.
version: list[int] = [1]

# Every pickler writes instances of these types before it consults any table.
UNREACHABLE = frozenset(
    {
        type(None),
        type(Ellipsis),
        type(NotImplemented),
        bool,
        int,
        float,
        str,
        bytes,
        bytearray,
        tuple,
        list,
        dict,
        set,
        frozenset,
        type,
        FunctionType,
        PickleBuffer,
    }
)

# pickle writes calls of functions with these names as special opcodes, which take other arguments.
_SPECIAL_NAMES = ("__newobj__", "__newobj_ex__")

_lock = threading.Lock()


def _new_lock() -> None:
    # Another thread of the parent may have held the lock at the time of the fork.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


class _Reducer:
    """A reducer made from a serializer and a deserializer."""

    __slots__ = ("deserializer", "serializer")

    def __init__(self, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
        self.serializer = serializer
        self.deserializer = deserializer

    def __call__(self, obj: Any) -> tuple[Any, ...]:
        payload = self.serializer(obj)
        if payload is obj:
            raise TypeError(f"the serializer registered for {_name(type(obj))} returned the object itself")
        return self.deserializer, (payload,)

    def __repr__(self) -> str:
        return f"<serializer {self.serializer!r}, deserializer {self.deserializer!r}>"


def register_serializer(
    cls: type | None = None,
    *,
    serializer: Callable[[Any], Any],
    deserializer: Callable[[Any], Any],
    subclasses: bool = False,
) -> Any:
    """Register your own functions to serialize the instances of a class.

    The registration applies to this process, takes effect immediately, with or without a store, and replaces an earlier
    one for the same class.

    Parameters
    ----------
    cls : type
        The class. If it is omitted, the function returns a class decorator.
    serializer : callable
        Takes an instance and returns something that can be pickled.
    deserializer : callable
        Takes the result of `serializer` and returns an instance. The stream contains this function, so readers need not
        register it.
    subclasses : bool, optional
        Also apply the registration to subclasses. A subclass uses the nearest base in its MRO that is registered in
        this way, unless it has its own registration or `copyreg` entry, or defines ``__reduce__`` or ``__reduce_ex__``
        below that base.

    Raises
    ------
    TypeError
        If `cls` is not a class, or is a built-in type that picklers handle
        before they look at registrations, or if a function is not callable.

    See Also
    --------
    deregister_serializer

    Examples
    --------
    >>> import threading, pickle
    >>> from pyray_ser.pickling import registry
    >>> class Counter:
    ...     def __init__(self, value):
    ...         self.value, self.lock = value, threading.Lock()
    >>> registry.register_serializer(
    ...     Counter, serializer=lambda counter: counter.value, deserializer=Counter)
    >>> registry.find(Counter)(Counter(3))[1]
    (3,)
    >>> registry.deregister_serializer(Counter)
    """
    for role, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"{role} must be callable, not {_name(type(function))}")
    if getattr(deserializer, "__name__", None) in _SPECIAL_NAMES:
        raise TypeError(f"a deserializer cannot be called {deserializer.__name__}: pickle reserves this name")
    if cls is None:

        def decorate(cls: type) -> type:
            register_serializer(cls, serializer=serializer, deserializer=deserializer, subclasses=subclasses)
            return cls

        return decorate
    if not isinstance(cls, type):
        raise TypeError(f"a serializer is registered for a class, not for an instance of {_name(type(cls))}")
    if cls in UNREACHABLE:
        raise TypeError(
            f"no serializer can be registered for {_name(cls)}: picklers handle this built-in type before they "
            "look at registrations; register for a subclass of it, or wrap the value in a class of your own"
        )
    reducer = _Reducer(serializer, deserializer)
    with _lock:
        serializers[cls] = reducer
        if subclasses:
            inherited[cls] = reducer
        else:
            inherited.pop(cls, None)
        version[0] += 1
    return None


def deregister_serializer(cls: type) -> None:
    """Remove the serializer of a class.

    Parameters
    ----------
    cls : type
        The class. It need not be registered.

    Examples
    --------
    >>> from pyray_ser.util import deregister_serializer
    >>> deregister_serializer(dict)
    """
    with _lock:
        found = serializers.pop(cls, None)
        inherited.pop(cls, None)
        if found is not None:
            version[0] += 1


def find(cls: type) -> Callable[[Any], tuple[Any, ...]] | None:
    """Return the registered reducer that applies to instances of a class, or None."""
    root = getattr(cls, "__module__", None)
    if type(root) is str:
        root = root.partition(".")[0]
        if root not in _roots_seen:
            _load_entry_points(root)
    if not serializers:
        return None
    reducer = serializers.get(cls)
    if reducer is not None or not inherited or cls in _copyreg_table:
        return reducer
    for base in vars(type)["__mro__"].__get__(cls):
        reducer = inherited.get(base)
        if reducer is not None:
            return reducer
        if "__reduce__" in vars(base) or "__reduce_ex__" in vars(base):
            return None
    return None


# Packages whose entry points (if they have any) have been loaded. The standard library has no entry points, and this
# package's reducers for large libraries are in `reducers`.
_roots_seen = {"__main__", "__mp_main__", "pyray_ser", "numpy", "pandas", "pyarrow", "polars", "scipy", "torch"}
_roots_seen.update(sys.stdlib_module_names)

# Name of the package -> its entry points; None before the first search.
_entry_points: dict[str, list[Any]] | None = None


def _load_entry_points(root: str) -> None:
    """Load the entry points named after a package, and call each of them without arguments, to register its classes."""
    global _entry_points
    # Do not hold the lock here: importing takes import locks, and the imported code calls register_serializer.
    # If two threads load the package at the same time, the second may continue before the first has finished.
    _roots_seen.add(root)
    if _entry_points is None:
        _entry_points = _scan()
    for point in _entry_points.get(root, ()):
        try:
            point.load()()
        except Exception as error:
            warnings.warn(
                f"the entry point {point.value!r} of group {GROUP!r} failed, {root!r} is pickled without it: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


def _scan() -> dict[str, list[Any]]:
    """Find the entry points of this package's group in the installed distributions.

    The files are searched first, because the import of `importlib.metadata` is slow and few programs have such an entry
    point. This search does not find distributions in zip files or those that only other import finders know.
    """
    needle = GROUP.encode()
    if not any(needle in text for folder in sys.path for text in _entry_point_files(folder)):
        return {}
    from importlib.metadata import entry_points

    found: dict[str, list[Any]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name.partition(".")[0], []).append(point)
    return found


def _entry_point_files(folder: str) -> list[bytes]:
    texts = []
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:  # an entry of sys.path may not exist, or be a zip file
        return []
    for name in names:
        try:
            with open(os.path.join(folder, name, "entry_points.txt"), "rb") as file:
                texts.append(file.read())
        except OSError:  # most distributions have no entry points
            continue
    return texts


def _name(cls: type) -> str:
    module = getattr(cls, "__module__", None)
    qualname = getattr(cls, "__qualname__", None) or cls.__name__
    return qualname if module in (None, "builtins") else f"{module}.{qualname}"


# `put` writes arrays and memoryviews without a pickler, so it consults the registry itself.
_core.set_registry(find, version)
