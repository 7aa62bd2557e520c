"""List, delete and rename the named objects of a store."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _core, _log
from ..exceptions import NameNotFoundError, ObjectFreedError, ObjectLostError, PyraySerError
from . import discovery

if TYPE_CHECKING:
    from .._core import ObjectRef

__all__ = ["NamedObject", "current", "delete", "described", "owner_of", "process_text", "rename", "was_freed"]


class NamedObject(NamedTuple):
    """
    What `names` says about a name.

    Attributes
    ----------
    ref : ObjectRef
    version : int
        Larger than the versions of all names that were bound earlier in this store.
    time : float
        When the name was bound, in seconds since the epoch, to the second.
    ephemeral : bool
        True if the name ends with the last holder of its object.

    Examples
    --------
    >>> ref = pyray_ser.put({"lr": 0.1}, name="settings")
    >>> named = pyray_ser.names(details=True)["settings"]
    >>> named.ref == ref, named.version, named.ephemeral
    (True, 1, False)
    """

    ref: ObjectRef[Any]
    version: int
    time: float
    ephemeral: bool

    def _repr_html_(self) -> str:
        from .references import rows_of, table

        bound = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        rows = [("version", str(self.version)), ("bound", bound), ("ephemeral", "yes" if self.ephemeral else "no")]
        return table("NamedObject", [*rows, *rows_of(self.ref)])


def was_freed(error: BaseException, store: _core.Store, name: str, ref: ObjectRef[Any]) -> bool:
    """
    Return whether `error` means that an object was freed after it was found by a name.

    If the slot of the object was used several times since, the store only knows that the object is lost. The same error
    is raised for a spill file that is missing or damaged, but then the name still belongs to the object.
    """
    if isinstance(error, ObjectFreedError):
        return True
    return isinstance(error, ObjectLostError) and _core.find_name(store, name) != ref


def current() -> _core.Store:
    """Return the default store; open it first if this process has none."""
    store = _core.default()
    if store is not None:
        return store
    store = discovery.open_default()
    parent = discovery.parent_without_store(store)
    if parent:
        _log.warning(
            "process %d shares names and cached results with no other process, because process %d, which started it, has "
            "no store; hint: call pyray_ser.init() there before it starts workers", os.getpid(), parent,
        )  # fmt: skip
    return store


def described(prefix: str = "") -> dict[str, NamedObject]:
    """Return the named objects whose name starts with a prefix, without those of this package."""
    store, now = current(), time.time()
    found = {}
    for name, *_ in _core.names_of(store, prefix):
        if name.startswith(_core.NAME_RESERVED):
            continue
        # Omit objects that were freed after they were listed.
        entry = _core.find_version(store, name)
        if entry is not None:
            ref, version, age, keeps = entry
            found[name] = NamedObject(ref, version, now - age, not keeps)
    return found


def delete(name: str) -> None:
    """
    Remove a name from its object.

    The object exists as long as a process holds a reference or a view; `free` frees it for all processes.

    Parameters
    ----------
    name : str

    Raises
    ------
    NameNotFoundError
        If no object has this name.

    Examples
    --------
    >>> ref = pyray_ser.put({"lr": 0.1}, name="settings")
    >>> pyray_ser.delete("settings")
    >>> pyray_ser.get(ref)
    {'lr': 0.1}
    """
    if _core.unbind_name(current(), _core.usable_name(name)) is None:
        raise NameNotFoundError(name=name)


def rename(old: str, new: str) -> None:
    """
    Rename an object in one step: at any time, it has either the old or the new name.

    Parameters
    ----------
    old, new : str

    Raises
    ------
    NameNotFoundError
        If no object has the old name.
    NameExistsError
        If another object has the new name.

    Examples
    --------
    >>> ref = pyray_ser.put({"lr": 0.1}, name="settings")
    >>> pyray_ser.rename("settings", "settings of yesterday")
    """
    _core.move_name(current(), _core.usable_name(old), _core.usable_name(new))


def owner_of(store: _core.Store, name: str) -> str | None:
    """Return the age of a name and the process that made its object, for an error message; None if it is unbound."""
    try:
        entry = _core.find_version(store, name)
        if entry is None:
            return None
        ref, _, age, _ = entry
        return f"since {age} s, of an object made by {process_text(_core.creator_of(ref))}"
    except PyraySerError:
        return None  # the store is closed or busy, and the caller reports another error


def process_text(pid: int) -> str:
    """Return a process as text for an error message; 0 is a process that has ended."""
    if not pid:
        return "a process that has ended"
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode(errors="replace").replace("\0", " ").strip()
    except OSError:
        words = ""
    return f"process {pid}" + (f" ({words[:60]})" if words else "")
