"""loky, and joblib on top of it: large arrays through the reducers that its queues take for each message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Literal

from . import in_flight, message

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from .patches import Options

    Function = Callable[..., Any]

__all__ = ["HOOKS", "watch"]


def _hook(original: Function) -> Function:
    """Return a stand-in for ``dumps`` of ``loky.backend.queues``."""

    def dumps(obj: object, reducers: dict[type, Function] | None = None, protocol: int | None = None) -> Any:
        from . import patches

        options = patches.current()
        numpy = sys.modules.get("numpy")
        if options is None or numpy is None:
            return original(obj, reducers=reducers, protocol=protocol)
        caller = sys._getframe(1)
        before = (reducers or {}).get(numpy.ndarray)

        def reduce(array: NDArray[Any]) -> Any:
            reduced = _reduce(array, options, caller, before)
            if reduced is not None:
                return reduced
            return array.__reduce_ex__(5) if before is None else before(array)

        return original(obj, reducers={**(reducers or {}), numpy.ndarray: reduce}, protocol=protocol)

    return dumps


def _reduce(
    array: NDArray[Any], options: Options, caller: FrameType, before: Any
) -> tuple[Function, tuple[Any, ...]] | None:
    """Reduce a large array to a reference; None if it is to go as before."""
    from ..exceptions import PyraySerError
    from . import patches, stored_once

    if array.nbytes < options.min_bytes or array.dtype.hasobject or _lies_in_a_file(array):
        return None
    connection = patches.writer(caller)
    if connection is None:
        return None
    argument = None
    if type(before).__name__ == "ArrayMemmapForwardReducer":
        # joblib's arguments: it would write each to a file in this folder, once in a call.
        argument = stored_once.Argument(array, before._temp_folder)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    flat = array if array.flags.forc else array.copy()
    try:
        sent = in_flight.send([_bytes_of(flat)], connection, options, argument)
    except (PyraySerError, OSError, MemoryError):
        return None
    if sent is None:
        return None
    return load_array, (sent[0], array.dtype, array.shape, order, options.mmap_mode)


def _lies_in_a_file(array: object) -> bool:
    """Tell whether it is a part of a numpy.memmap: those travel by the file's name."""
    import numpy

    while isinstance(array, numpy.ndarray):
        if type(array) is numpy.memmap:
            return True
        array = array.base
    return False


def _bytes_of(array: NDArray[Any]) -> memoryview:
    import pickle

    # Before Python 3.12 the type checker does not know that it has a buffer.
    exporter: Any = array
    return pickle.PickleBuffer(exporter).raw()


def load_array(
    blob: bytes, dtype: numpy.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"], mmap_mode: str
) -> NDArray[Any]:
    """Make an array again."""
    import numpy

    from .._store import load_ref

    return numpy.ndarray(shape, dtype, message._buffer(load_ref(blob), mmap_mode), order=order)


def _tell_of_reaping(poll: Function) -> Function:
    from .patches import tell_of_reaping

    return tell_of_reaping(poll)


# Module -> what in it has the attribute to be replaced, the attribute, and what makes the replacement.
HOOKS: dict[str, tuple[Callable[[ModuleType], Any], str, Function]] = {
    f"{package}.backend.{module}": entry
    for package in ("loky", "joblib.externals.loky")
    for module, entry in (
        ("queues", (lambda module: module, "dumps", _hook)),
        ("popen_loky_posix", (lambda module: module.Popen, "poll", _tell_of_reaping)),
    )
}


class _Watch(MetaPathFinder, Loader):
    """Hooks loky's modules when they are imported after `install`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in HOOKS:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                made = ModuleSpec(name, self, origin=spec.origin, is_package=False)
                made.loader_state = spec
                made.has_location = spec.has_location
                return made
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = spec.loader_state.loader.create_module(spec.loader_state)
        return made

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        spec: Any = module.__spec__.loader_state
        module.__spec__, module.__loader__ = spec, spec.loader
        spec.loader.exec_module(module)
        from . import patches

        options = patches.current()
        if options is not None:
            patches.install(options)


watch = _Watch()
