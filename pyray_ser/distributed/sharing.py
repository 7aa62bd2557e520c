"""The hooks that the package installs in a worker, so that each host stores a large value only once.

If a hook fails, it logs the fault once and calls Dask's own code, so the worker continues as if this package were not
installed.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from .. import _log
from . import handshake, memory, private_names
from .counts import Counts
from .handle import Handle, Unopened, closed_handles, is_copied_faithfully, put_value, watchable
from .pulls import Pulls
from .references import References

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from .._core import Store
    from .settings import Settings

__all__ = ["Sharing", "take_results"]

# A worker -> what its agent does with values that arrive. The hooks of a worker are made again if `enable` is called again.
take_results: weakref.WeakKeyDictionary[Any, Callable[[Mapping[Any, Any]], Awaitable[None]]] = (
    weakref.WeakKeyDictionary()
)


class Sharing:
    """
    The hooks of one worker.

    Parameters
    ----------
    worker : distributed.Worker
    store : Store
        The store of the host.
    settings : Settings
    """

    def __init__(self, worker: Any, store: Store, settings: Settings) -> None:
        self.worker = worker
        self.settings = settings
        self.store = store
        self.token = f"{store.id:016x}"
        self.counts = Counts()
        # Keys whose value is in the store. The weak reference dies with the value, for example if Dask spills it. A
        # handle is valid only while its key still has this value.
        self._handles: dict[Any, tuple[weakref.ref[Any], Handle]] = {}
        # Keys whose value has no buffers worth sharing.
        self._unshared: dict[Any, weakref.ref[Any]] = {}
        self._pending: dict[Any, asyncio.Future[Handle | None]] = {}
        self._logged: set[str] = set()
        self._plain_get_data = worker.handlers["get_data"]
        self._plain_gather = worker.handlers["gather"]
        self._plain_gather_dep = worker.gather_dep
        self.pulls = Pulls(self)
        self.references = References(self)

    def begin(self) -> None:
        """Install the hooks in the worker."""
        handshake.begin(self.token)
        self.pulls.begin()
        self.references.begin()
        memory.measure(self.worker, self.store)
        private_names.spill_with(self.worker, self.spill)
        self.worker.handlers |= {"get_data": self.get_data, "gather": self.gather}
        self.worker.gather_dep = self.gather_dep
        private_names.close_idle_connections(self.worker)

    def end(self) -> None:
        """Remove the hooks from the worker."""
        self.worker.handlers |= {"get_data": self._plain_get_data, "gather": self._plain_gather}
        self.worker.gather_dep = self._plain_gather_dep
        handshake.end()
        memory.end_measure(self.worker)
        private_names.spill_with(self.worker, None)
        self.references.end()
        self.pulls.end()
        self._handles.clear()
        self._unshared.clear()
        private_names.close_idle_connections(self.worker)

    def fault(self, what: str, error: BaseException) -> None:
        """Log a fault once. The caller then continues with Dask's own code."""
        if what not in self._logged:
            self._logged.add(what)
            _log.warning(
                "worker %s: %s failed, so plain Dask does it (this is reported once): %s: %s",
                self.worker.address, what, type(error).__name__, error,
            )  # fmt: skip

    # ---- the side that has the values ----------------------------------------------------------------------------------

    async def get_data(
        self, comm: Any, keys: Collection[Any], who: str | None = None, serializers: list[str] | None = None
    ) -> Any:
        """Answer a request for values; send handles if the peer has the same store."""
        handles: dict[Any, Handle] = {}
        try:
            # Handles can be sent only with the serializer "pickle".
            if private_names.peer_info(comm).get(handshake.FIELD) == self.token and "pickle" in (
                serializers or ["pickle"]
            ):
                await self._lend(keys, handles)
        except Exception as error:
            self.fault("sharing values", error)
            _release(handles)
        if not handles:
            return await self._plain_get_data(comm, keys=keys, who=who, serializers=serializers)
        # Dask's handler returns after the peer has answered. Until then, this function holds the objects.
        answer = private_names.get_data_with(self._plain_get_data, handles)
        try:
            return await answer(comm, keys=keys, who=who, serializers=serializers)
        finally:
            # Release the objects now. Dask's metrics refer to this dictionary as long as the connection exists; and if
            # the peer has died, Dask keeps the logged error, whose traceback refers to the message.
            _release(handles)

    async def _lend(self, keys: Collection[Any], handles: dict[Any, Handle]) -> None:
        """Add handles for one answer to `handles`."""
        for key in keys:
            handle = await self.handle_of(key)
            if handle is not None:
                handles[key] = handle.lend()
        for key in [key for key in handles if key not in self.worker.data]:  # released meanwhile
            handles.pop(key).release()

    async def handle_of(self, key: Any) -> Handle | None:
        """
        Return the handle for a result of this worker, after copying the result into the store if this is the first use.

        Parameters
        ----------
        key : str or tuple

        Returns
        -------
        Handle or None
            None if the value is small, has no buffers, or does not fit into the store.
        """
        worker = self.worker
        if key not in worker.data:
            # A value that has just arrived is opened before Dask puts it into the worker's data.
            opened = self._handles.get(key)
            return None if opened is None or opened[0]() is None else opened[1]
        if private_names.store_bytes(worker, key) < self.settings.share:
            return None
        pending = self._pending.get(key)
        if pending is None:
            value = worker.data[key]
            mark = watchable(value)
            if mark is None:
                return None
            known = self._handles.get(key)
            if known is not None and known[0]() is mark:
                return known[1]
            unshared = self._unshared.get(key)
            if unshared is not None and unshared() is mark:
                return None
            pending = self._pending[key] = asyncio.ensure_future(self._promote(key, value))
            pending.add_done_callback(lambda _: self._pending.pop(key, None))
        # Cancelling one request must not cancel the other requests that wait for the same copy.
        return await asyncio.shield(pending)

    async def _promote(self, key: Any, value: Any) -> Handle | None:
        """Copy a value into the store, and replace the value in the worker by a view of the copy."""
        from distributed.utils import offload

        handle: Handle | None
        try:
            handle = await offload(put_value, value, self.settings.share)
        except Exception as error:
            # The store is full, or the value cannot be pickled. Dask reports the second problem when it sends the
            # value.
            self.fault("copying a value into the store", error)
            handle = None
        if handle is None:
            self._unshared[key] = self.watch(key, watchable(value), self._unshared)
            return None
        view = value
        if is_copied_faithfully(value):
            opened = handle.open() if handle.is_quick else await offload(handle.open)
            if type(opened) is type(value):
                view = opened
        # Meanwhile the key may have been released, or have got a new value. A value that Dask has spilled stays as it is,
        # because replacing it would write the same bytes to the disk again.
        if private_names.values_in_memory(self.worker).get(key) is value:
            if view is not value:
                self.worker.data[key] = view
                self.pulls.replaced(key, view)
            self.remember(key, view, handle)
        return handle

    def remember(self, key: Any, value: Any, handle: Handle) -> None:
        """Record that the value of a key is in the store."""
        mark = watchable(value)
        if mark is not None:
            self._handles[key] = (self.watch(key, mark, self._handles), handle)

    def watch(self, key: Any, mark: Any, table: dict[Any, Any]) -> weakref.ref[Any]:
        def forget(gone: weakref.ref[Any]) -> None:
            entry = table.get(key)
            if entry is gone or (isinstance(entry, tuple) and entry[0] is gone):
                table.pop(key, None)

        return weakref.ref(mark, forget)

    # ---- the side that asks for values ---------------------------------------------------------------------------------

    async def gather_dep(self, worker: str, to_gather: Collection[Any], total_nbytes: int, *, stimulus_id: str) -> Any:
        """Fetch values from a peer. This must not raise an error, because Dask's state machine would stop."""
        event = await self._gather_dep(worker, to_gather, total_nbytes, stimulus_id)
        await self._take(getattr(event, "data", None))
        return event

    async def _take(self, data: Mapping[Any, Any] | None) -> None:
        """Get the objects to which results of `remote` refer, so that this host has them if Dask retires the other one."""
        take = take_results.get(self.worker)
        if take is not None and data:
            try:
                await take(data)
            except Exception as error:
                self.fault("getting the objects of a result", error)

    async def _gather_dep(self, worker: str, to_gather: Collection[Any], total_nbytes: int, stimulus_id: str) -> Any:
        large: list[Any] = []
        try:
            large = await self.pulls.worth_pulling(worker, to_gather)
        except Exception as error:
            # Dask's own request reports the problem with the peer.
            _log.debug("cannot connect to %s: %s", worker, error)
        rest = [key for key in to_gather if key not in large] if large else to_gather
        pulled: dict[Any, Any] = {}
        event = None
        if rest:
            event = await self._gather(worker, rest, total_nbytes, stimulus_id)
            if not hasattr(event, "data"):
                return event
        for key in large:
            value = await self.pulls.pull(worker, key)
            if value is not None:
                pulled[key] = value
        missing = [key for key in large if key not in pulled]
        if missing:
            last = await self._gather(worker, missing, total_nbytes, stimulus_id)
            if not hasattr(last, "data"):
                # Dask asks again for all keys. The values that have arrived are in the store of this host by then.
                return last
            pulled |= last.data
        if event is None:
            return private_names.success(worker, total_nbytes, pulled)
        event.data.update(pulled)
        return event

    async def gather(self, who_has: dict[Any, list[str]]) -> Any:
        """Fetch values that a client scatters with ``broadcast=True``, replicates or rebalances."""
        try:
            await self._replicate({key: places for key, places in who_has.items() if key not in self.worker.data})
        except (OSError, KeyError) as error:
            # A peer has ended, or the values were released meanwhile.
            _log.debug("cannot copy values to %s: %r", self.worker.address, error)
        except Exception as error:
            self.fault("copying values to several workers", error)
        # Dask fetches only the values that are still missing.
        answer = await self._plain_gather(who_has)
        data = self.worker.data
        await self._take({key: data[key] for key in who_has if key in data})
        return answer

    async def _replicate(self, who_has: dict[Any, list[str]]) -> None:
        """Fetch values from the store of this host or, if they are large, into it."""
        # The worker does not know these keys, so it does not know their sizes either.
        sizes = await private_names.sizes_of(self.worker, who_has)
        keys_by_peer: dict[str, list[Any]] = {}
        for key, places in who_has.items():
            if places and sizes[key] >= self.settings.share:
                keys_by_peer.setdefault(private_names.nearest(self.worker, places), []).append(key)
        for address, keys in keys_by_peer.items():
            large = await self.pulls.worth_pulling(address, keys, sizes)
            for key in large:
                value = await self.pulls.pull(address, key, sizes[key])
                if value is not None:
                    private_names.add_values(self.worker, {key: value})
            rest = [key for key in keys if key not in large]
            if rest:
                with closed_handles():
                    data = await private_names.request_values(self.worker, address, rest)
                if await self._open_all(data):
                    private_names.add_values(self.worker, data)

    async def _gather(self, address: str, keys: Collection[Any], total_nbytes: int, stimulus_id: str) -> Any:
        """Fetch values as Dask does, and open the handles among them."""
        arguments = {"worker": address, "to_gather": keys, "total_nbytes": total_nbytes, "stimulus_id": stimulus_id}
        with closed_handles():
            event = await self._plain_gather_dep(**arguments)
        try:
            if await self._open_all(getattr(event, "data", None)):
                return event
        except Exception as error:
            self.fault("opening a value", error)
        return await self._gather_plainly(address, arguments)

    async def open(self, key: Any, handle: Handle) -> Any:
        """Return the value of a key whose handle has arrived, and record that it is in the store."""
        from distributed.utils import offload

        value = handle.open() if handle.is_quick else await offload(handle.open)
        self.remember(key, value, handle)
        return value

    async def _open_all(self, data: dict[Any, Any] | None) -> bool:
        """Replace the handles in received data by their values; return whether all could be opened."""
        for key, handle in (data or {}).items():
            if isinstance(handle, Handle):
                assert data is not None
                data[key] = await self.open(key, handle)
            elif isinstance(handle, Unopened):
                self.fault("opening a value", handle.error)
                return False
        return True

    async def _gather_plainly(self, address: str, arguments: dict[str, Any]) -> Any:
        """Fetch values over a connection that does not name the store."""
        private_names.close_idle_connections(self.worker, address)
        with handshake.silent():
            event = await self._plain_gather_dep(**arguments)
        private_names.close_idle_connections(self.worker, address)
        return event

    # ---- memory --------------------------------------------------------------------------------------------------------

    def spill(self, plain: Callable[[], int]) -> int:
        """
        Free memory because this worker's memory is above Dask's threshold; Dask measures it again after each call.

        Parameters
        ----------
        plain : callable
            Spills the value that was not used for the longest time; returns its size, or -1 after a failure.

        Returns
        -------
        int
            Size of the spilled value. 0 if the store had freed pages, so that it was enough to return these to the kernel.
        """
        self.references.recent.clear()
        if self._trim():
            return 0
        try:
            self._spill_shared_last()
        except Exception as error:
            self.fault("choosing a value to spill", error)
        weight = plain()
        # If no other process used the value, its pages in the store are free now, but are still counted.
        self._trim()
        return weight

    def _trim(self) -> int:
        try:
            return self.store.trim()
        except Exception as error:
            self.fault("returning freed memory of the store", error)
            return 0

    def _spill_shared_last(self) -> None:
        """Move values that other processes hold to the end of Dask's order, because spilling them frees no memory."""
        shared: set[str] | None = None

        def is_shared(key: Any) -> bool:
            nonlocal shared
            known = self._handles.get(key)
            if known is None:
                return False
            if shared is None:
                shared = {record["id"] for record in self.store.records() if record["ref_holders"] > 1}
            return known[1].binary().hex() in shared

        private_names.spill_last(self.worker, is_shared)


def _release(handles: dict[Any, Handle]) -> None:
    """Release the handles that were lent for an answer."""
    for handle in handles.values():
        handle.release()
    handles.clear()
