"""Pickle classes by value as cloudpickle does, with corrections for slots, Flag members and compiled classes."""

import enum
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
from typing import Any

from cloudpickle import CloudPickler

__all__ = ["ByValuePickler"]


class ByValuePickler(CloudPickler):  # type: ignore[misc]
    """Reduce functions and classes that cannot be pickled by reference."""

    def reducer_override(self, obj: Any) -> Any:
        """Return cloudpickle's reduction, but without the slots of a class, and with all members of a Flag.

        Return `NotImplemented` for a class from compiled code, because a copy would lack that code.
        """
        value = super().reducer_override(obj)
        if issubclass(type(obj), type) and type(value) is tuple and len(value) > 2:
            return NotImplemented if _is_compiled(obj) else _mended(obj, value)
        return value


# Methods of a class that is written in C.
_METHODS = (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType)
_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE


def _is_compiled(cls: type) -> bool:
    """Return whether a class is implemented in C: it is immutable, or has methods of C types."""
    if vars(type)["__flags__"].__get__(cls) & _IMMUTABLE:
        return True
    for found in vars(type)["__dict__"].__get__(cls).values():
        if type(found) in _METHODS and found.__objclass__ is cls:
            return True
        if type(found) is BuiltinFunctionType and found.__self__ is cls:  # the `__new__` of the class
            return True
    return False


def _mended(cls: type, value: tuple[Any, ...]) -> tuple[Any, ...]:
    make, args, state, *rest = value
    attributes = state[0]
    # cloudpickle omits slots by the names in `__slots__`, but there private names are not mangled.
    for name, slot in list(attributes.items()):
        if type(slot) is MemberDescriptorType and slot.__objclass__ is cls and slot.__name__ == name:
            del attributes[name]
    if issubclass(cls, enum.Flag):
        # cloudpickle iterates over the class, which yields only the members with a single bit.
        members = {name: member.value for name, member in cls.__members__.items()}
        args = tuple(members if type(arg) is dict else arg for arg in args)
        for name in members:
            attributes.pop(name, None)
    return (make, args, state, *rest)
