"""Make short texts for objects without running their code.

Making a report must not raise exceptions or evaluate properties, and the report must not be long. So ``__repr__`` is
called only if it is C code or part of the standard library, and never on containers, which would call the ``__repr__``
of their elements.
"""

from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["brief", "class_name", "key_text", "module_name", "size_text"]

_LIMIT = 80
_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}"), dict: ("{", "}")}


def shorten(text: str, limit: int = _LIMIT) -> str:
    """Cut a text in the middle to at most `limit` characters, on one line."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]}...{text[head + 3 - limit :]}"


def class_name(cls: type) -> str:
    """Return ``module.Qualname`` of a class, without the module for built-in ones."""
    # Do not use attributes of the class: a metaclass may define them as properties, and a class may have no
    # `__module__`.
    name = vars(type)["__qualname__"].__get__(cls)
    module = module_name(cls)
    return name if module in ("", "builtins") else f"{module}.{name}"


def module_name(cls: type) -> str:
    """Return the `__module__` attribute of a class, or an empty string if it is not a string."""
    try:
        module = vars(type)["__module__"].__get__(cls)
    except AttributeError:
        return ""
    return module if type(module) is str else ""


def brief(obj: Any, limit: int = _LIMIT) -> str:
    """Return a short text for any object, without raising or running code of a user's class."""
    cls = type(obj)
    try:
        if cls is str or cls is bytes:
            return shorten(repr(obj[: limit + 8]), limit)
        if cls is int and obj.bit_length() > 400:
            return f"<int of {obj.bit_length()} bits>"
        if cls in _ATOMS:
            return shorten(repr(obj), limit)
        if cls in _BRACKETS:
            return _container(obj, limit)
        if cls is FunctionType or cls is BuiltinFunctionType:
            return shorten(f"<function {_string(obj.__qualname__)} at {id(obj):#x}>", limit)
        if cls is MethodType:
            function = obj.__func__
            name = function.__qualname__ if type(function) is FunctionType else class_name(type(function))
            return shorten(f"<bound method {_string(name)} at {id(obj):#x}>", limit)
        if issubclass(cls, type):
            return shorten(f"<class '{class_name(obj)}'>", limit)
        if cls is ModuleType:
            return shorten(f"<module {_string(obj.__dict__.get('__name__', '?'))!r}>", limit)
        text = _described(obj, class_name(cls))
        if text is not None:
            return shorten(text, limit)
    except Exception:  # if a repr fails, use the default repr
        pass
    return shorten(f"<{class_name(cls)} object at {id(obj):#x}>", limit)


def _string(text: Any) -> str:
    return text if type(text) is str else "?"


# Types whose repr is short and uses only the object itself. Subclasses are excluded.
_TRUSTED = {
    "_thread.lock", "_thread.RLock", "generator", "coroutine", "async_generator", "code", "socket.socket",
    "range", "slice", "datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta",
    "datetime.timezone", "decimal.Decimal", "uuid.UUID", "fractions.Fraction", "pathlib.PosixPath",
    "pathlib.PurePosixPath", "_io.FileIO", "_io.BufferedReader", "_io.BufferedWriter", "_io.TextIOWrapper",
    "re.Pattern", "sqlite3.Connection", "subprocess.Popen", "select.epoll", "mmap.mmap",
}  # fmt: skip


def _described(obj: Any, name: str) -> str | None:
    """Return the text for an object whose type is known by name, or None."""
    if name in _TRUSTED:
        return repr(obj)
    if name == "numpy.ndarray":
        return f"<numpy.ndarray {obj.dtype} {obj.shape}>"
    return None


def _container(obj: Any, limit: int) -> str:
    opening, closing = _BRACKETS[type(obj)]
    shown = []
    room = limit - 10
    for index, item in enumerate(obj.items() if type(obj) is dict else obj):
        if index == 4 or room <= 0:
            shown.append(f"... {len(obj)} in all")
            break
        part = f"{_item(item[0])}: {_item(item[1])}" if type(obj) is dict else _item(item)
        shown.append(part)
        room -= len(part) + 2
    text = ", ".join(shown)
    if type(obj) is tuple and len(obj) == 1:
        text += ","
    return shorten(f"{opening}{text}{closing}", limit)


def _item(obj: Any) -> str:
    cls = type(obj)
    if cls in _BRACKETS:
        opening, closing = _BRACKETS[cls]
        return f"{opening}...{closing}" if obj else opening + closing
    return brief(obj, 24) if cls in _ATOMS else f"<{class_name(cls)}>"


def key_text(key: Any) -> str:
    """Return the text for a dictionary key or a set element in a path; this text contains no addresses."""
    cls = type(key)
    if cls in _ATOMS or cls in _BRACKETS:
        return brief(key, 40)
    return f"<{class_name(cls)}>"


def size_text(number: int) -> str:
    """Return a byte count with a unit."""
    if number < 1000:
        return f"{number} B"
    size = float(number)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5 or unit == "TB":
            break
    return f"{size:.3g} {unit}"
