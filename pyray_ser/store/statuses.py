"""The table from the status codes of the store engine to exceptions; one function raises all these exceptions."""

from __future__ import annotations

from errno import ENOSPC

from .. import exceptions as exc
from .._core import NAME_RESERVED, STATUS, ObjectRef, Store

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["exception"]


class _Facts:
    """The facts about a failure, as provided by the engine and the caller."""

    def __init__(
        self,
        status: int,
        what: str | None,
        errno: int,
        pid: int,
        want: int,
        capacity: int,
        used: int,
        store: Store | str | None,
        ref: ObjectRef[Any] | None,
        timeout: float | None,
    ) -> None:
        self.status = status
        self.what = what
        self.errno = errno
        self.pid = pid or None
        self.want = want
        self.capacity = capacity
        self.used = used
        self.path = store if isinstance(store, str) else getattr(store, "path", None)
        self.store = f"{store.id:016x}" if isinstance(store, Store) else self.path
        self.opened = store if isinstance(store, Store) and not store.closed else None
        self.ref = repr(ref) if isinstance(ref, ObjectRef) else None
        self.timeout = timeout
        # The table says that the object is alive, but it cannot be read. So it must be a spilled object.
        self.spilled = self.opened is not None and isinstance(ref, ObjectRef) and ref.state == "sealed"


def _system(facts: _Facts) -> OSError:
    import os

    return OSError(facts.errno, f"{facts.what or 'a system call failed'}: {os.strerror(facts.errno)}", facts.path)


def _no_memory(facts: _Facts) -> MemoryError:
    return MemoryError(
        (facts.what or "no private memory or address space")
        + "; close views and copy-on-write arrays, or raise vm.max_map_count and the address space limit"
    )


def _full(facts: _Facts) -> exc.ObjectStoreFullError:
    import os

    # If an errno is given, the disk of the spill directory is full.
    reason = f"{facts.what}: {os.strerror(facts.errno)}" if facts.errno else None
    return exc.ObjectStoreFullError(
        size=facts.want,
        capacity=facts.capacity,
        used=facts.used,
        reason=reason,
        holders=_holders(facts.opened),
        spills=facts.opened is not None and facts.opened.spill_dir is not None,
    )


def _holders(store: Store | None) -> str | None:
    """Describe the largest objects and what keeps each of them alive."""
    if store is None:
        return None
    records = [record for record in store.records() if record["extent"]]
    largest = sorted(records, key=lambda record: record["size"], reverse=True)[:_NAMED]
    kept, sent = _flights(store)
    shown = [f"object {record['serial']} ({_made(record)}): {_keepers(record, kept, sent)}" for record in largest]
    if len(records) > len(largest):
        shown.append(f"{len(records) - len(largest)} more, see `pyray-ser ls`")
    return "; ".join(shown) or None


# The maximum number of objects that a message lists.
_NAMED = 3


def _flights(store: Store) -> tuple[dict[int, int], dict[int, int]]:
    """Return two counts for each object: references pickled for any number of loads, and references in messages."""
    kept: dict[int, int] = {}
    sent: dict[int, int] = {}
    try:
        for flight in store.flights():
            counts = sent if flight["once"] else kept
            counts[flight["serial"]] = counts.get(flight["serial"], 0) + 1
    except exc.PyraySerError as error:
        # A stopped process holds the lock, so omit this part of the message.
        from .. import _log

        _log.debug("the references in flight are not known: %s", error)
    return kept, sent


def _made(record: dict[str, Any]) -> str:
    pid = record["creator_pid"]
    maker = "a process that has ended" if pid is None else f"process {pid}"
    return f"{exc.bytes_text(record['size'])}, made by {maker}"


def _keepers(record: dict[str, Any], kept: dict[int, int], sent: dict[int, int]) -> str:
    """Describe what keeps an object alive, and how to release it."""
    serial = record["serial"]
    pickled, messages = kept.get(serial, 0), sent.get(serial, 0)
    # A reference that was pickled several times has only one token.
    others = record["tokens_and_edges"] - pickled - messages
    found = []
    if record["state"] == "creating":
        found.append("still being made: seal() or abort() it")
    if record["name"] and record["tokens_and_edges"]:  # an ephemeral name does not keep its object alive
        if record["name"].startswith(NAME_RESERVED):  # names() omits it
            found.append(f"its name {record['name']!r}: cache_clear() of the function")
        else:
            found.append(f"its name {record['name']!r}: free(names()[{record['name']!r}])")
    if pickled:
        found.append(f"{_count(pickled, 'pickled reference')}: free() it or use scope()")
    if messages:
        found.append(f"{_count(messages, 'message')} not yet received")
    if others > 0 and not record["name"]:
        found.append(
            f"{_count(others, 'object')} that refers to it" if others == 1 else f"{others} objects that refer to it"
        )
    if record["ref_holders"]:
        found.append(f"references in {_count(record['ref_holders'], 'process')}")
    if record["pin_holders"]:
        found.append(f"views in {_count(record['pin_holders'], 'process')}")
    if record["orphaned"]:
        found.append("a forked child that could not join the store")
    return ", ".join(found) or "nothing: the next put frees it"


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _no_pages(facts: _Facts) -> exc.ObjectStoreFullError:
    reason = facts.what or "the machine has no free pages"
    hint = None
    if facts.errno == ENOSPC and facts.path is not None:
        reason, hint = _full_file_system(facts.path)
    return exc.ObjectStoreFullError(
        size=facts.want or None,
        capacity=facts.capacity or None,
        used=facts.used or None,
        reason=reason,
        hint=hint,
    )


def _full_file_system(path: str) -> tuple[str, str]:
    """Describe which file system is full, and what the user can do."""
    import os

    folder = os.path.dirname(path)
    size = ""
    try:
        found = os.statvfs(folder)
        size = f" ({exc.bytes_text(found.f_blocks * found.f_frsize)} in all, {exc.bytes_text(found.f_bavail * found.f_frsize)} free)"
    except OSError:
        pass  # the file system or directory was removed
    where = "run the container with a larger --shm-size" if folder.startswith("/dev/shm") else "give it more room"
    return (
        f"the file system of the store {path} is full{size}",
        f"{where}, remove other files in it, give a spill_dir, or use an anonymous store: init() without a name",
    )


def _lost(facts: _Facts) -> exc.ObjectLostError:
    reason = facts.what or ("it was spilled, and its file was removed" if facts.spilled else None)
    return exc.ObjectLostError(ref=facts.ref, store=facts.store, reason=reason)


def _corrupt(facts: _Facts) -> exc.CorruptObjectError:
    reason = facts.what or ("it was spilled, and its file is shorter than the object" if facts.spilled else None)
    return exc.CorruptObjectError(ref=facts.ref, reason=reason)


_TABLE: dict[str, Callable[[_Facts], BaseException]] = {
    "SYS": _system,
    "NOMEM": _no_memory,
    "FULL": _full,
    "BACKING": _no_pages,
    "CLIENTS": lambda facts: exc.StoreFullError(table="clients", limit=facts.capacity or None),
    "OBJECTS": lambda facts: exc.StoreFullError(table="objects", limit=facts.capacity or None),
    "LOST": _lost,
    "FREED": lambda facts: exc.ObjectFreedError(ref=facts.ref, store=facts.store),
    "AGAIN": lambda facts: exc.GetTimeoutError(ref=facts.ref, timeout=0.0),
    "TIMEOUT": lambda facts: exc.GetTimeoutError(ref=facts.ref, timeout=facts.timeout),
    "BUSY": lambda facts: exc.StoreBusyError(pid=facts.pid),
    "CORRUPT": _corrupt,
    "VERSION": lambda facts: exc.StoreVersionError(facts.what, store=facts.store),
    "FOREIGN": lambda facts: exc.StoreAccessError(path=facts.path, reason=facts.what),
    "CLOSED": lambda facts: exc.StoreClosedError(store=facts.store),
    "INTR": lambda facts: InterruptedError(facts.what or "interrupted by a signal"),
    "INVAL": lambda facts: ValueError(facts.what or "the store engine was called with invalid arguments"),
    "NOTFOUND": lambda facts: exc.StoreNotFoundError(store=facts.path),
    "EXISTS": lambda facts: exc.NameExistsError(facts.what),
}

_BY_NUMBER = {STATUS[name]: make for name, make in _TABLE.items()}


def exception(
    status: int,
    what: str | None = None,
    *,
    errno: int = 0,
    pid: int = 0,
    want: int = 0,
    capacity: int = 0,
    used: int = 0,
    store: Store | str | None = None,
    ref: ObjectRef[Any] | None = None,
    timeout: float | None = None,
) -> BaseException:
    """
    Return the exception for a status.

    Parameters
    ----------
    status : int
        A ``PRS_E_*`` code.
    what : str, optional
        The engine's message.
    errno, pid, want, capacity, used : int
        Fields of a ``prs_error``.
    store : Store or str, optional
        The store that reported the status, or its path.
    ref : ObjectRef, optional
        The object for which the call was made.
    timeout : float, optional
        The caller's timeout.
    """
    make = _BY_NUMBER.get(status)
    facts = _Facts(status, what or None, errno, pid, want, capacity, used, store, ref, timeout)
    if make is None:
        return exc.PyraySerError(f"the store engine reported status {status}: {facts.what}")
    return make(facts)
