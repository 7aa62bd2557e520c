"""Why is this 2 GB? Bytes by path, and what becomes of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pickle import PickleBuffer
from types import CellType, FunctionType
from typing import Any

from .path import Step, describe, path_text, root_name
from .text import brief, class_name, size_text
from .tracing import Trace, trace

__all__ = ["Size", "Sizes", "inspect_size", "sizes_of"]


@dataclass(slots=True)
class Size:
    """Bytes of one part of an object and of what hangs below it.

    Attributes
    ----------
    path : str
        The way to it from the whole.
    label : str
        The last step of that way.
    type : str
        Its class.
    text : str
        The object in short.
    in_band : int
        Bytes in the pickle stream: copied in, and decoded by every reader.
    zero_copy : int
        Bytes of buffers that are copied in once and read in place.
    copied : int
        Bytes of buffers beside the stream that a reader copies once (``bytes``, ``bytearray``).
    referenced : int
        Bytes that were in the store already: nothing is copied, the new object holds the old one.
    children : list of Size
        The larger parts, largest first. What is missing to the sum is small.
    others : int
        How many parts were large enough to be noticed, but are not listed.
    """

    path: str
    label: str
    type: str
    text: str
    in_band: int
    zero_copy: int
    copied: int
    children: "list[Size]" = field(default_factory=list)
    others: int = 0
    referenced: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.in_band + self.zero_copy + self.copied + self.referenced

    @property
    def kinds(self) -> dict[str, int]:
        """Bytes by what becomes of them."""
        return {
            "zero-copy": self.zero_copy,
            "copied": self.copied,
            "referenced": self.referenced,
            "in-band": self.in_band,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return it as nested dictionaries, for JSON."""
        found: dict[str, Any] = {
            "path": self.path,
            "type": self.type,
            "object": self.text,
            "total": self.total,
            "in_band": self.in_band,
            "zero_copy": self.zero_copy,
            "copied": self.copied,
            "referenced": self.referenced,
        }
        if self.children:
            found["children"] = [child.as_dict() for child in self.children]
        if self.others:
            found["others"] = self.others
        return found


@dataclass(slots=True)
class Sizes:
    """Where the bytes of an object are.

    Attributes
    ----------
    root : Size
        The whole, and its parts below it.
    captures : list of Size
        What functions capture by closures, globals and default arguments, largest first.
    """

    root: Size
    captures: list[Size]

    @property
    def total(self) -> int:
        """All bytes."""
        return self.root.total

    @property
    def in_band(self) -> int:
        """Bytes in the pickle stream."""
        return self.root.in_band

    @property
    def zero_copy(self) -> int:
        """Bytes that readers use in place."""
        return self.root.zero_copy

    @property
    def copied(self) -> int:
        """Bytes beside the stream that readers copy."""
        return self.root.copied

    @property
    def referenced(self) -> int:
        """Bytes that were in the store already, and are referred to."""
        return self.root.referenced

    def __iter__(self) -> Iterator[Size]:
        """Iterate over all parts, each before what is below it."""
        waiting = [self.root]
        while waiting:
            size = waiting.pop()
            yield size
            waiting += reversed(size.children)

    def __getitem__(self, path: str) -> Size:
        """Return the part of a path as the tree shows it, such as ``value['weights']``."""
        for size in self:
            if size.path == path:
                return size
        raise KeyError(path)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as nested dictionaries and lists."""
        return {
            "sizes": self.root.as_dict(),
            "captures": [capture.as_dict() for capture in self.captures],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_html(self) -> str:
        """Return a self-contained page with a treemap."""
        from .html import page

        return page(self)

    def to_text(self, lines: int = 60) -> str:
        """Return a tree of at most `lines` lines."""
        shown: list[str] = []
        _tree(self.root, "", "", shown, max(self.total // 200, 1))
        text = shown[:lines]
        if len(shown) > lines:
            text.append(f"... and {len(shown) - lines} smaller parts")
        text.append("")
        text.append(
            f"in all {size_text(self.total)}: "
            + ", ".join(
                f"{size_text(number)} {word}"
                for word, number in self.root.kinds.items()
                if number or word != "referenced"
            )
        )
        if self.captures:
            text += ["", "captured by functions:"]
            text += [f"  {size_text(capture.total):>8}  {capture.path}" for capture in self.captures[:10]]
        return "\n".join(text)

    __str__ = to_text


def inspect_size(obj: Any, name: str | None = None, *, threshold: int = 1024) -> Sizes:
    """Tell where the bytes of an object are, by path.

    Parameters
    ----------
    obj : object
        Anything; what cannot be pickled counts nothing.
    name : str, optional
        What to call it.
    threshold : int, optional
        Buffers of so many bytes leave the stream, as in `put`.

    Returns
    -------
    Sizes
        Prints as a tree; see also `Sizes.to_json` and `Sizes.to_html`.

    Examples
    --------
    >>> from pyray_ser.inspection import inspect_size
    >>> sizes = inspect_size({"text": "x" * 50_000, "few": [1, 2]})
    >>> print(sizes)  # doctest: +ELLIPSIS
      50 kB  dict
      50 kB  └─ ['text']  str  'xxx...
    <BLANKLINE>
    in all 50 kB: 0 B zero-copy, 0 B copied, 50 kB in-band
    """
    return sizes_of(trace(obj, name, threshold=threshold))


def sizes_of(result: Trace) -> Sizes:
    """Lay a traced object's tree of bytes out by path."""
    node = result.tree
    name = result.name or root_name(result.root)
    root = Size(
        name or "", name or "", class_name(type(result.root)), brief(result.root),
        node.inband, node.zero_copy, node.copied, referenced=node.referenced,
    )  # fmt: skip
    captures: list[Size] = []
    root.others = _children(node, [], 0, root, name, captures)
    captures.sort(key=lambda size: size.total, reverse=True)
    return Sizes(root, captures)


def _children(node: Any, steps: list[Step], known: int, parent: Size, name: str | None, captures: list[Size]) -> int:
    """Hang the nodes below `node` under `parent`; what is inside a reduction is passed through."""
    others: int = node.others
    for child in node.children or ():
        way = [*steps, child.step]
        parts = describe(way)
        if len(parts) == known or type(child.obj) is PickleBuffer or _is_ours(type(child.obj)):
            # An argument tuple, a state, a cell: its parts belong to the same holder. A buffer that a
            # reduction hands over is the object's own data.
            others += _children(child, way, len(parts), parent, name, captures)
            continue
        size = Size(
            path_text(parts, name), path_text(parts[known:]), class_name(type(child.obj)), brief(child.obj),
            child.inband, child.zero_copy, child.copied, referenced=child.referenced,
        )  # fmt: skip
        parent.children.append(size)
        if type(parts[-1].parent) is FunctionType and type(child.obj) is not CellType:
            captures.append(size)
        size.others = _children(child, way, len(parts), size, name, captures)
    parent.children.sort(key=lambda size: size.total, reverse=True)
    return others


def _is_ours(cls: type) -> bool:
    """Whether a reducer of ours put it in: it stands for data of the object that was reduced."""
    return class_name(cls).startswith("pyray_ser.pickling.reducers.")


def _tree(size: Size, lead: str, below: str, lines: list[str], least: int) -> None:
    label = f"{size.label}  " if size.label else ""
    text = "" if size.text.startswith(("<", "[", "{", "(")) else f"  {size.text}"
    kinds = [f"{size_text(number)} {word}" for word, number in size.kinds.items() if number and word != "in-band"]
    if kinds and size.in_band >= least:
        kinds.append(f"{size_text(size.in_band)} in-band")
    note = f"  ({', '.join(kinds)})" if kinds and not size.children else ""
    lines.append(f"{size_text(size.total):>7}  {lead}{label}{size.type}{text}{note}")
    shown = [child for child in size.children if child.total >= least]
    for index, child in enumerate(shown):
        last = index == len(shown) - 1
        _tree(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "), lines, least)
