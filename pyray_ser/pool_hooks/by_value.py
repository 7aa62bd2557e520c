"""What multiprocessing refuses to pickle: lambdas and local functions go by value, all else as it pickles them."""

from __future__ import annotations

import io
import sys
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any, BinaryIO

import cloudpickle

__all__ = ["dumps"]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # it comes without types
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        # Built-in types first, as multiprocessing has them; cloudpickle's table knows those that nothing else does.
        self.dispatch_table = {**_table(), **vars(ForkingPickler)["_extra_reducers"]}

    def reducer_override(self, obj: Any) -> Any:
        if (type(obj) is FunctionType or isinstance(obj, type)) and _reachable(obj):
            return NotImplemented
        return super().reducer_override(obj)


def _table() -> dict[type, Any]:
    import copyreg

    return {**cloudpickle.Pickler.dispatch_table, **copyreg.dispatch_table}


def _reachable(obj: Any) -> bool:
    """Tell whether the standard pickler would write it by reference, ``__main__`` included."""
    found = sys.modules.get(getattr(obj, "__module__", None) or "")
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def dumps(obj: object) -> memoryview:
    """Pickle a message."""
    file = io.BytesIO()
    _Pickler(file).dump(obj)
    return file.getbuffer()
