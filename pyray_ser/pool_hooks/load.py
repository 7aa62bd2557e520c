"""The functions that messages of `install` call when they are loaded, in any process.

The names of these functions are part of the format of a message.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any, Literal

from .. import _core
from ..exceptions import PyraySerError
from . import direct, received_arrays
from .counts import counts

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

__all__ = ["array", "close", "start", "to_bytearray", "to_bytes", "to_str"]


# Number of values that describe a buffer in a process's arguments; a buffer in a store is described by three.
_PROCESS = 4


def _shared(found: tuple[Any, ...]) -> Any:
    """Return the bytes of a buffer in shared memory, either read-only or in memory private to this process."""
    counts.receive(found[-1])
    if len(found) == _PROCESS:
        return _inherited(*found)
    try:
        return _core.get(_core.load_ref(found[0]))
    except (MemoryError, OSError, PyraySerError):
        return _copied(found)


def _private(found: tuple[Any, ...]) -> Any:
    """Return the bytes of a buffer as a writable copy-on-write mapping."""
    counts.receive(found[-1])
    if len(found) == _PROCESS:
        return _inherited(*found)
    try:
        ref = _core.load_ref(found[0])
        try:
            return received_arrays.note(_core.get(ref, mmap_mode="c"), ref)
        except (MemoryError, OSError):
            # The process has reached its limit of mappings (vm.max_map_count) or address space, but a copy may still
            # work.
            return bytearray(_core.get(ref))
    except (MemoryError, OSError, PyraySerError):
        return _copied(found)


def _copied(found: tuple[Any, ...]) -> bytearray:
    """Return the bytes of a buffer in a store that this process cannot use; raise the current exception if that fails."""
    made = direct.read(*found)
    if made is None:
        raise
    return made


def _inherited(number: int, server: int, offset: int, nbytes: int) -> Any:
    """Map a buffer from the file that contains this process's arguments; the process has received its descriptor."""
    return mmap.mmap(_descriptor(number, server), nbytes, mmap.MAP_PRIVATE, offset=offset)


def _descriptor(number: int, server: int) -> int:
    if not server:
        return number
    from multiprocessing import forkserver

    inherited: Any = forkserver.get_inherited_fds()
    return int(inherited[number])


def array(
    found: tuple[Any, ...], dtype: numpy.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"], mmap_mode: str
) -> NDArray[Any]:
    """Return an array."""
    import numpy

    buffer = _private(found) if mmap_mode == "c" else _shared(found)
    made: NDArray[Any] = numpy.ndarray(shape, dtype, buffer, order=order)
    if mmap_mode != "c":
        made.flags.writeable = False
    return made


def to_bytes(*found: Any) -> bytes:
    """Return bytes."""
    return bytes(_shared(found))


def to_bytearray(*found: Any) -> bytearray:
    """Return a bytearray."""
    return bytearray(_shared(found))


def to_str(*found: Any) -> str:
    """Return a string."""
    return str(_shared(found), "utf-8", "surrogatepass")


def close(number: int, server: int) -> None:
    """Close the descriptor of this process's arguments."""
    os.close(_descriptor(number, server))


def start(min_bytes: int, copy_on_write: int, max_in_flight: int) -> None:
    """Install the hooks in a new process, before it loads its work. A negative `max_in_flight` means the default."""
    from .main_by_value import spawned
    from .patches import Options, join

    spawned()
    join(Options(min_bytes, "c" if copy_on_write else "r", None if max_in_flight < 0 else max_in_flight))
