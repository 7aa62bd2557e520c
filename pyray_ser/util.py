"""Serializers for your own types, the inspector for values that cannot be pickled, and an allow-list for numpy.

The inspector is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .pickling.registry import deregister_serializer, register_serializer

if TYPE_CHECKING:
    from .inspection import FailureTuple, inspect_serializability, inspect_size
    from .pickling.safe_names import SAFE_NUMPY

__all__ = [
    "SAFE_NUMPY",
    "FailureTuple",
    "deregister_serializer",
    "inspect_serializability",
    "inspect_size",
    "register_serializer",
]

_LATER = {
    "FailureTuple": ".inspection",
    "SAFE_NUMPY": ".pickling.safe_names",
    "inspect_serializability": ".inspection",
    "inspect_size": ".inspection",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_LATER[name], __package__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
