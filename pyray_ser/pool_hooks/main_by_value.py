"""Functions and classes of a main module that has no file: notebooks, the interactive interpreter, ``python -c``, stdin.

A process that starts with an empty interpreter (spawn, forkserver) cannot import such a module, so it cannot load a function
or class by its name. Once this process has started such a child, its messages contain these functions and classes also by
value. A receiver that has the name in its own main module uses that object, as without this library: a forked child, or the
process that defined the class of a result. All other receivers load the value.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any

__all__ = ["from_main", "hook_preparation_data", "pickler", "spawned"]

# Whether this process has started a child with an empty interpreter, or is such a child.
_spawned = False
# The main module that was examined last, and whether it has no file.
_examined: tuple[object, bool] = (None, False)


def spawned() -> None:
    """Record that this process starts a child with an empty interpreter, or is such a child."""
    global _spawned
    if not _spawned:
        # A forked child must not import it.
        import cloudpickle  # noqa: F401

        _spawned = True


def pickler() -> type[ForkingPickler]:
    """Return the class that pickles the messages of this process."""
    if not _spawned:
        return ForkingPickler
    global _examined
    main = sys.modules.get("__main__")
    if _examined[0] is not main:
        _examined = main, _cannot_be_imported(main)
    return _MainPickler if _examined[1] else ForkingPickler


def _cannot_be_imported(main: object) -> bool:
    if getattr(getattr(main, "__spec__", None), "name", None) is not None:
        return False
    path = getattr(main, "__file__", None)
    # The main module of a program that is read from stdin has the file "<stdin>".
    return path is None or not os.path.exists(path)


class _MainPickler(ForkingPickler):
    """The pickler of multiprocessing; functions and classes of the main module are included by value."""

    def reducer_override(self, obj: Any) -> Any:
        if (type(obj) is FunctionType or isinstance(obj, type)) and getattr(obj, "__module__", None) == "__main__":
            import cloudpickle

            return from_main, (obj.__qualname__, cloudpickle.dumps(obj, protocol=pickle.DEFAULT_PROTOCOL))
        return NotImplemented


def from_main(name: str, payload: bytes) -> Any:
    """
    Return a function or class of a main module without a file.

    The name of this function is part of the format of a message.

    Parameters
    ----------
    name : str
        Qualified name.
    payload : bytes
        The pickled value, for processes whose main module does not have the name.
    """
    found: Any = sys.modules.get("__main__")
    for part in name.split("."):
        found = getattr(found, part, None)
    # The main module of a spawned child has imported functions of multiprocessing.
    if getattr(found, "__module__", None) == "__main__" and getattr(found, "__qualname__", None) == name:
        return found
    return pickle.loads(payload)


def hook_preparation_data(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement for ``multiprocessing.spawn.get_preparation_data`` that names no file that does not exist."""

    @functools.wraps(original)
    def get_preparation_data(*args: Any, **kwargs: Any) -> Any:
        data = original(*args, **kwargs)
        if _cannot_be_imported(sys.modules.get("__main__")):
            data.pop("init_main_from_path", None)
        return data

    return get_preparation_data
