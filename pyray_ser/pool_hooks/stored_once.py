"""What need not be stored again to be sent: each thing that is sent twice as one object.

- an array that arrived and was not written to (`arrived`),
- an array that nobody can write to, as long as it lives; where its owner, or a view from before, could after all, only while its bytes
  are those that were stored,
- an argument of joblib's, within one call of ``Parallel``: joblib itself writes it to a file but once.
"""

from __future__ import annotations

import os
import time
import weakref
from _thread import RLock
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _store
from ..exceptions import PyraySerError
from . import received_arrays

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]
    Ref = _store.ObjectRef[Any]

__all__ = ["Argument", "expire", "find", "put"]

# Seconds without use after which an argument is let go of: its call is over, or it is stored once more.
IDLE = 5.0
# Bytes that are compared at a time.
_PIECE = 1 << 20


class Argument(NamedTuple):
    """An array that is sent unchanged within one call."""

    array: Array
    call: str


_lock = RLock()
# (address, bytes) -> (weak reference to the array that owns them, reference)
_constant: dict[tuple[int, int], tuple[weakref.ref[Array], Ref]] = {}
# id of the array -> (weak reference to it, call, reference, last use)
_arguments: dict[int, tuple[weakref.ref[Array], str, Ref, float]] = {}


def find(view: memoryview, argument: Argument | None = None) -> Ref | None:
    """Return the object that these bytes are in already; None if they are in none."""
    if argument is not None:
        with _lock:
            known = _arguments.get(id(argument.array))
            if known is not None and known[0]() is argument.array and known[1] == argument.call:
                _arguments[id(argument.array)] = (*known[:3], time.monotonic())
                return known[2] if known[2].state == "sealed" else None
    owner, for_good = _constant_owner(view)
    if owner is None:
        return received_arrays.source(view)
    with _lock:
        constant = _constant.get((_address(view), view.nbytes))
    if constant is None or constant[0]() is not owner or constant[1].state != "sealed":
        return None
    return constant[1] if for_good or _unchanged(view, constant[1]) else None


def put(view: memoryview, argument: Argument | None = None) -> tuple[Ref, bool]:
    """Store bytes; return the object, and whether it is kept for the next time."""
    ref: Ref = _store.put(view)
    if argument is not None:
        key = id(argument.array)
        with _lock:
            for other in [other for other, known in _arguments.items() if known[1] != argument.call]:
                del _arguments[other]
            gone = weakref.ref(argument.array, lambda _: _arguments.pop(key, None))
            _arguments[key] = (gone, argument.call, ref, time.monotonic())
        return ref, True
    owner, _ = _constant_owner(view)
    if owner is None:
        return ref, False
    place = (_address(view), view.nbytes)
    with _lock:
        _constant[place] = (weakref.ref(owner, lambda _: _constant.pop(place, None)), ref)
    return ref, True


def expire() -> bool:
    """Let go of arguments whose call is over; tell whether any are left."""
    now = time.monotonic()
    with _lock:
        old = [_arguments.pop(key) for key, known in list(_arguments.items()) if now - known[3] > IDLE]
    del old
    return bool(_arguments)


def _constant_owner(view: memoryview) -> tuple[Array | None, bool]:
    """Return the array at the bottom of a view if no array on the way is writable, else None; and whether none can become so."""
    if type(view.obj) is bytes or type(view.obj) is bytearray:
        return None, False
    import numpy

    # A read-only array lends its memory through ctypes, see `message`.
    found = getattr(view.obj, "lender", view.obj)
    owner = None
    while isinstance(found, numpy.ndarray):
        if found.flags.writeable:
            return None, False
        owner, found = found, found.base
    if owner is None or found is None:
        # Memory of its own: the flag can be turned on again, and older views keep theirs.
        return owner, False
    if type(found).__module__.startswith("pyray_ser."):
        return owner, _is_readonly(found)
    if isinstance(found, memoryview) and found.readonly:
        found = found.obj
    return (owner, True) if type(found) is bytes else (None, False)


def _is_readonly(block: Any) -> bool:
    try:
        return memoryview(block).readonly
    except (BufferError, ValueError):  # the window of another process: a forked child's own look at it is compared
        return False


def _unchanged(view: memoryview, ref: Ref) -> bool:
    """Whether the object holds these very bytes still."""
    import numpy

    try:
        stored = numpy.frombuffer(_store.get(ref), numpy.uint8)
    except PyraySerError:  # it went in the meantime, or cannot be read: it is stored once more
        return False
    ours = numpy.frombuffer(view, numpy.uint8)
    return len(stored) == len(ours) and all(
        bool((stored[at : at + _PIECE] == ours[at : at + _PIECE]).all()) for at in range(0, len(ours), _PIECE)
    )


def _address(view: memoryview) -> int:
    import numpy

    return int(numpy.frombuffer(view, numpy.uint8).__array_interface__["data"][0])


def _after_fork_in_child() -> None:
    global _lock, _constant, _arguments
    _lock = RLock()
    _constant = {}
    _arguments = {}


os.register_at_fork(after_in_child=_after_fork_in_child)
