"""Wait for references without one thread for each of them: one thread per process watches all awaited references.

The store has a counter that changes when an awaited object becomes ready. The watcher sleeps until this counter
changes, but at most 10 ms at a time, and then checks its references. Each event loop receives all its ready objects in
one call.
"""

from __future__ import annotations

import os
import time
from _thread import start_new_thread
from collections import deque
from contextlib import suppress

from .. import _core
from .._core import get

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable
    from concurrent.futures import Future
    from typing import Any, TypeAlias

    Ref: TypeAlias = _core.ObjectRef[Any]
    Target: TypeAlias = Future[Any] | asyncio.Future[Any]
    Loop: TypeAlias = asyncio.AbstractEventLoop
    Entry: TypeAlias = tuple[Ref, Loop | None, Target]

__all__ = ["future", "wait", "wait_async"]


class _Watcher:
    """
    The thread that watches references, and these references.

    The watcher has no lock, because a signal handler or finalizer that interrupts the holder of a lock would deadlock.
    Each entry is added or removed in one atomic step. Two watching threads may run for a while, but each entry belongs
    to only one of them. Before a thread ends, it sets a flag and then processes the entries that were added before.
    """

    def __init__(self) -> None:
        self._new: deque[Entry] = deque()
        self._runs = False

    def add(self, ref: Ref, loop: Loop | None, target: Target) -> None:
        """Resolve `target` with the value once the reference is ready: in `loop`, or in the watcher without a loop."""
        self._new.append((ref, loop, target))
        if not self._runs:
            # Not `threading.Thread`: a signal handler may have interrupted code that holds a lock of that module.
            start_new_thread(self._run, ())

    def _take(self) -> list[Entry]:
        new: list[Entry] = []
        with suppress(IndexError):
            while True:
                new.append(self._new.popleft())
        return new

    def _run(self) -> None:
        try:
            self._watch()
        finally:
            self._runs = False

    def _watch(self) -> None:
        watched: list[Entry] = []
        self._runs = True
        while True:
            new = self._take()
            if not new and not watched:
                self._runs = False
                new = self._take()
                if not new:
                    return
                self._runs = True
            # Read the counters before checking the references, so that a later change ends the sleep immediately.
            stores = {store.id: store for store in _core.open_stores()}
            seen = {ident: _core.epoch(store) for ident, store in stores.items()}
            if new:
                _core.watch([entry[0] for entry in new])
                watched += new
            ready = _core.scan([entry[0] for entry in watched])
            if ready:
                self._deliver([watched[i] for i in ready])
                gone = set(ready)
                watched = [entry for i, entry in enumerate(watched) if i not in gone]
                del new
                continue
            self._sleep(watched, stores, seen)

    def _sleep(self, watched: list[Entry], stores: dict[int, _core.Store], seen: dict[int, int]) -> None:
        waited_for = {entry[0].store_id for entry in watched}
        live = [ident for ident in waited_for if ident in stores]
        if len(live) == 1:
            # New entries wait until this short sleep ends. References that are ready already are not passed to the
            # watcher.
            _core.wait_epoch(stores[live[0]], seen[live[0]], 0.01)
        else:
            time.sleep(0.005)
        if any(entry[2].cancelled() for entry in watched):
            watched[:] = [entry for entry in watched if not entry[2].cancelled()]

    @staticmethod
    def _deliver(entries: Iterable[Entry]) -> None:
        by_loop: dict[Loop, list[tuple[Ref, Target]]] = {}
        for ref, loop, target in entries:
            if loop is None:
                _resolve(ref, target)
            else:
                by_loop.setdefault(loop, []).append((ref, target))
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve_batch, loop, batch)
            except RuntimeError:
                # The event loop was closed, so no task waits any more.
                continue


def _resolve(ref: Ref, target: Target) -> None:
    if target.cancelled():
        return
    # Only a `concurrent.futures.Future` can be cancelled by another thread while it is being resolved.
    starts = getattr(target, "set_running_or_notify_cancel", None)
    if starts is not None and not starts():
        return
    try:
        value = get(ref)
    except BaseException as error:
        target.set_exception(error)
    else:
        target.set_result(value)


def _resolve_batch(loop: Loop, batch: list[tuple[Ref, Target]]) -> None:
    # Return to the event loop every 2 ms, so that other tasks can run.
    until = time.perf_counter() + 0.002
    for i, (ref, target) in enumerate(batch):
        if not target.done():
            _resolve(ref, target)
        if time.perf_counter() > until:
            rest = batch[i + 1 :]
            if rest:
                loop.call_soon(_resolve_batch, loop, rest)
            return


_watcher = _Watcher()


def _after_fork_in_child() -> None:
    global _watcher
    _watcher = _Watcher()


os.register_at_fork(after_in_child=_after_fork_in_child)


async def wait_async(ref: Ref) -> Any:
    """
    Return the value of a reference without blocking the event loop.

    Parameters
    ----------
    ref : ObjectRef
    """
    if _core.is_foreign(ref):
        ref = await _local(ref)
    if _core.is_ready(ref):
        return get(ref)
    import asyncio

    loop = asyncio.get_running_loop()
    target = loop.create_future()
    _watcher.add(ref, loop, target)
    return await target


async def _local(ref: Ref) -> Ref:
    """Return the copy of a foreign object, or the reference itself if there is none; `get` then raises the error."""
    from . import foreign

    if foreign.asks(ref):
        import asyncio

        return await asyncio.wrap_future(foreign.arrival(ref))
    return foreign.copy_of(ref) or ref


def future(ref: Ref) -> Future[Any]:
    """
    Return a future that receives the value of a reference.

    Parameters
    ----------
    ref : ObjectRef

    Returns
    -------
    concurrent.futures.Future
    """
    from concurrent.futures import Future

    target: Future[Any] = Future()
    if _core.is_foreign(ref):
        from . import foreign

        if foreign.asks(ref):
            foreign.arrival(ref).add_done_callback(lambda arrived: _fulfil_arrived(arrived, target))
            return target
        ref = foreign.copy_of(ref) or ref
    _fulfil(ref, target)
    return target


def _fulfil(ref: Ref, target: Future[Any]) -> None:
    if _core.is_ready(ref):
        _resolve(ref, target)
    else:
        _watcher.add(ref, None, target)


def _fulfil_arrived(arrived: Future[Ref], target: Future[Any]) -> None:
    error = arrived.exception()
    if error is None:
        _fulfil(arrived.result(), target)
    elif target.set_running_or_notify_cancel():
        target.set_exception(error)


def wait(refs: list[Any], *, num_returns: int = 1, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
    """
    Wait until some of several objects are ready.

    Parameters
    ----------
    refs : list of ObjectRef
        Without duplicates.
    num_returns : int
        Number of references that must be ready.
    timeout : float, optional
        Seconds after which the call returns the references that are ready. By default, there is no limit.

    Returns
    -------
    tuple of (list, list)
        The first `num_returns` ready references and the rest, both in the given order. A lost object counts as ready,
        because `get` raises its error immediately.

    Examples
    --------
    >>> refs = [pyray_ser.put(i) for i in range(3)]
    >>> ready, rest = pyray_ser.wait(refs, num_returns=2)
    >>> len(ready), len(rest)
    (2, 1)
    """
    from .references import not_refs

    if not isinstance(refs, list):
        raise TypeError(f"wait() takes a list of ObjectRefs, not {type(refs).__name__!r}")
    promised = False
    for ref in refs:
        if not isinstance(ref, _core.ObjectRef):
            if not _core.is_promise(ref):
                raise TypeError(str(not_refs("wait", ref)))
            promised = True
    if len(set(refs)) != len(refs):
        raise ValueError("wait() takes a list without duplicates")
    if not isinstance(num_returns, int) or isinstance(num_returns, bool):
        raise TypeError(f"num_returns is an int, not {type(num_returns).__name__!r}")
    if num_returns <= 0 or num_returns > len(refs):
        raise ValueError(f"num_returns must be between 1 and the number of refs ({len(refs)}), not {num_returns}")
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must be None or a number of seconds >= 0, not {timeout!r}")
    deadline = None if timeout is None else time.monotonic() + timeout
    foreign = any(type(ref) is _core.ObjectRef and _core.is_foreign(ref) for ref in refs)
    if foreign:
        from .foreign import begin

        begin(ref for ref in refs if type(ref) is _core.ObjectRef)
    if promised:
        from ..tasks import refs as tasks

        ready = tasks.wait(refs, num_returns, deadline)
        return _split(refs, ready[:num_returns])
    marked: list[Any] = []
    while True:
        stores = {store.id: store for store in _core.open_stores()}
        local = _copies(refs) if foreign else refs
        # The end of a resolver's call does not change the counter of any store.
        live = [ident for ident in {ref.store_id for ref in local} if ident in stores or foreign]
        seen = {ident: _core.epoch(stores[ident]) for ident in live if ident in stores}
        if timeout != 0 and marked != local:
            _core.watch(local)
            marked = local
        ready = _core.scan(refs)
        left = 0.1 if deadline is None else deadline - time.monotonic()
        if len(ready) >= num_returns or left <= 0:
            return _split(refs, ready[:num_returns])
        if len(live) == 1 and live[0] in stores:
            _core.wait_epoch(stores[live[0]], seen[live[0]], min(left, 0.1))
        else:
            time.sleep(min(left, 0.002))


def _copies(refs: list[Any]) -> list[Any]:
    """Return the references, with foreign references replaced by those of their copies."""
    from .foreign import copy_of

    return [copy_of(ref) or ref if _core.is_foreign(ref) else ref for ref in refs]


def _split(refs: list[Any], indices: list[int]) -> tuple[list[Any], list[Any]]:
    chosen = set(indices)
    return [refs[i] for i in indices], [ref for i, ref in enumerate(refs) if i not in chosen]
