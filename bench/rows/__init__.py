"""The figures with limits, one module per subject; each function measures one group of them.

A row runs in a new process, so that it inherits no warm pages of another row, and returns a list of claims.
"""

from __future__ import annotations

from importlib import import_module

from measuring.claim import Claim

__all__ = ["NAMES", "measure"]

# Name on the command line -> module:function
_ROWS = {
    "get-small": "rows.get:small",
    "get-many": "rows.get:many_live",
    "get-writable": "rows.get:writable",
    "put-small": "rows.put:small",
    "put-dict": "rows.put:mapping",
    "put-list": "rows.put:small_arrays",
    "put-warm": "rows.large:warm",
    "put-cold": "rows.large:cold",
    "put-second-hand": "rows.large:second_hand",
    "table-pandas": "rows.frames:pandas",
    "table-arrow": "rows.frames:arrow",
    "table-polars": "rows.frames:polars",
    "table-objects": "rows.frames:objects",
    "state-dict": "rows.frames:state_dict",
    "handover": "rows.handover:reference",
    "handover-large": "rows.handover:large",
    "two-small": "rows.together:small",
    "two-large": "rows.together:large",
    "bookkeeping": "rows.memory:bookkeeping",
    "readers": "rows.memory:readers",
    "startup": "rows.startup:first_put_and_get",
}
NAMES = list(_ROWS)


def measure(name: str, quick: bool = False) -> list[Claim]:
    """
    Measure one row in this process.

    Parameters
    ----------
    name : str
    quick : bool
        Whether to run few rounds with smaller values; this only tests that the row runs, and the figures mean little.
    """
    module, _, function = _ROWS[name].partition(":")
    return getattr(import_module(module), function)(quick)
