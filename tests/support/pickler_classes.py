"""Define classes and functions that tests of the pickler need to pickle by name."""

from __future__ import annotations

import enum
import threading


class Box:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Node:
    def __init__(self, value=None, next=None):
        self.value = value
        self.next = next


class SlottedNode:
    __slots__ = ("next", "value")

    def __init__(self, value=None, next=None):
        self.value = value
        self.next = next


class Nested:
    """A class whose reduction contains another instance."""

    def __init__(self, inner=None):
        self.inner = inner

    def __reduce__(self):
        return Nested, (self.inner,)


class Endless:
    def __reduce__(self):
        return Endless, (Endless(),)


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Changing:
    """A class whose reduction calls a given function."""

    def __init__(self, action=None):
        self.action = action

    def __reduce__(self):
        if self.action:
            self.action()
        return Changing, ()


class Reentrant:
    """A class whose reduction runs a pickler."""

    def __init__(self, payload, dumps):
        self.payload = payload
        self.dumps = dumps

    def __reduce__(self):
        return bytes, (self.dumps(self.payload),)


class Locked:
    def __init__(self):
        self.lock = threading.Lock()


def identity(x):
    return x


def chain(cls, length):
    head = None
    for _ in range(length):
        head = cls(None, head)
    return head


def unchain(head):
    """Release a chain of objects without recursion."""
    while head is not None:
        head = head.next
