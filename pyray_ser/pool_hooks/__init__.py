"""Existing pools, without edits: arguments and results of multiprocessing's pipes and queues travel through the store.

::

    message     pickles a message in one pass and takes large buffers out of it
    load        what such a message calls when it is loaded
    direct      reads a buffer of a store that this process is no client of
    in_flight   objects under way: how many bytes they may be, and when lost ones end
    audience    which processes may read a message, and whether all of them are clients of the store
    received_arrays  arrays that are sent on as they came
    stored_once  arrays that need not be stored again
    pipes       what the kernel knows of a pipe: who can read it, how much is unread
    processes   arguments of processes that start with an empty interpreter
    imported    what is imported before any process forks
    patches     what is replaced in multiprocessing; undone by `uninstall`
    loky        the same for loky, and joblib's copy of it, once they are imported

What is patched, all of it undone by `uninstall`:

- the name ``_ForkingPickler`` in ``multiprocessing.queues`` and ``multiprocessing.connection``, through which every queue and
  pipe pickles (Pool, ProcessPoolExecutor, Queue, Pipe); `multiprocessing.reduction.ForkingPickler` itself, with which torch and
  others register, is left alone and its table is honoured,
- ``send``, ``recv_bytes`` and ``recv_bytes_into`` of connections, ``SimpleQueue.put`` and ``Queue._feed``: they tell which pipe a
  message goes to, and that a program has the raw bytes of one,
- ``BaseProcess.start``, ``multiprocessing.reduction.dump`` and ``_launch`` of the start methods spawn and forkserver: a new
  process installs before it loads its work, and its large arguments are shared,
- ``poll`` of ``multiprocessing.popen_fork.Popen`` and ``multiprocessing.popen_forkserver.Popen``: messages that are lost end,
- ``resource.setrlimit``: a process that lowers its address space below what the store reserves leaves the store,
- the same in ``loky.backend`` of loky itself and of the copy in joblib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .patches import Options

__all__ = ["install", "uninstall"]


class _Installed:
    """What `install` returns: leaving it as a context manager uninstalls."""

    def __init__(self, before: Options | None) -> None:
        self._before = before

    def __enter__(self) -> _Installed:
        return self

    def __exit__(self, *exc_info: object) -> None:
        from . import patches

        if self._before is None:
            uninstall()
        else:
            patches.install(self._before)

    def __repr__(self) -> str:
        return "<pyray_ser installed in multiprocessing>"


def install(*, min_bytes: int = 1 << 20, mmap_mode: str = "c", max_in_flight: int | None = None) -> _Installed:
    """
    Let large arguments and results of process pools travel through the store.

    Holds for `multiprocessing` (Pool, Process, Queue, Pipe), `concurrent.futures.ProcessPoolExecutor`, loky and joblib, for
    this process and the workers that are started from now on. May be repeated with other options.

    Parameters
    ----------
    min_bytes : int
        Buffers from this size on travel through the store.
    mmap_mode : {"c", "r"}
        "c": arrays arrive writable, over private copy-on-write memory, so that code which writes into its arguments goes on
        working. "r": read-only, over the stored bytes themselves.
    max_in_flight : int, optional
        Bytes that may be under way or in the hands of receivers; what exceeds it travels as without this library. Default is
        a quarter of the store's capacity.

    Returns
    -------
    context manager
        Leaving it puts back what was before. It need not be used as one.
    """
    from .patches import Options
    from .patches import install as apply

    return _Installed(apply(Options(min_bytes, mmap_mode, max_in_flight)))


def uninstall() -> None:
    """Put everything back that `install` replaced. Messages under way still arrive. May be repeated."""
    from . import patches

    patches.uninstall()
