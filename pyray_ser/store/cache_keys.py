"""The keys of cached calls: digests of functions and of arguments that all processes compute alike."""

from __future__ import annotations

import enum
import functools
import hashlib
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .. import _core
from ..pickling.serialization import PickleBuffer, Pickler, unpicklable

__all__ = ["digest_of_arguments", "digest_of_function", "name_of", "text_of_scalars"]

# Values of exactly these types need no pickling.
SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None)})
# Names of the main module: multiprocessing's spawned children import it under the second one.
_MAIN = ("__main__", "__mp_main__")
_SIZE = 16
# Callables that return what the function in their attribute `__wrapped__` returns.
_TRANSPARENT = (type(functools.lru_cache(len)), staticmethod, classmethod)
# Modules whose objects cannot be pickled, but do not change the result of a function: locks, weak dictionaries and the like.
_WITHOUT_CONTENT = frozenset({"_thread", "threading", "asyncio.locks", "multiprocessing.synchronize", "weakref"})
# The maximum length of text and bytes that `text_of_scalars` repeats.
_SHORT = 1000

_make_hash: Callable[[], Any] | None = None


def _new_hash() -> Any:
    """Return a hash object of 128 bits: XXH3 if the package xxhash is installed, because it is ten times as fast."""
    global _make_hash
    if _make_hash is None:
        try:
            from xxhash import xxh3_128

            _make_hash = xxh3_128
        except ImportError:
            _make_hash = functools.partial(hashlib.blake2b, digest_size=_SIZE)
    return _make_hash()


def text_of_scalars(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return a text that identifies the arguments of a call, or None if some argument is not a short scalar."""
    for value in args:
        if type(value) not in SCALARS or (type(value) in (str, bytes) and len(value) > _SHORT):
            return None
    try:
        if not kwargs:
            return repr(args)
        for value in kwargs.values():
            if type(value) not in SCALARS or (type(value) in (str, bytes) and len(value) > _SHORT):
                return None
        return f"{args!r}{sorted(kwargs.items())!r}"
    except ValueError:  # an int with more digits than Python converts
        return None


def digest_of_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """
    Return a digest of the arguments of a call, in hexadecimal.

    References are identified by their object, without reading it. All other values are pickled; the bytes of large
    buffers go into the digest without a copy.

    Parameters
    ----------
    args : tuple
    kwargs : dict

    Raises
    ------
    SerializationError
        If an argument cannot be pickled.
    """
    feeder = _Feeder(_new_hash())
    try:
        feeder.add((args, sorted(kwargs.items())))
        return feeder.digest()
    except Exception as error:
        found = unpicklable((args, kwargs), error)
        if found is error:
            raise
        found.add_note(
            "hint: the path [0][i] is positional argument i of a call of a cached function; give cached() key=, a function of "
            "the arguments that leaves this one out"
        )
        raise found from error


class _Pickler(Pickler):
    """Writes references as the object that they denote, because a pickled reference would hold it."""

    def reducer_override(self, value: Any) -> Any:
        return (_core.ObjectRef.from_binary, (value.binary(),)) if type(value) is _core.ObjectRef else NotImplemented


class _Feeder:
    """Adds values to a hash object."""

    def __init__(self, state: Any) -> None:
        self.state = state
        # The containers and objects that contain the value that is being added.
        self._outer: list[int] = []
        # The functions and classes that were added, by their id.
        self._known: dict[int, tuple[int, Any]] = {}
        # The functions and classes that others name. They are added last, because a chain of them may be long.
        self.named: list[Any] = []
        # Whether values that cannot be pickled count with their type only.
        self.lenient = False

    def is_new(self, value: Any) -> bool:
        """Return whether a function or class is added for the first time; if not, add its number."""
        if id(value) in self._known:
            self.mark("again", str(self._known[id(value)][0]).encode())
            return False
        self._known[id(value)] = (len(self._known), value)  # keep it, so that no other object gets its id
        return True

    def digest(self) -> str:
        """Return the digest of all that was added."""
        self.lenient = True
        for value in self.named:  # the loop appends to this list
            _add_function(self, value)
        return str(self.state.hexdigest())

    def mark(self, kind: str, data: Any) -> None:
        """Add bytes; their length separates them from the next ones."""
        self.state.update(f"{kind} {len(data)} ".encode())
        self.state.update(data)

    def add(self, value: Any) -> None:
        kind = type(value)
        if kind in SCALARS:
            self.mark(kind.__name__, _bytes_of_scalar(value))
        elif kind is _core.ObjectRef:
            self.mark("ref", value.binary())
        elif isinstance(value, type):
            self.mark("class", name_of(value).encode())
            if not _is_importable(value):
                _add_class(self, value)
        elif id(value) in self._outer:
            self.mark("outer", str(self._outer.index(id(value))).encode())
        elif kind in (FunctionType, MethodType, functools.partial, *_TRANSPARENT):
            _add_function(self, value)
        elif kind in (tuple, list, dict, set, frozenset) or kind.__module__ in _MAIN or "<locals>" in kind.__qualname__:
            self._outer.append(id(value))
            self._add_parts(value, kind)
            self._outer.pop()
        else:
            buffers: list[PickleBuffer] = []
            stream = io.BytesIO()
            _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
            self.mark("pickle", stream.getbuffer())
            for buffer in buffers:
                with buffer.raw() as raw:
                    self.mark("buffer", raw)

    def _add_parts(self, value: Any, kind: type) -> None:
        if kind in (tuple, list, dict):
            self.mark(kind.__name__, str(len(value)).encode())
            for item in value.items() if kind is dict else value:
                self.add(item)
        elif kind in (set, frozenset):
            # The order of a set differs between processes.
            self.mark(kind.__name__, "".join(sorted(digest_of_arguments((item,), {}) for item in value)).encode())
        else:
            # A class of the main module or of a function is pickled by value, with an identifier that differs between processes.
            self.mark("object", b"")
            self.add(kind)
            reduced = value.__reduce_ex__(4)
            if isinstance(reduced, str):
                self.mark("global", reduced.encode())
                return
            for part in reduced:
                if isinstance(part, Iterator):
                    part = list(part)
                self.add(part)


def _bytes_of_scalar(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if type(value) is str:
        return value.encode("utf-8", "surrogatepass")
    # Python limits the number of decimal digits, but not of hexadecimal ones.
    return (hex(value) if type(value) is int else repr(value)).encode()


def digest_of_function(function: Callable[..., Any]) -> str:
    """
    Return a digest of a function, in hexadecimal, that changes with its code.

    The digest covers the name and the code, default values, values of enclosing functions, functions and classes of the
    same module that the code names, and global variables whose values are immutable. A bound method and another callable
    object also count with their content. The digest contains the name, but not the code, of functions of other modules.

    Parameters
    ----------
    function : callable

    Returns
    -------
    str

    Raises
    ------
    SerializationError
        If the callable belongs to a value that cannot be pickled, such as a connection.
    """
    feeder = _Feeder(hashlib.blake2b(digest_size=_SIZE))
    feeder.mark("python", repr(sys.version_info[:2]).encode())
    try:
        _add_function(feeder, function)
        return feeder.digest()
    except Exception as error:
        found = unpicklable(function, error)
        if found is error:
            raise
        found.add_note("hint: give cached() a name, so that it needs no digest of the function")
        raise found from error


def _add_function(feeder: _Feeder, function: Any) -> None:
    if isinstance(function, MethodType):
        feeder.mark("method", b"")
        _add_function(feeder, function.__func__)
        feeder.add(function.__self__)
    elif isinstance(function, functools.partial):
        feeder.mark("partial", str(len(function.args)).encode())
        _add_function(feeder, function.func)
        for value in (*function.args, *sorted(function.keywords.items())):
            _add_constant(feeder, value)
    elif isinstance(function, FunctionType) and not _is_cached(function):
        _add_plain_function(feeder, function)
    elif isinstance(function, (FunctionType, *_TRANSPARENT)):
        inner: Any = function
        _add_function(feeder, inner.__wrapped__)
    elif isinstance(function, type):
        feeder.mark("class", name_of(function).encode())
        _add_class(feeder, function)
    else:
        feeder.mark("callable", name_of(function).encode())
        feeder.add(function)


def _is_cached(function: FunctionType) -> bool:
    """Return whether `cached` made this function."""
    return function.__globals__.get("__name__") == "pyray_ser.store.cached" and hasattr(function, "__wrapped__")


def _add_plain_function(feeder: _Feeder, function: FunctionType) -> None:
    feeder.mark("function", name_of(function).encode())
    if not feeder.is_new(function):
        return
    _add_code(feeder, function.__code__)
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        _add_constant(feeder, value)
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue  # the variable has no value yet
        _add_constant(feeder, value)
    for name in sorted(_names_in(function.__code__)):
        if name in function.__globals__:
            feeder.mark("global", name.encode())
            _add_global(feeder, function.__globals__[name], function.__module__)


def _add_class(feeder: _Feeder, value: type) -> None:
    if not feeder.is_new(value):
        return
    for base in value.__bases__:
        _add_global(feeder, base, value.__module__)
    for name, member in sorted(vars(value).items()):
        if name.startswith("__") and not isinstance(member, (FunctionType, *_TRANSPARENT)):
            continue  # for example __module__, or __slotnames__, which pickling adds
        feeder.mark("member", name.encode())
        for part in (member.fget, member.fset) if isinstance(member, property) else (member,):
            # An attribute such as `functools.cached_property` computes its value with `func`.
            part = getattr(part, "func", part) if not isinstance(part, functools.partial) else part
            _add_global(feeder, part, value.__module__)
    if isinstance(value, enum.EnumMeta):
        members: dict[str, Any] = dict(value.__members__)
        for name, item in members.items():
            feeder.mark("member", name.encode())
            _add_global(feeder, item.value, value.__module__)


def _add_code(feeder: _Feeder, code: CodeType) -> None:
    feeder.mark("code", code.co_code)
    feeder.mark(
        "names", repr((code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)).encode()
    )
    feeder.mark(
        "shape",
        repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)).encode(),
    )
    feeder.mark("exceptions", code.co_exceptiontable)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(feeder, constant)
        else:
            feeder.add(constant)


def _names_in(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names_in(constant)
    return found


def _add_constant(feeder: _Feeder, value: Any) -> None:
    """Add a value that belongs to one function: by its code if it is a function, otherwise by its content."""
    if isinstance(value, type) or (isinstance(value, (FunctionType, BuiltinFunctionType)) and _is_importable(value)):
        _add_global(feeder, value, value.__module__)
    elif isinstance(value, (FunctionType, BuiltinFunctionType, MethodType, functools.partial, *_TRANSPARENT)):
        _add_function(feeder, value)
    elif type(value).__module__ in _WITHOUT_CONTENT:
        feeder.mark("without content", name_of(type(value)).encode())
    else:
        try:
            feeder.add(value)
        except (TypeError, AttributeError, pickle.PicklingError):
            if not feeder.lenient:
                raise
            feeder.mark("unpicklable", name_of(type(value)).encode())


def _add_global(feeder: _Feeder, value: Any, module: str) -> None:
    """Add the value of a global name that code in `module` uses."""
    ours = getattr(value, "__module__", None) == module
    inner = getattr(value, "__func__", getattr(value, "__wrapped__", None))
    if isinstance(value, type):
        feeder.mark("class", name_of(value).encode())
        if ours:
            feeder.named.append(value)
    elif isinstance(value, FunctionType):
        feeder.mark("import", name_of(value).encode())
        if ours or not _is_importable(value):
            feeder.named.append(value)
    elif isinstance(value, (BuiltinFunctionType, ModuleType)):
        feeder.mark("import", name_of(value).encode())
    elif isinstance(inner, FunctionType) and (inner.__module__ == module or not _is_importable(inner)):
        feeder.mark("decorated", name_of(type(value)).encode())
        feeder.named.append(inner)
    elif isinstance(value, functools.partial):
        feeder.mark("partial", str(len(value.args)).encode())
        for part in (value.func, *value.args, *sorted(value.keywords.items())):
            _add_global(feeder, part, module)
    elif type(value) is tuple:
        feeder.mark("tuple", str(len(value)).encode())
        for item in value:
            _add_global(feeder, item, module)
    elif isinstance(value, enum.Enum):
        feeder.mark("enum", f"{name_of(type(value))}.{value.name}".encode())
        _add_global(feeder, value.value, module)
    elif _is_immutable(value):
        feeder.add(value)
    else:
        # Processes may have changed it differently.
        feeder.mark("variable", name_of(type(value)).encode())
        if type(value).__module__ == module:
            feeder.named.append(type(value))


def _is_immutable(value: Any) -> bool:
    if type(value) in SCALARS:
        return True
    return type(value) in (tuple, frozenset) and all(map(_is_immutable, value))


def _is_importable(value: Any) -> bool:
    """Return whether the name of a function or class leads to it."""
    found = sys.modules.get(getattr(value, "__module__", None) or "builtins")
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def name_of(value: Any) -> str:
    """Return module and name of a function or class, the same in all processes."""
    module = getattr(value, "__module__", "")
    return f"{_MAIN[0] if module in _MAIN else module}.{getattr(value, '__qualname__', getattr(value, '__name__', type(value).__name__))}"
