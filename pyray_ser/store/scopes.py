"""Control how long pickled references hold their objects.

A reference in a message of multiprocessing acquires a token that the receiver releases. Any other pickle of a reference
can be loaded any number of times, so its object is held until `free`, the end of the scope in which the reference was
pickled, or the end of the store. A scope is a context variable: each thread and each asyncio task has its own.
"""

from __future__ import annotations

import os
from contextvars import ContextVar

from .. import _core

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Scope", "forget", "hold", "release", "scope"]


class Scope:
    """The tokens that are acquired while this scope is the current one. The function `scope` makes instances."""

    def __init__(self) -> None:
        # Identity of an object -> its sticky token. One token per object is enough, even if its reference is pickled
        # several times.
        self._sticky: dict[bytes, tuple[int, tuple[int, int]]] = {}
        # Tokens of messages. Receivers release most of them, and releasing a token twice is harmless.
        self._once: dict[tuple[int, bytes, tuple[int, int]], None] = {}
        self._forks = _core.fork_count()

    def __len__(self) -> int:
        return len(self._sticky) + len(self._once)

    def has(self, identity: bytes) -> bool:
        return identity in self._sticky

    def add(self, store_id: int, identity: bytes, token: tuple[int, int], sticky: bool) -> None:
        if sticky:
            _core.scope_holds()
            self._sticky[identity] = (store_id, token)
        else:
            self._once[store_id, identity, token] = None

    def discard(self, identity: bytes) -> None:
        """Release the token of an object that was freed, so that `stats` no longer counts it."""
        store_id, token = self._sticky.pop(identity, (0, None))
        if token is None or _core.fork_count() != self._forks:
            return
        for store in _core.open_stores():
            if store.id == store_id:
                _core.drop_token(store, identity, token)

    def forget(self) -> None:
        left = {store.id for store in _core.open_stores()}
        # Iterate over a copy and release one token per step, because other threads, handlers and finalizers pickle
        # references meanwhile.
        for identity, held in self._sticky.copy().items():
            if held[0] not in left:
                self._sticky.pop(identity, None)
        for sent in self._once.copy():
            if sent[0] not in left:
                self._once.pop(sent, None)

    def end(self) -> None:
        """Release the tokens. A forked child does not release the tokens of its parent."""
        sticky, once = self._sticky, self._once
        self._sticky, self._once = {}, {}
        if _core.fork_count() != self._forks:
            return
        stores = {store.id: store for store in _core.open_stores()}
        for identity, (store_id, token) in sticky.items():
            if store_id in stores:
                _core.drop_token(stores[store_id], identity, token)
        for store_id, identity, token in once:
            if store_id in stores:
                _core.drop_token(stores[store_id], identity, token)


_current: ContextVar[Scope | None] = ContextVar("pyray_ser.scope", default=None)
# References pickled outside of any scope hold their objects until free() or the end of the store.
_outermost = Scope()


def _after_fork_in_child() -> None:
    # The tokens belong to the parent, which releases them.
    global _outermost
    _outermost = Scope()


os.register_at_fork(after_in_child=_after_fork_in_child)


class scope:
    """
    Context manager that limits how long pickled references hold their objects.

    When the block exits, references that were pickled inside it no longer hold their objects. Objects that are held in
    another way (by a reference, a view, or an object that refers to them) stay alive. Scopes work in threads and
    asyncio tasks, and may be nested.

    Examples
    --------
    >>> import pickle
    >>> ref = pyray_ser.put(1)
    >>> with pyray_ser.scope():
    ...     data = pickle.dumps(ref)  # can be loaded any number of times in here
    ...     pyray_ser.get(pickle.loads(data))
    1
    """

    def __init__(self) -> None:
        self._scope: Scope | None = None

    def __enter__(self) -> Scope:
        if self._scope is not None:
            raise RuntimeError("a scope is entered once")
        self._scope = Scope()
        self._token = _current.set(self._scope)
        return self._scope

    def __exit__(self, *exc_info: object) -> None:
        _current.reset(self._token)
        assert self._scope is not None
        self._scope.end()


def current() -> Scope:
    """Return the scope that newly acquired tokens belong to."""
    bound = _current.get()
    return _outermost if bound is None else bound


def hold(ref: _core.ObjectRef[Any], kind: int, node: bytes) -> bytes:
    """
    Acquire a token for a pickled reference, and return the bytes to send.

    Parameters
    ----------
    ref : ObjectRef
    kind : int
        1 for a message that is loaded once, 2 for bytes that may be loaded any number of times.
    node : bytes
        Name of this host.
    """
    holder = current()
    identity = ref.binary()
    if kind == 2 and holder.has(identity):
        return ref.travel(0, node)[0]
    blob, token = ref.travel(kind, node)
    # Tokens of messages are listed only inside a scope, because outside of a scope the list would grow without limit.
    if kind == 2 or holder is not _outermost:
        holder.add(ref.store_id, identity, token, kind == 2)
    return blob


def release(identity: bytes) -> None:
    """Release the tokens of an object that was freed."""
    current().discard(identity)
    _outermost.discard(identity)


def forget() -> None:
    """Drop the tokens of stores that have been closed."""
    current().forget()
    _outermost.forget()
