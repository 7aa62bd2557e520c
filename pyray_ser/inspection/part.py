"""One component of a path."""

from typing import Any, NamedTuple

__all__ = ["Part"]


class Part(NamedTuple):
    """One component of a path."""

    text: str
    """As shown: ``.model``, ``['k']``, ``[1]``, ``closure 'cfg'``."""
    name: str
    """The user's name for it: variable, attribute, key or index."""
    parent: Any
    """The object that holds it."""

    @property
    def is_access(self) -> bool:
        """Return whether the part is written directly after its owner, without an arrow."""
        return self.text[0] in ".[" and self.text != "..."

    @property
    def leads(self) -> bool:
        """Return whether an access is written directly after this part."""
        return self.is_access or self.text.startswith("class ")
