"""How a value finds its reducer: the order of the picklers, in Python.

The compiled pickler does the same in C. This is what its pure-Python
counterpart (`debug_pickler`) and the inspector go by, and it knows the name
of the rule that applied, which they show.
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

__all__ = ["Reduction", "find_global", "plain_reduce_ex"]

# Of the standard library, and of no use by their own reduction: a set of weak references, which refuse, and the markers of fields in
# dataclasses, which are compared by identity.
_BY_TABLE = frozenset({("_weakrefset", "WeakSet"), ("dataclasses", "_FIELD_BASE")})

_mro = vars(type)["__mro__"].__get__


def _is_heap_type(cls: type) -> bool:
    """Tell whether a class was made by a class statement, or by C code as if by one (Py_TPFLAGS_HEAPTYPE)."""
    return bool(vars(type)["__flags__"].__get__(cls) & (1 << 9))


def find_in_mro(cls: type, name: str) -> Any:
    """Return what attribute lookup on instances finds in the class, without running any of it."""
    for base in _mro(cls):
        if name in vars(type)["__dict__"].__get__(base):
            return vars(type)["__dict__"].__get__(base)[name]
    return None


def plain_reduce_ex(cls: type) -> bool:
    """Tell whether instances of a class are reduced by `object` itself."""
    return (
        find_in_mro(cls, "__reduce_ex__") is object.__dict__["__reduce_ex__"]
        and find_in_mro(cls, "__reduce__") is object.__dict__["__reduce__"]
    )


@cache
def _cloudpickle() -> Any:
    import cloudpickle

    return cloudpickle


@cache
def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _by_value_module(module: Any) -> bool:
    """Tell whether functions and classes of a module go by value although they can be imported."""
    if type(module) is not str or module in ("__main__", "__mp_main__"):
        return True
    cloudpickle = sys.modules.get("cloudpickle")
    registered = cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else ()
    return bool(registered) and any(module == name or module.startswith(name + ".") for name in registered)


def find_global(obj: Any, name: str | None = None) -> tuple[str, str]:
    """Return ``(module, qualname)`` under which an object can be imported.

    Raises
    ------
    PicklingError
        If nothing, or something else, is found there.
    """
    if name is None:
        name = getattr(obj, "__qualname__", None) or obj.__name__
    module = getattr(obj, "__module__", None)
    if module is None:
        # As pickle does: any module that has it. A copy, because looking may import.
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
    """Tell whether a type variable is what its module has under its name: that is all that it reduces to."""
    try:
        find_global(variable, variable.__name__)
    except PicklingError:
        return False
    return True


def _is_reachable(method: MethodType) -> bool:
    """Tell whether ``getattr(method.__self__, name)`` gives the method; its object runs no code for that."""
    holder: Any = method.__self__
    function = method.__func__
    name = getattr(function, "__name__", None)
    if type(name) is not str:
        return False
    cls = holder if issubclass(type(holder), type) else type(holder)
    found = find_in_mro(cls, name)
    return found is function or (type(found) is classmethod and found.__func__ is function)


# What is not there. None may stand in its place, and is called then, as the compiled pickler does: a TypeError.
NO_RULE: Any = object()


class Reduction:
    """The rules for one dump.

    Parameters
    ----------
    override : callable, optional
        A `reducer_override`.
    table : mapping, optional
        A `dispatch_table` in place of `copyreg`'s.
    buffers : bool, optional
        As `put` does, use the reducers of `pickling.reducers`.
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
        """Tell whether no rule but ``__reduce_ex__`` of `object` can apply to a class."""
        return (
            self.override is NO_RULE
            and not issubclass(cls, type)
            and cls is not FunctionType
            and plain_reduce_ex(cls)
            # What says that it is of another class is refused for it.
            and find_in_mro(cls, "__class__") is object.__dict__["__class__"]
            and registry.find(cls) is None
            and self._table_rule(cls) is NO_RULE
            and self._cloudpickle_rule(cls) is None
            and self._integration(cls) is None
        )

    def __call__(self, obj: Any) -> tuple[str, Any]:
        """Return the name of the rule that applies to an object, and what it gives.

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
        by_value = self._cloudpickle_rule(cls)
        # cloudpickle's own table is for what a function that goes by value carries; alone, a type's own reduction counts.
        if by_value is not None and self._by_value is not None:
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
                # Modules, code, views of dictionaries: the interpreter's types refuse, cloudpickle knows a way. An open
                # text file would be read and sent as a copy, which is not what anybody means who puts it.
                if by_value is None or _is_heap_type(cls) or cls is TextIOWrapper:
                    raise
            return "cloudpickle", by_value(obj)
        reduce = getattr(obj, "__reduce__", None)
        if reduce is not None:
            return "__reduce__", reduce()
        raise PicklingError(f"can't pickle {cls.__name__!r} object: {obj!r}")

    def _function_or_class(self, obj: Any) -> tuple[str, Any]:
        # Imported if need be, as pickle does; cloudpickle itself looks among the modules already imported only.
        if not _by_value_module(getattr(obj, "__module__", None)):
            try:
                return "global", find_global(obj)[1]
            except PicklingError:
                pass
        value = self._pickler().reducer_override(obj)
        if value is NotImplemented or (issubclass(type(obj), type) and not _is_heap_type(obj) and len(value) != 2):
            # What builds another one of the interpreter's own types is of no use.
            return "global", find_global(obj)[1]
        return "by value (cloudpickle)", value

    def _pickler(self) -> Any:
        """Return the cloudpickle pickler of this dump; functions made in one namespace share it."""
        if self._by_value is None:
            self._by_value = _cloudpickle().Pickler(_Nowhere(), protocol=self.protocol)
        return self._by_value

    def _table_rule(self, cls: type) -> Callable[[Any], Any]:
        try:
            return self.table[cls]
        except KeyError:
            return NO_RULE  # type: ignore[no-any-return]

    def _cloudpickle_rule(self, cls: type) -> Callable[[Any], Any] | None:
        # Its table has types of the standard library only; do not import it for anything else.
        if not _is_standard(getattr(cls, "__module__", None) or ""):
            return None
        reducer = _cloudpickle().Pickler.dispatch_table.get(cls)
        # Behind cloudpickle's own entries this mapping shows those of copyreg.
        return None if reducer is _copyreg_table.get(cls) else reducer

    def _integration(self, cls: type) -> Callable[[Any], Any] | None:
        if not self.buffers:
            return None
        from . import reducers

        return reducers.find(cls)


class _Nowhere:
    """A file for a pickler that is only asked for reductions."""

    def write(self, data: Any) -> int:
        return len(data)
