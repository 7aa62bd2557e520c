"""torch: CPU tensors as views of storages, and storages as bytes beside the stream.

torch's own pickling copies storages through a bytes object. Here a storage is one buffer, which all tensors over it
share, so views stay views of one storage, and storages that were separate stay separate. torch has no read-only flag:
what a reader gets over memory that nobody can write is mapped copy-on-write (see `rebuild.torch_storage`), so a write
reaches neither the stored object nor another reader.
"""

import ctypes
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

import torch

from .. import rebuild

__all__ = ["install", "reduce_parameter", "reduce_storage", "reduce_tensor"]


def reduce_tensor(tensor: Any) -> Any:
    """Reduce a plain, strided CPU tensor to its storage and how it lies there."""
    if (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
        or tensor.__dict__
        or tensor._backward_hooks
    ):
        return NotImplemented  # torch knows, or refuses
    return rebuild.torch_tensor, (
        tensor.untyped_storage(),
        tensor.dtype,
        tensor.storage_offset(),
        tuple(tensor.size()),
        tensor.stride(),
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
    """Reduce a storage to its bytes."""
    if storage.device.type != "cpu":
        return NotImplemented
    size = storage.nbytes()
    if not size:
        return rebuild.torch_storage, (b"",)
    # The array keeps the storage alive for as long as somebody holds the buffer.
    view = (ctypes.c_ubyte * size).from_address(storage.data_ptr())
    view._storage = storage
    return rebuild.torch_storage, (PickleBuffer(view),)


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module."""
    reducers[torch.Tensor] = reduce_tensor
    reducers[torch.nn.Parameter] = reduce_parameter
    reducers[torch.UntypedStorage] = reduce_storage
