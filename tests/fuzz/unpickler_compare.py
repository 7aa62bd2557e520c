"""What the standard library and our unpickler make of the same bytes."""

import _pickle
import io
import pickle
import pickletools
import struct

import unpickler_seeds as seeds

from pyray_ser import _unpickle


class StandardUnpickler(_pickle.Unpickler):
    def find_class(self, module, name):
        if not seeds.allowed(module, name):
            raise pickle.UnpicklingError(f"global '{module}:{name}' is not allowed")
        return super().find_class(module, name)


class OurUnpickler(_unpickle.Unpickler):
    def find_class(self, module, name):
        if not seeds.allowed(module, name):
            raise pickle.UnpicklingError(f"global '{module}:{name}' is not allowed")
        return super().find_class(module, name)


def _canon(value, seen, depth=0):
    """Nested tuples that are equal if and only if two values are, with types, order, cycles and sharing of what can change."""
    kind = type(value)
    if kind is float:
        return "float", struct.pack("<d", value)
    if value is None or kind in (bool, int, str, bytes) or isinstance(value, type) or callable(value):
        return kind.__name__, value
    if depth > 200:
        return "deep"
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


def outcome(read):
    """('value', canon) or ('error', name of the exception)."""
    try:
        value = read()
    except Exception as error:
        return "error", type(error).__name__, str(error)
    return "value", _canon(value, {})


def _asks_for_much(data):
    """True for memo indices for which the standard library would allocate gigabytes."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("LONG_BINPUT", "PUT") and argument > 100_000:
                return True
    except Exception:
        # What genops does not understand may still be run up to the place where it stops.
        return any(data[at : at + 1] == b"r" and int.from_bytes(data[at + 1 : at + 5], "little") > 100_000
                   for at in range(len(data))) or b"p" in data  # fmt: skip
    return False


def ours(data):
    """The results of all our ways to read."""
    return [
        outcome(lambda: _unpickle.loads(data, allow=seeds.allowed)),
        outcome(lambda: OurUnpickler(io.BytesIO(data)).load()),
        outcome(lambda: _unpickle.load(io.BufferedReader(io.BytesIO(data), 16), allow=seeds.allowed)),
    ]


def difference(data):
    """None, or what is not the same."""
    results = ours(data)
    for result in results:
        if result[:2] == ("error", "SystemError"):
            return result
    if _asks_for_much(data):
        return None
    # Through peek() the standard library sees all the bytes, as in memory; without it, it loses bytes where an opcode crosses
    # the end of its frame.
    expected = outcome(lambda: StandardUnpickler(io.BufferedReader(io.BytesIO(data), 1 << 20)).load())
    if expected[:2] == ("error", "MemoryError"):
        # It allocates what a length asks for; we look whether the bytes are there.
        expected = ("error", "UnpicklingError")
    for result in results:
        if result[0] == "error" and "in safe mode" in result[2]:
            continue  # more is refused there than names
        if expected[:2] != result[:2]:
            return expected, result
    return None
