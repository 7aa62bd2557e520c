"""Transfer values between hosts: each host gets a value once and streams it from the socket into its store.

The worker that has a value remembers which worker of each host asked first for the value, and refers the other workers
of that host to this first worker. It keeps this record neither in the store nor in files, so a killed worker leaves
nothing behind.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any

from .. import _core, _log, api
from ..exceptions import ObjectLostError
from ..pickling.serialization import dumps
from . import handshake, private_names
from .handle import Handle, watchable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .sharing import Sharing

__all__ = ["PULL", "SHARED", "Pulls"]

# The names of the requests.
PULL = "pyray_ser_pull"
SHARED = "pyray_ser_shared"
_ALIGN = 64


def _frames_of(value: Any, least: int) -> list[memoryview] | None:
    """Return the stream and the buffers of a value, or None if the buffers are not the larger part."""
    buffers: list[pickle.PickleBuffer] = []
    stream = memoryview(dumps(value, protocol=5, buffer_callback=buffers.append))
    raw = [buffer.raw() for buffer in buffers]
    if sum(view.nbytes for view in raw) < max(least, stream.nbytes):
        return None
    return [stream, *raw]


def _layout_of(sizes: list[int]) -> tuple[int, ...]:
    """Return the start and end offset of each frame in a block, as a flat tuple."""
    bounds, at = [], 0
    for size in sizes:
        bounds += [at, at + size]
        at += -(-size // _ALIGN) * _ALIGN
    return tuple(bounds)


class Pulls:
    """
    The transfers of one worker, in both directions.

    Parameters
    ----------
    sharing : Sharing
        The hooks of the worker.
    """

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self.worker = sharing.worker
        # For each key that this worker has: a reference to its value, and for each store the worker that asked first.
        self._first: dict[Any, tuple[Any, dict[str, str]]] = {}
        self._arriving: dict[Any, asyncio.Future[Handle | None]] = {}

    def begin(self) -> None:
        """Start to answer the requests of other workers."""
        self.worker.handlers |= {PULL: self.serve, SHARED: self.share}

    def end(self) -> None:
        """Stop answering requests."""
        for name in (PULL, SHARED):
            self.worker.handlers.pop(name, None)
        self._first.clear()

    # ---- the side that has the value -----------------------------------------------------------------------------------

    async def serve(self, comm: Any, key: Any, who: str, again: bool = False) -> Any:
        """
        Send the bytes of a value to the first worker of a host that asks for it, and the address of that worker to the
        others.

        Parameters
        ----------
        comm : distributed.comm.Comm
        key : str or tuple
        who : str
            Address of the worker that sent the request.
        again : bool
            Whether that worker failed to get the value from the first worker of its host.
        """
        from distributed.utils import offload

        try:
            store = private_names.peer_info(comm)[handshake.FIELD]
            value = self.worker.data[key]
            first = self._firsts(key, value)
            if not again and first.get(store, who) != who:
                return {"status": "elsewhere", "worker": first[store]}
            first[store] = who
            frames = await offload(_frames_of, value, self.sharing.settings.share)
        except Exception as error:
            # The key may be gone, or the value cannot be pickled. Dask reports both problems when it sends the value.
            if not isinstance(error, KeyError):
                self.sharing.fault("sending a value to another host", error)
            frames = None
        if frames is None:
            return {"status": "plain"}
        arrived = False
        try:
            await comm.write({"status": "OK", "sizes": [frame.nbytes for frame in frames]})
            for frame in frames:
                await private_names.send_bytes(comm, frame)
            arrived = await comm.read() == "OK"
        except OSError as error:
            _log.debug("worker %s has not received a value: %s", who, error)
        finally:
            # If the transfer has ended in the middle, this connection cannot be used again.
            if not arrived:
                comm.abort()
                if first.get(store) == who:
                    del first[store]
        return private_names.closed_reply()

    def _firsts(self, key: Any, value: Any) -> dict[str, str]:
        mark = watchable(value)
        entry = self._first.get(key)
        if entry is not None and entry[0]() is mark:
            return entry[1]
        found: dict[str, str] = {}
        if mark is not None:
            self._first[key] = (self.sharing.watch(key, mark, self._first), found)
        return found

    def replaced(self, key: Any, value: Any) -> None:
        """Keep the record about a key whose value was replaced by its copy in the store."""
        entry, mark = self._first.pop(key, None), watchable(value)
        if entry is not None and mark is not None:
            self._first[key] = (self.sharing.watch(key, mark, self._first), entry[1])

    async def share(self, comm: Any, key: Any) -> Any:
        """Give another worker of this host the handle of a value that this worker has or is receiving."""
        arriving = self._arriving.get(key)
        try:
            handle = await (self.sharing.handle_of(key) if arriving is None else asyncio.shield(arriving))
        except Exception as error:
            self.sharing.fault("sharing a value of another host", error)
            handle = None
        if handle is None or private_names.peer_info(comm).get(handshake.FIELD) != self.sharing.token:
            return {"status": "plain"}
        try:
            await comm.write({"status": "OK", "handle": [handle.binary(), handle.stream, list(handle.layout)]})
            await comm.read()  # hold the reference until the peer has opened it
        except OSError as error:
            _log.debug("another worker of this host has not received a handle: %s", error)
            comm.abort()
        return private_names.closed_reply()

    # ---- the side that asks --------------------------------------------------------------------------------------------

    async def worth_pulling(
        self, address: str, keys: Collection[Any], sizes: Mapping[Any, int] | None = None
    ) -> list[Any]:
        """
        Return the keys that this host should fetch only once: large ones, if the peer uses another store.

        Parameters
        ----------
        address : str
            Address of the peer.
        keys : collection of str or tuple
        sizes : mapping, optional
            Size of each value in bytes; the default is what this worker knows.
        """
        least = self.sharing.settings.pull
        if sizes is None:
            sizes = {key: private_names.store_bytes(self.worker, key) for key in keys}
        large = [key for key in keys if sizes[key] >= least]
        if not large:
            return []
        comm = await self.worker.rpc.connect(address)
        store = private_names.peer_info(comm).get(handshake.FIELD)
        self.worker.rpc.reuse(address, comm)
        return [] if store in (None, self.sharing.token) else large

    async def pull(self, address: str, key: Any, nbytes: int | None = None) -> Any:
        """
        Get a value from another host, or its handle from the worker of this host that is getting the bytes; open it.

        Parameters
        ----------
        address : str
            Address of a worker that has the value.
        key : str or tuple
        nbytes : int, optional
            Size of the value; the default is what this worker knows.

        Returns
        -------
        object or None
            None if Dask must fetch the value. A value that is pulled has buffers, so it is never None itself.
        """
        arriving: asyncio.Future[Handle | None] = asyncio.get_running_loop().create_future()
        self._arriving[key] = arriving
        handle = value = None
        try:
            handle, first = await self._receive(address, key, again=False)
            if first is not None:
                # Other workers must not wait for this worker while it waits for another one.
                self._arriving.pop(key, None)
                handle = await self._ask_first(first, key, nbytes)
                if handle is None:
                    self._arriving[key] = arriving
                    handle, _ = await self._receive(address, key, again=True)
            arriving.set_result(handle)
            if handle is not None:
                value = await self.sharing.open(key, handle)
        except Exception as error:
            self.sharing.fault("getting a value of another host", error)
        finally:
            # Only now, because from here on `Sharing.handle_of` finds the handle.
            self._arriving.pop(key, None)
            if not arriving.done():
                arriving.set_result(None)
        return value

    async def _ask_first(self, first: str, key: Any, nbytes: int | None) -> Handle | None:
        # Wait for a limited time, because the other worker may be stopped: 10 s, and 1 s for each 10 MB.
        patience = 10 + (private_names.store_bytes(self.worker, key) if nbytes is None else nbytes) / 10e6
        comm = None
        try:
            async with asyncio.timeout(patience):
                comm = await self.worker.rpc.connect(first)
                await comm.write({"op": SHARED, "key": key})
                answer = await comm.read()
                if answer.get("status") != "OK":
                    return None
                binary, stream, layout = answer["handle"]
                handle = Handle(_core.ObjectRef.from_binary(binary), stream, tuple(layout))
                await comm.write("OK")
                return handle
        except (OSError, ObjectLostError) as error:
            # The other worker was killed, is stopped, or has released the value, so this worker gets the bytes itself.
            _log.debug("worker %s of this host does not give a value: %s", first, error)
            if comm is not None:
                comm.abort()
            return None
        except BaseException:
            if comm is not None:
                comm.abort()
            raise
        finally:
            if comm is not None:
                self.worker.rpc.reuse(first, comm)

    async def _receive(self, address: str, key: Any, again: bool) -> tuple[Handle | None, str | None]:
        """Ask for the bytes of a value; return a handle, or the address of the worker of this host that gets them."""
        with self.sharing.counts.attempt():
            return await self._request(address, key, again)

    async def _request(self, address: str, key: Any, again: bool) -> tuple[Handle | None, str | None]:
        comm = await self.worker.rpc.connect(address)
        try:
            await comm.write({"op": PULL, "key": key, "who": self.worker.address, "again": again})
            head = await comm.read()
            if head.get("status") == "elsewhere":
                return None, head["worker"]
            if head.get("status") != "OK":
                return None, None
            handle = await self._fill(comm, list(head["sizes"]))
            self.sharing.counts.arrived(sum(head["sizes"]))
            try:
                await comm.write("OK")
            except OSError as error:
                _log.debug("worker %s has ended after it sent a value: %s", address, error)
            return handle, None
        except BaseException:
            comm.abort()
            raise
        finally:
            self.worker.rpc.reuse(address, comm)

    async def _fill(self, comm: Any, sizes: list[int]) -> Handle:
        """Read the frames of a value from a connection into a block of the store."""
        layout = _layout_of(sizes)
        block = api.create(max(1, layout[-1]))
        try:
            for start, stop in zip(layout[::2], layout[1::2], strict=True):
                await private_names.receive_bytes(comm, block[start:stop])
            return Handle(api.seal(block), sizes[0], layout)
        except BaseException:
            # Close the connection first, because it writes into the block.
            comm.abort()
            api.abort(block)
            raise
