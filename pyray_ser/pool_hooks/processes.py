"""Arguments of processes that start with an empty interpreter (spawn, forkserver).

The large buffers in the arguments of one process are written to one unnamed file (a memfd). multiprocessing passes the
file's descriptor to the child like other descriptors, so the child needs neither a store nor permission to examine its
parent. The child maps the buffers copy-on-write; the memory is freed with the last mapping.
"""

from __future__ import annotations

import functools
import io
import mmap
import os
import pickle
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from .. import _log
from .._descriptors import above_standard
from . import audience, main_by_value, message
from .counts import counts

if TYPE_CHECKING:
    from .patches import Options

__all__ = ["hook_dump", "hook_launch"]

# The state of the launch that the current thread performs.
_local = threading.local()


class _Arguments:
    """Collects the large buffers of one process; implements `message.Taker`."""

    def __init__(self, popen: Any, options: Options) -> None:
        self.min_bytes = options.min_bytes
        self.mmap_mode = options.mmap_mode
        self.popen = popen
        self.options = options
        self.refused = -1
        self.fd = -1
        # How the child obtains the descriptor.
        self.number = -1
        self.server = int(getattr(popen, "method", "") == "forkserver")
        self._size = 0

    def take(self, view: memoryview) -> tuple[Any, ...] | None:
        """Copy a buffer into the file."""
        offset = -(-self._size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        try:
            if self.fd < 0:
                self.fd = above_standard(os.memfd_create("pyray_ser-arguments", os.MFD_CLOEXEC))
                self.number = self.popen.duplicate_for_child(self.fd)
            os.ftruncate(self.fd, offset + view.nbytes)
            _write(self.fd, view, offset)
        except Exception as error:
            _log.debug("an argument of a process is pickled: %r", error)
            counts.refuse("error", view.nbytes)
            return None
        self._size = offset + view.nbytes
        counts.arguments += 1
        counts.arguments_bytes += view.nbytes
        return self.number, self.server, offset, view.nbytes

    def close(self) -> None:
        """Close the file here, because the child has its own descriptor by now."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _write(fd: int, view: memoryview, offset: int) -> None:
    rest = view.cast("B")
    while rest:
        done = os.pwrite(fd, rest, offset)
        offset += done
        rest = rest[done:]


def hook_launch(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement for ``Popen._launch`` of a start method that pickles its process."""

    @functools.wraps(original)
    def launch(self: Any, process_obj: BaseProcess) -> Any:
        from . import patches

        options = patches.current()
        if options is None:
            return original(self, process_obj)
        before = getattr(_local, "arguments", None)
        arguments = _local.arguments = _Arguments(self, options)
        audience.launching()
        main_by_value.spawned()
        try:
            result = original(self, process_obj)
            audience.started(self.pid)
            return result
        finally:
            audience.failed()
            _local.arguments = before
            arguments.close()

    return launch


def hook_dump(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement for the function that pickles a process: ``multiprocessing.reduction.dump``, or loky's."""

    @functools.wraps(original)
    def dump(obj: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        arguments: _Arguments | None = getattr(_local, "arguments", None)
        if arguments is None or not isinstance(obj, BaseProcess):
            original(obj, file, *args, **kwargs)
            return
        options = arguments.options
        limit = -1 if options.max_in_flight is None else options.max_in_flight
        file.write(_before(options.min_bytes, options.mmap_mode == "c", limit))
        standard = original.__module__ == "multiprocessing.reduction"
        if args or kwargs or not standard:
            with message.PathOfFailure(obj, by_value=not standard):
                original(obj, file, *args, **kwargs)
            return
        with message.PathOfFailure(obj):
            out = message.dumps(obj, arguments)
        if arguments.fd < 0:
            file.write(out.getbuffer())
            return
        # Replace STOP by opcodes that close the descriptor and leave the process object on the stack.
        file.write(out.getbuffer()[:-1])
        file.write(pickle.NONE + pickle.POP)
        file.write(message._call("close", (arguments.number, arguments.server)) + pickle.POP + pickle.STOP)

    return dump


def _before(*args: int) -> bytes:
    """Return the beginning of a pickle that installs the hooks in the process that loads it."""
    out = io.BytesIO()
    out.write(pickle.PROTO + bytes([pickle.DEFAULT_PROTOCOL]))
    out.write(message._call("start", args) + pickle.POP)
    return out.getvalue()
