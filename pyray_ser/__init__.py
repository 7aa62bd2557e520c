"""Put Python objects into shared memory once, and read them in place from every process.

>>> import pyray_ser
>>> ref = pyray_ser.put(data)  # in one process
>>> data = pyray_ser.get(ref)  # in any other: nothing is copied
"""

from . import _interpreter  # noqa: F401  it refuses interpreters before an extension is loaded
from ._fork import finish_imports as _finish_imports  # noqa: F401  from here on, a fork waits for imports

try:
    from ._core import ObjectRef
except ModuleNotFoundError as _missing:
    if _missing.name != f"{__name__}._core":
        raise
    raise ImportError(
        f"{__path__[0]} holds no compiled modules: it is a source checkout. "
        "Hint: install it with `pip install .` or `make dev`, or start Python in another folder."
    ) from None
from ._core import load_ref as _take_over
from ._version import __version__
from .api import (
    abort,
    contains,
    create,
    empty,
    free,
    get,
    get_buffer,
    get_by_name,
    init,
    is_initialized,
    names,
    objects,
    put,
    scope,
    seal,
    shutdown,
    stats,
    wait,
)

# Importing typing to get TYPE_CHECKING would take too long. The value is not the literal False, because jedi would then
# ignore the block.
TYPE_CHECKING = bool()  # noqa: UP018
if TYPE_CHECKING:
    from typing import Any

    # Import the lazy names eagerly for type checkers and editors.
    from . import exceptions, inspection, tasks, typing, util  # noqa: F401
    from .pickling.serialization import (
        PickleBuffer,
        Pickler,
        Unpickler,
        deserialize,
        dump,
        dumps,
        dumps_frames,
        load,
        loads,
        loads_frames,
        serialize,
    )
    from .pool_hooks import install, uninstall
    from .store.by_name import NamedObject, delete, rename
    from .store.cached import cached
    from .store.compute_once import get_or_put, get_or_put_async
    from .store.versions import watch
    from .tasks.executor import Executor
    from .tasks.progress import progress
    from .tasks.typed import TaskRef, cancel, kill, remote

# Lazily imported names: name -> module.
_LAZY = dict.fromkeys(
    (
        "PickleBuffer",
        "Pickler",
        "Unpickler",
        "deserialize",
        "dump",
        "dumps",
        "dumps_frames",
        "load",
        "loads",
        "loads_frames",
        "serialize",
    ),
    "pickling.serialization",
)
_LAZY |= {
    "Executor": "tasks.executor",
    "NamedObject": "store.by_name",
    "TaskRef": "tasks",
    "cached": "store.cached",
    "cancel": "tasks",
    "delete": "store.by_name",
    "get_or_put": "store.compute_once",
    "get_or_put_async": "store.compute_once",
    "install": "pool_hooks",
    "kill": "tasks.actor",
    "progress": "tasks.progress",
    "remote": "tasks",
    "rename": "store.by_name",
    "uninstall": "pool_hooks",
    "watch": "store.versions",
}
# Import `_ndarray` here for PyCapsule_Import, which imports packages but not the modules inside them.
_MODULES = ("_ndarray", "exceptions", "inspection", "tasks", "typing", "util")

__all__ = [
    "Executor",
    "NamedObject",
    "ObjectRef",
    "PickleBuffer",
    "Pickler",
    "TaskRef",
    "Unpickler",
    "__version__",
    "abort",
    "cached",
    "cancel",
    "contains",
    "create",
    "delete",
    "deserialize",
    "dump",
    "dumps",
    "dumps_frames",
    "empty",
    "exceptions",
    "free",
    "get",
    "get_buffer",
    "get_by_name",
    "get_or_put",
    "get_or_put_async",
    "init",
    "install",
    "is_initialized",
    "kill",
    "load",
    "loads",
    "loads_frames",
    "names",
    "objects",
    "progress",
    "put",
    "remote",
    "rename",
    "scope",
    "seal",
    "serialize",
    "shutdown",
    "stats",
    "typing",
    "uninstall",
    "util",
    "wait",
    "watch",
]


def _load_ref(blob: bytes) -> "ObjectRef[Any]":
    """
    Load a pickled reference; its pickle calls this function.

    It is a Python function in the top-level module, because the standard pickler writes such a function faster and
    imports its module in half the time. This import accounts for most of the cost of a message with one reference.
    """
    return _take_over(blob)


if not TYPE_CHECKING:  # otherwise, type checkers would accept any misspelled name as a lazy one

    def __getattr__(name: str) -> "Any":
        from importlib import import_module

        if name in _LAZY:
            value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        elif name in _MODULES:
            value = import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES} - {"TYPE_CHECKING", "_ndarray"})


def _debug() -> None:
    """Use the pure-Python pickler if the environment variable is set."""
    from os import environ

    if "PYRAY_SER_PICKLE_VERBOSE_DEBUG" in environ or "RAY_PICKLE_VERBOSE_DEBUG" in environ:
        from .inspection import debug_pickler

        if debug_pickler.level():
            debug_pickler.install()


_debug()
