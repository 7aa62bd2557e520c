"""Count the values that a worker receives from other hosts, in the worker and in the store of its host.

A pull is a transfer of a value into the store of this host. Workers that map a value which another worker of the host has
received do not pull it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import _core
from ..exceptions import NameExistsError, ObjectFreedError, ObjectLostError, StoreClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Counts"]


class Counts:
    """
    The pulls of one worker or client. Only its event loop changes them.

    Attributes
    ----------
    pulls : int
        Number of values that have arrived.
    pulled_bytes : int
    failed_pulls : int
        Number of attempts that failed: the other worker is gone or does not answer, or this store is full.
    """

    def __init__(self) -> None:
        self.pulls = self.pulled_bytes = self.failed_pulls = 0

    def arrived(self, nbytes: int) -> None:
        """Count a value that has arrived."""
        self.pulls += 1
        self.pulled_bytes += nbytes
        _in_store(lambda store: store.count_pull(nbytes))

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Count a failure if the block raises an error, unless the error is the answer of a process that works."""
        try:
            yield
        except (NameExistsError, ObjectFreedError, ObjectLostError):
            # Another process of this host receives the object, or the other host no longer has it.
            raise
        except BaseException:
            self.failed_pulls += 1
            _in_store(lambda store: store.count_failed_pull())
            raise

    def as_dict(self) -> dict[str, int]:
        """Return the counters by their names in `pyray_ser.stats`."""
        return {"pulls": self.pulls, "pulled_bytes": self.pulled_bytes, "failed_pulls": self.failed_pulls}


def _in_store(count: Callable[[_core.Store], Any]) -> None:
    store = _core.default()
    if store is not None:
        try:
            count(store)
        except StoreClosedError:
            pass  # the worker is being closed
