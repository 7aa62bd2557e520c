"""Classes by value: what cloudpickle makes of them, without what a copy of the class brings itself."""

import enum
from types import MemberDescriptorType
from typing import Any

from cloudpickle import CloudPickler

__all__ = ["ByValuePickler"]


class ByValuePickler(CloudPickler):  # type: ignore[misc]
    """Reduce functions and classes that cannot go by reference."""

    def reducer_override(self, obj: Any) -> Any:
        """Return what cloudpickle does; of a class without its slots, of a Flag with all its members."""
        value = super().reducer_override(obj)
        if issubclass(type(obj), type) and type(value) is tuple and len(value) > 2:
            return _mended(obj, value)
        return value


def _mended(cls: type, value: tuple[Any, ...]) -> tuple[Any, ...]:
    make, args, state, *rest = value
    attributes = state[0]
    # cloudpickle leaves out slots by the names in `__slots__`, where private ones are not mangled.
    for name, slot in list(attributes.items()):
        if type(slot) is MemberDescriptorType and slot.__objclass__ is cls and slot.__name__ == name:
            del attributes[name]
    if issubclass(cls, enum.Flag):
        # cloudpickle iterates over the class, which gives members of one bit only.
        members = {name: member.value for name, member in cls.__members__.items()}
        args = tuple(members if type(arg) is dict else arg for arg in args)
        for name in members:
            attributes.pop(name, None)
    return (make, args, state, *rest)
