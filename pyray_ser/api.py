"""The functions of the package, apart from `put` and `get`, which are compiled."""

from __future__ import annotations

import os
import sys

from . import _store
from ._store import ObjectRef, free, get, get_buffer, put
from .store import discovery as _stores
from .store.scopes import scope
from .store.waiting import wait

TYPE_CHECKING = False  # importing typing for this would cost more than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, SupportsIndex

    import numpy
    from numpy.typing import DTypeLike, NDArray

    from .tasks.typed import TaskRef
    from .typing import MmapMode

__all__ = [
    "abort",
    "contains",
    "create",
    "empty",
    "free",
    "get",
    "get_buffer",
    "get_by_name",
    "init",
    "is_initialized",
    "names",
    "objects",
    "put",
    "scope",
    "seal",
    "shutdown",
    "stats",
    "wait",
]


def init(
    name: str | None = None,
    *,
    capacity: int | str | None = None,
    spill_dir: str | os.PathLike[str] | None = None,
    spill_checksum: bool = False,
    spill_compress: str | None = None,
    max_clients: int | None = None,
    max_objects: int | None = None,
    lock_timeout: float | None = None,
    warm_reserve: int | str | None = None,
    liveness: str = "auto",
    num_workers: int | None = None,
    start_method: str | None = None,
) -> _store.Store:
    """
    Open the store of this process.

    Not needed before `put`: that opens a store with the default options. Options take effect in the call that makes the
    store. A call that comes later, or in a process that joins the store of another one, warns about each option that the
    store does not have. Children of any start method find their parent's store by themselves.

    Parameters
    ----------
    name : str, optional
        Name of a store that unrelated processes of the same user can find (a file in ``/dev/shm/pyray_ser-<uid>/``), or, with
        a slash in it, a path on a tmpfs that other containers may share. It is made if no process uses one of that name, and
        ends with its last process.
    capacity : int or str, optional
        Bytes it may hold, as a number or a text such as ``"8G"``, from 1 MiB to 8 TiB. The default is what the environment
        variable ``PYRAY_SER_CAPACITY`` says, else 30 % of the memory there is; a named store takes no more than its file
        system holds. Nothing is reserved: the store takes pages when it uses them.
    spill_dir : str or path-like, optional
        Directory on a disk for objects that do not fit any more; default is what the environment variable
        ``PYRAY_SER_SPILL_DIR`` says, else none: then a full store raises `ObjectStoreFullError`. It is made if its parent is
        there.
    spill_checksum : bool
        Whether spilled objects get a digest (XXH3), which is compared whenever one is mapped; needs the package xxhash.
    spill_compress : {"lz4", "zstd"}, optional
        How spilled objects are compressed; needs the package lz4 or zstandard. They cannot be mapped then: each process that
        reads one restores it into memory of its own. The extra ``spill`` has all three packages, which every process that
        uses the store must have.
    max_clients : int, optional
        How many processes may use it at the same time, from 4 to 4096; default 512.
    max_objects : int, optional
        How many objects it may hold; default follows from the capacity.
    lock_timeout : float, optional
        Seconds that a call waits for a lock held by a stopped process, default 1.
    warm_reserve : int or str, optional
        Bytes of freed pages kept for the next objects, default 256 MiB.
    liveness : {"auto", "pid"}
        "pid" refuses processes of other pid namespaces, whose death can only be concluded from silence.
    num_workers : int, optional
        How many processes run tasks; default is the number of CPUs this process may use. Started when they are needed.
    start_method : {"fork", "spawn", "forkserver"}, optional
        How workers and actors are started; default is what multiprocessing uses.

    Returns
    -------
    Store

    Raises
    ------
    TypeError, ValueError
        If an option makes no sense, or differs from what an earlier call in this process gave.

    Warns
    -----
    RuntimeWarning
        If the store is there already and does not have an option that is given.
    """
    from .store.options import check

    options = check(
        capacity=capacity,
        spill_dir=spill_dir,
        spill_checksum=spill_checksum,
        spill_compress=spill_compress,
        max_clients=max_clients,
        max_objects=max_objects,
        lock_timeout=lock_timeout,
        warm_reserve=warm_reserve,
        liveness=liveness,
    )
    if num_workers is not None or start_method is not None:
        from .tasks.settings import set_pool

        set_pool(num_workers, start_method)
    return _stores.open_store(name, **options)


def shutdown() -> None:
    """
    Close the stores of this process. May be repeated, and `init` may follow.

    Workers and actors end. Values that `get` returned stay valid; references do not. A store ends with its last process.
    """
    if "pyray_ser.tasks" in sys.modules:
        from .tasks import shutdown as end_workers

        end_workers()
    _stores.close_all()


def is_initialized() -> bool:
    """Return whether this process has a store."""
    return _store.default() is not None


def get_by_name(name: str, *, timeout: float | None = None, mmap_mode: MmapMode = "r") -> Any:
    """
    Return the value of the object that was put with this name.

    Parameters
    ----------
    name : str
    timeout : float, optional
        How many seconds to wait for an object of that name; default is without limit, 0 is not to wait.
    mmap_mode : {"r", "c"}
        As for `get`.

    Returns
    -------
    object

    Raises
    ------
    NameNotFoundError
        If there is none and `timeout` is 0, or nobody can put one because this process alone uses the store; also a
        `FileNotFoundError`.
    GetTimeoutError
        If there is none in time.
    """
    return get(_store.wait_name(_current(), name, timeout), mmap_mode=mmap_mode)


def names() -> dict[str, ObjectRef[Any]]:
    """
    Return the named objects of the store.

    Returns
    -------
    dict of str to ObjectRef
        In no particular order. To end one: ``free(names()[name])``.
    """
    store = _current()
    found = ((name, _store.find_name(store, name)) for name, _ in _store.names_of(store))
    # One that was freed between the two looks is left out.
    return {name: ref for name, ref in found if ref is not None}


def contains(ref: ObjectRef[Any] | TaskRef[Any]) -> bool:
    """
    Return whether `get` would return at once: the object is sealed and alive.

    Parameters
    ----------
    ref : ObjectRef or TaskRef
    """
    if not isinstance(ref, ObjectRef) and not _store.is_promise(ref):
        raise TypeError(f"contains() takes an ObjectRef, not {type(ref).__name__!r}")
    return ref.state == "sealed"


def _current() -> _store.Store:
    return _store.default() or _stores.open_default()


def stats() -> dict[str, int]:
    """
    Return counters of the store.

    Returns
    -------
    dict of int
        Bytes: ``capacity``; ``used`` by objects; ``reserved`` for small ones to come; ``backed`` by the kernel;
        ``overhead`` of bookkeeping; ``largest_free``; ``spilled_bytes``, which are in files. Counts: ``spilled``, ``objects``, ``unsealed``, ``clients``, ``max_clients``,
        ``in_flight`` references, ``edges`` between objects, ``orphaned`` by a fork, ``slots``, ``serial`` of the next
        object, ``reaped`` clients, ``stolen`` locks.
    """
    store = _current()
    flight = sys.modules.get("pyray_ser.pool_hooks.in_flight")
    if flight is not None:
        flight.tick()
    return store.stats()


def objects() -> list[dict[str, Any]]:
    """
    Return one record per object of the store.

    Returns
    -------
    list of dict
        ``id``, ``serial``, ``size``, ``extent`` in bytes, ``state``, ``ref_holders`` and ``pin_holders`` (processes),
        ``tokens_and_edges`` (messages and objects that hold it), ``creator_pid`` (None if gone), ``created`` (seconds since
        the epoch), ``freed``, ``orphaned``, ``spilled`` (it is in a file), ``name`` (None if it has none).
    """
    return _current().records()


def create(nbytes: int, *, timeout: float | None = None) -> memoryview:
    """
    Make an object to be filled in place.

    Parameters
    ----------
    nbytes : int
    timeout : float, optional
        As for `put`.

    Returns
    -------
    memoryview
        Writable until `seal` makes it an object, whose value is a read-only memoryview. ``view.obj.ref`` is the reference
        that others can wait for meanwhile. A memoryview cannot be told that it became read-only: writing to this one after
        `seal` is SIGSEGV, as it is in a forked child.
    """
    from . import _window

    # Before Python 3.12 the type checker does not know that it has a buffer.
    window: Any = _window.create(nbytes, timeout)
    return memoryview(window)


def empty(
    shape: SupportsIndex | Sequence[SupportsIndex],
    dtype: DTypeLike = float,
    order: str = "C",
    *,
    timeout: float | None = None,
) -> NDArray[Any]:
    """
    Make an array inside the store, to be filled in place.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : dtype-like
        Without Python objects.
    order : {"C", "F"}
    timeout : float, optional
        As for `put`.

    Returns
    -------
    numpy.ndarray
        Uninitialized and writable until `seal(array)` makes it an object, without a copy. From then on it is read-only.
    """
    import operator

    import numpy

    from . import _window

    kind: numpy.dtype[Any] = numpy.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"an array of {kind} holds Python objects, which cannot be shared: put() pickles it")
    if order not in ("C", "F"):
        raise ValueError(f'order must be "C" or "F", not {order!r}')
    lengths: tuple[int, ...]
    try:
        lengths = (operator.index(shape),)  # type: ignore[arg-type]
    except TypeError:
        lengths = tuple(operator.index(length) for length in shape)  # type: ignore[union-attr]
    nbytes = kind.itemsize
    for length in lengths:
        if length < 0:
            raise ValueError("negative dimensions are not allowed")
        nbytes *= length
    return _window.array_over(_window.create(nbytes, timeout), lengths, kind, order)


def seal(value: memoryview | NDArray[Any]) -> ObjectRef[Any]:
    """
    Turn what `create` or `empty` made into an object, without a copy.

    Parameters
    ----------
    value : memoryview or numpy.ndarray
        The whole of it; a reshaped view is fine, and that is what `get` will return.

    Returns
    -------
    ObjectRef
    """
    from . import _window

    return _window.seal(value)


def abort(value: memoryview | NDArray[Any]) -> None:
    """
    Give up what `create` or `empty` made: who waits for it gets `ObjectLostError`.

    Parameters
    ----------
    value : memoryview or numpy.ndarray
    """
    from . import _window

    _window.abort(value)
