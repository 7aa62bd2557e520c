"""What streams written by `put` name for torch; part of the format as `rebuild` is.

torch has no read-only flag, and a write into memory that cannot be written ends the process. So tensors lie over a
copy-on-write mapping of the stored object (`_store.writable_twin`): nothing is copied until a page is written, and
what is written stays in this process and in what this one `get` returned. Bytes that are not in a store are copied,
unless they are writable.
"""

from typing import Any

import torch
from numpy import dtype as _dtype
from numpy import ndarray

from ._store import writable_twin

__all__ = ["Memory", "contiguous", "storage", "tensor"]

_NAMES = "bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
# from_numpy is by far the cheapest way to a tensor over given memory.
_NUMPY: dict[Any, Any] = {getattr(torch, name): _dtype(name) for name in _NAMES if hasattr(torch, name)}
_BYTE = _dtype("uint8")


class Memory:
    """The bytes of one storage, which several tensors may share.

    Attributes
    ----------
    bytes : buffer
        Writable.
    first : torch.Tensor or None
        The tensor that was made first; its storage is the one that all share.
    """

    __slots__ = ("bytes", "first")

    def __init__(self, buffer: Any) -> None:
        twin = writable_twin(buffer)
        if twin is None:
            twin = memoryview(buffer)
            if twin.readonly:
                twin = bytearray(twin)
        self.bytes = twin
        self.first: Any = None


def storage(memory: Memory) -> Any:
    """Return the untyped storage over a memory, the same one each time."""
    if memory.first is None:
        size = len(memory.bytes)
        # torch warns of arrays without memory of their own.
        memory.first = (
            torch.from_numpy(ndarray(size, _BYTE, memory.bytes)) if size else torch.empty(0, dtype=torch.uint8)
        )
    return memory.first.untyped_storage()


def contiguous(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in elements."""
    stride = []
    step = 1
    for length in reversed(size):
        stride.append(step)
        step *= length
    return tuple(reversed(stride))


def tensor(
    memory: Memory,
    dtype: Any,
    size: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    offset: int = 0,
    requires_grad: bool = False,
    conjugate: bool = False,
    negative: bool = False,
) -> Any:
    """Make a tensor that lies in a memory; without `stride` it is contiguous and covers all of it."""
    made: Any
    if stride is None and memory.first is None and dtype in _NUMPY:
        made = memory.first = torch.from_numpy(ndarray(size, _NUMPY[dtype], memory.bytes))
    else:
        made = torch.empty(0, dtype=dtype)
        if stride is None:
            stride = contiguous(size)
        made.set_(storage(memory), offset, size, stride)
        if conjugate:
            made = torch._conj(made)
        if negative:
            made = torch._neg_view(made)
    if requires_grad:
        made.requires_grad = True
    return made
