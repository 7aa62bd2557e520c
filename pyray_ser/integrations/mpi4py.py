"""References between the ranks of an MPI program: ranks on the same host share the object, other ranks get a copy.

>>> from mpi4py import MPI
>>> comm = pyray_ser.integrations.mpi4py.connect(MPI.COMM_WORLD)
>>> ref = comm.bcast(pyray_ser.put(table) if comm.rank == 0 else None)

A message to a rank of the same host contains the reference. A message to another host contains the stored bytes, and
the receiver puts them into the store of its host without unpickling them.

`MPI.pickle` does not tell its functions where a message goes. So the methods of `SharedComm` set the form of references
in a context variable, and `dumps` reads it in the same call.
"""

from __future__ import annotations

import copyreg
import io
from collections import ChainMap
from contextlib import contextmanager
from contextvars import ContextVar
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mpi4py import MPI

from .. import _core, api
from ..pickling.serialization import Pickler, dumps, loads
from ..store import foreign
from ..store.discovery import node_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._core import ObjectRef

    Reduce = Callable[[ObjectRef[Any]], tuple[Callable[..., Any], tuple[Any, ...]]]

__all__ = ["SharedComm", "connect"]


# ---- the form of references in a message ------------------------------------------------------------------------------

_form: ContextVar[Reduce | None] = ContextVar("pyray_ser_mpi_form", default=None)


@contextmanager
def _sending(form: Reduce | None) -> Iterator[None]:
    mark = _form.set(form)
    try:
        yield
    finally:
        _form.reset(mark)


class _Once:
    """Pickles references for a message that one rank of this host loads once. The message holds the objects."""

    def __init__(self) -> None:
        self._tokens: list[tuple[ObjectRef[Any], tuple[int, int]]] = []

    def __call__(self, ref: ObjectRef[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        message, token = ref.travel(1, node_name())
        self._tokens.append((ref, token))
        return _core.load_ref, (message,)

    def give_up(self) -> None:
        """Release the objects, because the message is not sent."""
        for ref, token in self._tokens:
            ref.drop_token(token)


def _by_value(ref: ObjectRef[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return _receive, tuple(PickleBuffer(view) for view in foreign.export(ref))


def _receive(*parts: Any) -> ObjectRef[Any]:
    """Put the stored bytes of an object of another host into the store of this host."""
    sizes = [memoryview(part).nbytes for part in parts]
    block = foreign.create_stored(sum(sizes))
    try:
        at = 0
        for part, size in zip(parts, sizes, strict=True):
            block[at : at + size] = memoryview(part).cast("B")
            at += size
        return api.seal(block)
    except BaseException:
        api.abort(block)
        raise


class _Pickler(Pickler):
    def __init__(self, file: io.BytesIO, protocol: int | None, buffer_callback: Any, form: Reduce) -> None:
        super().__init__(file, protocol, buffer_callback=buffer_callback)
        forms: dict[type, Any] = {_core.ObjectRef: form}
        self.dispatch_table: ChainMap[type, Any] = ChainMap(forms, copyreg.dispatch_table)


def _dumps(value: Any, protocol: int | None = None, buffer_callback: Any = None) -> bytes:
    """Pickle a message. `MPI.pickle` calls this."""
    form = _form.get()
    if form is None:
        return dumps(value, protocol, buffer_callback=buffer_callback)
    file = io.BytesIO()
    _Pickler(file, protocol, buffer_callback, form).dump(value)
    return file.getvalue()


# ---- the communicator -------------------------------------------------------------------------------------------------


class SharedComm(MPI.Intracomm):  # type: ignore[misc]
    """
    A communicator that knows which ranks share a store; `connect` makes it.

    Messages of ``send``, ``isend`` and the other methods with a destination contain references to objects if the
    destination shares the store of this rank, and their stored bytes otherwise. In ``bcast``, each host gets these
    bytes once. The other methods that pickle, such as ``gather``, send references if all ranks share one store, and
    bytes otherwise. Methods with a capital letter, such as ``Send``, are those of MPI.

    A communicator that is made from this one, such as by ``Dup``, sends all objects by value; see `connect`.
    """

    # For each rank: the rank of the first one with the same store.
    _first: tuple[int, ...] = ()
    # The ranks with the store of this rank, and the first ranks of all stores (or COMM_NULL).
    _near: Any = None
    _firsts: Any = None

    def shares_store_with(self, rank: int) -> bool:
        """
        Return whether a rank shares the store of this rank.

        Parameters
        ----------
        rank : int
        """
        return 0 <= rank < len(self._first) and self._first[rank] == self._first[self.rank]

    def Free(self) -> None:
        """Free the communicator. All ranks must call this."""
        for comm in (self._near, self._firsts):
            if comm is not None and comm != MPI.COMM_NULL:
                comm.Free()
        self._near = self._firsts = None
        self._first = ()
        super().Free()

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """
        Send an object of one rank to all ranks. Objects of references are sent to each other host once.

        Parameters
        ----------
        obj : object
            Ignored except on the root.
        root : int
        """
        if self._near is None or not 0 <= root < len(self._first):
            with _sending(_by_value):
                return super().bcast(obj, root)
        first = self._first[root]
        if self.shares_store_with(root):
            near_root = sum(one == first for one in self._first[:root])
            obj = _bcast_near(self._near, obj, near_root)
        if self._firsts != MPI.COMM_NULL:
            with _sending(_by_value):
                received = self._firsts.bcast(obj, sorted(set(self._first)).index(first))
            if not self.shares_store_with(root):
                obj = received
        return obj if self.shares_store_with(root) else _bcast_near(self._near, obj, 0)


def _bcast_near(comm: Any, obj: Any, root: int) -> Any:
    with api.scope():
        received = comm.bcast(obj, root)
        comm.Barrier()  # the message holds the objects until all ranks have loaded it
    return received


def _to_one(name: str) -> Callable[..., Any]:
    """Return a method that sends to one rank."""
    plain = getattr(MPI.Comm, name)

    def method(self: SharedComm, obj: Any, dest: int, *args: Any, **kwargs: Any) -> Any:
        if not self.shares_store_with(dest):
            with _sending(_by_value):
                return plain(self, obj, dest, *args, **kwargs)
        form = _Once()
        try:
            with _sending(form):
                return plain(self, obj, dest, *args, **kwargs)
        except BaseException:
            form.give_up()
            raise

    method.__name__, method.__doc__ = name, plain.__doc__
    return method


def _to_all(name: str) -> Callable[..., Any]:
    """Return a method that exchanges messages between all ranks."""
    plain = getattr(MPI.Intracomm, name)

    def method(self: SharedComm, *args: Any, **kwargs: Any) -> Any:
        if self._near is None or len(set(self._first)) > 1:
            with _sending(_by_value):
                return plain(self, *args, **kwargs)
        with api.scope():
            result = plain(self, *args, **kwargs)
            self._near.Barrier()
        return result

    method.__name__, method.__doc__ = name, plain.__doc__
    return method


for _name in ("send", "bsend", "ssend", "isend", "ibsend", "issend", "sendrecv"):
    setattr(SharedComm, _name, _to_one(_name))
for _name in ("gather", "scatter", "allgather", "alltoall", "reduce", "allreduce", "scan", "exscan"):
    setattr(SharedComm, _name, _to_all(_name))


def connect(comm: Any = None, *, capacity: int | str | None = None) -> SharedComm:
    """
    Let the ranks of each host share a store. All ranks of the communicator must call this.

    This also makes `MPI.pickle` use the pickler of this package, so messages may contain lambdas and local classes.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        The default is ``MPI.COMM_WORLD``.
    capacity : int or str, optional
        As for `init`. A rank that already uses a store keeps it.

    Returns
    -------
    SharedComm
        A duplicate of the communicator.

    Raises
    ------
    RuntimeError
        On all ranks, if one of them cannot open a store.

    Examples
    --------
    >>> comm = pyray_ser.integrations.mpi4py.connect()
    >>> ref = comm.bcast(pyray_ser.put(numpy.zeros(1000)) if comm.rank == 0 else None)
    >>> pyray_ser.get(ref).nbytes
    8000
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    MPI.pickle.__init__(_dumps, loads)
    name = comm.bcast(f"mpi-{uuid4().hex}")
    outcome: tuple[int, str]
    try:
        store = _core.default() or api.init(name, capacity=capacity)
        outcome = store.id, ""
    except Exception as error:
        outcome = 0, f"{type(error).__name__}: {error}"
    outcomes = comm.allgather(outcome)
    for rank, (_, problem) in enumerate(outcomes):
        if problem:
            raise RuntimeError(f"rank {rank} cannot open a store: {problem}")
    ids = [store_id for store_id, _ in outcomes]
    shared = SharedComm(comm.Dup())
    shared._first = tuple(ids.index(store_id) for store_id in ids)
    first = shared._first[comm.rank]
    shared._near = comm.Split(first, comm.rank)
    shared._firsts = comm.Split(0 if first == comm.rank else MPI.UNDEFINED, comm.rank)
    return shared
