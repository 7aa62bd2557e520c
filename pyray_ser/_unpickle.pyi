from _pickle import UnpicklingError as UnpicklingError
from collections.abc import Callable, Iterable
from typing import Any, final

from .typing import Allow, BufferLike, ReadableFile

@final
class UnpicklerMemoProxy:
    def clear(self) -> None: ...
    def copy(self) -> dict[int, Any]: ...

class Unpickler:
    def __init__(
        self,
        file: ReadableFile,
        *,
        fix_imports: bool = ...,
        encoding: str = ...,
        errors: str = ...,
        buffers: Iterable[Any] | None = ...,
        allow: Allow | None = ...,
    ) -> None: ...
    def load(self) -> Any: ...
    def find_class(self, module_name: str, global_name: str, /) -> Any: ...
    @property
    def memo(self) -> UnpicklerMemoProxy: ...
    @memo.setter
    def memo(self, value: UnpicklerMemoProxy | dict[int, Any]) -> None: ...
    persistent_load: Callable[[Any], Any]

def load(
    file: ReadableFile,
    *,
    fix_imports: bool = ...,
    encoding: str | None = ...,
    errors: str | None = ...,
    buffers: Iterable[Any] | None = ...,
    allow: Allow | None = ...,
) -> Any: ...
def loads(
    data: BufferLike,
    /,
    *,
    fix_imports: bool = ...,
    encoding: str | None = ...,
    errors: str | None = ...,
    buffers: Iterable[Any] | None = ...,
    allow: Allow | None = ...,
) -> Any: ...
def loads_in_place(
    stream: BufferLike, buffers: Iterable[BufferLike], *, allow: Allow | None = ..., writable: bool = ...
) -> Any: ...
