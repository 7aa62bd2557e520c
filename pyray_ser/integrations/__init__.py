"""Reducers for types whose own reduction copies what need not be copied, or fails."""

from collections.abc import Callable
from typing import Any

__all__ = ["find", "reducers"]

reducers: dict[type, Callable[[Any], Any]] = {}


def find(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for a class, or None."""
    return reducers.get(cls)
