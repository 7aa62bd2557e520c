"""torch: CPU tensors as views of storages, and storages as bytes beside the stream.

torch's own pickling copies storages through a bytes object. Here a storage is one buffer, which all tensors over it
share, so views stay views of one storage, and storages that were separate stay separate. What a reader gets lies over
a copy-on-write mapping (see `rebuild_torch`), because torch has no read-only flag.
"""

import ctypes
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any
from weakref import WeakValueDictionary

import torch

from .. import rebuild_torch

__all__ = ["install", "reduce_memory", "reduce_parameter", "reduce_storage", "reduce_tensor"]


# Named dimensions were an experiment that later releases have ended.
_HAS_NAMES = hasattr(torch.Tensor, "has_names")


class _Memory:
    """Stands for the bytes of a storage in a pickler's memo: one per storage while any pickler knows it."""

    __slots__ = ("__weakref__", "storage")

    def __init__(self, storage: Any) -> None:
        self.storage = storage


# By the address of torch's own storage object, which the memory keeps from being used again.
_memories: WeakValueDictionary[int, _Memory] = WeakValueDictionary()


def _memory_of(storage: Any) -> _Memory:
    memory = _memories.get(storage._cdata)
    if memory is None:
        memory = _memories[storage._cdata] = _Memory(storage)
    return memory


def reduce_memory(memory: _Memory) -> Any:
    """Reduce the memory of a storage to its bytes."""
    size = memory.storage.nbytes()
    if not size:
        return rebuild_torch.Memory, (b"",)
    # The array keeps the storage alive for as long as somebody holds the buffer.
    view = (ctypes.c_ubyte * size).from_address(memory.storage.data_ptr())
    view._storage = memory.storage
    return rebuild_torch.Memory, (PickleBuffer(view),)


def reduce_tensor(tensor: Any) -> Any:
    """Reduce a plain, strided CPU tensor to its storage and how it lies there."""
    if (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
        or (_HAS_NAMES and tensor.has_names())
        or tensor.__dict__
        or tensor._backward_hooks
    ):
        return NotImplemented  # torch knows, or refuses
    storage = tensor.untyped_storage()
    size = tuple(tensor.size())
    memory = _memory_of(storage)
    if not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg()) and tensor.numel():
        stride = tensor.stride()
        if tensor.nbytes == storage.nbytes() and stride == rebuild_torch.contiguous(size):
            return rebuild_torch.tensor, (memory, tensor.dtype, size)
        return rebuild_torch.tensor, (memory, tensor.dtype, size, stride, tensor.storage_offset())
    return rebuild_torch.tensor, (
        memory,
        tensor.dtype,
        size,
        tensor.stride(),
        tensor.storage_offset(),
        tensor.requires_grad,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def reduce_parameter(parameter: Any) -> Any:
    """Reduce a parameter to the tensor that it is."""
    if parameter.__dict__ or parameter._backward_hooks or type(parameter.data) is not torch.Tensor:
        return NotImplemented
    return torch.nn.Parameter, (parameter.data, parameter.requires_grad)


def reduce_storage(storage: Any) -> Any:
    """Reduce a storage to its memory."""
    if storage.device.type != "cpu":
        return NotImplemented
    return rebuild_torch.storage, (_memory_of(storage),)


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module."""
    reducers[torch.Tensor] = reduce_tensor
    reducers[torch.nn.Parameter] = reduce_parameter
    reducers[torch.UntypedStorage] = reduce_storage
    reducers[_Memory] = reduce_memory
