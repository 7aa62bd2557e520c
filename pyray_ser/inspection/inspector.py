"""Collect all results about one object, as the command line shows them."""

import json
from html import escape
from typing import Any

from .failure import FailureTuple
from .report import report_text
from .sizes import Sizes, sizes_of
from .tracing import trace

__all__ = ["Inspection", "inspect"]


class Inspection:
    """The result of one pass over an object.

    Attributes
    ----------
    serializable : bool
        Whether `put` would store it.
    failures : list of FailureTuple
        The objects that cannot be pickled, in the order in which a pickler reaches them.
    refusals : int
        Total number of times that an object refused to be pickled.
    root_global : (str, str) or None
        Module and qualified name, if the object is pickled by its name.
    sizes : Sizes
        Where the bytes are.
    """

    def __init__(self, obj: Any, name: str | None = None) -> None:
        self._trace = trace(obj, name)
        self.serializable: bool = not self._trace.total_failures
        self.failures: list[FailureTuple] = self._trace.failures
        self.refusals: int = self._trace.total_failures
        self.root_global: tuple[str, str] | None = self._trace.root_global
        self.sizes: Sizes = sizes_of(self._trace)

    def to_text(self, depth: int = 3) -> str:
        """Return the report and the tree of sizes."""
        return f"{report_text(self._trace, depth)}{self.sizes.to_text()}\n"

    def __repr__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """Return the report for notebooks."""
        return f"<pre>{escape(self.to_text())}</pre>"

    def to_json(self, indent: int | None = 2) -> str:
        """Return everything as JSON."""
        found = {
            "serializable": self.serializable,
            "refusals": self.refusals,
            "pickled_by_name": None if self.root_global is None else ":".join(self.root_global),
            "failures": [failure.as_dict() for failure in self.failures],
            **self.sizes.to_dict(),
        }
        return json.dumps(found, indent=indent)

    def to_html(self) -> str:
        """Return a self-contained page: treemap, failures, captures."""
        from .html import page

        return page(self.sizes, self.failures)


def inspect(obj: Any, name: str | None = None) -> Inspection:
    """Inspect an object: find out whether it can be pickled, what fails, and where its bytes are."""
    return Inspection(obj, name)
