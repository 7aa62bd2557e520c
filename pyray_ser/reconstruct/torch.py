"""Functions that reconstruct tensors of torch. Streams of `put` refer to them, so they are part of the format.

torch has no read-only flag, so a write into read-only memory would crash the process. Therefore tensors use a
copy-on-write mapping of the stored object (`_core.writable_twin`): the first write to a page copies the page, and
other processes and other calls of `get` do not see the change. Bytes that are not in a store are copied, unless they
are writable.
"""

from typing import Any

import torch
from numpy import dtype as _dtype
from numpy import ndarray

from .._core import writable_twin

__all__ = ["Memory", "contiguous", "storage", "tensor", "view", "whole"]

_NAMES = "bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
# from_numpy is the fastest constructor of a tensor over existing memory.
_NUMPY: dict[Any, Any] = {getattr(torch, name): _dtype(name) for name in _NAMES if hasattr(torch, name)}
_BYTE = _dtype("uint8")
_from_numpy = torch.from_numpy
_numpy_type = _NUMPY.get


def _writable(buffer: Any) -> Any:
    """Return the bytes of a buffer as memory that this process may write to."""
    twin = writable_twin(buffer)
    if twin is not None:
        return twin
    view = memoryview(buffer)
    return bytearray(view) if view.readonly else view


def whole(buffer: Any, dtype: Any, size: tuple[int, ...]) -> Any:
    """Make a contiguous tensor that covers its own storage, as most tensors do."""
    known = _numpy_type(dtype)
    if known is not None:
        return _from_numpy(ndarray(size, known, _writable(buffer)))
    made = torch.frombuffer(_writable(buffer), dtype=dtype)
    # `resize_` changes the tensor in place and keeps the number of elements, so the tensor keeps its storage and is not
    # a view.
    return made if len(size) == 1 else made.resize_(size)


def view(
    first: Any,
    dtype: Any,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    requires_grad: bool = False,
    conjugate: bool = False,
    negative: bool = False,
) -> Any:
    """Make another tensor that shares the storage of `first`."""
    return _over(first.untyped_storage(), dtype, size, stride, offset, requires_grad, conjugate, negative)


class Memory:
    """The bytes of one storage, which several tensors may share.

    Attributes
    ----------
    bytes : buffer
        Writable.
    first : torch.Tensor or None
        The tensor that was made first, whose storage all others share.
    """

    __slots__ = ("bytes", "first")

    def __init__(self, buffer: Any) -> None:
        self.bytes = _writable(buffer)
        self.first: Any = None


def storage(memory: Any) -> Any:
    """Return the untyped storage over a block of memory, or of a tensor; each call returns the same storage."""
    if type(memory) is not Memory:
        return memory.untyped_storage()
    if memory.first is None:
        size = len(memory.bytes)
        # torch warns about arrays that do not own their memory.
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
    """Make a tensor over a block of memory; without `stride`, the tensor is contiguous and covers the whole block."""
    if stride is None:
        if memory.first is None and dtype in _NUMPY and not (requires_grad or conjugate or negative):
            made = memory.first = _from_numpy(ndarray(size, _NUMPY[dtype], memory.bytes))
            return made
        stride = contiguous(size)
    return _over(storage(memory), dtype, size, stride, offset, requires_grad, conjugate, negative)


def _over(
    memory: Any,
    dtype: Any,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    requires_grad: bool,
    conjugate: bool,
    negative: bool,
) -> Any:
    made: Any = torch.empty(0, dtype=dtype)
    made.set_(memory, offset, size, stride)
    if conjugate:
        made = torch._conj(made)
    if negative:
        made = torch._neg_view(made)
    if requires_grad:
        made.requires_grad = True
    return made
