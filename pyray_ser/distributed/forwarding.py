"""Objects of other hosts in the processes that run tasks: such a process asks the agent of its host for a copy.

Only the Dask worker has connections to other hosts. A process imports distributed when it needs its first foreign object.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .. import _core
from .._core import ObjectRef, load_ref, pack, unpack
from ..exceptions import PyraySerError
from ..store import foreign
from . import relays
from .copies import claim_of, copy_of_claim
from .private_names import closed_reply, connect

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COPY", "install", "serve", "setup_of"]

# The name of the request.
COPY = "pyray_ser_copy"


def setup_of(worker: Any, relay_address: str) -> tuple[Callable[..., object], tuple[Any, ...]]:
    """Return the function that each process of an agent calls first, and its arguments."""
    return install, (worker.address, pickle.dumps(worker.security), relay_address)


def install(address: str, security: bytes, relay_address: str) -> None:
    """
    Resolve references to objects and actors of other hosts by requests to an agent.

    Parameters
    ----------
    address : str
        Address of the Dask worker.
    security : bytes
        Its pickled `distributed.Security`.
    relay_address : str
        The abstract address at which the agent connects processes to actors; see `relays`.
    """
    relays.install(relay_address)
    foreign.set_resolver(_Asking(address, security).resolve)


class _Asking:
    """The resolver of a process that runs tasks; see `foreign.set_resolver`."""

    def __init__(self, address: str, security: bytes) -> None:
        self._address = address
        self._security = security
        # The record of a foreign object in this process -> the named object that keeps its copy.
        self._claims: WeakKeyDictionary[Any, ObjectRef[Any]] = WeakKeyDictionary()

    def resolve(self, ref: ObjectRef[Any]) -> ObjectRef[Any] | None:
        claim = claim_of(ref)
        copy = None if claim is None else copy_of_claim(claim)
        if copy is None:
            if _runs_event_loop():
                raise RuntimeError(
                    "the object is on another host, and get() would stop this event loop: use `await ref`"
                )
            copy = asyncio.run(self._ask(ref.travel(0, b"")[0]))
            claim = claim_of(ref)
        if claim is not None:
            self._claims[_core.foreign_parts(ref)[1]] = claim
        return copy

    async def _ask(self, message: bytes) -> ObjectRef[Any]:
        comm = await connect(self._address, pickle.loads(self._security))
        try:
            await comm.write({"op": COPY, "message": message})
            answer = await comm.read()
            if "error" in answer:
                error: BaseException = unpack(answer["error"])
                raise error
            copy = ObjectRef.from_binary(answer["copy"])
            # The agent holds the copy until it receives this message.
            await comm.write("OK")
            return copy
        finally:
            await comm.close()


def _runs_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def serve(comm: Any, message: bytes) -> Any:
    """
    Get a copy of a foreign object into the store of this host for a process of the agent.

    Parameters
    ----------
    comm : distributed.comm.Comm
    message : bytes
        The foreign reference, for `load_ref`.
    """
    try:
        try:
            ref = load_ref(message)
            copy = await asyncio.wrap_future(foreign.arrival(ref)) if _core.is_foreign(ref) else ref
        except (PyraySerError, RuntimeError, OSError) as error:
            await comm.write({"error": pack(error)})
        else:
            await comm.write({"copy": copy.binary()})
            await comm.read()
    except OSError:
        comm.abort()  # the process has ended
    return closed_reply()
