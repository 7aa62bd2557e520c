"""Check the options of a store, and detect options that are given too late to have an effect.

`check` converts the arguments of `init` for the engine, or raises an error that describes what is wrong with them. The
options of a store are fixed when it is made. `ignored` returns the warning for a process that requests other options
later. `check_repeated` raises if two calls of `init` in one process request different values.
"""

from __future__ import annotations

import os
from operator import index

from .. import _core

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from typing import Any

    from .._core import Store

__all__ = [
    "CAPACITY",
    "asked_for",
    "capacity_problem",
    "check",
    "check_repeated",
    "for_new_store",
    "from_environment",
    "ignored",
    "size_of",
    "spill_path",
]

# Environment variables with options for new stores, used if the program gives none.
CAPACITY = "PYRAY_SER_CAPACITY"
SPILL_DIR = "PYRAY_SER_SPILL_DIR"

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# The limits of the engine: CAPACITY_GRAIN and CAPACITY_MAX, PRS_CLIENTS_MAX, SLOTS_MAX.
_CAPACITY_MIN = 1 << 20
_CAPACITY_MAX = 1 << 43
_CLIENTS_MIN = 4
_CLIENTS_MAX = 4096
_OBJECTS_MAX = 1 << 24
# The bits of `liveness`, as the engine defines them.
_LIVENESS_PID = 1


def size_of(value: object, what: str) -> int:
    """
    Return a number of bytes that was given as a number or as text.

    Parameters
    ----------
    value : int, float or str
        The size, such as ``500000000``, ``"512M"`` or ``"1.5 GiB"``; units are powers of 1024.
    what : str
        The name of the option or environment variable, for errors.

    Raises
    ------
    TypeError, ValueError
        If the value is not a size.
    """
    if isinstance(value, str):
        return _size_in(value, what)
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(
                f'{what} must be a whole number of bytes, not {value!r}; hint: a text such as "1.5G" works too'
            )
        return int(value)
    return _integer(value, f'{what} must be a number of bytes or a size such as "8G"')


def _integer(value: Any, must: str) -> int:
    if isinstance(value, bool):  # bool is a subclass of int, but not a size
        raise TypeError(f"{must}, not {value!r}")
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{must}, not {value!r}") from None


def _size_in(text: str, what: str) -> int:
    number = text.strip().lower().removesuffix("b").removesuffix("i").rstrip()
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        size = int(float(number.removesuffix(unit)) * _UNITS[unit]) if unit else int(number)
    except (ValueError, OverflowError):
        size = 0
    if not 0 < size < 1 << 63:
        raise ValueError(f"{what} must be a size, not {text!r}; hint: give bytes, or a number with K, M, G or T")
    return size


def _text_of(size: int) -> str:
    from ..exceptions import bytes_text

    return bytes_text(size)


def _check_capacity(value: object, what: str) -> int:
    size = size_of(value, what)
    if size < _CAPACITY_MIN:
        raise ValueError(
            f'{what} must be at least {_CAPACITY_MIN} bytes, not {value!r}; hint: it counts bytes, and "8G" is 8 GiB'
        )
    if size > _CAPACITY_MAX:
        raise ValueError(
            f"{what} must be at most {_text_of(_CAPACITY_MAX)}, not {value!r}: the store's tables address no more"
        )
    return size


def _check_count(value: object, what: str, least: int, most: int) -> int:
    number = _integer(value, f"{what} must be an int")
    if not least <= number <= most:
        raise ValueError(f"{what} must be between {least} and {most}, not {number}")
    return number


def _check_seconds(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number of seconds, not {value!r}")
    if not 0 < value < 1e9:
        raise ValueError(f"{what} must be positive and less than 1e9 seconds, not {value!r}")
    return float(value)


def _check_flags(liveness: object, spill_checksum: object, spill_compress: object) -> int:
    if liveness not in ("auto", "pid"):
        raise ValueError(f'liveness must be "auto" or "pid", not {liveness!r}')
    flags = _LIVENESS_PID if liveness == "pid" else 0
    if spill_checksum or spill_compress is not None:
        from .spill_codec import flags as spill_flags

        flags |= spill_flags(bool(spill_checksum), spill_compress)  # type: ignore[arg-type]
    return flags


def check(
    *,
    capacity: object = None,
    spill_dir: str | os.PathLike[str] | None = None,
    spill_checksum: object = False,
    spill_compress: object = None,
    max_clients: object = None,
    max_objects: object = None,
    lock_timeout: object = None,
    warm_reserve: object = None,
    liveness: object = "auto",
) -> dict[str, Any]:
    """
    Return the options that were given, converted for the engine.

    Raises
    ------
    TypeError, ValueError
        If a value is invalid; the message names the option and its valid values.
    """
    options: dict[str, Any] = {}
    flags = _check_flags(liveness, spill_checksum, spill_compress)
    if flags:
        options["flags"] = flags
    if capacity is not None:
        options["capacity"] = _check_capacity(capacity, "capacity")
    if max_clients is not None:
        options["max_clients"] = _check_count(max_clients, "max_clients", _CLIENTS_MIN, _CLIENTS_MAX)
    if max_objects is not None:
        options["max_objects"] = _check_count(max_objects, "max_objects", 1, _OBJECTS_MAX)
    if warm_reserve is not None:
        options["warm_reserve"] = size_of(warm_reserve, "warm_reserve")
        if not 0 < options["warm_reserve"] < 1 << 63:
            raise ValueError(f"warm_reserve must be positive, not {warm_reserve!r}")
    if lock_timeout is not None:
        options["lock_timeout"] = _check_seconds(lock_timeout, "lock_timeout")
    if spill_dir is not None:
        options["spill_dir"] = os.path.abspath(os.fsdecode(spill_dir))
    return options


def spill_path(directory: str | bytes | os.PathLike[str]) -> str:
    """
    Return a spill directory in the form that the engine expects; make the last directory of the path if it is missing.

    Raises
    ------
    OSError
        If the directory is missing and cannot be made; the message names the option.
    """
    path = os.path.abspath(os.fsdecode(directory))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotADirectoryError(f"spill_dir must be a directory, not {path!r}, which is a file") from None
    except OSError as error:
        raise type(error)(
            error.errno, f"spill_dir must be a directory that can be made: {error.strerror}", path
        ) from error
    return path


def from_environment() -> dict[str, Any]:
    """Return options for a new store from the environment variables."""
    found: dict[str, Any] = {}
    if os.environ.get(CAPACITY):
        found["capacity"] = _check_capacity(os.environ[CAPACITY], CAPACITY)
    if os.environ.get(SPILL_DIR):
        found["spill_dir"] = os.environ[SPILL_DIR]
    return found


def for_new_store(options: dict[str, Any], folder: str | None = None) -> dict[str, Any]:
    """
    Return the options for a store that is about to be made.

    Parameters
    ----------
    options : dict
        The arguments of `init`; environment variables provide options that are not given.
    folder : str, optional
        The directory for the file of a named store.
    """
    made = {**from_environment(), **options}
    if "spill_dir" in made:
        made["spill_dir"] = spill_path(made["spill_dir"])
    if folder is not None and "capacity" not in made:
        room = _room_in(folder)
        if room:
            made["capacity"] = room
    return made


def _room_in(folder: str) -> int:
    """Return the capacity for a named store if its file system is too small for the default; otherwise return 0."""
    found = os.statvfs(folder)
    size = found.f_blocks * found.f_frsize
    if size == 0:  # a tmpfs without a limit
        return 0
    default = _core.default_capacity()
    # Leave room for the tables of the store.
    room = max(_CAPACITY_MIN, size - max(size // 16, 2 << 20))
    return room if room < default else 0


def capacity_problem(store: Store) -> str:
    """Return a warning if the capacity of a named store exceeds the size of its file system; otherwise empty."""
    folder = os.path.dirname(store.path or "")
    try:
        found = os.statvfs(folder)
    except OSError:
        return ""
    size = found.f_blocks * found.f_frsize
    if size == 0 or store.capacity <= size:
        return ""
    larger = "run the container with a larger --shm-size" if folder.startswith("/dev/shm") else "give that more room"
    return (
        f"the capacity {_text_of(store.capacity)} of {store!r} exceeds the size of its file system, {_text_of(size)}: "
        f"the store is full when the file system is; hint: {larger}, or call init() without capacity"
    )


# ---- too late ---------------------------------------------------------------------------------------------------------

# The engine rounds the values of these options up.
_ROUNDED = {"capacity": 1 << 20, "max_objects": 1 << 10}
# The parameter names of `init` for the options of the engine.
_FLAGS = (
    ("liveness", 1, "pid"),
    ("spill_checksum", 2, True),
    ("spill_compress", 4, "lz4"),
    ("spill_compress", 8, "zstd"),
)


def asked_for(options: dict[str, Any]) -> dict[str, Any]:
    """Return the requested options by their names in `init`, from the options for the engine."""
    flags = options.get("flags", 0)
    asked = {key: value for key, value in options.items() if key != "flags"}
    asked.update((name, value) for name, bit, value in _FLAGS if flags & bit)
    return asked


def _shown(name: str, value: object) -> str:
    if name in ("capacity", "warm_reserve") and isinstance(value, int) and value >= 1024:
        return f"{value} ({_text_of(value)})"
    return repr(value)


def _same(name: str, asked: Any, actual: Any) -> bool:
    unit = _ROUNDED.get(name)
    if unit is not None:
        return bool(-(-asked // unit) * unit == actual)
    if name == "lock_timeout":
        return bool(abs(asked - actual) < 1e-6)
    return bool(asked == actual)


def check_repeated(earlier: dict[str, Any], options: dict[str, Any]) -> None:
    """
    Raise if a call of `init` requests a different value than an earlier call in this process.

    Parameters
    ----------
    earlier, options : dict
        The options of each call, as converted for the engine.
    """
    before = asked_for(earlier)
    for name, value in asked_for(options).items():
        if name in before and before[name] != value:
            raise ValueError(
                f"{name} must be {_shown(name, before[name])}, as this process's first init() said, "
                f"not {_shown(name, value)}; hint: shutdown() first, or give the option once"
            )


def ignored(store: Store, options: dict[str, Any], joined: bool) -> str:
    """
    Return a warning about requested options that differ from those of an existing store; empty if none differs.

    Parameters
    ----------
    store : Store
    options : dict
        The options of the call, as converted for the engine.
    joined : bool
        Whether this process has just joined the store of another process; otherwise it used the store before.
    """
    actual = store.options
    differing = [
        f"{name}={_shown(name, value)} (it has {_shown(name, actual[name])})"
        for name, value in asked_for(options).items()
        if not _same(name, value, actual[name])
    ]
    if not differing:
        return ""
    if joined:
        return (
            f"init() ignored {', '.join(differing)}: this process joined {store!r}, which another process made; "
            "hint: give the options where the store is made, or init(name=...) with another name"
        )
    return (
        f"init() ignored {', '.join(differing)}: this process uses {store!r} already; "
        "hint: call init() before the first put(), or shutdown() before init()"
    )
