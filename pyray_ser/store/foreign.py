"""References whose store this process cannot find: how they are pickled, and how a resolver finds their values.

Such a reference comes from another machine or container. This process holds no object for it, and pickles it again in
the form in which it arrived. A package that connects machines registers a resolver: a function that gets a copy of the
object into a store of this machine. `get`, `get_buffer`, `wait` and `await` call the resolver once per object.

`export` and `create_stored` copy objects from store to store without unpickling them.

This module has one lock, which it holds only for a lookup. The resolver runs without this lock, never in a destructor.
"""

from __future__ import annotations

import os
import time
from _thread import RLock, get_ident, start_new_thread
from collections import deque
from weakref import WeakValueDictionary

from .. import _core
from .discovery import node_name

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from typing import Any, TypeAlias

    Ref: TypeAlias = _core.ObjectRef[Any]
    Resolver: TypeAlias = Callable[[Ref], Ref | None]

__all__ = ["create_stored", "export", "set_resolver"]

# A message begins with the id of the object, the locator of the sender and a token; the name of the sender's machine
# follows.
_HEAD = 56
_THREADS = 8


class Known:
    """
    The record of this process about a foreign object; all its references to the object share this record.

    Attributes
    ----------
    copy : ObjectRef or None
        The copy that the resolver returned.
    """

    __slots__ = ("__weakref__", "copy")

    def __init__(self) -> None:
        self.copy: Ref | None = None


class _Flight:
    """
    A call of the resolver, from the request until the result is available.

    Attributes
    ----------
    future : concurrent.futures.Future
        The result: a reference whose store is open here, None, or `_AGAIN`.
    runner : dict
        Empty until a thread runs the call. Then key 0 has a tuple with the ident of that thread.
    """

    __slots__ = ("future", "runner")

    def __init__(self) -> None:
        from concurrent.futures import Future

        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()
        self.runner: dict[int, tuple[int]] = {}


# The result of a call that was interrupted, for example by Ctrl-C.
_AGAIN = object()

_lock = RLock()
_known: WeakValueDictionary[bytes, Known] = WeakValueDictionary()
# The value of `binary` for a reference -> the resolver's call for its object. Each change is one atomic step.
_flights: dict[bytes, _Flight] = {}
_resolver: Resolver | None = None


def _after_fork_in_child() -> None:
    global _lock
    _lock = RLock()
    _flights.clear()  # the threads that run these calls exist only in the parent


os.register_at_fork(after_in_child=_after_fork_in_child)


def set_resolver(function: Resolver | None) -> Resolver | None:
    """
    Register the function that finds the values of references whose store this process cannot find.

    Parameters
    ----------
    function : callable or None
        ``function(ref)`` returns a reference to a copy in a store that is open in this process, or None if it does not
        know the object. It may return the reference of an object that is not sealed yet; callers then wait for that
        object with their own timeouts. If the function raises an exception, the calls that wait for it raise the same
        exception. It may run in any thread, and in several at a time for different objects; `get` without a timeout
        runs it in the calling thread. None removes the resolver.

    Returns
    -------
    callable or None
        The previous function.

    Notes
    -----
    The process keeps the copy as long as it holds a reference to the foreign object, and calls the function only once.
    If the function returned None or raised an exception, or if the copy was freed or lost, the next `get` asks again.

    Examples
    --------
    >>> previous = set_resolver(lambda ref: directory.pull(ref.store_id, ref.binary()))
    """
    global _resolver
    previous, _resolver = _resolver, function
    return previous


# ---- what a foreign reference knows -----------------------------------------------------------------------------------


def known(identity: bytes) -> Known:
    """Return the record about a foreign object, which all references of this process to the object share."""
    made = Known()
    with _lock:
        found = _known.get(identity)
        if found is None:
            found = _known[identity] = made
    return found


def copy_of(ref: Ref) -> Ref | None:
    """Return the reference that the resolver returned, or None if there is none or its object is gone."""
    copy: Ref | None = _core.foreign_parts(ref)[1].copy
    return copy if copy is not None and copy.state in ("sealed", "creating") else None


def _node_of(ref: Ref) -> str:
    """Return the name of the machine that a reference comes from; "" if it is this one or unknown."""
    node: bytes = _core.foreign_parts(ref)[0][_HEAD:]
    return "" if node == node_name() else node.decode("utf-8", "replace")


def state(ref: Ref) -> str:
    """Return the state of a reference whose store was not found."""
    copy = copy_of(ref)
    if copy is not None:
        return copy.state
    return "foreign" if _node_of(ref) else "lost"


def unreachable(ref: Ref) -> Exception:
    """Return the error for a reference whose store cannot be found; it names the node that sent the reference."""
    from ..exceptions import ForeignStoreError, ObjectLostError

    node = _node_of(ref)
    if node:
        return ForeignStoreError(ref=repr(ref), store=f"{ref.store_id:016x}", node=node)
    return ObjectLostError(
        ref=repr(ref),
        store=f"{ref.store_id:016x}",
        reason="no process is left that has its store open, or none that this one may look into (workers share a store only if the "
        "process that starts them calls init() or put() first)",
    )


# ---- asking the resolver ----------------------------------------------------------------------------------------------


def _flight_of(ref: Ref) -> _Flight:
    """Return the call for an object. A thread that needs the result runs the call, unless another thread does so."""
    identity = ref.binary()
    return _flights.get(identity) or _flights.setdefault(identity, _Flight())


def _run(ref: Ref, flight: _Flight) -> None:
    """Make the call and set its result, unless another thread does so."""
    me = (get_ident(),)
    try:
        if flight.runner.setdefault(0, me) is not me:
            return
        found: Any = _find(ref)
    except Exception as error:
        _flights.pop(ref.binary(), None)
        flight.future.set_exception(error)
    except BaseException:
        if flight.runner.get(0) is me:
            _flights.pop(ref.binary(), None)
            flight.future.set_result(_AGAIN)
        raise
    else:
        _flights.pop(ref.binary(), None)
        flight.future.set_result(found)


def _find(ref: Ref) -> Ref | None:
    # An earlier call may have ended after this thread looked for its result.
    copy = copy_of(ref)
    if copy is not None:
        return copy
    if _core.find_foreign(ref):
        return ref
    if _resolver is None:
        return None
    copy = _resolver(ref)
    if copy is None:
        return None
    if not isinstance(copy, _core.ObjectRef) or _core.is_foreign(copy):
        raise TypeError(f"a resolver must return None or an ObjectRef of a store that is open here, not {copy!r:.80}")
    _core.foreign_parts(ref)[1].copy = copy
    return copy


def _work(todo: deque[tuple[Ref, _Flight]]) -> None:
    while True:
        try:
            ref, flight = todo.popleft()
        except IndexError:
            return
        _run(ref, flight)
        del ref, flight


def _start(todo: deque[tuple[Ref, _Flight]]) -> None:
    for _ in range(min(len(todo), _THREADS)):
        # Not `threading.Thread`: a signal handler may have interrupted code that holds a lock of that module.
        start_new_thread(_work, (todo,))


def asks(ref: Ref) -> bool:
    """Return whether the value of a reference can only come from the resolver, which has not returned a copy yet."""
    return _resolver is not None and _core.is_foreign(ref) and copy_of(ref) is None


def begin(refs: Iterable[Ref]) -> None:
    """Ask the resolver, in other threads, about those of several references that are foreign."""
    _start(deque([(ref, flight) for ref in refs if asks(ref) and not (flight := _flight_of(ref)).runner]))


def is_ready(ref: Ref) -> bool:
    """Return whether a wait for this object would end: no resolver runs, and the copy is complete or does not exist."""
    if ref.binary() in _flights:
        return False
    copy = copy_of(ref)
    return copy is None or _core.is_ready(copy)


def resolve(ref: Ref, timeout: float | None) -> Ref:
    """
    Return a reference with the same value whose store is open here.

    Parameters
    ----------
    ref : ObjectRef
    timeout : float or None
        Seconds to wait for the resolver. With None, the resolver runs in this thread.

    Raises
    ------
    GetTimeoutError
        If the resolver is not ready in time; it continues to run.
    ForeignStoreError, ObjectLostError
        If no resolver is registered, or if it does not know the object.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        copy = copy_of(ref)
        if copy is not None:
            return copy
        if _resolver is None:
            if _core.find_foreign(ref):
                return ref
            raise unreachable(ref)
        flight = _flight_of(ref)
        if flight.runner.get(0) == (get_ident(),):
            raise RuntimeError(f"the resolver asks for the value of {ref!r}, which it was called to find")
        if deadline is None:
            _run(ref, flight)
        elif not flight.runner:
            _start(deque([(ref, flight)]))
        _wait(ref, flight.future, deadline, timeout)
        found = _result(ref, flight.future)
        if found is not None:
            return found


def _wait(ref: Ref, future: Future[Any], deadline: float | None, timeout: float | None) -> None:
    from concurrent.futures import wait

    if not wait([future], None if deadline is None else max(0.0, deadline - time.monotonic())).done:
        from ..exceptions import GetTimeoutError

        raise GetTimeoutError(ref=repr(ref), timeout=timeout)


def _result(ref: Ref, future: Future[Any]) -> Ref | None:
    """Return the reference that a call found, or None if the call was interrupted; raise its error."""
    found = future.result()
    if found is None:
        raise unreachable(ref)
    return None if found is _AGAIN else found


def arrival(ref: Ref) -> Future[Ref]:
    """Return a future for a reference with the same value whose store is open here."""
    from concurrent.futures import Future

    target: Future[Ref] = Future()
    _arrive(ref, target)
    return target


def _arrive(ref: Ref, target: Future[Ref]) -> None:
    flight = _flight_of(ref)

    def settle(future: Future[Any]) -> None:
        try:
            found = _result(ref, future)
        except Exception as error:
            if target.set_running_or_notify_cancel():
                target.set_exception(error)
            return
        if found is None:
            _arrive(ref, target)
        elif target.set_running_or_notify_cancel():
            target.set_result(found)

    flight.future.add_done_callback(settle)
    if not flight.runner:
        _start(deque([(ref, flight)]))


# ---- from store to store ----------------------------------------------------------------------------------------------


def export(ref: Ref, *, timeout: float | None = None) -> list[memoryview]:
    """
    Return the bytes of an object for `create_stored` in another store, without copying or unpickling it.

    Parameters
    ----------
    ref : ObjectRef
    timeout : float, optional
        As for `get`.

    Returns
    -------
    list of memoryview
        Read-only views. Their bytes, in this order, are the stored form of the object. The views pin the object and
        every other object that contains one of its buffers, even after `free`.

    Raises
    ------
    GetTimeoutError, ObjectLostError, ObjectFreedError, ForeignStoreError, StoreClosedError, CorruptObjectError
        As for `get`.

    Notes
    -----
    References inside the object stay references to objects of this store. The copy does not keep these
    objects alive, so keep the exported object as long as the copy exists.

    Examples
    --------
    >>> views = export(ref)
    >>> connection.sendmsg(views)
    """
    return _core.export_stored(ref, timeout)


def create_stored(nbytes: int, *, timeout: float | None = None) -> memoryview:
    """
    Make an object that is filled with the bytes of an exported object.

    Parameters
    ----------
    nbytes : int
        Total number of bytes of the views that `export` returned.
    timeout : float, optional
        As for `put`.

    Returns
    -------
    memoryview
        Writable until ``pyray_ser.seal`` publishes it. ``view.obj.ref`` is the reference to the object, which other
        processes can already wait for.

    Notes
    -----
    The bytes need not come from a trusted source: ``seal`` raises `CorruptObjectError` if header or table
    are damaged or refer to other objects. The object is then still unsealed, so that ``pyray_ser.abort`` can discard
    it. As for any pickle, `get` runs the code that the pickle names.

    Examples
    --------
    >>> view = create_stored(sum(map(len, views)))
    >>> connection.recv_into(view)
    >>> ref = pyray_ser.seal(view)
    """
    window: Any = _core.create_stored(nbytes, timeout)
    return memoryview(window)
