"""Compute a named value once per machine.

The process that computes owns a claim: a small object with an ephemeral name that is derived from the name of the
value. Such a name ends when its owner frees the object, and also when its owner is killed, so a claim needs no state of
its own in shared memory. A process that forks while it computes passes the claim on to its child; therefore a waiter
also checks whether the process that made the claim is alive, and frees the claim if it is not.

A claim is similar to a lock file that a process creates exclusively and that disappears with its creator.

A factory that waits for another name without a timeout puts a second ephemeral object, which contains that
other name. Waiters follow these objects from name to name, and if they return to their own name, one of them raises.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .. import _core
from ..exceptions import (
    GetTimeoutError,
    NameExistsError,
    ObjectLostError,
    ObjectStoreFullError,
    StoreFullError,
)
from . import by_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._core import ObjectRef
    from ..typing import MmapMode

__all__ = ["Turn", "get_or_put", "get_or_put_async"]

# Seconds after which an asynchronous waiter checks the counter of the store again. The check takes no lock.
_PAUSE = 0.005
# Maximum number of seconds until a waiter checks again whether the process that computes is alive.
_CHECK = 0.1
# The turns whose factories the current thread or asyncio task is running. A task that outlives the factory that started
# it keeps these turns, although they have ended.
_computing: ContextVar[tuple[Turn, ...]] = ContextVar("pyray_ser turns that compute", default=())


def _reserved_name(kind: str, name: str) -> str:
    text = f"{_core.NAME_RESERVED}{kind}/{name}"
    if len(text.encode()) <= _core.NAME_MAX:
        return text
    import hashlib

    return f"{_core.NAME_RESERVED}{kind}/{hashlib.sha256(name.encode()).hexdigest()}"


def _claim_name(name: str) -> str:
    return _reserved_name("computing", name)


def _wait_name(name: str) -> str:
    return _reserved_name("waiting", name)


class Turn:
    """
    A call that needs the value of a name: it finds the value, claims the name, or waits for the process that did so.

    Parameters
    ----------
    store : Store
    name : str
    timeout : float or None
        Maximum number of seconds to wait for others.
    """

    def __init__(self, store: _core.Store, name: str, timeout: float | None) -> None:
        self.store = store
        self.name = name
        self._claim_name = _claim_name(name)
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout
        self._claim: ObjectRef[Any] | None = None
        self._pid = os.getpid()
        self._seen = 0
        self._checked = 0.0
        # The objects that this turn has put about its wait, by the names of the turns that it blocks.
        self._published: dict[str, ObjectRef[Any]] = {}

    def see(self) -> None:
        """Read the counter of the store: a change after this call ends the next wait immediately."""
        self._seen = _core.epoch(self.store)

    def find(self) -> ObjectRef[Any] | None:
        """Return the object of the name, if there is one."""
        self.see()
        return _core.find_name(self.store, self.name)

    def claim(self) -> bool:
        """Try to claim the name for this process; return whether this succeeded."""
        if any(turn.computes(self) for turn in _computing.get()):
            raise RuntimeError(
                f"the factory of {self.name!r} asks for {self.name!r} itself, and would wait for itself without end; "
                "hint: use another name inside the factory"
            )
        if _core.find_name(self.store, self._claim_name) is not None:
            return False
        try:
            self._claim = _core.put_reserved(os.getpid(), self._claim_name, ephemeral=True)
            self._pid = os.getpid()
        except NameExistsError:
            return False
        self._withdraw()
        return True

    def begin(self) -> None:
        """Record that this thread or task computes the value, until `end`."""
        _computing.set((*_computing.get(), self))

    def computes(self, other: Turn) -> bool:
        """Return whether this turn computes the value that another turn needs."""
        return self._claim is not None and (self.store.id, self.name) == (other.store.id, other.name)

    def publish(self, value: Any) -> ObjectRef[Any] | None:
        """Put the value; return its reference, or None if the program has put another value under this name meanwhile."""
        try:
            return _core.put(value, name=self.name)
        except NameExistsError:
            return None

    def end(self) -> None:
        """Release the claim, which wakes the waiting processes."""
        # A coroutine that is closed with its event loop ends in another context, so a token would be refused here.
        _computing.set(tuple(turn for turn in _computing.get() if turn is not self))
        claim, self._claim = self._claim, None
        # A child that was forked by the factory may end this call, too, but the claim belongs to its parent.
        if claim is not None and self._pid == os.getpid() and not self.store.closed:
            _core.unbind_name(self.store, self._claim_name, claim)

    def left(self) -> float:
        """Return how many seconds the next wait may last; raise if the timeout has passed."""
        now = time.monotonic()
        if now - self._checked > _CHECK:
            if self._checked and self._timeout is None:
                self._check_cycle()
            self._checked = now
            self._check_owner()
        if self._end is None:
            return _CHECK
        if now >= self._end:
            raise GetTimeoutError(
                f"{self._waits()} within {self._timeout} s", ref=f"named {self.name!r}", timeout=self._timeout
            )
        return min(_CHECK, self._end - now)

    def _waits(self) -> str:
        claim = _core.find_name(self.store, self._claim_name)
        maker = by_name.process_text(0 if claim is None else _core.creator_of(claim))
        return f"{maker} has not finished computing {self.name!r}"

    def _check_owner(self) -> None:
        claim = _core.find_name(self.store, self._claim_name)
        if claim is not None and not _core.creator_of(claim):
            _core.unbind_name(self.store, self._claim_name, claim)

    def _check_cycle(self) -> None:
        """Publish what the factories around this call wait for; raise if they wait for themselves in a cycle."""
        blocked = {
            turn.name
            for turn in _computing.get()
            if turn._claim is not None and turn._pid == os.getpid() and turn.store.id == self.store.id
        }
        for name in blocked - self._published.keys():
            # A factory that waits for several names publishes one of them, and the next one when that wait has ended.
            with suppress(NameExistsError, ObjectStoreFullError, StoreFullError):
                self._published[name] = _core.put_reserved(self.name, _wait_name(name), ephemeral=True)
        chain: dict[str, int] = {}
        name = self.name
        while name not in blocked:
            found = self._next(name)
            if found is None or name in chain:
                return
            chain[name], name = found
        # All processes of the cycle find the same names; the one whose name is the smallest raises.
        if name > min(chain) or any(_core.find_name(self.store, other) is not None for other in (name, *chain)):
            return
        text = ", ".join(f"{other!r}, which {by_name.process_text(pid)} computes" for other, pid in chain.items())
        raise RuntimeError(
            f"the factory of {name!r} in process {os.getpid()} asks for {text} and whose factory waits for {name!r}: it "
            "would wait for itself without end; hint: let factories ask for each other's names in one direction only"
        )

    def _next(self, name: str) -> tuple[int, str] | None:
        """Return which process computes a name, and the name for which its factory waits; None if it does not wait."""
        claim = _core.find_name(self.store, _claim_name(name))
        wait = _core.find_name(self.store, _wait_name(name))
        if claim is None or wait is None:
            return None
        pid = _core.creator_of(claim)
        # A child that was forked during the wait keeps the object after the death of its parent.
        if not pid or _core.creator_of(wait) != pid:
            if not _core.creator_of(wait):
                _core.unbind_name(self.store, _wait_name(name), wait)
            return None
        try:
            return pid, _core.get(wait)
        except ObjectLostError:
            return None  # the wait has ended

    def _withdraw(self) -> None:
        """Remove the objects that this turn has put about its wait."""
        published, self._published = self._published, {}
        # A child that was forked meanwhile has a copy of this turn.
        if self._pid != os.getpid() or self.store.closed:
            return
        for name, ref in published.items():
            _core.unbind_name(self.store, _wait_name(name), ref)

    def wait(self) -> None:
        """Sleep until a name was bound or unbound, or for a short time."""
        try:
            _core.wait_epoch(self.store, self._seen, self.left())
        except BaseException:
            self._withdraw()
            raise

    async def wait_async(self) -> None:
        """Do the same without blocking the event loop."""
        import asyncio

        try:
            until = time.monotonic() + self.left()
            while _core.epoch(self.store) == self._seen and time.monotonic() < until:
                await asyncio.sleep(_PAUSE)
        except BaseException:
            self._withdraw()
            raise


def _turn(name: str, factory: object, timeout: float | None) -> Turn:
    if not callable(factory):
        raise TypeError(f"the factory of get_or_put() is a callable, not {type(factory).__name__!r}")
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must be None or a number >= 0, not {timeout!r}")
    return Turn(by_name.current(), _core.usable_name(name), timeout)


def get_or_put(
    name: str, factory: Callable[[], Any], *, timeout: float | None = None, mmap_mode: MmapMode = "r"
) -> Any:
    """
    Return the value of a name; if there is none, compute it, once for all processes of the store.

    One caller runs the factory and puts its result under the name. All others, in this and in other processes, wait and
    then read the value in place. If the process that computes dies, or its factory raises an exception, the next waiter
    computes.

    Parameters
    ----------
    name : str
        As for `put`.
    factory : callable
        A function without arguments that returns the value.
    timeout : float, optional
        Maximum number of seconds to wait for another caller's factory. The own factory may take any time.
    mmap_mode : {"r", "c"}
        As for `get`.

    Returns
    -------
    object
        The value as `get` returns it, also for the caller whose factory ran.

    Raises
    ------
    GetTimeoutError
        If another process is still computing the value after `timeout` seconds; the message names that process.
    RuntimeError
        If the factory asks for its own name, or factories ask for each other's names without a timeout; the message
        names them and their processes.
    Exception
        Whatever the factory or `put` raises; the name then stays unbound.

    Examples
    --------
    >>> table = pyray_ser.get_or_put("table", lambda: numpy.arange(4) ** 2)
    >>> table
    array([0, 1, 4, 9])
    """
    turn = _turn(name, factory, timeout)
    while True:
        ref = turn.find()
        if ref is None and turn.claim():
            try:
                turn.begin()
                # Another process may have put the value between the two steps above.
                ref = turn.find()
                if ref is None:
                    ref = turn.publish(factory())
            finally:
                turn.end()
        if ref is not None:
            try:
                return _core.get(ref, mmap_mode=mmap_mode)
            except ObjectLostError as error:
                if not by_name.was_freed(error, turn.store, turn.name, ref):
                    raise
                continue
        turn.wait()


async def get_or_put_async(
    name: str,
    factory: Callable[[], Any | Awaitable[Any]],
    *,
    timeout: float | None = None,
    mmap_mode: MmapMode = "r",
) -> Any:
    """
    Do the same as `get_or_put`, without blocking the event loop.

    Parameters
    ----------
    name, timeout, mmap_mode
        As for `get_or_put`.
    factory : callable
        A coroutine function, which runs in the event loop, or a function, which runs in a thread. If the function
        returns a coroutine, that one runs in the event loop.

    Returns
    -------
    object

    Raises
    ------
    GetTimeoutError, RuntimeError
        As for `get_or_put`.

    Examples
    --------
    >>> async def download():
    ...     return {"rate": 1.25}
    >>> asyncio.run(pyray_ser.get_or_put_async("rates", download))
    {'rate': 1.25}
    """
    import asyncio
    import inspect

    turn = _turn(name, factory, timeout)
    while True:
        ref = turn.find()
        if ref is None and turn.claim():
            try:
                turn.begin()
                ref = turn.find()
                if ref is None:
                    if inspect.iscoroutinefunction(factory):
                        value = await factory()
                    else:
                        value = await asyncio.to_thread(factory)
                        if inspect.isawaitable(value):
                            value = await value
                    # Copying a large value takes a while, and so does pickling.
                    ref = await asyncio.to_thread(turn.publish, value)
                    del value
            finally:
                turn.end()
        if ref is not None:
            try:
                return _core.get(ref, mmap_mode=mmap_mode)
            except ObjectLostError as error:
                if not by_name.was_freed(error, turn.store, turn.name, ref):
                    raise
                continue
        await turn.wait_async()
