"""Reducers for torch: CPU tensors are written as views of storages, and storages as out-of-band bytes.

torch's own pickling copies storages through a bytes object. These reducers write a storage as one buffer that all its
tensors share, so views stay views of one storage, and separate storages stay separate. The reader's tensors use a
copy-on-write mapping (see `reconstruct.torch`), because torch has no read-only flag.
"""

import ctypes
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any
from weakref import WeakValueDictionary

import torch

from ...reconstruct import torch as constructors

__all__ = ["install", "reduce_memory", "reduce_parameter", "reduce_storage", "reduce_tensor"]


# Named dimensions were an experimental feature, which later releases of torch removed.
_HAS_NAMES = hasattr(torch.Tensor, "has_names")


class _Memory:
    """Represents the bytes of a storage in the memos of picklers. A storage has at most one instance at a time."""

    __slots__ = ("__weakref__", "storage")

    def __init__(self, storage: Any) -> None:
        self.storage = storage


# The keys of both dicts are addresses of torch's storage objects. The values keep the storages alive, so that the
# addresses are not reused. `_wholes` has the tensor that is written as the whole storage; other tensors over the
# storage are written as views of this tensor. `_memories` has the object that represents the bytes, if no such tensor
# was written. The pickler's memo keeps these tensors and objects alive.
_wholes: WeakValueDictionary[int, Any] = WeakValueDictionary()
_memories: WeakValueDictionary[int, _Memory] = WeakValueDictionary()


def _memory_of(storage: Any) -> Any:
    """Return the object that represents a storage: a tensor that covers it entirely, or a `_Memory`."""
    key = storage._cdata
    memory = _memories.get(key)
    if memory is not None:
        return memory
    whole = _wholes.get(key)
    # The user may have changed the tensor meanwhile.
    if whole is not None and _is_plain(whole) and _is_whole(whole, whole.untyped_storage(), key):
        return whole
    memory = _memories[key] = _Memory(storage)
    return memory


def _is_plain(tensor: Any) -> bool:
    return not (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
        or (_HAS_NAMES and tensor.has_names())
        or tensor.__dict__
        or tensor._backward_hooks
    )


def _is_whole(tensor: Any, storage: Any, key: int) -> bool:
    """Return whether a tensor consists of all bytes of a storage, in their order."""
    return (
        storage._cdata == key
        and not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg())
        and 0 < tensor.nbytes == storage.nbytes()
        and tensor.stride() == constructors.contiguous(tensor.size())
    )


def _bytes_of(storage: Any) -> Any:
    # The array keeps the storage alive as long as the buffer exists.
    view = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
    view._storage = storage
    return PickleBuffer(view)


def reduce_memory(memory: _Memory) -> Any:
    """Reduce a `_Memory` to the bytes of its storage."""
    return constructors.Memory, (_bytes_of(memory.storage) if memory.storage.nbytes() else b"",)


def reduce_tensor(tensor: Any) -> Any:
    """Reduce a plain, strided CPU tensor to its storage and its position in the storage."""
    if not _is_plain(tensor):
        return NotImplemented  # torch reduces such a tensor itself, or refuses to
    storage = tensor.untyped_storage()
    key = storage._cdata
    size = tuple(tensor.size())
    if key not in _memories and _is_whole(tensor, storage, key):
        whole = _wholes.get(key)
        if whole is None or not (_is_plain(whole) and _is_whole(whole, whole.untyped_storage(), key)):
            whole = _wholes[key] = tensor
        if whole is tensor:
            return constructors.whole, (_bytes_of(storage), tensor.dtype, size)
    memory = _memory_of(storage)
    more: tuple[Any, ...] = ()
    if tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
        more = tensor.requires_grad, tensor.is_conj(), tensor.is_neg()
    rebuild = constructors.tensor if type(memory) is _Memory else constructors.view
    return rebuild, (memory, tensor.dtype, size, tensor.stride(), tensor.storage_offset(), *more)


def reduce_parameter(parameter: Any) -> Any:
    """Reduce a parameter to its tensor."""
    if parameter.__dict__ or parameter._backward_hooks or type(parameter.data) is not torch.Tensor:
        return NotImplemented
    return torch.nn.Parameter, (parameter.data, parameter.requires_grad)


def reduce_storage(storage: Any) -> Any:
    """Reduce a storage to its `_Memory`."""
    if storage.device.type != "cpu":
        return NotImplemented
    return constructors.storage, (_memory_of(storage),)


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducers of this module."""
    reducers[torch.Tensor] = reduce_tensor
    reducers[torch.nn.Parameter] = reduce_parameter
    reducers[torch.UntypedStorage] = reduce_storage
    reducers[_Memory] = reduce_memory
