"""The messages between a caller and a worker process.

A frame is one message of a `multiprocessing.connection.Connection`: a kind, the number of the call, and a payload. The
payload of a value is either its serialized form, or the identity of an object in the store. In the latter case, the
sender holds the object until the receiver has confirmed that it holds the object. The answer to a call confirms the
objects in the call, and an ACK confirms the object in an answer. So no tokens are needed. If one of the two processes
dies, the store reaps its references, which releases everything that was in flight.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from .._core import ObjectRef, load_ref, pack_or_put, unpack

__all__ = [
    "ACK",
    "ARGUMENTS",
    "CALL",
    "CANCEL",
    "CREATE",
    "EACH",
    "END",
    "EXPECT",
    "FAILURE",
    "FUNCTION",
    "GRACE",
    "HELLO",
    "INLINE",
    "ITEM",
    "READY",
    "RESULT",
    "TAKEN",
    "Placeholder",
    "encode",
    "load",
    "outcome",
    "read",
    "write",
]  # fmt: skip

# To a worker:
FUNCTION = 1  # payload: number of a function, and the function itself
CREATE = 2  # number of a call; class and arguments with which to make the actor
CALL = 3  # number of a call; function number or method name, arguments, whether to stream
CANCEL = 4  # number of a call
ACK = 5  # number of the answered call; the caller now holds the object in the answer
EXPECT = 6  # token; a handle was pickled, and another process will connect with this token
HELLO = 7  # token; the handle with this token was loaded
ARGUMENTS = 12  # number of a call that follows; the list of its arguments that were pending when it was made
EACH = 15  # number of a call; method name, the arguments of several calls in a row, how many each call takes
TAKEN = 13  # number of a call that streams; number of items that were taken, see `backpressure`
# From a worker:
RESULT = 8  # number of a call, value
FAILURE = 9  # number of a call, Failure
ITEM = 10  # number of a call, and one of the values that it returns
END = 11  # number of a call that will send no more items
READY = 14  # 0; the worker has started, and accepts calls from now on

# A value of at most this many bytes goes through the pipe, a larger one through the store. A pipe buffers several such
# values before it blocks.
INLINE = 32 * 1024
# Seconds for which an actor without callers waits for a handle that is in flight.
GRACE = 10.0


class Placeholder:
    """Replaces, in the arguments of a call, a reference that was pending when the arguments were pickled."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return Placeholder, (self.index,)


_head = Struct("<BQ")
HEAD = _head.size


def write(kind: int, number: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return _head.pack(kind, number) + payload


def read(frame: bytes) -> tuple[int, int, memoryview]:
    """Return the kind, number and payload of a frame."""
    kind, number = _head.unpack_from(frame)
    return kind, number, memoryview(frame)[HEAD:]


def encode(value: object) -> tuple[bytes, ObjectRef[Any] | None]:
    """
    Return the payload of a value, and the object that the sender must hold until the receiver holds it, or None.

    Parameters
    ----------
    value : object
    """
    packed = pack_or_put(value, INLINE)
    if isinstance(packed, bytes):
        return b"b" + packed, None
    return b"r" + packed.travel(0, b"")[0], packed


def outcome(payload: memoryview) -> bytes | ObjectRef[Any]:
    """Return the outcome in a payload without loading it: a serialized form, or a reference that holds the object."""
    if payload[0] == ord("b"):
        return bytes(payload[1:])
    return load_ref(bytes(payload[1:]))


def load(payload: memoryview) -> Any:
    """Load and return the value in a payload."""
    held = outcome(payload)
    if type(held) is bytes:
        return unpack(held)
    from .._core import get

    return get(held)
