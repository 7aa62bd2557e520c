"""Select the reducer for a value, in the same order as the compiled pickler, but in Python.

The compiled pickler implements these rules in C. Its pure-Python counterpart
(`debug_pickler`) and the inspector use this module, and show the name of the
rule that applied.
"""

import sys
from collections.abc import Callable, Mapping
from copyreg import dispatch_table as _copyreg_table
from functools import cache
from io import TextIOWrapper
from pickle import PicklingError
from types import FunctionType, MethodType
from typing import Any

from . import registry

__all__ = ["Reduction", "find_global", "is_standard", "plain_reduce_ex"]

# Types of the standard library whose own reduction cannot be used: `WeakSet`, because weak references cannot be
# pickled, and the field markers of dataclasses, because they are compared by identity.
_BY_TABLE = frozenset({("_weakrefset", "WeakSet"), ("dataclasses", "_FIELD_BASE")})

_mro = vars(type)["__mro__"].__get__


def _is_standard_stream(obj: object) -> bool:
    """Return whether cloudpickle pickles this file by its name in `sys`."""
    return type(obj) is TextIOWrapper and (obj is sys.stdout or obj is sys.stderr)


def _is_file(obj: object) -> bool:
    """Return whether this is an open text file, of which cloudpickle would send a copy of what it reads."""
    return type(obj) is TextIOWrapper and not _is_standard_stream(obj)


def _is_heap_type(cls: type) -> bool:
    """Return whether a class is a heap type (Py_TPFLAGS_HEAPTYPE): made by a class statement or by similar C code."""
    return bool(vars(type)["__flags__"].__get__(cls) & (1 << 9))


def find_in_mro(cls: type, name: str) -> Any:
    """Return the attribute that a lookup on instances finds in the class, without running code of the class."""
    for base in _mro(cls):
        if name in vars(type)["__dict__"].__get__(base):
            return vars(type)["__dict__"].__get__(base)[name]
    return None


def plain_reduce_ex(cls: type) -> bool:
    """Return whether instances of a class are reduced by `object` itself."""
    return (
        find_in_mro(cls, "__reduce_ex__") is object.__dict__["__reduce_ex__"]
        and find_in_mro(cls, "__reduce__") is object.__dict__["__reduce__"]
    )


@cache
def _cloudpickle() -> Any:
    import cloudpickle

    return cloudpickle


@cache
def is_standard(module: str) -> bool:
    """Return whether a module belongs to the standard library."""
    return module.partition(".")[0] in sys.stdlib_module_names


def _by_value_module(module: Any) -> bool:
    """Return whether functions and classes of a module are pickled by value although they can be imported."""
    if type(module) is not str or module in ("__main__", "__mp_main__"):
        return True
    cloudpickle = sys.modules.get("cloudpickle")
    registered = cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else ()
    return bool(registered) and any(module == name or module.startswith(name + ".") for name in registered)


def find_global(obj: Any, name: str | None = None) -> tuple[str, str]:
    """Return the ``(module, qualname)`` under which an object can be imported.

    Raises
    ------
    PicklingError
        If no object, or a different one, is found under this name.
    """
    if name is None:
        name = getattr(obj, "__qualname__", None) or obj.__name__
    module = getattr(obj, "__module__", None)
    if module is None:
        # Search all modules for an object of this name, as pickle does. Iterate over a copy, because the search may
        # import modules.
        for candidate, loaded in sys.modules.copy().items():
            if candidate in ("__main__", "__mp_main__") or loaded is None:
                continue
            try:
                if _resolve(loaded, name) is obj:
                    module = candidate
                    break
            except AttributeError:
                continue
        else:
            module = "__main__"
    try:
        __import__(module, level=0)
        found = _resolve(sys.modules[module], name)
    except (ImportError, KeyError, AttributeError):
        raise PicklingError(f"Can't pickle {obj!r}: it's not found as {module}.{name}") from None
    if found is not obj:
        raise PicklingError(f"Can't pickle {obj!r}: it's not the same object as {module}.{name}")
    return module, name


def _resolve(module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        if part == "<locals>":
            raise AttributeError(part)
        found = getattr(found, part)
    return found


def _is_global(variable: Any) -> bool:
    """Return whether a type variable can be imported by its name; its own reduction contains only this name."""
    try:
        find_global(variable, variable.__name__)
    except PicklingError:
        return False
    return True


def _is_reachable(method: MethodType) -> bool:
    """Return whether ``getattr(method.__self__, name)`` gives the method, without running the object's own code."""
    holder: Any = method.__self__
    function = method.__func__
    name = getattr(function, "__name__", None)
    if type(name) is not str:
        return False
    cls = holder if issubclass(type(holder), type) else type(holder)
    found = find_in_mro(cls, name)
    return found is function or (type(found) is classmethod and found.__func__ is function)


# Stands for a missing attribute. An attribute that exists but is None is called and raises TypeError, as in the
# compiled pickler.
NO_RULE: Any = object()


class Reduction:
    """The rules that one call of `dump` uses.

    Parameters
    ----------
    override : callable, optional
        A `reducer_override`.
    table : mapping, optional
        A `dispatch_table` in place of `copyreg`'s.
    buffers : bool, optional
        Whether to use the reducers of `pickling.reducers`, as `put` does.
    """

    def __init__(
        self,
        override: Callable[[Any], Any] = NO_RULE,
        table: Mapping[type, Callable[[Any], Any]] = NO_RULE,
        *,
        protocol: int = 5,
        buffers: bool = False,
    ) -> None:
        self.override = override
        self.table = _copyreg_table if table is NO_RULE else table
        self.protocol = protocol
        self.buffers = buffers
        self._by_value: Any = None

    def is_plain(self, cls: type) -> bool:
        """Return whether ``object.__reduce_ex__`` is the only rule that can apply to a class."""
        return (
            self.override is NO_RULE
            and not issubclass(cls, type)
            and cls is not FunctionType
            and plain_reduce_ex(cls)
            # An object whose class overrides ``__class__`` is refused.
            and find_in_mro(cls, "__class__") is object.__dict__["__class__"]
            and registry.find(cls) is None
            and self._table_rule(cls) is NO_RULE
            and self.cloudpickle_rule(cls) is None
            and self._integration(cls) is None
        )

    def __call__(self, obj: Any) -> tuple[str, Any]:
        """Return the name of the rule that applies to an object, and its result.

        The second item is a reduction (a tuple), or the name of a global (a string).
        """
        cls = type(obj)
        reducer = registry.find(cls)
        if reducer is not None:
            return "registered serializer", reducer(obj)
        if self.override is not NO_RULE:
            value = self.override(obj)
            if value is not NotImplemented:
                return "reducer_override", value
        if cls is not FunctionType and cls is not type:
            rule = self._table_rule(cls)
            if rule is not NO_RULE:
                return "dispatch table", rule(obj)
        reducer = self._integration(cls)
        if reducer is not None:
            value = reducer(obj)
            if value is not NotImplemented:
                return "integration", value
        by_value = self.cloudpickle_rule(cls)
        # cloudpickle's table has priority for objects inside a function that is pickled by value. Elsewhere the type's
        # own reduction has priority.
        if by_value is not None and self._by_value is not None and not _is_file(obj):
            return "cloudpickle", by_value(obj)
        if cls is FunctionType or issubclass(cls, type):
            return self._function_or_class(obj)
        if by_value is not None and (cls.__module__, cls.__qualname__) in _BY_TABLE:
            return "cloudpickle", by_value(obj)
        if by_value is not None and cls.__name__ == "TypeVar" and not _is_global(obj):
            return "cloudpickle", by_value(obj)
        reduce_ex = getattr(obj, "__reduce_ex__", None)
        if reduce_ex is not None:
            if cls is MethodType and by_value is not None and not _is_reachable(obj):
                return "cloudpickle", by_value(obj)
            try:
                return "__reduce_ex__", reduce_ex(self.protocol)
            except TypeError:
                # Modules, code objects and dictionary views refuse to be pickled, but cloudpickle can pickle them.
                # Since Python 3.13 the type of the standard streams is a heap type.
                if by_value is None or _is_file(obj) or (_is_heap_type(cls) and not _is_standard_stream(obj)):
                    raise
            return "cloudpickle", by_value(obj)
        reduce = getattr(obj, "__reduce__", None)
        if reduce is not None:
            return "__reduce__", reduce()
        raise PicklingError(f"can't pickle {cls.__name__!r} object: {obj!r}")

    def _function_or_class(self, obj: Any) -> tuple[str, Any]:
        # Import the module if necessary, as pickle does; cloudpickle only searches modules that are imported already.
        if not _by_value_module(getattr(obj, "__module__", None)):
            try:
                return "global", find_global(obj)[1]
            except PicklingError:
                pass
        value = self._pickler().reducer_override(obj)
        if value is NotImplemented or (issubclass(type(obj), type) and not _is_heap_type(obj) and len(value) != 2):
            # Such a reduction is useless, because it would build a second copy of one of the interpreter's own types.
            return "global", find_global(obj)[1]
        return "by value (cloudpickle)", value

    def _pickler(self) -> Any:
        """Return the cloudpickle pickler of this dump. All functions use it, so a shared namespace stays shared."""
        if self._by_value is None:
            from .class_by_value import ByValuePickler

            self._by_value = ByValuePickler(_Nowhere(), protocol=self.protocol)
        return self._by_value

    def _table_rule(self, cls: type) -> Callable[[Any], Any]:
        try:
            return self.table[cls]
        except KeyError:
            return NO_RULE  # type: ignore[no-any-return]

    def cloudpickle_rule(self, cls: type) -> Callable[[Any], Any] | None:
        """Return cloudpickle's own reducer for a type of the standard library, or None."""
        # cloudpickle's table has only types of the standard library, so do not import cloudpickle for others.
        if not is_standard(getattr(cls, "__module__", None) or ""):
            return None
        reducer = _cloudpickle().Pickler.dispatch_table.get(cls)
        # This mapping also returns copyreg's entries for types that cloudpickle has no entry for.
        return None if reducer is _copyreg_table.get(cls) else reducer

    def _integration(self, cls: type) -> Callable[[Any], Any] | None:
        if not self.buffers:
            return None
        from . import reducers

        return reducers.find(cls)


class _Nowhere:
    """The file of a pickler that is used only for its reductions."""

    def write(self, data: Any) -> int:
        return len(data)
