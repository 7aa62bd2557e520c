"""The public functions of the package, except `put` and `get`, which are compiled."""

from __future__ import annotations

import os
import sys
import time

from . import _core
from ._core import ObjectRef, free, get, get_buffer, put
from .store import discovery as _stores
from .store.scopes import scope
from .store.waiting import wait

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, SupportsIndex

    import distributed
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
    address: str | distributed.Client | None = None,
) -> _core.Store:
    """
    Open the store of this process.

    This call is optional: `put` opens a store with the default options. Options take effect in the call that makes the
    store. A later call, or a call in a process that joins an existing store, warns about each option that differs from
    the store's. Child processes find their parent's store with every start method.

    Parameters
    ----------
    name : str, optional
        Name of a store that unrelated processes of the same user can find (a file in ``/dev/shm/pyray_ser-<uid>/``),
        or, with a slash in it, a path on a tmpfs that other containers may share. The store is made if no process uses
        a store of this name, and it ends when its last process ends.
    capacity : int or str, optional
        Maximum size in bytes, as a number or text such as ``"8G"``, from 1 MiB to 8 TiB. The default is the environment
        variable ``PYRAY_SER_CAPACITY``, otherwise 30 % of the memory, but for a named store not more than the size of
        its file system. No memory is reserved: the store allocates pages when it uses them.
    spill_dir : str or path-like, optional
        Directory on a disk for objects that do not fit into the capacity. The default is the environment variable
        ``PYRAY_SER_SPILL_DIR``, otherwise none. Without a directory, a full store raises `ObjectStoreFullError`. The
        directory is made if its parent exists.
    spill_checksum : bool
        Whether spilled objects get a digest (XXH3), which is verified whenever an object is mapped; needs the package
        xxhash.
    spill_compress : {"lz4", "zstd"}, optional
        How spilled objects are compressed; needs the package lz4 or zstandard. Compressed objects cannot be mapped:
        each process that reads one restores it to private memory. The extra ``spill`` installs all three packages;
        every process of the store needs them.
    max_clients : int, optional
        Maximum number of processes at the same time, from 4 to 4096; default 512.
    max_objects : int, optional
        Maximum number of objects; the default depends on the capacity.
    lock_timeout : float, optional
        Maximum number of seconds that a call waits for a lock that a stopped process holds; default 1.
    warm_reserve : int or str, optional
        Bytes of freed pages that are kept for later objects; default 256 MiB.
    liveness : {"auto", "pid"}
        With "pid", processes of other pid namespaces cannot join the store.
    num_workers : int, optional
        Number of processes for tasks; default is the number of CPUs that this process may use. Workers start when they
        are needed.
    start_method : {"fork", "spawn", "forkserver"}, optional
        The method for starting workers and actors; the default is that of multiprocessing.
    address : str or distributed.Client, optional
        Address of a Dask scheduler, such as ``"tcp://host:8786"``, or a client of the cluster. Tasks and actors then run
        on the workers of the cluster, and `name` defaults to the store that its workers use. `shutdown` leaves the cluster.

    Returns
    -------
    Store

    Raises
    ------
    TypeError, ValueError
        If an option is invalid, or differs from the value in an earlier call in this process.

    Warns
    -----
    RuntimeWarning
        If the store exists already with a different value for one of the given options, or if the capacity of a named
        store exceeds the size of its file system.

    Examples
    --------
    >>> store = pyray_ser.init(capacity="4G", num_workers=2)
    >>> store.capacity
    4294967296
    """
    from .store.options import check

    if address is not None and (num_workers is not None or start_method is not None):
        raise ValueError(
            "num_workers and start_method are options of one node, and address is that of a cluster: give one or the other; "
            "hint: a Dask worker runs as many tasks as it has threads"
        )
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
    if address is not None:
        from .distributed.cluster import connect

        return connect(address, name, options)
    return _stores.open_store(name, **options)


def shutdown() -> None:
    """
    Close the stores of this process and end its workers and actors.

    Values that `get` returned stay valid; references do not. A store ends with its last process. The call may be repeated,
    and `init` may follow.

    Examples
    --------
    >>> pyray_ser.shutdown()
    """
    if "pyray_ser.tasks" in sys.modules:
        from .tasks import shutdown as end_workers

        end_workers()
    _stores.close_all()


def is_initialized() -> bool:
    """
    Return whether this process has a store.

    Examples
    --------
    >>> pyray_ser.is_initialized()
    True
    """
    return _core.default() is not None


def get_by_name(
    name: str,
    *,
    timeout: float | None = None,
    newer_than: int | ObjectRef[Any] | None = None,
    mmap_mode: MmapMode = "r",
) -> Any:
    """
    Return the value of a named object.

    Parameters
    ----------
    name : str
        The name that was given to `put`.
    timeout : float, optional
        Seconds to wait for an object of this name. By default, the call waits without limit; 0 means not to wait.
    newer_than : int or ObjectRef, optional
        Wait for a version above this one, or for an object other than this one. `names` and `watch` tell versions.
    mmap_mode : {"r", "c"}
        As for `get`.

    Returns
    -------
    object

    Raises
    ------
    NameNotFoundError
        If no object has this name and `timeout` is 0, or if no other thread or process exists that could put one. It is
        also a `FileNotFoundError`.
    GetTimeoutError
        If no object of this name appears in time.

    Examples
    --------
    >>> ref = pyray_ser.put({"lr": 0.1}, name="settings")
    >>> pyray_ser.get_by_name("settings")
    {'lr': 0.1}
    """
    end = time.monotonic() + (timeout or 0)
    above, other = (newer_than or 0, None) if not isinstance(newer_than, ObjectRef) else (0, newer_than)
    ref = _core.wait_name(_current(), name, timeout, above, other)[0]
    while True:
        try:
            return get(ref, mmap_mode=mmap_mode)
        except LookupError as error:
            from .store import by_name

            # Another process may have freed the object after the lookup, perhaps in order to give its name to another
            # object.
            if not by_name.was_freed(error, _current(), name, ref):
                raise
            rest = timeout and max(end - time.monotonic(), 1e-9)
            ref = _core.wait_name(_current(), name, rest, above, other)[0]


def names(prefix: str = "", *, details: bool = False) -> dict[str, Any]:
    """
    Return the named objects of the store.

    Parameters
    ----------
    prefix : str
        Return only names that start with this text.
    details : bool
        If true, return a `NamedObject` for each name instead of a reference.

    Returns
    -------
    dict of str to ObjectRef or NamedObject
        In no particular order. A `NamedObject` is a tuple of ``ref``, ``version``, ``time`` at which the name was bound,
        in seconds since the epoch, and ``ephemeral``. ``free(names()[name])`` frees a named object in all processes;
        `delete` removes only its name.

    Examples
    --------
    >>> ref = pyray_ser.put({"lr": 0.1}, name="settings")
    >>> pyray_ser.names()
    {'settings': ObjectRef(...)}
    >>> pyray_ser.names(details=True)["settings"].version
    1
    """
    from .store.by_name import described

    found = described(prefix)
    return dict(found) if details else {name: entry.ref for name, entry in found.items()}


def contains(ref: ObjectRef[Any] | TaskRef[Any]) -> bool:
    """
    Return whether `get` would return immediately, because the object is sealed and alive.

    Parameters
    ----------
    ref : ObjectRef or TaskRef

    Returns
    -------
    bool

    Examples
    --------
    >>> pyray_ser.contains(pyray_ser.put(1))
    True
    """
    if not isinstance(ref, ObjectRef) and not _core.is_promise(ref):
        raise TypeError(f"contains() takes an ObjectRef, not {type(ref).__name__!r}")
    return ref.state == "sealed"


def _current() -> _core.Store:
    return _core.default() or _stores.open_default()


def stats() -> dict[str, int]:
    """
    Return counters of the store.

    Returns
    -------
    dict of int
        Numbers of bytes: ``capacity``; ``used`` by objects; ``reserved`` for future small objects; ``backed`` by the
        kernel; ``overhead`` of bookkeeping; ``largest_free``; ``spilled_bytes`` in files. Counts: ``spilled``,
        ``objects``, ``unsealed``, ``clients``, ``max_clients``, ``in_flight`` references, ``edges`` between objects,
        ``orphaned`` by a fork, ``slots``, ``reaped`` clients, ``stolen`` locks. ``serial`` is the next number that no
        process has reserved for an object. On a cluster: ``pulls``, the values that this host has received from other
        hosts, with ``pulled_bytes``, and ``failed_pulls``.

    Examples
    --------
    >>> refs = [pyray_ser.put(numpy.zeros(n)) for n in (10, 100, 1000)]
    >>> pyray_ser.stats()["objects"]
    3
    """
    store = _current()
    flight = sys.modules.get("pyray_ser.pool_hooks.in_flight")
    if flight is not None:
        flight.tick()
    return Stats(store.stats())


class Stats(dict[str, int]):
    """The counters of a store: a dict that notebooks show as a table."""

    def _repr_html_(self) -> str:
        from .store.references import table

        return table("stats of the store", [(name.replace("_", " "), f"{number:,}") for name, number in self.items()])


def objects() -> list[dict[str, Any]]:
    """
    Return one record per object of the store.

    Returns
    -------
    list of dict
        ``id``, ``serial``, ``size``, ``extent`` in bytes, ``state``, ``ref_holders`` and ``pin_holders`` (numbers of
        processes), ``tokens_and_edges`` (number of messages and objects that hold it), ``creator_pid`` (None if that
        process has ended), ``created`` (seconds since the epoch), ``freed``, ``orphaned``, ``spilled`` (it is in a
        file), ``name`` (None if the object has no name), ``uses`` (number of hits of a result of `cached`).

    Examples
    --------
    >>> refs = [pyray_ser.put(numpy.zeros(n)) for n in (10, 100, 1000)]
    >>> largest = max(pyray_ser.objects(), key=lambda record: record["size"])
    >>> largest["size"] >= 8000, largest["state"], largest["ref_holders"]
    (True, 'sealed', 1)
    """
    return _current().records()


def create(nbytes: int, *, timeout: float | None = None) -> memoryview:
    """
    Make an object of `nbytes` bytes, for the caller to fill in place.

    Parameters
    ----------
    nbytes : int
        Size in bytes.
    timeout : float, optional
        As for `put`.

    Returns
    -------
    memoryview
        Writable until `seal` publishes it; the value is then a read-only memoryview. ``view.obj.ref`` is the reference
        to the object, which other processes can already wait for. The memoryview keeps its writable flag: writing to it
        after `seal`, or in a forked child, raises SIGSEGV.

    Examples
    --------
    >>> view = pyray_ser.create(5)
    >>> view[:] = b"bytes"
    >>> ref = pyray_ser.seal(view)
    """
    # Before Python 3.12, type checkers do not know that this object supports the buffer protocol.
    window: Any = _core.create(nbytes, timeout)
    return memoryview(window)


def empty(
    shape: SupportsIndex | Sequence[SupportsIndex],
    dtype: DTypeLike = float,
    order: str = "C",
    *,
    timeout: float | None = None,
) -> NDArray[Any]:
    """
    Make an array inside the store, for the caller to fill in place.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : dtype-like
        Any dtype that contains no Python objects.
    order : {"C", "F"}
    timeout : float, optional
        As for `put`.

    Returns
    -------
    numpy.ndarray
        Uninitialized, and writable until `seal(array)` publishes it without a copy. Then it is read-only.

    Examples
    --------
    >>> array = pyray_ser.empty((1000, 1000))
    >>> array[:] = 0
    >>> ref = pyray_ser.seal(array)
    """
    import operator

    import numpy

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
    return _core.array_over(_core.create(nbytes, timeout), lengths, kind, order)


def seal(value: memoryview | NDArray[Any]) -> ObjectRef[Any]:
    """
    Publish the memory that `create` or `empty` returned as an object, without a copy.

    Parameters
    ----------
    value : memoryview or numpy.ndarray
        The whole memory that `create` or `empty` returned. It may be reshaped; `get` returns the new shape.

    Returns
    -------
    ObjectRef

    Examples
    --------
    >>> array = pyray_ser.empty(3)
    >>> array[:] = 1
    >>> pyray_ser.get(pyray_ser.seal(array))
    array([1., 1., 1.])
    """
    return _core.seal(value)


def abort(value: memoryview | NDArray[Any]) -> None:
    """
    Discard the memory that `create` or `empty` returned. Processes that wait for the object get `ObjectLostError`.

    Parameters
    ----------
    value : memoryview or numpy.ndarray

    Examples
    --------
    >>> pyray_ser.abort(pyray_ser.empty(10))
    """
    _core.abort(value)
