"""Keep an object as long as a process of any host holds a reference to it.

When Dask pickles a reference, the message acquires a token in the store of the object. The token does not belong to a
process, so the object stays if the sender dies. One worker of each host, the agent, releases the tokens: it asks the
scheduler at intervals for the objects of its store to which other processes hold references. If no process holds a
reference for some time, which must be longer than any message needs, the agent releases the tokens of the object.

The agent keeps no state that must survive it. If it dies, another worker takes its place and starts to measure the time
again. Processes that have ended are not asked, so they hold nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

import distributed

from .. import _core, _log, api
from ..exceptions import NameExistsError, ObjectFreedError, ObjectLostError, StoreFullError
from ..store import foreign
from ..store.discovery import node_name
from ..store.scopes import Scope
from . import handshake, private_names, settings

if TYPE_CHECKING:
    from .sharing import Sharing

__all__ = ["Agent", "HoldersPlugin", "begin_reports"]

# The names of the requests: of the scheduler to workers, of agents to the scheduler, and of clients to the scheduler.
HELD = "pyray_ser_held"
HOLDERS = "pyray_ser_holders"
REPORT = "pyray_ser_report"
# The note of the tokens that Dask's messages acquire. No other token may be released by an agent.
NOTE = 0x6461736B
# Rounds of an agent, and reports of a client, in the time after which an object is released.
_ROUNDS = 4
# Seconds that a worker has for an answer.
_PATIENCE = 10


class _Messages(Scope):
    """The tokens that Dask's messages acquire; only an agent releases them."""

    note = NOTE

    def __init__(self) -> None:
        super().__init__()
        self._acquired: dict[bytes, float] = {}

    def has(self, identity: bytes) -> bool:
        """Return whether a token is recent enough for one more message."""
        return time.monotonic() - self._acquired.get(identity, -1e9) < settings.read().release_after / 2

    def add(self, store_id: int, identity: bytes, token: tuple[int, int], sticky: bool) -> None:
        if len(self._acquired) > 10_000:
            self._acquired.clear()  # the next message of each object acquires another token
        self._acquired[identity] = time.monotonic()


_messages = _Messages()


def begin_messages() -> None:
    """Mark the tokens of the references that Dask pickles in this process."""
    private_names.begin_scope(_messages)


def end_messages() -> None:
    """Undo one call of `begin_messages`."""
    private_names.end_scope()


# ---- the host of the objects --------------------------------------------------------------------------------------------


class Agent:
    """
    The part of one worker that answers which foreign objects it holds, and that releases objects of its own host.

    Parameters
    ----------
    sharing : Sharing
        The hooks of the worker.
    """

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self.worker = sharing.worker
        self._task: asyncio.Task[None] | None = None
        # The named object by which the workers of a host agree on one agent. The name ends with the process.
        self._office: Any = None
        # The identity of an object -> since when no process holds a reference.
        self._since: dict[bytes, float] = {}

    def begin(self) -> None:
        """Start the rounds."""
        begin_messages()
        self.worker.handlers[HELD] = self.held
        self._task = asyncio.ensure_future(self._run())

    def end(self) -> None:
        """Stop the rounds. Another worker of this host continues them."""
        end_messages()
        self.worker.handlers.pop(HELD, None)
        if self._task is not None:
            self._task.cancel()
        self._office = None

    def held(self, store: str) -> dict[str, Any]:
        """
        Return the objects of a store to which this process holds references.

        Parameters
        ----------
        store : str
            Identity of the store.
        """
        # A value that Dask has spilled may contain any reference.
        return {"all": private_names.has_spilled(self.worker), "identities": _held(store)}

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(settings.read().release_after / _ROUNDS)
            try:
                await self._round()
            except Exception as error:
                self.sharing.fault("looking for the holders of objects", error)

    async def _round(self) -> None:
        from distributed.utils import offload

        store = self.sharing.store
        tokens: dict[bytes, list[dict[str, Any]]] = {}
        for flight in await offload(store.flights):
            if flight["note"] == NOTE and not flight["once"]:
                tokens.setdefault(bytes.fromhex(flight["id"]), []).append(flight)
        if not tokens or not self._take_office():
            self._office = None
            self._since.clear()
            return
        try:
            holders = await private_names.ask_scheduler(self.worker, HOLDERS, store=self.sharing.token)
        except Exception as error:
            # The scheduler does not have the plugin, or is gone. The objects are then held until `free`.
            _log.debug("the scheduler does not answer which objects are held: %s", error)
            self._since.clear()
            return
        held = set(holders["identities"])
        for identity in held - tokens.keys():
            _hold(identity)
        self._since = {identity: since for identity, since in self._since.items() if identity in tokens}
        for identity, flights in tokens.items():
            *others, newest = sorted(flights, key=lambda flight: (-flight["age"], flight["token"][1]))
            for flight in others:
                _core.drop_token(store, identity, flight["token"])
            if newest["object_gone"] or self._is_unheld(identity, newest, held if holders["complete"] else None):
                self._since.pop(identity, None)
                _core.drop_token(store, identity, newest["token"])

    def _take_office(self) -> bool:
        """Return whether this worker is the agent of its host."""
        if self._office is None:
            try:
                name = f"pyray_ser agent of {self.sharing.token}"
                self._office = api.put(None, name=name, ephemeral=True)
            except NameExistsError:
                return False
            except StoreFullError as error:
                _log.debug("a full store has no agent: %s", error)
                return False
        return True

    def _is_unheld(self, identity: bytes, newest: dict[str, Any], held: set[bytes] | None) -> bool:
        """Return whether no process has held an object for long enough; `held` is None if not all could be asked."""
        limit = settings.read().release_after
        if held is None or identity in held or newest["age"] < limit:
            self._since.pop(identity, None)
            return False
        now = time.monotonic()
        return now - self._since.setdefault(identity, now) >= limit


def _hold(identity: bytes) -> None:
    """Hold an object of this host that was part of another object, for the process of another host that has found it."""
    try:
        _core.ObjectRef.from_binary(identity).travel(2, node_name(), NOTE)
    except (ObjectFreedError, ObjectLostError) as error:
        _log.debug("an object that another host refers to is gone: %s", error)


def _held(store: str) -> list[bytes]:
    """Return the objects of a store, which is not that of this host, to which this process holds references."""
    prefix = int(store, 16).to_bytes(8, "little")
    return [identity for identity in foreign.identities() if identity.startswith(prefix)]


# ---- the scheduler ------------------------------------------------------------------------------------------------------


class HoldersPlugin(distributed.SchedulerPlugin):  # type: ignore[misc]
    """Answer which objects the processes of a cluster hold: workers, clients and the scheduler with its graphs."""

    name = "pyray_ser-holders"

    def __init__(self) -> None:
        self.scheduler: Any = None
        # Identity of a client -> the time of its last report, and the objects to which it holds references.
        self._clients: dict[str, tuple[float, list[bytes]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return HoldersPlugin, ()

    async def start(self, scheduler: Any) -> None:
        """
        Start to answer agents and clients.

        Parameters
        ----------
        scheduler : distributed.Scheduler
        """
        self.scheduler = scheduler
        scheduler.handlers |= {HOLDERS: self.holders, REPORT: self.report}
        begin_messages()

    async def close(self) -> None:
        """Release what `start` set up."""
        if self.scheduler is not None:
            end_messages()
            self.scheduler = None

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Forget the report of a client that has left."""
        self._clients.pop(client, None)

    async def report(self, client: str, identities: list[bytes]) -> None:
        """Record the objects to which a client holds references."""
        self._clients[client] = time.monotonic(), identities

    async def holders(self, store: str) -> dict[str, Any]:
        """
        Return the objects of a store to which processes of other hosts hold references.

        Parameters
        ----------
        store : str
            Identity of the store.

        Returns
        -------
        dict
            ``complete`` is false if some processes could not be asked.
        """
        private_names.clear_message_logs(self.scheduler)
        complete, found = True, set(_held(store))
        oldest = time.monotonic() - settings.read().release_after
        for client in private_names.clients_of(self.scheduler):
            told, identities = self._clients.get(client, (0.0, []))
            complete = complete and told >= oldest
            found.update(identities)
        known, others = private_names.workers_that_report(self.scheduler, handshake.FIELD)
        complete = complete and not others
        try:
            async with asyncio.timeout(_PATIENCE):
                answers = await private_names.ask_workers(self.scheduler, known, HELD, store=store)
        except TimeoutError:
            return {"complete": False, "identities": list(found)}
        for address, answer in answers.items():
            if isinstance(answer, dict) and "identities" in answer:
                complete = complete and not answer["all"]
                found.update(answer["identities"])
            elif address in self.scheduler.workers:
                complete = False
        return {"complete": complete, "identities": list(found)}


# ---- clients ------------------------------------------------------------------------------------------------------------

_reporting: WeakSet[Any] = WeakSet()


def begin_reports(client: Any) -> None:
    """Make a client report to the scheduler, until it is closed, the objects to which its process holds references."""
    if client not in _reporting:
        _reporting.add(client)
        begin_messages()
        private_names.keep_running(_report(ref(client)))


async def _report(alive: ref[Any]) -> None:
    try:
        while (client := alive()) is not None and client.status != "closed":
            try:
                await private_names.ask_scheduler(client, REPORT, client=client.id, identities=foreign.identities())
            except OSError as error:
                _log.debug("a client cannot report to its scheduler: %s", error)
            del client
            await asyncio.sleep(settings.read().release_after / _ROUNDS)
    finally:
        end_messages()
