"""The modules that are imported before any process forks.

A forked child inherits the locks of the import system. If another thread held one at the fork, an import in the child
waits forever. Therefore the parent imports everything that a child needs to send and receive.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

__all__ = ["everything", "numpy"]

_PACKAGE = __name__.partition(".")[0]
_NEEDED = (
    "exceptions",
    "inspection.message_failure",
    "pickling.registry",
    "pickling.serialization",
    "store.cached_results",
    "store.discovery",
    "store.named_stores",
    "store.options",
    "store.references",
    "store.scopes",
    "store.spill_codec",
    "store.statuses",
)
_NEEDED_HERE = (
    "direct",
    "received_arrays",
    "audience",
    "counts",
    "in_flight",
    "load",
    "loky",
    "main_by_value",
    "message",
    "pipes",
    "processes",
    "stored_once",
)


def everything() -> None:
    """Import all modules that are needed to send and receive. The call may be repeated."""
    for name in _NEEDED:
        importlib.import_module(f"{_PACKAGE}.{name}")
    for name in _NEEDED_HERE:
        importlib.import_module(f"{__package__}.{name}")


def numpy() -> ModuleType | None:
    """Return NumPy if the program has completely imported it."""
    found = sys.modules.get("numpy")
    if found is None or getattr(getattr(found, "__spec__", None), "_initializing", False):
        return None
    return found
