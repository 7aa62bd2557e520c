"""Reducers for types whose own reduction copies what need not be copied, or fails.

They are for `put`, `serialize` and `dumps_frames`; `dumps` is the standard
pickler to the letter. One file per package, imported when the first instance
of a class of that package is met, so never before the user has imported it.

A reducer takes an instance and returns what ``__reduce__`` would, or
`NotImplemented` to leave it to the type's own reduction. Bytes that are to
travel beside the stream are in it as contiguous `pickle.PickleBuffer` objects,
or as exact `numpy.ndarray` objects, which the pickler takes care of.

What the pickler uses
---------------------
``reducers``
    ``{type: reducer}``, exact types, filled as packages are met.
``meet(cls)``
    To be called once for each class: fills `reducers` for it and returns the
    registered serializer, as `registry.find`.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .. import registry

__all__ = ["find", "meet", "reducers"]

Reducer = Callable[[Any], Any]

reducers: dict[type, Reducer] = {}

# Package of a class -> our module for it. Each has `install(reducers)`, and `family(cls)` where classes are made at
# run time: it returns the reducer for one of them, or None.
_MODULES = {
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "pandas": "pandas",
    "polars": "polars",
    "torch": "torch",
    "array": "stdlib",
    "builtins": "stdlib",
    "_io": "stdlib",
    "typing": "by_value",
    "functools": "by_value",
}
_installed: set[str] = set()


def find(cls: type) -> Reducer | None:
    """Return the reducer for a class, or None."""
    reducer = reducers.get(cls)
    if reducer is not None:
        return reducer
    module = getattr(cls, "__module__", None)
    if type(module) is str:
        name = _MODULES.get(module.partition(".")[0])
        if name is not None and name not in _installed:
            _install(name)
            reducer = reducers.get(cls)
    if reducer is None and _is_ctypes_data(cls):
        from . import ctypes

        reducer = ctypes.family(cls)
        if reducer is not None:
            reducers[cls] = reducer
    return reducer


def meet(cls: type) -> Callable[[Any], tuple[Any, ...]] | None:
    """Bring in what belongs to a class, and return the serializer registered for it, or None."""
    find(cls)
    return registry.find(cls)


def _install(name: str) -> None:
    module = import_module(f".{name}", __name__)
    # Twice from two threads does no harm.
    module.install(reducers)
    _installed.add(name)


def _is_ctypes_data(cls: type) -> bool:
    ctypes = sys.modules.get("_ctypes")
    # Classes of arrays are made at run time, in the name of whatever module asks for them.
    return ctypes is not None and issubclass(cls, (ctypes.Array, ctypes.Structure, ctypes.Union))
