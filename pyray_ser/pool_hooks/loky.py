"""Apply the same rules to the queues and the pickler of loky, and of joblib, which uses loky."""

from __future__ import annotations

import copyreg
import functools
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import imported, message, patches, processes
from .counts import counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Function = Callable[..., Any]

__all__ = ["HOOKS", "MODULES"]


def _hook_dumps(original: Function) -> Function:
    """Return a replacement for ``dumps`` of ``loky.backend.queues``."""
    write: Any = getattr(original, "__globals__", {}).get("dump")

    @functools.wraps(original)
    def dumps(obj: object, reducers: dict[type, Function] | None = None, protocol: int | None = None) -> Any:
        sending = patches.sending() if write is not None and (protocol is None or protocol >= 4) else None
        with message.PathOfFailure(obj, reducers, by_value=True):
            if sending is None:
                return original(obj, reducers=reducers, protocol=protocol)
            with sending as taker:
                out = message.Output(taker)
                write(obj, out, reducers=_with_arrays(reducers, taker, protocol), protocol=protocol)
                data = message.seal(out, taker.blobs)
                counts.sent(len(data))
                return data

    return dumps


def _with_arrays(
    reducers: dict[type, Function] | None, taker: message.Taker, protocol: int | None
) -> dict[type, Function] | None:
    """Return the reducers of a queue; if arrays have no reducer there, or joblib's, use the reducer of this package."""
    numpy = imported.numpy()
    if numpy is None or numpy.ndarray in copyreg.dispatch_table:
        return reducers
    ndarray: Any = numpy.ndarray
    number = pickle.HIGHEST_PROTOCOL if protocol is None else protocol
    before = (reducers or {}).get(ndarray)
    if before is None:
        return {**(reducers or {}), ndarray: message.array_reducer(taker, number)}
    if not _is_joblibs(before):
        return reducers

    def reduce(array: NDArray[Any]) -> Any:
        if _is_by_value(before, array):
            return message.take_array(array, taker, number) or before(array)
        return before(array)

    return {**(reducers or {}), ndarray: reduce}


def _is_joblibs(reducer: Any) -> bool:
    return getattr(reducer, "__module__", None) == "joblib._memmapping_reducer"


def _is_by_value(reducer: Any, array: NDArray[Any]) -> bool:
    """Return whether joblib pickles an array's bytes. Otherwise it sends the name of a file, whose memory is shared."""
    numpy: Any = imported.numpy()
    found: Any = array
    while isinstance(found, numpy.ndarray):
        if isinstance(found, numpy.memmap):
            return False
        found = found.base
    if type(found).__name__ == "mmap":
        return False
    if getattr(reducer, "__name__", "") == "reduce_array_memmap_backward":
        return True
    if type(reducer).__name__ == "ArrayMemmapForwardReducer":
        limit = getattr(reducer, "_max_nbytes", 0)
        return limit is None or array.nbytes <= limit
    return False


def _own(name: str) -> Function:
    return lambda module: getattr(module, name, None)


# Name of a module of loky -> the object in that module, the attribute to replace, and the function that makes the
# replacement.
_HOOKS: tuple[tuple[str, Callable[[ModuleType], Any], str, Function], ...] = (
    ("queues", lambda module: module, "dumps", _hook_dumps),
    ("queues", _own("Queue"), "_feed", lambda feed: patches.hook_feed(feed)),
    ("queues", _own("SimpleQueue"), "put", lambda put: patches.hook_put(put)),
    ("reduction", lambda module: module, "dump", processes.hook_dump),
    ("popen_loky_posix", _own("Popen"), "_launch", processes.hook_launch),
    ("popen_loky_posix", _own("Popen"), "poll", lambda poll: patches.hook_poll(poll)),
)
HOOKS = tuple(
    (f"{package}.backend.{module}", owner_of, name, hook)
    for package in ("loky", "joblib.externals.loky")
    for module, owner_of, name, hook in _HOOKS
)
MODULES = tuple(dict.fromkeys(entry[0] for entry in HOOKS))
