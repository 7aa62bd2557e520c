"""Compare the results of the standard library and of our unpickler for the same bytes."""

import _pickle
import io
import pickle
import struct

import numpy as np
import unpickler_corpus as corpus
import unpickler_seeds as seeds

from pyray_ser import _unpickle


class StandardUnpickler(_pickle.Unpickler):
    def find_class(self, module, name):
        if not seeds.allowed(module, name):
            raise pickle.UnpicklingError(f"global '{module}:{name}' is not allowed")
        return super().find_class(module, name)


class StandardArrays(_pickle.Unpickler):
    def find_class(self, module, name):
        if f"{module}:{name}" not in corpus.ARRAY_NAMES:
            raise pickle.UnpicklingError(f"global '{module}:{name}' is not allowed")
        return super().find_class(module, name)


class OurUnpickler(_unpickle.Unpickler):
    def find_class(self, module, name):
        if not seeds.allowed(module, name):
            raise pickle.UnpicklingError(f"global '{module}:{name}' is not allowed")
        return super().find_class(module, name)


def _canon(value, seen, depth=0):
    """Return nested tuples that represent exactly a value's types, order, cycles and sharing of mutables."""
    kind = type(value)
    if kind is float:
        return "float", struct.pack("<d", value)
    if value is None or kind in (bool, int, str, bytes) or isinstance(value, type) or callable(value):
        return kind.__name__, value
    if depth > 200:
        return "deep"
    if kind is np.ndarray:
        return _canon_array(value)
    if isinstance(value, np.dtype):
        return "dtype", str(value)
    if kind in (memoryview, pickle.PickleBuffer):
        return kind.__name__, bytes(value)
    if id(value) in seen and kind not in (tuple, frozenset):
        return "again", seen[id(value)]
    seen[id(value)] = len(seen)
    seen.setdefault("keep", []).append(value)
    inner = [kind.__qualname__]
    if isinstance(value, (list, tuple)):
        inner += [_canon(item, seen, depth + 1) for item in list(value)]
    elif isinstance(value, dict):
        inner += [(_canon(k, seen, depth + 1), _canon(v, seen, depth + 1)) for k, v in list(value.items())]
    elif isinstance(value, (set, frozenset)):
        inner += sorted(repr(_canon(item, {}, depth + 1)) for item in value)
    elif isinstance(value, (bytearray, complex)):
        inner.append(repr(value))
    elif kind.__module__ in ("datetime", "decimal", "fractions", "collections", "enum", "builtins"):
        try:
            inner.append(repr(value))
        except Exception as error:
            inner.append(type(error).__name__)
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        attributes = None
    if type(attributes) is dict:
        inner += [(_canon(k, seen, depth + 1), _canon(v, seen, depth + 1)) for k, v in list(attributes.items())]
    for name in getattr(kind, "__slots__", ()) if kind in (seeds.Slots, seeds.Row) else ():
        inner.append(_canon(getattr(value, name, "unset"), seen, depth + 1))
    return tuple(inner)


def _canon_array(array):
    """Describe an array; include its bytes only if another object owns them, because others are uninitialized."""
    owner = array
    while type(owner.base) is np.ndarray:
        owner = owner.base
    described = str(array.dtype), array.shape, array.strides if array.size > 1 else None, array.flags.writeable
    return "ndarray", *described, array.tobytes() if owner.base is not None else None


def outcome(read):
    """Return ('value', canon) or ('error', class name of the exception, message)."""
    try:
        value = read()
    except Exception as error:
        return "error", type(error).__name__, str(error)
    return "value", _canon(value, {})


def _asks_for_much(data):
    """Return whether the stream has memo indices for which the standard library would allocate gigabytes."""
    found, rest = corpus.opcodes(data)
    if any(name in ("LONG_BINPUT", "PUT") and argument > 100_000 for name, argument in found):
        return True
    rest = data[rest:]
    return b"p" in rest or any(
        rest[at : at + 1] == b"r" and int.from_bytes(rest[at + 1 : at + 5], "little") > 100_000
        for at in range(len(rest))
    )


def ours(data):
    """Return the result of each way to load a stream with our unpickler."""
    return [
        outcome(lambda: _unpickle.loads(data, allow=seeds.allowed)),
        outcome(lambda: OurUnpickler(io.BytesIO(data)).load()),
        outcome(lambda: _unpickle.load(io.BufferedReader(io.BytesIO(data), 16), allow=seeds.allowed)),
    ]


def _unlike(expected, result):
    """Return both results if they differ in an unexpected way, else None."""
    if result[0] == "error" and "in safe mode" in result[2]:
        return None  # safe mode may reject a stream although all its names are allowed
    if expected[:2] == ("error", "MemoryError"):
        # The standard library allocates as many bytes as a length says; our unpickler first checks that they exist.
        expected = ("error", "UnpicklingError")
    return (expected, result) if expected[:2] != result[:2] else None


def difference(data):
    """Return None, or a description of the difference."""
    results = ours(data)
    for result in results:
        if result[:2] == ("error", "SystemError"):
            return result
    if _asks_for_much(data):
        return None
    # With peek() the standard library can read all bytes, as from memory. Without peek() it loses bytes if an opcode
    # crosses the end of its frame.
    expected = outcome(lambda: StandardUnpickler(io.BufferedReader(io.BytesIO(data), 1 << 20)).load())
    for result in results:
        if _unlike(expected, result):
            return expected, result
    return None


def array_difference(data):
    """Read arrays over `corpus.BUFFERS`; return None, a SystemError, or the difference from the standard library."""
    if corpus.gives_state(data):
        return None
    in_place = outcome(lambda: _unpickle.loads_in_place(data, corpus.BUFFERS, allow=corpus.ARRAY_NAMES))
    result = outcome(lambda: _unpickle.loads(data, buffers=corpus.BUFFERS, allow=corpus.ARRAY_NAMES))
    for one in (in_place, result):
        if one[:2] == ("error", "SystemError"):
            return one
    if _asks_for_much(data):
        return None
    file = io.BufferedReader(io.BytesIO(data), 1 << 20)  # a file with peek(), as in `difference`
    expected = outcome(lambda: StandardArrays(file, buffers=corpus.BUFFERS).load())
    return _unlike(expected, result)
