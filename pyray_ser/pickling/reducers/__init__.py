"""Reducers for types whose own reduction fails or makes unnecessary copies.

`put`, `serialize` and `dumps_frames` use them; `dumps` does not. Each supported package has its own file here. The file
is imported when the first instance of a class of that package is pickled, so never before the user has imported the
package.

A reducer takes an instance and returns what ``__reduce__`` would return, or
`NotImplemented` to use the type's own reduction. Bytes that belong outside of
the stream are contiguous `pickle.PickleBuffer` objects in the result, or exact
`numpy.ndarray` objects, which the pickler writes out-of-band.

What the pickler uses
---------------------
``reducers``
    ``{type: reducer}`` for exact types, filled when the first class of a package is pickled.
``meet(cls)``
    Called once for each class. It fills `reducers` for the class and returns the registered serializer, as
    `registry.find` does.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .. import registry

__all__ = ["find", "meet", "reducers"]

Reducer = Callable[[Any], Any]

reducers: dict[type, Reducer] = {}

# Package of a class -> module with the reducers for that package. Each module has `install(reducers)`. If the package
# makes classes at run time, the module also has `family(cls)`, which returns the reducer for such a class, or None.
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
    """Load the reducers for a class, and return the serializer registered for it, or None."""
    find(cls)
    return registry.find(cls)


def _install(name: str) -> None:
    module = import_module(f".{name}", __name__)
    install = getattr(module, "install", None)
    if install is None:
        return  # a finalizer runs during the import of this module; the importing code installs it afterwards
    # It does no harm if two threads both do this.
    install(reducers)
    _installed.add(name)


def _is_ctypes_data(cls: type) -> bool:
    ctypes = sys.modules.get("_ctypes")
    # ctypes makes its array classes at run time, and their `__module__` is that of the caller.
    return ctypes is not None and issubclass(cls, (ctypes.Array, ctypes.Structure, ctypes.Union))
