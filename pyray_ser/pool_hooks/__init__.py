"""`install` makes existing pools, pipes and queues of multiprocessing send large data through the store.

::

    message     pickles a message in one pass and replaces large buffers by references
    load        the functions that such a message calls when it is loaded
    direct      reads a buffer of a store of which this process is not a client
    in_flight   objects in flight: the limit of their bytes, and the release of lost ones
    audience    which processes may read a message, and whether all of them are clients of the store
    received_arrays  arrays that are sent on as they were received
    stored_once  arrays that are in the store already
    pipes       facts about a pipe from the kernel: which processes can read it, how much is unread
    processes   arguments of processes that start with an empty interpreter
    main_by_value  functions and classes of a main module without a file, such as a notebook
    imported    modules that are imported before any process forks
    patches     the replacements in multiprocessing; undone by `uninstall`
    counts, report   what was sent, and what stayed in its message for which reason
    loky        the same for loky, and joblib's copy of it, once they are imported

`install` patches the following, and `uninstall` undoes all patches:

- the name ``_ForkingPickler`` in ``multiprocessing.queues`` and ``multiprocessing.connection``, by which every queue and
  pipe pickles (Pool, ProcessPoolExecutor, Queue, Pipe); `multiprocessing.reduction.ForkingPickler` itself, with which torch and
  others register, is unchanged, and the replacement uses its table of reducers,
- ``send``, ``recv_bytes`` and ``recv_bytes_into`` of connections, ``SimpleQueue.put`` and ``Queue._feed``: these show
  which pipe a message goes to, and whether the program reads a message as raw bytes,
- ``BaseProcess.start``, ``multiprocessing.reduction.dump`` and ``_launch`` of the start methods spawn and forkserver: a new
  process installs before it loads its work, and its large arguments are shared,
- ``multiprocessing.spawn.get_preparation_data``: a child does not look for the file of a main module that has none,
- ``poll`` of ``multiprocessing.popen_fork.Popen`` and ``multiprocessing.popen_forkserver.Popen``: the objects of lost
  messages are released,
- ``multiprocessing.pool.MaybeEncodingError``: it keeps the path to what cannot be pickled in a result,
- ``resource.setrlimit``: a process that sets its address space limit below what the store reserves leaves the store,
- the corresponding functions in ``loky.backend``, both in loky itself and in joblib's copy of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .patches import Options
    from .report import Report

__all__ = ["install", "uninstall"]


class Installation:
    """The result of `install`: a context manager that uninstalls at its end, and the report of what was sent."""

    def __init__(self, before: Options | None) -> None:
        self._before = before

    def report(self) -> Report:
        """
        Return what this process has sent through shared memory, and what not and why.

        Returns
        -------
        Report
            Print it, show it in a notebook, or call its method ``as_dict``. Workers have separate counts.

        Examples
        --------
        >>> installed = pyray_ser.install()
        >>> with multiprocessing.Pool(4) as pool:
        ...     results = pool.map(work, large_arrays)
        >>> print(installed.report())
        """
        from .report import Report

        return Report()

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        from . import patches

        if self._before is None:
            uninstall()
        else:
            patches.install(self._before)

    def __repr__(self) -> str:
        return "<pyray_ser installed in multiprocessing>"


def install(
    *, min_bytes: int | str = 1 << 20, mmap_mode: str = "c", max_in_flight: int | str | None = None
) -> Installation:
    """
    Send large arguments and results of process pools through the store.

    This applies to `multiprocessing` (Pool, Process, Queue, Pipe), `concurrent.futures.ProcessPoolExecutor`, loky and joblib,
    in this process and in workers that start later. The call may be repeated with other options.

    Parameters
    ----------
    min_bytes : int or str
        Buffers of at least this size are sent through the store: a number of bytes, or text such as ``"64K"``.
    mmap_mode : {"c", "r"}
        With "c", arrays arrive writable, in private copy-on-write memory, so that code can write to its arguments. With
        "r", they arrive read-only and use the stored bytes.
    max_in_flight : int or str, optional
        Maximum number of bytes that are stored for messages, in flight or held by receivers; buffers beyond this limit
        are sent as if this library were not installed. The default is a quarter of the store's capacity. Bytes that are
        in the store already do not count, because the message only refers to them.

    Returns
    -------
    Installation
        Its method ``report`` returns what was sent through shared memory, and what not and why. It is also a context
        manager: at the end of its ``with`` block, the previous state is restored. If the program has set up `logging` for
        level INFO, a summary of the report is logged when the process ends.

    Examples
    --------
    >>> arrays = [numpy.full(500_000, i) for i in range(4)]
    >>> with pyray_ser.install():
    ...     with multiprocessing.get_context("fork").Pool(2) as pool:
    ...         pool.map(len, arrays)
    [500000, 500000, 500000, 500000]
    """
    from ..store.options import size_of
    from .patches import Options
    from .patches import install as apply

    limit = None if max_in_flight is None else size_of(max_in_flight, "max_in_flight")
    return Installation(apply(Options(size_of(min_bytes, "min_bytes"), mmap_mode, limit)))


def uninstall() -> None:
    """
    Undo `install`. Messages in flight still arrive. The call may be repeated.

    Examples
    --------
    >>> pyray_ser.uninstall()
    """
    from . import patches

    patches.uninstall()
