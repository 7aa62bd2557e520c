"""The keys of cached calls: digests of functions and of arguments that all processes compute alike."""

from __future__ import annotations

import functools
import hashlib
import pickle
import sys
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from .. import _core
from ..pickling.serialization import dumps, unpicklable

__all__ = ["digest_of_arguments", "digest_of_function", "name_of", "text_of_scalars"]

# Values of exactly these types need no pickling.
SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None)})
# Names of the main module: multiprocessing's spawned children import it under the second one.
_MAIN = ("__main__", "__mp_main__")
_SIZE = 16
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
    except Exception as error:
        found = unpicklable((args, kwargs), error)
        if found is error:
            raise
        raise found from error
    return str(feeder.state.hexdigest())


class _Feeder:
    """Adds values to a hash object."""

    def __init__(self, state: Any) -> None:
        self.state = state
        # The containers and objects that contain the value that is being added.
        self._outer: list[int] = []

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
        elif id(value) in self._outer:
            self.mark("outer", str(self._outer.index(id(value))).encode())
        elif kind in (tuple, list, dict, set, frozenset) or kind.__module__ in _MAIN or isinstance(value, FunctionType):
            self._outer.append(id(value))
            self._add_parts(value, kind)
            self._outer.pop()
        else:
            buffers: list[pickle.PickleBuffer] = []
            stream = dumps(value, protocol=5, buffer_callback=buffers.append)
            self.mark("pickle", bytes(stream))
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
        elif isinstance(value, FunctionType):
            self.mark("function", digest_of_function(value).encode())
        else:
            # A class of the main module is pickled by value, with an identifier that differs between processes.
            self.mark("object", name_of(kind).encode())
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

    The digest covers the code, default values, values of enclosing functions, functions and classes of the same module
    that the code names, and global variables whose values are immutable. It contains the name, but not the code, of
    functions of other modules.

    Parameters
    ----------
    function : callable

    Returns
    -------
    str
    """
    feeder = _Feeder(hashlib.blake2b(digest_size=_SIZE))
    feeder.mark("python", repr(sys.version_info[:2]).encode())
    _add_function(feeder, function, set())
    return str(feeder.state.hexdigest())


def _add_function(feeder: _Feeder, function: Any, seen: set[int]) -> None:
    inner = getattr(function, "__func__", function)
    inner = getattr(inner, "__wrapped__", inner)
    if not isinstance(inner, FunctionType):
        feeder.mark("callable", name_of(inner).encode())
        return
    if id(inner) in seen:
        return
    seen.add(id(inner))
    _add_code(feeder, inner.__code__)
    for value in (*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values()):
        _add_constant(feeder, value, inner, seen)
    for cell in inner.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue  # the variable has no value yet
        _add_constant(feeder, value, inner, seen)
    for name in sorted(_names_in(inner.__code__)):
        if name in inner.__globals__:
            feeder.mark("global", name.encode())
            _add_global(feeder, inner.__globals__[name], inner, seen)


def _add_code(feeder: _Feeder, code: CodeType) -> None:
    feeder.mark("code", code.co_code)
    feeder.mark("names", repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)).encode())
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


def _add_constant(feeder: _Feeder, value: Any, owner: FunctionType, seen: set[int]) -> None:
    """Add a value that belongs to the function: by its code if it is a function, otherwise by its content."""
    if callable(value):
        _add_global(feeder, value, owner, seen)
        return
    try:
        feeder.add(value)
    except (TypeError, AttributeError, pickle.PicklingError):  # it cannot be pickled, for example a lock
        feeder.mark("unpicklable", name_of(type(value)).encode())


def _add_global(feeder: _Feeder, value: Any, owner: FunctionType, seen: set[int]) -> None:
    ours = getattr(value, "__module__", None) == owner.__module__
    if isinstance(value, type) and ours:
        feeder.mark("class", name_of(value).encode())
        if id(value) not in seen:
            seen.add(id(value))
            for name, member in sorted(vars(value).items()):
                if isinstance(getattr(member, "__func__", member), FunctionType):
                    feeder.mark("method", name.encode())
                    _add_function(feeder, member, seen)
    elif isinstance(value, FunctionType) and ours:
        _add_function(feeder, value, seen)
    elif isinstance(value, (type, FunctionType, BuiltinFunctionType, ModuleType)):
        feeder.mark("import", name_of(value).encode())
    elif _is_immutable(value):
        feeder.add(value)
    else:
        # Processes may have changed it differently.
        feeder.mark("variable", name_of(type(value)).encode())


def _is_immutable(value: Any) -> bool:
    if type(value) in SCALARS:
        return True
    return type(value) in (tuple, frozenset) and all(map(_is_immutable, value))


def name_of(value: Any) -> str:
    """Return module and name of a function or class, the same in all processes."""
    module = getattr(value, "__module__", "")
    return f"{_MAIN[0] if module in _MAIN else module}.{getattr(value, '__qualname__', getattr(value, '__name__', type(value).__name__))}"
