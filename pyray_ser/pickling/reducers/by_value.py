"""Reducers for type parameters and `functools.lru_cache` functions that other processes cannot find by name.

These objects reduce to their name. Another process cannot resolve a name in ``__main__``, or a name under which no
object can be found.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

from ... import reconstruct
from ..reducer_order import find_global

__all__ = ["install", "reduce_cached", "reduce_type_parameter"]


def _goes_by_name(obj: Any) -> bool:
    try:
        module, _ = find_global(obj, getattr(obj, "__qualname__", None) or obj.__name__)
    except Exception:  # the name refers to no object, or to another one
        return False
    return module not in ("__main__", "__mp_main__")


def reduce_type_parameter(parameter: Any) -> Any:
    """Reduce a `ParamSpec` or `TypeVarTuple` to its name and options."""
    if _goes_by_name(parameter):
        return NotImplemented
    options = {}
    if type(parameter).__name__ == "ParamSpec":
        options = {
            "bound": parameter.__bound__,
            "covariant": parameter.__covariant__,
            "contravariant": parameter.__contravariant__,
        }
    return reconstruct.type_parameter, (type(parameter), parameter.__name__, parameter.__module__, options)


def reduce_cached(function: Any) -> Any:
    """Reduce a cached function to the function and the limits of its cache, without the content of the cache."""
    if _goes_by_name(function):
        return NotImplemented
    parameters = function.cache_parameters()
    return reconstruct.cached_function, (function.__wrapped__, parameters["maxsize"], parameters["typed"])


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module."""
    reducers[type(functools.lru_cache(_goes_by_name))] = reduce_cached
    typing = sys.modules.get("typing")
    if typing is not None:
        reducers[typing.ParamSpec] = reduce_type_parameter
        reducers[typing.TypeVarTuple] = reduce_type_parameter
