"""Show why an object is large: its bytes by path, and how `put` stores them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pickle import PickleBuffer
from types import CellType, FunctionType
from typing import Any

from . import frames
from .part import Part
from .path import Way, path_text, root_name
from .text import brief, class_name, shorten, size_text
from .tracing import Trace, trace

__all__ = ["Size", "Sizes", "inspect_size", "sizes_of"]


# Deeper parts are omitted from JSON, because JSON parsers are recursive and so accept only a limited depth.
_JSON_DEPTH = 64
# A chain of parts, each of which contains only the next one, is shown in full up to this length.
_RUN = 12
# The maximum number of columns of one type that are listed separately.
_COLUMNS = 128


class _Path:
    """A path to which parts are appended, and which is converted to text on demand."""

    __slots__ = ("_before", "_gap", "_text")

    def __init__(self, before: "_Path | None", gap: str, text: str) -> None:
        self._before, self._gap, self._text = before, gap, text

    def down(self, parts: list[Part], access: bool) -> "_Path":
        """Return the path with more parts; `access` tells whether an access may follow directly."""
        text = path_text(parts)
        follows = parts[0].is_access and (access or not self)
        return _Path(self, "" if follows or not self else " -> ", text)

    def __bool__(self) -> bool:
        return bool(self._text) or self._before is not None

    def pieces(self) -> tuple[str, str]:
        """Return the separator before the last piece of the path, and that piece."""
        return self._gap, self._text

    def __str__(self) -> str:
        texts: list[str] = []
        path: _Path | None = self
        while path is not None:
            texts += [path._text, path._gap]
            path = path._before
        return "".join(reversed(texts))


class Size:
    """Bytes of one part of an object, including the parts that it contains.

    Attributes
    ----------
    path : str
        The path from the root object to this part.
    label : str
        The last step of this path.
    type : str
        Its class.
    text : str
        A short text for the object.
    in_band : int
        Bytes in the pickle stream, which are copied into the store and decoded by every reader.
    zero_copy : int
        Bytes of buffers that are copied into the store once and read in place.
    copied : int
        Bytes of out-of-band buffers that a reader copies once (``bytes``, ``bytearray``).
    referenced : int
        Bytes that were in the store already. They are not copied; the new object keeps the old one alive.
    children : list of Size
        The larger parts, largest first. Small parts are left out.
    others : int
        Number of large parts that are not listed.
    """

    __slots__ = ("_path", "children", "copied", "in_band", "label", "others", "referenced", "text", "type", "zero_copy")

    def __init__(
        self, path: _Path, label: str, type: str, text: str, in_band: int, zero_copy: int, copied: int, referenced: int
    ) -> None:
        self._path = path
        self.label = label
        self.type = type
        self.text = text
        self.in_band = in_band
        self.zero_copy = zero_copy
        self.copied = copied
        self.referenced = referenced
        self.children: list[Size] = []
        self.others = 0

    @property
    def path(self) -> str:
        """Return the path from the root object to this part."""
        return str(self._path)

    @property
    def total(self) -> int:
        """All bytes."""
        return self.in_band + self.zero_copy + self.copied + self.referenced

    @property
    def kinds(self) -> dict[str, int]:
        """Return the numbers of bytes by kind."""
        return {
            "zero-copy": self.zero_copy,
            "copied": self.copied,
            "referenced": self.referenced,
            "in-band": self.in_band,
        }

    def __repr__(self) -> str:
        kinds = ", ".join(f"{size_text(number)} {word}" for word, number in self.kinds.items() if number)
        return f"<Size of {self.path or self.type}: {size_text(self.total)} ({kinds})>"

    def as_dict(self) -> dict[str, Any]:
        """Return the tree as nested dictionaries, for JSON; ``deeper`` counts the parts that are too deep for JSON."""
        root: dict[str, Any] = {}
        waiting: list[tuple[Size, dict[str, Any], int]] = [(self, root, 0)]
        while waiting:
            size, found, depth = waiting.pop()
            found.update(
                path=size.path, type=size.type, object=size.text, total=size.total, in_band=size.in_band,
                zero_copy=size.zero_copy, copied=size.copied, referenced=size.referenced,
            )  # fmt: skip
            if size.children and depth < _JSON_DEPTH:
                found["children"] = [{} for _ in size.children]
                waiting += [
                    (child, made, depth + 1) for child, made in zip(size.children, found["children"], strict=True)
                ]
            elif size.children:
                found["deeper"] = sum(1 for _ in _walk(size)) - 1
            if size.others:
                found["others"] = size.others
        return root


def _walk(root: Size) -> Iterator[Size]:
    """Iterate over all parts, each before what is below it."""
    waiting = [root]
    while waiting:
        size = waiting.pop()
        yield size
        waiting += reversed(size.children)


@dataclass(slots=True, repr=False)
class Sizes:
    """Where the bytes of an object are.

    Attributes
    ----------
    root : Size
        The whole object, with its parts as descendants.
    captures : list of Size
        Objects that functions capture by closures, globals and default arguments, largest first.
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
        """Out-of-band bytes that readers copy."""
        return self.root.copied

    @property
    def referenced(self) -> int:
        """Bytes that were in the store already, to which the object refers."""
        return self.root.referenced

    def __iter__(self) -> Iterator[Size]:
        """Iterate over all parts, each before what is below it."""
        return _walk(self.root)

    def __getitem__(self, path: str) -> Size:
        """Return the part of a path as the tree shows it, such as ``value['weights']``."""
        waiting = [(self.root, 0)]
        while waiting:
            size, at = waiting.pop()
            for piece in size._path.pieces():
                if not path.startswith(piece, at):
                    break
                at += len(piece)
            else:
                if at == len(path):
                    return size
                waiting += [(child, at) for child in reversed(size.children)]
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
        text, missing = _tree(self.root, lines, max(self.total // 200, 1))
        if missing:
            text.append(f"... and {missing} smaller parts")
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
            text += [f"  {size_text(capture.total):>8}  {shorten(capture.path, 200)}" for capture in self.captures[:10]]
        return "\n".join(text)

    __str__ = to_text

    def __repr__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """Return the treemap and the tree for notebooks."""
        from .html import fragment

        return fragment(self)


def inspect_size(obj: Any, name: str | None = None, *, threshold: int = 1024) -> Sizes:
    """Show where the bytes of an object are, by path.

    Parameters
    ----------
    obj : object
        Any object; parts that cannot be pickled count as 0 bytes.
    name : str, optional
        Name of the object in the result.
    threshold : int, optional
        Buffers of at least this many bytes are stored outside of the stream, as in `put`.

    Returns
    -------
    Sizes
        Its text is a tree; see also `Sizes.to_json` and `Sizes.to_html`.

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
    """Arrange the bytes of a traced object by path."""
    node = result.tree
    name = result.name or root_name(result.root)
    root = _size(node, _Path(None, "", name or ""), name or "")
    captures: list[Size] = []
    every = [root]
    # Each entry contains: a node; the path to the node; the number of parts that this path shares with the path of
    # the parent; the parent; whether an access may follow the parent; the parts between the parent and the node.
    waiting: list[tuple[Any, Way, int, Size, bool, list[Part]]] = [(node, Way(), 0, root, bool(name), [])]
    while waiting:
        node, way, known, parent, access, passed = waiting.pop()
        parent.others += node.others
        for child in node.children or ():
            down = way.down(child.step)
            parts = down.since(known)
            if not parts and (shared := frames.columns(down.near())) is not None:
                made = _columns(child, parent, shared)
                every += made
                parent.children += made
            elif not parts or type(child.obj) is PickleBuffer or _is_ours(type(child.obj)):
                # The parts of an argument tuple, a state or a cell belong to the same holder. A buffer in a reduction
                # also belongs to it, because it contains the object's own data.
                waiting.append((child, down, down.count, parent, access, passed + parts))
            else:
                size = _size(child, parent._path.down(passed + parts, access), path_text(parts))
                every.append(size)
                parent.children.append(size)
                if type(parts[-1].parent) is FunctionType and type(child.obj) is not CellType:
                    captures.append(size)
                waiting.append((child, down, down.count, size, parts[-1].leads, []))
    for size in every:
        size.children.sort(key=_total, reverse=True)
    captures.sort(key=_total, reverse=True)
    return Sizes(root, captures)


def _total(size: Size) -> int:
    return size.total


def _size(node: Any, path: _Path, label: str) -> Size:
    return Size(
        path,
        label,
        class_name(type(node.obj)),
        brief(node.obj),
        node.inband,
        node.zero_copy,
        node.copied,
        node.referenced,
    )


def _columns(node: Any, parent: Size, labels: list[str]) -> list[Size]:
    """Divide an array that contains several columns of one type into equal parts."""
    shown = labels[:_COLUMNS]
    parent.others += len(labels) - len(shown)
    array = node.obj
    return [
        Size(
            parent._path.down([Part(label, label, None)], access=True), label, "column", f"<{array.dtype} ({array.shape[1]},)>",
            *(number // len(labels) for number in (node.inband, node.zero_copy, node.copied, node.referenced)),
        )
        for label in shown
    ]  # fmt: skip


def _is_ours(cls: type) -> bool:
    """Return whether a reducer of this package made the part; its bytes then belong to the reduced object."""
    return class_name(cls).startswith("pyray_ser.pickling.reducers.")


def _line(size: Size, lead: str, least: int) -> str:
    label = f"{size.label}  " if size.label else ""
    text = "" if size.text.startswith(("<", "[", "{", "(")) else f"  {size.text}"
    kinds = [f"{size_text(number)} {word}" for word, number in size.kinds.items() if number and word != "in-band"]
    if kinds and size.in_band >= least:
        kinds.append(f"{size_text(size.in_band)} in-band")
    note = f"  ({', '.join(kinds)})" if kinds and not size.children else ""
    return f"{size_text(size.total):>7}  {lead}{label}{size.type}{text}{note}"


def _tree(root: Size, limit: int, least: int) -> tuple[list[str], int]:
    """Return the lines of the tree, and the number of omitted lines."""
    lines: list[str] = []
    missing = 0
    waiting = [(root, "", "")]
    while waiting:
        size, lead, below = waiting.pop()
        run = [size]
        while True:
            shown = [child for child in run[-1].children if child.total >= least]
            if len(shown) != 1:
                break
            run += shown
        if len(run) > _RUN:
            # In this chain, each part contains only the next one, as in a linked list or in nested lists.
            hidden = len(run) - _RUN // 2 - 1
            run = [*run[: _RUN // 2], run[-1]]
        else:
            hidden = 0
        for i, part in enumerate(run):
            if hidden and i == len(run) - 1:
                missing += _add(lines, limit, f"{'':>7}  {below}... {hidden} levels of the same kind ...")
            missing += _add(lines, limit, _line(part, lead, least) if len(lines) < limit else "")
            if i < len(run) - 1:
                lead, below = f"{below}└─ ", f"{below}   "
        room = len(lines) < limit
        waiting += [
            (child, f"{below}├─ ", f"{below}│  ") if room and child is not shown[-1]
            else (child, f"{below}└─ ", f"{below}   ") if room
            else (child, "", "")
            for child in reversed(shown)
        ]  # fmt: skip
    return lines, missing


def _add(lines: list[str], limit: int, line: str) -> int:
    """Add a line if there is room; return how many lines are missing."""
    if len(lines) >= limit:
        return 1
    lines.append(line)
    return 0
