"""Arrays that arrived copy-on-write. If the process sends such an array without having modified it, it sends
a reference to the original object and makes no copy.

The kernel's page tables show whether an array was written to: pages that were written to are private to the process,
and all others are pages of the store.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from .. import _core
from . import imported

if TYPE_CHECKING:
    import numpy

__all__ = ["note", "source"]

# /proc/self/pagemap: 8 bytes a page
_PRESENT, _SWAPPED, _FILE = 1 << 63, 1 << 62, 1 << 61
_PAGE = os.sysconf("SC_PAGESIZE")
# Number of pages that are checked together. Modified pages are often near the beginning of an array, so the first
# groups often suffice.
_BATCH = 4096

# `id()` of an array over a whole mapping -> (weak reference to the array, identity of the mapped object)
_arrived: dict[int, tuple[weakref.ref[Any], bytes]] = {}


def note(buffer: Any, ref: _core.ObjectRef[Any]) -> Any:
    """Return an array that replaces a copy-on-write buffer and that `source` recognizes later."""
    numpy = imported.numpy()
    if numpy is None:
        return buffer
    whole = numpy.frombuffer(buffer, numpy.uint8)
    key = id(whole)
    _arrived[key] = (weakref.ref(whole, lambda _: _arrived.pop(key, None)), ref.binary())
    return whole


def source(view: memoryview) -> _core.ObjectRef[Any] | None:
    """Return the object that a view covers entirely; None if the array was not received, or was written to."""
    numpy = imported.numpy()
    if numpy is None or not _arrived:
        return None
    found: Any = view.obj
    while found is not None:
        known = _arrived.get(id(found))
        if known is not None and known[0]() is found:
            break
        if isinstance(found, numpy.ndarray):
            found = found.base
        elif isinstance(found, memoryview):
            found = found.obj
        else:
            return None
    else:
        return None
    address = _address(numpy.frombuffer(view, numpy.uint8))
    if address != _address(found) or view.nbytes != found.nbytes or not _is_unwritten(address, view.nbytes):
        return None
    ref = _core.load_ref(known[1])
    return ref if ref.state == "sealed" else None


def _address(array: numpy.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _is_unwritten(address: int, nbytes: int) -> bool:
    import numpy

    first, stop = address // _PAGE, (address + nbytes + _PAGE - 1) // _PAGE
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for at in range(first, stop, _BATCH):
                count = min(_BATCH, stop - at)
                text = os.pread(pagemap.fileno(), 8 * count, 8 * at)
                if len(text) != 8 * count:
                    return False
                pages = numpy.frombuffer(text, numpy.uint64)
                there = pages & (_PRESENT | _FILE)
                if (pages & _SWAPPED).any() or (there == _PRESENT).any():
                    return False
    except OSError:
        return False  # the kernel does not show the page tables
    return True
