"""Find arrays that need not be stored again, because an object with their bytes exists:

- an array that arrived and was not written to (`received_arrays`),
- an array that no code can write to, because its memory is a `bytes` object or read-only pages of the store. If the
  array's owner or an older view could write to the memory, the stored object is used again only while its bytes are
  equal to the array's.
"""

from __future__ import annotations

import os
import weakref
from _thread import RLock
from typing import TYPE_CHECKING, Any

from .. import _core
from ..exceptions import PyraySerError
from . import imported, received_arrays

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]
    Ref = _core.ObjectRef[Any]

__all__ = ["find", "lies_in", "put"]

# Number of bytes that are compared together.
_PIECE = 1 << 20

_lock = RLock()
# (address, size in bytes) -> (weak reference to the array that owns the memory, reference to the object), oldest first
_constant: dict[tuple[int, int], tuple[weakref.ref[Array], Ref]] = {}


def find(view: memoryview) -> Ref | None:
    """Return the stored object that already contains these bytes, or None."""
    if not _is_array(view):
        return None
    owner, for_good = _constant_owner(view)
    if owner is None:
        return received_arrays.source(view)
    with _lock:
        constant = _constant.get((_address(view), view.nbytes))
    if constant is None or constant[0]() is not owner or constant[1].state != "sealed":
        return None
    return constant[1] if for_good or _unchanged(view, constant[1]) else None


def put(view: memoryview, limit: int) -> tuple[Ref, bool]:
    """
    Store bytes.

    Parameters
    ----------
    view : memoryview
    limit : int
        Maximum number of bytes to keep for later messages; the oldest objects are released.

    Returns
    -------
    tuple of (ObjectRef, bool)
        The object, and whether it is kept so that later messages can refer to it.
    """
    ref: Ref = _core.put(view)
    if not _is_array(view):
        return ref, False
    owner, _ = _constant_owner(view)
    if owner is None or view.nbytes > limit:
        return ref, False
    place = (_address(view), view.nbytes)
    with _lock:
        old = [_constant.pop(place, None)]
        total = view.nbytes + sum(nbytes for _, nbytes in _constant)
        while total > limit:
            oldest = next(iter(_constant))
            old.append(_constant.pop(oldest))
            total -= oldest[1]
        _constant[place] = (weakref.ref(owner, lambda _: _constant.pop(place, None)), ref)
    del old
    return ref, True


def lies_in(view: memoryview, store: _core.Store) -> bool:
    """Return whether the bytes are those of a stored object, so that `put` does not copy them."""
    return _is_array(view) and _core.refers(store, _address(view), view.nbytes)


def _is_array(view: memoryview) -> bool:
    module = imported.numpy()
    return module is not None and isinstance(view.obj, module.ndarray)


def _constant_owner(view: memoryview) -> tuple[Array | None, bool]:
    """Return a view's base array if no array from the view to the base is writable, and whether none can become so."""
    import numpy

    found: Any = view.obj
    owner = None
    while isinstance(found, numpy.ndarray):
        if found.flags.writeable:
            return None, False
        owner, found = found, found.base
    if owner is None or found is None:
        # The array owns its memory, so its `writeable` flag can be set again, and older views have their own flags.
        return owner, False
    if type(found).__module__.startswith("pyray_ser."):
        return owner, _is_readonly(found)
    if isinstance(found, memoryview) and found.readonly:
        found = found.obj
    return (owner, True) if type(found) is bytes else (None, False)


def _is_readonly(block: Any) -> bool:
    try:
        return memoryview(block).readonly
    except (BufferError, ValueError):
        # The memory belongs to an object that another process is still filling. This forked child compares the bytes
        # that it sees.
        return False


def _unchanged(view: memoryview, ref: Ref) -> bool:
    """Return whether the object still contains equal bytes."""
    import numpy

    try:
        stored = numpy.frombuffer(_core.get(ref), numpy.uint8)
    except PyraySerError:  # the object no longer exists or cannot be read: store the bytes again
        return False
    ours = numpy.frombuffer(view, numpy.uint8)
    return len(stored) == len(ours) and all(
        bool((stored[at : at + _PIECE] == ours[at : at + _PIECE]).all()) for at in range(0, len(ours), _PIECE)
    )


def _address(view: memoryview) -> int:
    import numpy

    return int(numpy.frombuffer(view, numpy.uint8).__array_interface__["data"][0])


def _after_fork_in_child() -> None:
    global _lock, _constant
    _lock = RLock()
    _constant = {}


os.register_at_fork(after_in_child=_after_fork_in_child)
