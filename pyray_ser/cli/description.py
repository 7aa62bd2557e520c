"""Say what a stored object is, from the first bytes of its stored form, without unpickling it.

The stream is a pickle that another process wrote. Loading it could run any code, so `describe` only follows the opcodes:
it keeps a stack of notes ("a call of numpy.ndarray with these arguments") and calls and imports nothing. It reads at
most `STREAM_MAX` bytes and follows at most `_OPCODES_MAX` opcodes. If the stream is longer, it describes the container
that the stream was filling.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from itertools import takewhile
from typing import Any, NamedTuple

__all__ = ["Buffer", "Form", "describe", "read_form"]

# How much of a stream is read for one object, and for each object of a list.
STREAM_MAX, STREAM_SHORT = 64 << 10, 8 << 10
_OPCODES_MAX = 100_000
_ARGUMENTS = 64
_TEXT_MAX = 200
_BUFFERS_MAX = 10_000

# ---- the stored form, see csrc/store/format.h -----------------------------------------------------------------------

_HEADER = struct.Struct("<4sHHQQII")
_ENTRY = struct.Struct("<QQQII")
_NO_SLOT = 0xFFFFFFFF


class Buffer(NamedTuple):
    """A buffer of the stored form; `serial` is the other object that contains it, if any."""

    offset: int
    size: int
    serial: int | None


class Form(NamedTuple):
    """The beginning of the stored form."""

    stream_size: int
    buffer_count: int
    buffers: list[Buffer]
    stream: bytes


def read_form(read: Callable[[int, int], bytes], size: int, whole: bool = False) -> Form | None:
    """
    Return the beginning of the stored form of an object.

    Parameters
    ----------
    read : callable
        ``read(offset, size)`` returns bytes of the object, or fewer.
    size : int
        Size of the object.
    whole : bool
        If true, read as much as `describe` can use; otherwise, what it needs for most objects.

    Returns
    -------
    Form or None
        None if the bytes are not those of a stored object of this size.
    """
    first = read(0, 1024)
    if len(first) < _HEADER.size:
        return None
    magic, version, flags, total, stream_size, count, reserved = _HEADER.unpack_from(first)
    start = _HEADER.size + count * _ENTRY.size
    if magic != b"PRSO" or version != 1 or flags or reserved or total != size or start + stream_size > size:
        return None
    wanted = min(stream_size, STREAM_MAX if whole else STREAM_SHORT)
    stream = first[start : start + wanted] if start + wanted <= len(first) else read(start, wanted)
    entries = first[_HEADER.size : start]
    if whole and len(entries) < count * _ENTRY.size:
        entries = read(_HEADER.size, min(count, _BUFFERS_MAX) * _ENTRY.size)
    buffers = [
        Buffer(offset, length, None if slot == _NO_SLOT else serial)
        for offset, length, serial, slot, _ in _ENTRY.iter_unpack(entries[: len(entries) // _ENTRY.size * _ENTRY.size])
    ]
    return Form(stream_size, count, buffers, stream)


# ---- the notes on the stack -------------------------------------------------------------------------------------------


class _Note:
    """
    What is known about a value on the stack of the unpickler.

    Attributes
    ----------
    kind : str
        "list", "tuple", "dict", "set", "frozenset", "global", "call", "buffer", "text", "bytes" or "other".
    name : str
        Of a global: ``module:qualname``. Of "other": its type.
    items : list
        The items of a container, keys and values of a dict in turns; function and arguments of a call.
    state : object
        What the stream passes to ``__setstate__``.
    number : int
        Index of a buffer; length of text or bytes.
    """

    __slots__ = ("items", "kind", "name", "number", "state")

    def __init__(self, kind: str, items: list[Any] | None = None, name: str = "", number: int = 0) -> None:
        self.kind = kind
        self.items = [] if items is None else items
        self.name = name
        self.number = number
        self.state: Any = None


class _Stop(Exception):
    """The stream ends here, or is one that the walk does not understand."""


_MARK = _Note("mark")
_INTS = {"K": (1, False), "M": (2, False), "J": (4, True)}
# Opcode -> bytes of the length, and the kind of what follows.
_SIZED = {
    "\x8c": (1, "text"), "X": (4, "text"), "\x8d": (8, "text"),
    "C": (1, "bytes"), "B": (4, "bytes"), "\x8e": (8, "bytes"), "\x96": (8, "bytearray"),
}  # fmt: skip
_EMPTY = {"]": "list", ")": "tuple", "}": "dict", "\x8f": "set"}
_ATOMS = {"N": "None", "\x88": "bool", "\x89": "bool"}
_LINES = {"I": "int", "L": "int", "F": "float"}


class _Walk:
    """One walk over a stream."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data = data
        self.sizes = sizes
        self.arrays: dict[int, str] = {}
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.buffers = 0
        self.complete = False

    def run(self) -> Any:
        """Return the note of the value; if the stream does not end in `data`, the note of the outermost value."""
        try:
            for _ in range(_OPCODES_MAX):
                op = chr(self.take(1)[0])
                if op == ".":
                    self.complete = True
                    break
                self.step(op)
        except (_Stop, IndexError):
            pass
        if self.complete and self.stack:
            return self.stack[-1]
        outermost = next((value for value in self.stack if value is not _MARK), None)
        if outermost is not None and self.stack[0] is outermost and self.stack[1:2] == [_MARK]:
            outermost.items += self.waiting()
        return outermost

    def waiting(self) -> list[Any]:
        """Return the items that the stream has named, but not yet added to the outermost container."""
        items = list(takewhile(lambda item: item is not _MARK, self.stack[2:]))
        # The last ones may belong to an inner container or object. Count too few rather than too many.
        while len(items) > 1:
            if _may_hold(items[-2]):
                items.pop()
            elif len(items) > 2 and items[-3].kind == "dict" and not items[-3].items:
                del items[-2:]
            else:
                break
        return items

    # ---- reading --------------------------------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _Stop
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise _Stop
        text = self.take(end + 1 - self.at)
        return text[:-1].decode("utf-8", "replace")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise _Stop
        return value

    def marked(self) -> list[Any]:
        """Return the values above the last mark, and remove them and the mark."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise _Stop

    def top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise _Stop
        return value

    # ---- opcodes --------------------------------------------------------------------------------------------------------

    def step(self, op: str) -> None:
        """Follow one opcode."""
        push = self.stack.append
        if op in _INTS:
            push(_Note("int", number=self.number(*_INTS[op])))
        elif op in _SIZED:
            self.sized(*_SIZED[op])
        elif op == "(":
            push(_MARK)
        elif op in _EMPTY:
            push(_Note(_EMPTY[op]))
        elif op in _ATOMS:
            push(_Note("other", name=_ATOMS[op]))
        elif op == "G":
            self.take(8)
            push(_Note("other", name="float"))
        elif op in "\x85\x86\x87":
            count = ord(op) - 0x84
            items = [self.pop() for _ in range(count)]
            push(_Note("tuple", items[::-1]))
        elif op == "t":
            push(_Note("tuple", self.marked()))
        elif op == "l":
            push(_Note("list", self.marked()))
        elif op == "d":
            push(_Note("dict", self.marked()))
        elif op == "\x91":
            push(_Note("frozenset", self.marked()))
        elif op in "eu\x90":
            items = self.marked()
            self.top().items += items
        elif op == "a":
            item = self.pop()
            self.top().items.append(item)
        elif op == "s":
            value, key = self.pop(), self.pop()
            self.top().items += (key, value)
        else:
            self.rare(op)

    def sized(self, width: int, kind: str) -> None:
        """Push text or bytes. A length beyond the end of `data` ends the walk, but the length is still known."""
        length = self.number(width)
        note = _Note(kind, number=length)
        self.stack.append(note)
        content = self.take(length)
        if kind == "text":
            note.name = content.decode("utf-8", "replace")
            note.number = len(note.name)

    def rare(self, op: str) -> None:
        """Follow an opcode that occurs less often."""
        push = self.stack.append
        if op == "\x94":  # MEMOIZE
            self.memo[len(self.memo)] = self.top()
        elif op in "hj":
            push(self.memoized(self.number(1 if op == "h" else 4)))
        elif op in "qr":
            self.memo[self.number(1 if op == "q" else 4)] = self.top()
        elif op == "p":
            self.memo[_int(self.line())] = self.top()
        elif op == "g":
            push(self.memoized(_int(self.line())))
        elif op == "\x97":  # NEXT_BUFFER
            push(_Note("buffer", number=self.buffers))
            self.buffers += 1
        elif op == "\x98":  # READONLY_BUFFER
            self.top()
        elif op == "\x93":
            name, module = self.pop(), self.pop()
            push(_Note("global", name=f"{module.name[:_TEXT_MAX]}:{name.name[:_TEXT_MAX]}"))
        elif op == "c":
            module_name = self.line()
            push(_Note("global", name=f"{module_name}:{self.line()}"))
        elif op in "R\x81":
            self.call()
        elif op == "\x92":  # NEWOBJ_EX
            self.pop()
            self.call()
        elif op == "o":
            items = self.marked()
            if not items:
                raise _Stop
            push(_Note("call", items))
        elif op == "i":
            name = _Note("global", name=f"{self.line()}:{self.line()}")
            push(_Note("call", [name, *self.marked()]))
        elif op == "b":
            state = self.pop()
            self.top().state = state
        elif op == "\x8a":
            push(_Note("int", number=int.from_bytes(self.take(self.number(1)), "little", signed=True)))
        elif op == "\x8b":
            self.take(self.number(4))
            push(_Note("other", name="int"))
        elif op in _LINES:
            self.line()
            push(_Note("other", name=_LINES[op]))
        elif op == "V":
            text = self.line()
            push(_Note("text", name=text, number=len(text)))
        else:
            self.last(op)

    def last(self, op: str) -> None:
        """Follow an opcode that rarely occurs."""
        if op == "\x80":
            self.take(1)
        elif op == "\x95":
            self.take(8)
        elif op == "0":
            self.stack.pop()
        elif op == "1":
            self.marked()
        elif op == "2":
            self.stack.append(self.top())
        elif op in "QP":
            if op == "Q":
                self.pop()
            else:
                self.line()
            self.stack.append(_Note("other", name="persistent object"))
        elif op in "\x82\x83\x84":
            self.number(1 << "\x82\x83\x84".index(op))
            self.stack.append(_Note("other", name="extension"))
        else:
            raise _Stop

    def call(self) -> None:
        """Replace a function and its arguments by the call."""
        arguments, function = self.pop(), self.pop()
        # A stream can repeat a call with many arguments in a few bytes, so keep only some.
        note = _Note("call", [function, *arguments.items[:_ARGUMENTS]])
        for item in note.items:
            if item.kind == "buffer" and item.number not in self.arrays:
                self.arrays[item.number] = _text(note, True, 1, self.sizes)
        self.stack.append(note)

    def memoized(self, index: int) -> Any:
        if index not in self.memo:
            raise _Stop
        return self.memo[index]


def _may_hold(note: _Note) -> bool:
    """Return whether the value behind this one on the stack may become a part of it."""
    return note.kind in ("call", "global") or (note.kind in ("list", "dict", "set") and not note.items)


def _int(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise _Stop
    return int(text)


# ---- what the notes mean ------------------------------------------------------------------------------------------------

_ITEMS = 1000
_DTYPE = re.compile(r"([<>=|]?)([a-zA-Z?])(\d{0,9})(\[\w{1,8}\])?")
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex", "M": "datetime", "m": "timedelta"}
_FUNCTION = "cloudpickle.cloudpickle:_make_function"
_CLASSES = ("cloudpickle.cloudpickle:_make_skeleton_class", "cloudpickle.cloudpickle:_make_skeleton_enum")


def describe(stream: bytes, sizes: list[int]) -> tuple[str | None, dict[int, str]]:
    """
    Describe the object that a stream makes.

    Parameters
    ----------
    stream : bytes
        The beginning of the stream, or all of it.
    sizes : list of int
        The sizes of the first buffers.

    Returns
    -------
    tuple of (str or None, dict of int to str)
        A short text such as ``float64[1000000, 8]`` or ``dict of 12``, None if nothing is known. A text for each
        buffer that is an argument of a call: the object that the call makes.
    """
    walk = _Walk(stream, sizes)
    note = walk.run()
    if note is None:
        return None, walk.arrays
    return _text(note, walk.complete, 0, sizes), walk.arrays


def _text(note: _Note, complete: bool, depth: int, sizes: list[int]) -> str:
    """Return the description of a value. `depth` is 0 for the whole value, whose items are described, too."""
    if note.kind in ("list", "tuple", "set", "frozenset"):
        count = f"{note.kind} of {len(note.items)}{'' if complete else '+'}"
        if depth or not note.items:
            return count
        texts = {_text(item, True, 1, sizes) for item in note.items[:_ITEMS]}
        return f"{count}: {texts.pop()}" if len(texts) == 1 else count
    if note.kind == "dict":
        return f"dict of {len(note.items) // 2}{'' if complete else '+'}"
    if note.kind == "text":
        return f"str of {note.number}" + ("" if complete else " bytes")
    if note.kind in ("bytes", "bytearray"):
        return f"{note.kind} of {note.number}"
    if note.kind == "global":
        return _dotted(note.name)
    if note.kind == "call":
        return (_call(note, sizes) or "object")[:_TEXT_MAX]
    return note.name or note.kind


def _dotted(name: str) -> str:
    return name.replace(":", ".").removeprefix("builtins.").removeprefix("__main__.")[:_TEXT_MAX]


def _short(name: str) -> str:
    return name.rpartition(":")[2].rpartition(".")[2][:_TEXT_MAX]


def _name(note: Any) -> str:
    return note.name if note.kind == "global" else ""


def _get(items: list[_Note], index: int) -> _Note:
    """Return an item, or an empty note."""
    return items[index] if index < len(items) else _Note("other")


def _value(state: _Note | None, key: str) -> _Note:
    """Return the value of a key of a dict."""
    items = state.items if state is not None and state.kind == "dict" else []
    for index in range(0, len(items) - 1, 2):
        if items[index].kind == "text" and items[index].name == key:
            value: _Note = items[index + 1]
            return value
    return _Note("other")


def _call(note: _Note, sizes: list[int]) -> str | None:
    function, arguments = note.items[0], note.items[1:]
    name = _name(function)
    if function.kind == "call":
        return _class(function)
    if name in ("copyreg:__newobj__", "copyreg:_reconstructor", "copyreg:__newobj_ex__"):
        return _class(_get(arguments, 0))
    if name == _FUNCTION:
        return f"function {_get(_get(arguments, 0).items, 12).name}".rstrip()
    if name in _CLASSES:
        return _class(note)
    found = _array(note)
    if found is not None:
        return found
    if name.startswith("numpy.") and name.endswith(".multiarray:scalar"):
        return _dtype(_get(arguments, 0))
    for known in (_bytes, _pandas, _arrow, _tensor, _matrix):
        text = known(name, note, sizes)
        if text is not None:
            return text
    if name == "pyray_ser:_load_ref":
        return "ObjectRef"
    return _dotted(name) or None


def _class(note: _Note) -> str | None:
    """Return the name of a class that is pickled by name or by value."""
    if note.kind == "call":
        return _get(note.items, 2).name if _name(note.items[0]) in _CLASSES else None
    return _dotted(note.name)


# ---- bytes and arrays ----------------------------------------------------------------------------------------------------


def _bytes(name: str, note: _Note, sizes: list[int]) -> str | None:
    kind = {"bytes": "bytes", "bytearray": "bytearray", "memoryview": "memoryview"}.get(name.removeprefix("builtins:"))
    argument = _get(note.items, 1)
    if name == "array:array" and argument.kind == "text":
        return f"array.array({argument.name[:1]!r})"
    if kind is None or argument.kind != "buffer" or argument.number >= len(sizes):
        return None
    return f"{kind} of {sizes[argument.number]}"


def _array(note: Any) -> str | None:
    """Return the dtype and shape of an array as text, or None if the note is not about an array."""
    shape = _shape(note)
    if shape is None:
        return None
    arguments = note.items[1:]
    name = _name(note.items[0])
    dtype = _get(note.state.items, 2) if name.endswith(":_reconstruct") else _get(arguments, 1)
    if name == "pyray_ser.reconstruct:view":
        return f"{_short(_name(_get(arguments, 1)))} {_array(_get(arguments, 0))}"
    if name == "pyray_ser.reconstruct:masked_array":
        return f"MaskedArray {_array(_get(arguments, 0))}"
    return f"{_dtype(dtype)}[{', '.join(map(str, shape))}]"


def _shape(note: Any) -> list[int] | None:
    """Return the shape of an array, or None if the note is not about an array."""
    if note.kind != "call":
        return None
    name, arguments = _name(note.items[0]), note.items[1:]
    if name in ("numpy:ndarray", "pyray_ser.reconstruct:strings"):
        return _numbers(_get(arguments, 0))
    if name in ("pyray_ser.reconstruct:view", "pyray_ser.reconstruct:masked_array"):
        inner = _get(arguments, 0)
        # A note may contain itself, so look only one level deep.
        return _shape(inner) if inner.kind == "call" and _name(inner.items[0]) == "numpy:ndarray" else None
    if name.startswith("numpy.") and name.endswith(".multiarray:_reconstruct") and note.state is not None:
        return _numbers(_get(note.state.items, 1))
    return None


def _numbers(note: _Note) -> list[int] | None:
    if note.kind != "tuple" or len(note.items) > 64 or any(item.kind != "int" for item in note.items):
        return None
    return [item.number for item in note.items]


def _dtype(note: Any) -> str:
    """Return the name of a dtype."""
    if note.kind == "call":
        # numpy.dtype("V12", False, True), whose state names the fields.
        if _name(note.items[0]) != "numpy:dtype":
            return _short(_name(note.items[0])) or "?"
        if note.state is not None and _get(note.state.items, 3).kind == "tuple":
            return "record"
        note = _get(note.items, 1)
    found = _DTYPE.fullmatch(note.name) if note.kind == "text" else None
    if found is None:
        return "?"
    order, kind, size, unit = found.groups()
    if order == ">":
        return str(found[0])
    if kind == "O":
        return "object"
    if kind in ("b", "?") and size in ("", "1"):
        return "bool" if found[0] != "b" else "int8"
    if kind in _KINDS and size and int(size) <= 64:
        return f"{_KINDS[kind]}{8 * int(size)}{unit or ''}"
    return f"{kind}{size}"


# ---- types of other packages --------------------------------------------------------------------------------------------


def _pandas(name: str, note: _Note, sizes: list[int]) -> str | None:
    module, _, cls = name.partition(":")
    if module.partition(".")[0] != "pandas":
        return None
    manager = _value(note.state, "_mgr")
    if cls == "Series" and manager.state is not None:
        # State of the manager: axes, values, ...
        values = _get(_get(manager.state.items, 1).items, 0)
        array = _array(values)
        return f"Series {array}" if array else f"Series[{_length(_get(_get(manager.state.items, 0).items, 0))}]"
    if cls == "DataFrame" and manager.kind == "call":
        blocks, axes = _get(manager.items, 1).items, _get(manager.items, 2).items
        return f"DataFrame {_rows(blocks, axes)} x {_columns(blocks, axes)}"
    if cls == "_new_Index":
        return f"{_short(_name(_get(note.items, 1)))}[{_length(note)}]"
    return None


def _rows(blocks: list[Any], axes: list[Any]) -> str:
    for block in blocks:
        shape = _shape(_get(block.items, 1))
        if shape is not None and len(shape) == 2:
            return str(shape[1])
    return _length(_get(axes, 1))


def _columns(blocks: list[Any], axes: list[Any]) -> str:
    known = _length(_get(axes, 0))
    if known != "?":
        return known
    shapes = [_shape(_get(block.items, 1)) for block in blocks]
    # A block with two dimensions holds several columns, any other block holds one.
    return str(sum(shape[0] if shape is not None and len(shape) == 2 else 1 for shape in shapes))


def _length(index: Any) -> str:
    """Return the length of an index of pandas."""
    state = _get(index.items, 2)
    bounds = [_value(state, key) for key in ("start", "stop", "step")]
    if all(bound.kind == "int" for bound in bounds) and bounds[2].number:
        start, stop, step = (bound.number for bound in bounds)
        return str(max(0, -((start - stop) // step)))
    shape = _shape(_value(state, "data"))
    return str(shape[0]) if shape else "?"


def _arrow(name: str, note: _Note, sizes: list[int]) -> str | None:
    cls = name.rpartition(":")[2]
    argument = _get(note.items, 1)
    if name in ("pyray_ser.reconstruct:polars_frame", "pyray_ser.reconstruct.polars:frame"):
        return f"polars.DataFrame {_table(argument)}"
    if name in ("pyray_ser.reconstruct:polars_series", "pyray_ser.reconstruct.polars:series"):
        dtype = _get(note.items, 3)
        kind = _short(_name(_get(dtype.items, 0)) or _name(dtype))
        return f"polars.Series {kind}[{_elements(argument)}]"
    if not name.startswith("pyarrow.lib:"):
        return None
    if cls == "_reconstruct_table":
        return f"pyarrow.Table {_table(note)}"
    if cls in ("chunked_array", "_restore_array"):
        return f"pyarrow.{'ChunkedArray' if cls == 'chunked_array' else 'Array'}[{_elements(note)}]"
    return None


def _table(note: Any) -> str:
    columns = _get(note.items, 1).items
    return f"{_elements(_get(columns, 0)) if columns else 0} x {len(columns)}"


def _elements(note: Any) -> str:
    """Return the number of elements of an Arrow array, or of the chunks of one."""
    name = _name(_get(note.items, 0))
    chunks = _get(note.items, 1).items if name == "pyarrow.lib:chunked_array" else [note]
    total = 0
    for chunk in chunks:
        length = _get(_get(chunk.items, 1).items, 1)
        if length.kind != "int":
            return "?"
        total += length.number
    return str(total)


def _tensor(name: str, note: _Note, sizes: list[int]) -> str | None:
    module, _, function = name.partition(":")
    if module != "pyray_ser.reconstruct.torch" or function not in ("whole", "contiguous", "tensor"):
        return None
    dtype = next((_short(_name(item)) for item in note.items[1:] if _name(item).startswith("torch:")), "")
    shape = next((found for item in note.items[1:] if (found := _numbers(item)) is not None), None)
    return f"Tensor {dtype}[{', '.join(map(str, shape or []))}]"


def _matrix(name: str, note: _Note, sizes: list[int]) -> str | None:
    """Describe a sparse matrix of scipy, or another object whose state has a shape."""
    shape = _numbers(_value(note.state, "_shape"))
    return None if shape is None else f"{_short(name)} {' x '.join(map(str, shape))}"
