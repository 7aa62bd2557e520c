"""Connections that tell the peer, in Dask's handshake, which store this process uses.

If both processes have a store with the same identity, they map the same memory. Host names, addresses and boot
identities do not prove this, because containers may share some of them without sharing `/dev/shm`.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from . import private_names

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FIELD", "begin", "end", "silent"]

# The key in the handshake under which the store is named.
FIELD = "pyray_ser"

_token: str | None = None
_users = 0
_before: dict[str, type] = {}
_silent: ContextVar[bool] = ContextVar("pyray_ser_silent", default=False)


def _telling(base: Any) -> type:
    """Return a subclass of a connection whose handshake names the store."""

    class Telling(base):  # type: ignore[misc]
        def handshake_info(self) -> dict[str, Any]:
            info: dict[str, Any] = super().handshake_info()
            # A scheduler must not get references, because it only passes values on and does not deserialize them.
            if _token is not None and self.deserialize and not _silent.get():
                info[FIELD] = _token
            return info

    Telling.__name__, Telling.__qualname__ = base.__name__, base.__qualname__
    return Telling


def begin(token: str) -> None:
    """
    Make new connections of this process name the store in the handshake.

    Parameters
    ----------
    token : str
        Identity of the store.
    """
    global _token, _users, _before
    if not _users:
        _before = private_names.comm_classes()
        made = {base: _telling(base) for base in set(_before.values())}
        private_names.set_comm_classes({name: made[base] for name, base in _before.items()})
    _users += 1
    _token = token


def end() -> None:
    """Undo one call of `begin`; the last call restores Dask's connections."""
    global _token, _users
    _users -= 1
    if not _users:
        private_names.set_comm_classes(_before)
        _token = None


@contextmanager
def silent() -> Iterator[None]:
    """Make connections of this task without naming the store, so that the peer sends plain values."""
    mark = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(mark)
