"""The keys of cached calls: digests of functions and of arguments that all processes compute alike."""

from __future__ import annotations

import hashlib
import pickle
import sys
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from .. import _core
from ..pickling.serialization import dumps, unpicklable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SCALARS", "digest_of_arguments", "digest_of_function", "text_of_scalars"]

# Values of exactly these types are identified by their `repr`.
SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None)})
_SIZE = 16


def _new_hash() -> Any:
    """Return a hash object of 128 bits: XXH3 if the package xxhash is installed, because it is ten times as fast."""
    try:
        import xxhash
    except ImportError:
        return hashlib.blake2b(digest_size=_SIZE)
    return xxhash.xxh3_128()


def text_of_scalars(args: tuple[Any, ...]) -> str | None:
    """Return a text that identifies the arguments of a call, or None if some argument is not a scalar."""
    for value in args:
        if type(value) not in SCALARS:
            return None
    return repr(args)


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
    state = _new_hash()
    try:
        _feed(state, (args, sorted(kwargs.items())))
    except Exception as error:
        found = unpicklable((args, kwargs), error)
        if found is error:
            raise
        raise found from error
    return str(state.hexdigest())


def _feed(state: Any, value: Any) -> None:
    kind = type(value)
    if kind in SCALARS:
        _mark(state, kind.__name__, repr(value).encode())
    elif kind is tuple or kind is list:
        _mark(state, kind.__name__, str(len(value)).encode())
        for item in value:
            _feed(state, item)
    elif kind is dict:
        _mark(state, "dict", str(len(value)).encode())
        for item in value.items():
            _feed(state, item)
    elif kind is set or kind is frozenset:
        # The order of a set differs between processes.
        parts = sorted(digest_of_arguments((item,), {}) for item in value)
        _mark(state, kind.__name__, "".join(parts).encode())
    elif kind is _core.ObjectRef:
        _mark(state, "ref", value.binary())
    else:
        buffers: list[pickle.PickleBuffer] = []
        stream = dumps(value, protocol=5, buffer_callback=buffers.append)
        _mark(state, "pickle", bytes(stream))
        for buffer in buffers:
            with buffer.raw() as raw:
                _mark(state, "buffer", raw)


def _mark(state: Any, kind: str, data: Any) -> None:
    # The length separates this part from the next one.
    state.update(f"{kind} {len(data)} ".encode())
    state.update(data)


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
    state = hashlib.blake2b(digest_size=_SIZE)
    _mark(state, "python", repr(sys.version_info[:2]).encode())
    _feed_function(state, function, set())
    return state.hexdigest()


def _feed_function(state: Any, function: Any, seen: set[int]) -> None:
    inner = getattr(function, "__func__", function)
    inner = getattr(inner, "__wrapped__", inner)
    if not isinstance(inner, FunctionType):
        _mark(state, "callable", _name_of(inner).encode())
        return
    if id(inner) in seen:
        return
    seen.add(id(inner))
    _feed_code(state, inner.__code__)
    for value in (*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values()):
        _feed_constant(state, value, inner, seen)
    for cell in inner.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue  # the variable has no value yet
        _feed_constant(state, value, inner, seen)
    for name in sorted(_names_in(inner.__code__)):
        if name in inner.__globals__:
            _mark(state, "global", name.encode())
            _feed_global(state, inner.__globals__[name], inner, seen)


def _feed_code(state: Any, code: CodeType) -> None:
    _mark(state, "code", code.co_code)
    _mark(state, "names", repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)).encode())
    _mark(
        state,
        "shape",
        repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)).encode(),
    )
    _mark(state, "exceptions", code.co_exceptiontable)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _feed_code(state, constant)
        else:
            _feed(state, constant)


def _names_in(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names_in(constant)
    return found


def _feed_constant(state: Any, value: Any, owner: FunctionType, seen: set[int]) -> None:
    """Add a value that belongs to the function: by its code if it is a function, otherwise by its content."""
    if callable(value):
        _feed_global(state, value, owner, seen)
        return
    try:
        _feed(state, value)
    except TypeError:  # it cannot be pickled, for example a lock
        _mark(state, "unpicklable", _name_of(type(value)).encode())


def _feed_global(state: Any, value: Any, owner: FunctionType, seen: set[int]) -> None:
    ours = getattr(value, "__module__", None) == owner.__module__
    if isinstance(value, type) and ours:
        _mark(state, "class", _name_of(value).encode())
        if id(value) not in seen:
            seen.add(id(value))
            for name, member in sorted(vars(value).items()):
                if isinstance(getattr(member, "__func__", member), FunctionType):
                    _mark(state, "method", name.encode())
                    _feed_function(state, member, seen)
    elif isinstance(value, FunctionType) and ours:
        _feed_function(state, value, seen)
    elif isinstance(value, (type, FunctionType, BuiltinFunctionType, ModuleType)):
        _mark(state, "import", _name_of(value).encode())
    elif _is_immutable(value):
        _feed(state, value)
    else:
        # Processes may have changed it differently.
        _mark(state, "variable", _name_of(type(value)).encode())


def _is_immutable(value: Any) -> bool:
    if type(value) in SCALARS:
        return True
    return type(value) in (tuple, frozenset) and all(map(_is_immutable, value))


def _name_of(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', type(value).__name__))}"
