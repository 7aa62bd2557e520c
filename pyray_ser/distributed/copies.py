"""Find, prefetch and broadcast the copies of an object that the hosts of a cluster have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from .. import _core
from ..exceptions import ObjectFreedError, ObjectLostError
from ..store import foreign
from . import handshake, private_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import distributed

    from .._core import ObjectRef

__all__ = ["Copy", "broadcast", "claim_of", "copy_name", "copy_of_claim", "locations", "prefetch", "token_of_store"]


def copy_name(ref: ObjectRef[Any]) -> str:
    """Return the name of the object that keeps the copy of a foreign object in the store of a host."""
    return f"pyray_ser copy of {ref.hex()}"


def copy_here(ref: ObjectRef[Any]) -> ObjectRef[Any] | None:
    """Return a reference to the complete copy of a foreign object in the store of this host, or None."""
    claim = claim_of(ref)
    return None if claim is None else copy_of_claim(claim)


def claim_of(ref: ObjectRef[Any]) -> ObjectRef[Any] | None:
    """Return the reference of the named object that keeps the copy of a foreign object on this host, or None."""
    store = _core.default()
    return None if store is None else _core.find_name(store, copy_name(ref))


def copy_of_claim(claim: ObjectRef[Any]) -> ObjectRef[Any] | None:
    """Return a reference to the copy that a named object keeps, or None if the copy is not complete."""
    copy: ObjectRef[Any] = _core.get(claim, timeout=0)[0]
    return copy if copy.state == "sealed" else None


class Copy(NamedTuple):
    """
    A reference whose object has a copy on the host of a worker, as long as this result exists there.

    Attributes
    ----------
    ref : ObjectRef
    address : str
        Address of a worker on the host.
    """

    ref: ObjectRef[Any]
    address: str


def locations(ref: ObjectRef[Any], *, client: distributed.Client | None = None) -> list[str]:
    """
    Return the workers of all hosts whose store has an object or a copy of it.

    Parameters
    ----------
    ref : ObjectRef
    client : distributed.Client, optional
        The default is the current client or, in a task, that of the worker. If the client is asynchronous, the caller
        must await the result.

    Returns
    -------
    list of str
        Addresses of workers. Those on the host of the original are first. If the object no longer exists, the
        list is empty.

    Examples
    --------
    >>> client.submit(mean, ref, workers=locations(ref))
    """
    if client is None:
        client = private_names.current_client()
    return private_names.run_in(client, _locations, client, ref)  # type: ignore[no-any-return]


async def _locations(client: Any, ref: ObjectRef[Any]) -> list[str]:
    groups = await _hosts(client)
    asked = {workers[0]: store for store, workers in groups.items()}
    found = await client.run(_has, ref.binary(), workers=list(asked), on_error="ignore")
    original = f"{ref.store_id:016x}"
    stores = sorted((asked[address] for address, has in found.items() if has), key=lambda store: store != original)
    return [address for store in stores for address in groups[store]]


async def _hosts(client: Any) -> dict[str, list[str]]:
    """Return the addresses of the workers that use each store."""
    known = await private_names.reports(client, handshake.FIELD)
    # A worker reports its store with the first heartbeat after the plugin has started.
    unknown = [address for address, store in known.items() if store is None]
    if unknown:
        known |= await client.run(token_of_store, workers=unknown, on_error="ignore")
    groups: dict[str, list[str]] = {}
    for address in sorted(known):
        store = known[address]
        if store is not None:
            groups.setdefault(store, []).append(address)
    return groups


def token_of_store() -> str | None:
    """Return the identity of the store of this worker."""
    store = _core.default()
    return None if store is None else f"{store.id:016x}"


def _has(identity: bytes) -> bool:
    """Return whether the store of this worker has an object or a copy of it."""
    try:
        ref = _core.ObjectRef.from_binary(identity)
    except (ObjectFreedError, ObjectLostError):
        return False
    return copy_here(ref) is not None if _core.is_foreign(ref) else ref.state == "sealed"


def prefetch(refs: Iterable[ObjectRef[Any]]) -> None:
    """
    Start to copy objects of other hosts into the store of this host, and return immediately.

    A later `get` waits only for the rest of the transfer. Call this in a task that needs several objects one after the
    other. The copies stay as long as a process of this host holds references to the objects.

    Parameters
    ----------
    refs : iterable of ObjectRef
        Objects that are in the store of this host are ignored. If a transfer fails, `get` raises the error.

    Examples
    --------
    >>> prefetch(refs)
    >>> results = [compute(pyray_ser.get(ref)) for ref in refs]
    """
    refs = list(refs)
    for ref in refs:
        if not isinstance(ref, _core.ObjectRef):
            raise TypeError(f"prefetch() takes an iterable of ObjectRef, not one of {type(ref).__name__}")
    foreign.begin(refs)


def broadcast(
    ref: ObjectRef[Any], *, workers: Collection[str] | None = None, client: distributed.Client | None = None
) -> list[distributed.Future]:
    """
    Copy an object to all hosts of a cluster.

    The transfers form a tree: a host that has received the object sends it to at most two others, so that the link of
    the first host is not the bottleneck.

    Parameters
    ----------
    ref : ObjectRef
    workers : collection of str, optional
        Addresses of workers. Only their hosts receive the object; the default is all hosts.
    client : distributed.Client, optional
        The default is the current client or, in a task, that of the worker. If the client is asynchronous, the caller
        must await the result.

    Returns
    -------
    list of distributed.Future
        One per host. Each host keeps its copy at least until its future is released. This function does not wait for
        the transfers; `distributed.wait` does.

    Examples
    --------
    >>> copies = broadcast(ref)
    >>> means = client.gather(client.map(mean, [ref] * 100, pure=False))
    >>> del copies
    """
    if client is None:
        client = private_names.current_client()
    return private_names.run_in(client, _broadcast, client, ref, workers)  # type: ignore[no-any-return]


# A future of a broadcast -> the future that it needs.
_needed: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


async def _broadcast(client: Any, ref: ObjectRef[Any], chosen: Collection[str] | None) -> list[Any]:
    groups = await _hosts(client)
    original = f"{ref.store_id:016x}"
    if chosen is not None:
        groups = {store: some for store, all_ in groups.items() if (some := [one for one in all_ if one in chosen])}
    # The host of the original is the root of the tree. A store that no worker has reported is the root, too: the first
    # transfer then fails, and its error is that of all futures.
    stores = [store for store in groups if store != original]
    made: list[Any] = []
    sources: list[Any] = []
    for i, store in enumerate(stores):
        options = {"workers": groups[store], "pure": False}
        # Nodes 0 and 1 receive the object from the root, nodes 2i + 2 and 2i + 3 from node i.
        source = sources[(i - 2) // 2] if i >= 2 else None
        made.append(client.submit(_receive, ref, source, key=_key("broadcast", ref, store), **options))
        if source is not None:
            # The scheduler may process the release of a future before a graph that was sent earlier and needs it.
            _needed[made[i]] = source
        if 2 * i + 2 < len(stores):
            sources.append(client.submit(_source_of, made[i], key=_key("source", ref, store), **options))
    return made


def _key(task: str, ref: ObjectRef[Any], store: str) -> str:
    from uuid import uuid4

    return f"pyray_ser-{task}-{ref.hex()}-{store}-{uuid4().hex}"


def _source_of(copy: Copy) -> str:
    """
    Return the address of a worker that can send an object.

    This task runs on the host of the copy. Tasks of other hosts depend on this address and not on the copy, because a
    dependency is replicated, and Dask's active memory manager then deletes all replicas but one: perhaps that of the
    host that must keep its copy.
    """
    # If Dask has replicated the copy to this worker of the host, this replica keeps the copy in the store, too.
    return _receive(copy.ref, copy.address).address


def _receive(ref: ObjectRef[Any], source: str | None) -> Copy:
    """Copy an object into the store of this host. This is the task of one node of a broadcast."""
    from .plugin import NAME

    worker = private_names.current_worker()
    plugin = worker.plugins.get(NAME)
    if plugin is None or plugin.sharing is None:
        raise RuntimeError(
            f"worker {worker.address} cannot receive objects, because it does not use pyray_ser.distributed"
        )
    if _core.is_foreign(ref):
        plugin.sharing.references.receive_from(source, ref)
    return Copy(ref, worker.address)
