"""References to objects on other hosts: `get` copies such an object into the store of this host, once for all its workers.

A worker finds the host of a reference by the identity of its store, which every worker reports to the scheduler with its
metrics. The bytes go from store to store without unpickling.

Several workers may ask for an object at the same time. The first one that is about to receive the bytes puts a named
object that refers to the block. The name is ephemeral, so that it ends with the processes that use the copy, even if they
are killed.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from .. import _core, _log, api
from ..exceptions import GetTimeoutError, NameExistsError, ObjectFreedError, ObjectLostError, PyraySerError
from ..store import foreign
from . import figures, handshake, private_names
from .copies import claim_of, copy_here, copy_name
from .counts import Counts
from .recent import Recent

if TYPE_CHECKING:
    from .._core import ObjectRef
    from .sharing import Sharing

__all__ = ["OBJECT", "Receiver", "References"]

# The name of the request.
OBJECT = "pyray_ser_object"
# How often to start again if the process that receives an object for this host dies.
_TRIES = 10
# How many workers of the other host to ask for an object. They share Dask's time limit for a connection, so that a host
# without power costs no more time than in plain Dask.
_WORKERS = 3
# Seconds between two requests for an object that is not sealed yet.
_NOT_READY = 0.05
# How many workers to ask for their store if the scheduler does not know it yet.
_PROBES = 64

# The record of a foreign object in this process -> the named object that keeps its copy. It stays when a worker gets new
# hooks, because references stay, too.
_claims: weakref.WeakKeyDictionary[Any, ObjectRef[Any]] = weakref.WeakKeyDictionary()


class Receiver:
    """
    The part of a worker or client that gets objects of other hosts.

    Parameters
    ----------
    node : distributed.Worker or distributed.Client
    """

    def __init__(self, node: Any) -> None:
        self.node = node
        self.counts = Counts()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._previous: Any = None
        # Address of a worker -> identity of its store.
        self._stores: dict[str, str | None] = {}
        # The identity of an object -> the worker that has a copy and should send it.
        self._sources: dict[bytes, str] = {}

    def receive(self) -> None:
        """Resolve references to objects of other hosts. Call this in the event loop of the worker or client."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._previous = foreign.set_resolver(self.resolve)

    def stop_receiving(self) -> None:
        """Restore the previous resolver."""
        foreign.set_resolver(self._previous)

    def resolve(self, ref: ObjectRef[Any]) -> ObjectRef[Any] | None:
        """
        Return a reference to a copy in the store of this host; `pyray_ser.get` calls this in any thread.

        Parameters
        ----------
        ref : ObjectRef
            Of a store that this process cannot find.

        Returns
        -------
        ObjectRef or None
            None if no worker has the store.

        Raises
        ------
        RuntimeError
            In the event loop of the worker or client, which must not wait.
        ObjectFreedError
            If the object was freed.
        ObjectLostError
            If the object is lost, or if several processes that received it for this host have ended meanwhile.
        """
        if threading.get_ident() == self._thread:
            raise RuntimeError(
                "the object is on another host, and get() would stop the event loop of Dask: use `await ref`"
            )
        assert self._loop is not None
        name = copy_name(ref)
        for attempt in range(_TRIES):
            # After a failure, do not look up the name: only a new `put` shows whether the name has ended.
            claim = None if attempt else claim_of(ref)
            if claim is None:
                fetching = asyncio.run_coroutine_threadsafe(self._fetch(ref, name), self._loop)
                try:
                    claim = fetching.result()
                except NameExistsError:
                    claim = claim_of(ref)
                else:
                    if claim is None:
                        return None
                finally:
                    del fetching  # its error refers to this frame, which refers to the copy
            if claim is not None:
                copy: ObjectRef[Any] = api.get(claim)[0]
                api.wait([copy])  # wait until the copy is complete or its receiver has failed
                if copy.state == "sealed":
                    _claims[_core.foreign_parts(ref)[1]] = claim
                    self._used(ref, claim, copy)
                    return copy
                del copy
            # The name ends when the last process has released the copy that failed.
            del claim
            time.sleep(0.02 * (attempt + 1))
        raise ObjectLostError(
            ref=repr(ref), store=f"{ref.store_id:016x}", reason="each process that received it for this host has ended"
        )

    def _used(self, ref: ObjectRef[Any], claim: ObjectRef[Any], copy: ObjectRef[Any]) -> None:
        """Note that this process uses a copy; called in any thread."""

    def receive_from(self, address: str | None, ref: ObjectRef[Any]) -> None:
        """
        Copy an object into the store of this host, if possible from a worker that has a copy.

        Parameters
        ----------
        address : str or None
            Address of the worker. With None, or if the worker fails, the host of the original sends the object.
        ref : ObjectRef
        """
        identity = ref.binary()
        if address is not None:
            self._sources[identity] = address
        try:
            foreign.resolve(ref, None)
        finally:
            self._sources.pop(identity, None)

    async def _fetch(self, ref: ObjectRef[Any], name: str) -> ObjectRef[Any] | None:
        """
        Receive an object and return the claim for it.

        Returns
        -------
        ObjectRef or None
            None if no host is known to have the object.

        Raises
        ------
        ObjectFreedError, ObjectLostError
            As `resolve`.
        """
        tried: set[str] = set()
        lost: list[ObjectLostError] = []
        for fresh in (False, True):
            known = await self._workers_of(f"{ref.store_id:016x}", fresh)
            source = self._sources.get(ref.binary())
            for address in known if source is None else [source, *known]:
                if address not in tried and len(tried) < _WORKERS:
                    tried.add(address)
                    claim = await self._try(address, ref, name, lost)
                    if claim is not None:
                        return claim
        # The original is lost or its host is gone; another host may have a copy.
        stores = {store: address for address, store in self._stores.items() if address not in tried}
        for address in list(stores.values())[:_PROBES]:
            claim = await self._try(address, ref, name, lost)
            if claim is not None:
                return claim
        if lost:
            raise lost[0]
        return None

    async def _try(
        self, address: str, ref: ObjectRef[Any], name: str, lost: list[ObjectLostError]
    ) -> ObjectRef[Any] | None:
        """Receive an object from a worker and return the claim for it; None if the worker is gone or has no copy."""
        try:
            with self.counts.attempt():
                return await self._receive(address, ref, name)
        except (NameExistsError, ObjectFreedError):
            raise  # these are an OSError and an ObjectLostError, too, but must reach the caller
        except ObjectLostError as error:
            lost.append(error)
            return None
        except OSError as error:
            # Others of its host may have the object. Dask tries to connect for seconds, so do not ask this one for the
            # next object, unless the scheduler reports it again.
            _log.debug("cannot get an object from %s: %s", address, error)
            self._stores.pop(address, None)
            return None

    async def _workers_of(self, token: str, fresh: bool) -> list[str]:
        if fresh or token not in self._stores.values():
            found = await private_names.reports(self.node, handshake.FIELD)
            self._stores = {address: store or self._stores.get(address) for address, store in found.items()}
            unknown = [address for address, store in self._stores.items() if store is None]
            for address in unknown[:_PROBES] if token not in self._stores.values() else ():
                self._stores[address] = await self._probe(address)
        return [address for address, store in self._stores.items() if store == token]

    async def _probe(self, address: str) -> str:
        try:
            comm = await self.node.rpc.connect(address)
        except OSError:
            return ""
        self.node.rpc.reuse(address, comm)
        return str(private_names.peer_info(comm).get(handshake.FIELD, ""))

    async def _receive(self, address: str, ref: ObjectRef[Any], name: str) -> ObjectRef[Any] | None:
        import dask
        from dask.utils import parse_timedelta

        limit = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
        comm = await self.node.rpc.connect(address, timeout=limit / _WORKERS)
        try:
            while True:
                # Wait for a limited time, because the other worker may be stopped.
                async with asyncio.timeout(limit):
                    await comm.write({"op": OBJECT, "identity": ref.binary()})
                    head = await comm.read()
                if head.get("status") != "creating":
                    break
                await asyncio.sleep(_NOT_READY)
            if head.get("status") == "gone":
                gone = ObjectFreedError if head["freed"] else ObjectLostError
                raise gone(ref=repr(ref), store=f"{ref.store_id:016x}", reason=head["reason"])
            if head.get("status") != "OK":
                _log.debug("worker %s does not send an object: %s", address, head)
                return None
            block: Any = foreign.create_stored(head["nbytes"])
            try:
                claim = api.put([block.obj.ref], name=name, ephemeral=True)
                await comm.write("go")
                await private_names.receive_bytes(comm, block, limit)
                api.seal(block)
                self.counts.arrived(head["nbytes"])
            except BaseException:
                # Close the connection first, because it writes into the block.
                comm.abort()
                api.abort(block)
                raise
            try:
                await comm.write("OK")
            except OSError as error:
                _log.debug("worker %s has ended after it sent an object: %s", address, error)
            return claim
        except BaseException:
            comm.abort()
            raise
        finally:
            self.node.rpc.reuse(address, comm)


class References(Receiver):
    """
    The part of one worker that gets objects of other hosts, and sends objects to other hosts.

    Parameters
    ----------
    sharing : Sharing
        The hooks of the worker.
    """

    def __init__(self, sharing: Sharing) -> None:
        super().__init__(sharing.worker)
        self.sharing = sharing
        self.counts = sharing.counts
        self.recent = Recent(sharing.store, sharing.settings.keep)

    def begin(self) -> None:
        """Answer the requests of other hosts, and resolve references to objects of other hosts."""
        self.node.handlers[OBJECT] = self.serve
        sharing = self.sharing
        private_names.report(self.node, handshake.FIELD, lambda: sharing.token)
        private_names.report(self.node, figures.FIELD, lambda: figures.report_of(sharing.store, sharing.counts))
        self.receive()

    def end(self) -> None:
        """Restore the worker."""
        self.stop_receiving()
        self.recent.clear()
        private_names.report(self.node, handshake.FIELD, None)
        private_names.report(self.node, figures.FIELD, None)
        self.node.handlers.pop(OBJECT, None)

    def _used(self, ref: ObjectRef[Any], claim: ObjectRef[Any], copy: ObjectRef[Any]) -> None:
        assert self._loop is not None
        record = weakref.ref(_core.foreign_parts(ref)[1])
        self._loop.call_soon_threadsafe(self.recent.keep, ref.binary(), claim, copy.size or 0, record)

    async def serve(self, comm: Any, identity: bytes) -> Any:
        """
        Send the stored form of an object of this host, or of the copy that this host has.

        Parameters
        ----------
        comm : distributed.comm.Comm
        identity : bytes
            ``ref.binary()``.
        """
        try:
            ref = _core.ObjectRef.from_binary(identity)
            if _core.is_foreign(ref):
                copy = copy_here(ref)
                if copy is None:
                    # This worker has another store than the scheduler was told, or its copy is gone.
                    return {"status": "elsewhere"}
                ref = copy
            views = foreign.export(ref, timeout=0)
        except GetTimeoutError:
            return {"status": "creating"}
        except PyraySerError as error:
            return {"status": "gone", "freed": isinstance(error, ObjectFreedError), "reason": str(error)}
        arrived = False
        try:
            await comm.write({"status": "OK", "nbytes": sum(view.nbytes for view in views)})
            if await comm.read() == "go":
                for view in views:
                    await private_names.send_bytes(comm, view)
                arrived = await comm.read() == "OK"
        except OSError as error:
            # The peer is gone, or has the object from another worker of its host.
            _log.debug("an object was not sent: %s", error)
        finally:
            if not arrived:
                comm.abort()
        return private_names.closed_reply()
