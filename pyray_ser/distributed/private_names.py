"""All undocumented names of Dask distributed that this package uses.

`problems` compares them with the versions for which this package was written. If one differs, the package does not
change Dask.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping
    from types import MethodType

__all__ = [
    "OLDEST",
    "add_values",
    "close_idle_connections",
    "closed_reply",
    "comm_classes",
    "connect",
    "current_client",
    "current_worker",
    "get_data_with",
    "is_ending",
    "is_needed",
    "loop_of",
    "measure_in_nanny",
    "measure_in_worker",
    "nearest",
    "peer_info",
    "place_of",
    "problems",
    "receive_bytes",
    "report",
    "reports",
    "request_values",
    "run_in",
    "secede",
    "send_bytes",
    "set_comm_classes",
    "sizes_of",
    "spill_last",
    "spill_with",
    "store_bytes",
    "success",
    "thread_count",
    "until_done",
    "until_released",
    "values_in_memory",
    "version",
]

OLDEST = (2025, 1)

# The parameters of each function that this package calls, replaces or overrides.
SIGNATURES = {
    "distributed.worker:Worker.gather_dep": "self worker to_gather total_nbytes * stimulus_id",
    "distributed.worker:Worker.gather": "self who_has",
    "distributed.worker:Worker.get_data": "self comm keys who serializers",
    "distributed.worker:Worker.update_data": "self data stimulus_id",
    "distributed.worker:Worker.handle_stimulus": "self *stims",
    "distributed.worker:get_data_from_worker": "rpc keys worker * who serializers deserializers",
    "distributed.scheduler:Scheduler.get_nbytes": "self keys summary",
    "distributed.spill:SpillBuffer.evict": "self",
    "distributed.comm.core:Comm.handshake_info": "self",
    "distributed.core:connect": "addr timeout deserialize handshake_overrides **connection_args",
    "distributed.core:ConnectionPool.connect": "self addr timeout",
    "distributed.core:ConnectionPool.reuse": "self addr comm",
    "distributed.worker_state_machine:GatherDepSuccessEvent": "stimulus_id worker total_nbytes data",
    "distributed.worker_state_machine:SecedeEvent": "stimulus_id key compute_duration",
    "distributed.system_monitor:SystemMonitor.get_process_memory": "self",
    "distributed.worker_memory:NannyMemoryManager.memory_monitor": "self nanny",
    "distributed.utils:offload": "func / *args **kwargs",
}
# Classes and the attributes that this package reads or sets.
ATTRIBUTES = {
    "distributed.client:Client": "futures loop sync",
    "distributed.client:Future": "_state",
    "distributed.client:FutureState": "wait",
    "distributed.comm.tcp:TCP": "stream",
    "distributed.comm.tcp:TCPConnector": "comm_class",
    "distributed.comm.tcp:TCPListener": "comm_class",
    "distributed.comm.tcp:TLSConnector": "comm_class",
    "distributed.comm.tcp:TLSListener": "comm_class",
    "distributed.core:Status": "closing dont_reply running",
    "distributed.nanny:Nanny": "memory_manager process",
    "distributed.nanny:WorkerProcess": "process",
    "distributed.scheduler:Scheduler": "get_task_status get_who_has identity",
    "distributed.scheduler:WorkerState": "metrics",
    "distributed.spill:SpillBuffer": "memory",
    "distributed.worker:Worker": "data metrics",
    "distributed.worker_memory:NannyMemoryManager": "memory_limit memory_terminate_fraction",
    "distributed.worker_state_machine:WorkerState": "executing long_running nthreads tasks",
    "distributed.worker_state_machine:TaskState": "nbytes state",
    "zict:Buffer": "fast",
    "zict:LRU": "order",
}


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    # Use `import_module`, because `distributed.protocol.serialize` is a module and also a function that hides the
    # module.
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _parameters(function: Any) -> str:
    words, starred = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.append(f"*{parameter.name}")
            starred = True
        elif parameter.kind is parameter.VAR_KEYWORD:
            words.append(f"**{parameter.name}")
        elif parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words += ["*", parameter.name]
            starred = True
        else:
            words.append(parameter.name)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                words.append("/")
    return " ".join(words)


def version() -> str:
    """Return the version of the installed distributed."""
    return str(importlib.import_module("distributed").__version__)


def problems() -> list[str]:
    """
    Return how the installed distributed differs from the versions that this package supports.

    Returns
    -------
    list of str
        Descriptions of the differences; empty if the installed version can be used.
    """
    found = []
    numbers = [int(part) for part in version().split(".")[:2] if part.isdigit()]
    if tuple(numbers) < OLDEST:
        found.append(f"distributed {version()} is older than {'.'.join(map(str, OLDEST))}")
    for name, expected in SIGNATURES.items():
        try:
            parameters = _parameters(_find(name))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            found.append(f"{name} is missing: {error}")
            continue
        if parameters != expected:
            found.append(f"{name} takes ({parameters}), not ({expected})")
    for name, attributes in ATTRIBUTES.items():
        try:
            owner = _find(name)
        except (ImportError, AttributeError) as error:
            found.append(f"{name} is missing: {error}")
            continue
        # Older versions do not annotate what their `__init__` sets.
        set_by_init = getattr(getattr(owner.__init__, "__code__", None), "co_names", ())
        known = {*dir(owner), *getattr(owner, "__annotations__", ()), *set_by_init}
        found += [f"{name} has no attribute {word!r}" for word in attributes.split() if word not in known]
    return found


# ---- connections ------------------------------------------------------------------------------------------------------

_USERS = ("TCPConnector", "TCPListener", "TLSConnector", "TLSListener")


def comm_classes() -> dict[str, type]:
    """Return, for each connector and listener class, the class of the connections that it makes."""
    tcp = importlib.import_module("distributed.comm.tcp")
    return {name: getattr(tcp, name).comm_class for name in _USERS}


def set_comm_classes(classes: Mapping[str, type]) -> None:
    """Set the class of new connections for each connector and listener class, including existing listeners."""
    tcp = importlib.import_module("distributed.comm.tcp")
    for name, comm_class in classes.items():
        getattr(tcp, name).comm_class = comm_class


async def connect(address: str, security: Any, role: str = "worker") -> Any:
    """
    Open a connection to a worker that is not one of the pool.

    Parameters
    ----------
    address : str
    security : distributed.Security
    role : str
        Of this process: "worker" or "client".

    Returns
    -------
    distributed.comm.Comm
    """
    from distributed.core import connect as open_connection

    return await open_connection(address, **security.get_connection_args(role))


def peer_info(comm: Any) -> dict[str, Any]:
    """Return the data that the peer of a connection sent in the handshake."""
    info: dict[str, Any] = comm.remote_info
    return info


# Tornado copies nothing while a piece is sent or received.
_PIECE = 16 << 20


async def send_bytes(comm: Any, data: memoryview) -> None:
    """Send bytes without a header; the peer calls `receive_bytes` with a buffer of the same size."""
    for at in range(0, data.nbytes, _PIECE):
        await _stream_of(comm).write(data[at : at + _PIECE])


async def receive_bytes(comm: Any, into: memoryview, limit: float | None = None) -> None:
    """
    Fill a buffer with the bytes that the peer sends.

    Parameters
    ----------
    comm : distributed.comm.Comm
    into : memoryview
    limit : float, optional
        Seconds within which each 16 MB must arrive; default is no limit.

    Raises
    ------
    OSError
        If the connection ends, or a piece is late (`TimeoutError`). Close the connection then.
    """
    for at in range(0, into.nbytes, _PIECE):
        async with asyncio.timeout(limit):
            await _stream_of(comm).read_into(into[at : at + _PIECE])


def _stream_of(comm: Any) -> Any:
    from distributed.comm.core import CommClosedError

    if comm.stream is None:
        raise CommClosedError("the connection is closed")
    return comm.stream


def close_idle_connections(worker: Any, address: str | None = None) -> None:
    """
    Close the pooled connections that no request uses, so that the next request makes a handshake.

    Parameters
    ----------
    worker : distributed.Worker
    address : str, optional
        Address of a peer; the default is all peers except the scheduler.
    """
    pool = worker.rpc
    scheduler = worker.scheduler.address
    for peer in [address] if address is not None else [peer for peer in pool.available if peer != scheduler]:
        # Leave the connections in this set: `connect` removes closed ones from it later, and then updates its counters.
        for comm in pool.available.get(peer, ()):
            comm.abort()


# ---- what workers report to the scheduler -----------------------------------------------------------------------------


def report(worker: Any, name: str, value: Callable[[], Any] | None) -> None:
    """Let a worker call a function and report its result to the scheduler with each heartbeat; None ends this."""
    if value is None:
        worker.metrics.pop(name, None)
    else:
        worker.metrics[name] = lambda _: value()


async def reports(node: Any, name: str) -> dict[str, str | None]:
    """
    Return the value that each worker of the cluster has reported, by address; None if there is none yet.

    Parameters
    ----------
    node : distributed.Worker or distributed.Client
    name : str
    """
    workers = (await node.scheduler.identity())["workers"]
    return {address: info["metrics"].get(name) for address, info in workers.items()}


async def place_of(worker: Any, key: str) -> tuple[str, bool]:
    """
    Return the address of a worker that has the result of a key, and whether the scheduler knows a result or task.

    Parameters
    ----------
    worker : distributed.Worker
    key : str
    """
    found = (await worker.scheduler.who_has(keys=[key])).get(key)
    if found:
        return str(found[0]), True
    state = (await worker.scheduler.get_task_status(keys=[key])).get(key)
    return "", state not in (None, "erred", "forgotten", "released")


# ---- clients ----------------------------------------------------------------------------------------------------------


def current_client() -> Any:
    """Return the current client or, in a task, the client of the worker."""
    from distributed import get_client

    return get_client()


def current_worker() -> Any:
    """Return the worker that runs the current task."""
    from distributed import get_worker

    return get_worker()


def run_in(client: Any, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run a coroutine function in the loop of a client; return its result, or an awaitable in an asynchronous client."""
    return client.sync(function, *args)


async def until_done(future: Any) -> None:
    """Wait, in the loop of the client, until a future is finished, cancelled or has an error."""
    while future.status in ("pending", "lost"):
        await future._state.wait()


async def until_released(client: Any, key: str) -> None:
    """Wait, in the loop of the client, until the client has released a key, so that it can be used again."""
    while key in client.futures:
        await asyncio.sleep(0.01)


def loop_of(client: Any) -> asyncio.AbstractEventLoop:
    """Return the event loop of a client."""
    loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
    return loop


# ---- values and messages of a worker ----------------------------------------------------------------------------------


class _WorkerWith:
    """A proxy of a worker in which some keys have other values; all other attributes are those of the worker."""

    __slots__ = ("data", "worker")

    def __init__(self, worker: Any, values: Mapping[Any, Any]) -> None:
        from collections import ChainMap

        object.__setattr__(self, "worker", worker)
        object.__setattr__(self, "data", ChainMap(values, worker.data))  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.worker, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.worker, name, value)


def get_data_with(plain: MethodType, values: Mapping[Any, Any]) -> Callable[..., Awaitable[Any]]:
    """
    Return the worker's own handler for ``get_data``, changed to send other values for some keys.

    Parameters
    ----------
    plain : method
        ``Worker.get_data`` of a worker.
    values : mapping
        Maps a key to the value to send.
    """
    from functools import partial

    return partial(plain.__func__, _WorkerWith(plain.__self__, values))


def store_bytes(worker: Any, key: Any) -> int:
    """Return the size of a worker's result in bytes, or 0 if it is unknown."""
    task = worker.state.tasks.get(key)
    return (task.nbytes or 0) if task is not None else 0


def values_in_memory(worker: Any) -> Mapping[Any, Any]:
    """Return the values that a worker has not spilled, by key."""
    values: Mapping[Any, Any] = getattr(worker.data, "memory", worker.data)
    return values


def add_values(worker: Any, values: Mapping[Any, Any]) -> None:
    """Add values to a worker. The caller must tell the scheduler."""
    worker.update_data(values)


async def sizes_of(worker: Any, keys: Collection[Any]) -> dict[Any, int]:
    """Return the sizes of values in bytes, by key, as the scheduler knows them."""
    sizes: dict[Any, int] = await worker.scheduler.nbytes(keys=list(keys), summary=False)
    return sizes


def nearest(worker: Any, addresses: Collection[str]) -> str:
    """
    Return one of the addresses of other workers, if possible of the host of a worker.

    All workers of a host choose the same peer on another host, so that this peer sends the value to only one of them.
    """
    from distributed.comm import get_address_host

    here = get_address_host(worker.address)
    near = [address for address in addresses if get_address_host(address) == here]
    return min(near or addresses)


async def request_values(worker: Any, address: str, keys: Collection[Any]) -> dict[Any, Any]:
    """
    Ask a peer for values, without a change of the worker's state.

    Returns
    -------
    dict
        Values by key. Empty if the peer is busy; keys that the peer does not have are missing.
    """
    from distributed.worker import get_data_from_worker

    answer = await get_data_from_worker(worker.rpc, list(keys), address, who=worker.address)
    return answer["data"] if answer["status"] == "OK" else {}


def is_ending(worker: Any) -> bool:
    """Return whether a worker is about to end and no task runs on it."""
    from distributed.core import Status

    return worker.status is Status.closing and not (worker.state.executing or worker.state.long_running)


def is_needed(worker: Any, key: str) -> bool:
    """Return whether the scheduler still wants the result of a task that a worker executes or fetches."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state != "cancelled"


def secede(worker: Any, key: str, seconds: float) -> None:
    """
    Let a worker run another task while this one waits, as ``distributed.secede`` does for tasks in threads.

    Parameters
    ----------
    worker : distributed.Worker
    key : str
        The key of a task that is a coroutine. Nothing happens if the worker does not execute it, or if it has seceded.
    seconds : float
        How long the task has run.
    """
    from time import time

    from distributed.worker_state_machine import SecedeEvent

    task = worker.state.tasks.get(key)
    if task is not None and task in worker.state.executing:
        worker.handle_stimulus(SecedeEvent(key=key, compute_duration=seconds, stimulus_id=f"secede-{time()}"))


def thread_count(worker: Any) -> int:
    """Return how many tasks a worker runs at the same time."""
    return int(worker.state.nthreads)


# ---- memory -----------------------------------------------------------------------------------------------------------


def measure_in_worker(worker: Any, function: Callable[[], int] | None) -> None:
    """
    Let a function return the memory of a worker, by which the worker decides whether to spill or pause.

    Parameters
    ----------
    worker : distributed.Worker
    function : callable or None
        Returns bytes. None restores Dask's own measure.
    """
    if function is None:
        vars(worker.monitor).pop("get_process_memory", None)
    else:
        worker.monitor.get_process_memory = function


def spill_with(worker: Any, function: Callable[[Callable[[], int]], int] | None) -> None:
    """
    Let a function spill the values of a worker while its memory is above the ``spill`` threshold.

    A worker with another mapping than Dask's own is not changed.

    Parameters
    ----------
    worker : distributed.Worker
    function : callable or None
        Gets Dask's own function, which spills one value, and returns the size of that value, or -1 after a failure.
        Returns the same. Dask measures the memory after each call. None restores Dask's own function.
    """
    from functools import partial

    from distributed.spill import SpillBuffer

    data = worker.data
    if type(data) is not SpillBuffer:
        return
    vars(data).pop("evict", None)
    if function is not None:
        data.evict = partial(function, data.evict)


def spill_last(worker: Any, is_last: Callable[[Any], bool]) -> None:
    """Let Dask spill the values with some keys after all others. Call this only in a function of `spill_with`."""
    order = worker.data.fast.order
    for key in list(order):
        if not is_last(key):
            return
        order.remove(key)
        order.add(key)


def measure_in_nanny(nanny: Any, function: Callable[[int], int] | None) -> None:
    """
    Let a nanny restart its worker only if, by a function, the memory of the worker exceeds the limit.

    Parameters
    ----------
    nanny : distributed.Nanny
    function : callable or None
        Returns the memory of a process in bytes, given its PID; not more than the resident memory. None restores Dask's
        own measure.
    """
    from functools import partial

    manager = nanny.memory_manager
    callback = nanny.periodic_callbacks.get("memory_monitor")
    if callback is None:
        return  # there is no limit
    if function is None:
        callback.callback = partial(manager.memory_monitor, nanny)
        return

    def check() -> None:
        process = None if nanny.process is None else nanny.process.process
        if process is None or process.pid is None:
            return  # the worker does not run
        # Dask's own check follows. It measures the resident memory, which exceeds the limit, too.
        if function(process.pid) > manager.memory_limit * manager.memory_terminate_fraction:
            manager.memory_monitor(nanny)

    callback.callback = check


# ---- messages of a worker ---------------------------------------------------------------------------------------------


def success(address: str, total_nbytes: int, data: dict[Any, Any]) -> Any:
    """Return the event by which a worker learns that it has received values."""
    from time import time

    from distributed.worker_state_machine import GatherDepSuccessEvent

    return GatherDepSuccessEvent(
        worker=address, total_nbytes=total_nbytes, data=data, stimulus_id=f"gather-dep-success-{time()}"
    )


def closed_reply() -> Any:
    """Return the value that a handler returns if it has already sent the reply itself."""
    from distributed.core import Status

    return Status.dont_reply
