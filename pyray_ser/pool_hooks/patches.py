"""What `install` replaces, and how it is put back."""

from __future__ import annotations

import functools
import multiprocessing.connection
import multiprocessing.popen_fork
import multiprocessing.popen_forkserver
import multiprocessing.process
import multiprocessing.queues
import operator
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, NamedTuple, SupportsIndex

from .. import _store
from ..store.discovery import open_default

__all__ = ["Options", "install", "start", "uninstall"]


class Options(NamedTuple):
    """What `install` was told."""

    min_bytes: int
    mmap_mode: str
    max_in_flight: int | None

    def check(self) -> Options:
        """Return it, or say what is wrong with it."""
        if type(self.min_bytes) is not int or self.min_bytes < 1:
            raise ValueError(f"min_bytes must be a positive int, not {self.min_bytes!r}")
        if self.mmap_mode not in ("c", "r"):
            raise ValueError(f'mmap_mode must be "c" or "r", not {self.mmap_mode!r}')
        if self.max_in_flight is not None and (type(self.max_in_flight) is not int or self.max_in_flight < 0):
            raise ValueError(f"max_in_flight must be None or an int >= 0, not {self.max_in_flight!r}")
        return self


_options: Options | None = None
# (object, attribute, what was there; None for nothing of its own)
_replaced: list[tuple[Any, str, object]] = []


def _replace(owner: Any, name: str, value: object) -> None:
    _replaced.append((owner, name, vars(owner).get(name)))
    setattr(owner, name, value)


def install(options: Options) -> Options | None:
    """Replace what is to be replaced; return the options that held before, None if nothing was installed."""
    global _options
    before, _options = _options, options.check()
    if _store.default() is None:
        # Before any worker: one that found none would make its own, which ends with it.
        open_default()
    if before is None:
        _replace(multiprocessing.queues, "_ForkingPickler", MessagePickler)
        _replace(multiprocessing.connection, "_ForkingPickler", MessagePickler)
        _replace(multiprocessing.process.BaseProcess, "__reduce_ex__", reduce_process)
        for popen in (multiprocessing.popen_fork.Popen, multiprocessing.popen_forkserver.Popen):
            _replace(popen, "poll", tell_of_reaping(popen.poll))
    from . import loky

    for name, (owner_of, attribute, hook) in loky.HOOKS.items():
        module = sys.modules.get(name)
        owner = None if module is None else owner_of(module)
        if owner is not None and not any(known is owner for known, _, _ in _replaced):
            _replace(owner, attribute, hook(getattr(owner, attribute)))
    if before is None:
        sys.meta_path.insert(0, loky.watch)
    return before


def uninstall() -> None:
    """Put everything back."""
    global _options
    _options = None
    while _replaced:
        owner, name, before = _replaced.pop()
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
    from . import loky

    if loky.watch in sys.meta_path:
        sys.meta_path.remove(loky.watch)


def current() -> Options | None:
    """Return the options that hold, None if nothing is installed."""
    return _options


# ---- queues and pipes ---------------------------------------------------------------------------------------------------


class MessagePickler(ForkingPickler):
    """The pickler of multiprocessing's queues and connections. It looks at who calls to learn where the message goes."""

    @classmethod
    def dumps(cls, obj: Any, protocol: int | None = None) -> Any:
        options = _options
        if options is None or protocol is not None:
            return ForkingPickler.dumps(obj, protocol)
        if type(obj) is _store.ObjectRef:
            return _store.pickle_for_message(obj)
        from . import message

        caller = sys._getframe(1)
        return message.dumps(obj, ForkingPickler.dumps, options, lambda: writer(caller))


def writer(caller: FrameType) -> Connection | None:
    """
    Return the connection that the calling method is about to write to; None if that leaves this process tree.

    Parameters
    ----------
    caller : frame
        Of ``Connection.send``, ``SimpleQueue.put`` or ``Queue._feed``.
    """
    found = caller.f_locals
    connection = getattr(found.get("send_bytes"), "__self__", None)
    if connection is None:
        connection = found.get("self")
        connection = getattr(connection, "_writer", connection)
    return connection if isinstance(connection, Connection) else None


# ---- processes that end -----------------------------------------------------------------------------------------------------


def tell_of_reaping(poll: Callable[..., Any]) -> Callable[..., Any]:
    """Return a stand-in for ``Popen.poll``, which looks after what the process had sent once it has ended."""

    @functools.wraps(poll)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        running = self.returncode is None
        code = poll(self, *args, **kwargs)
        if running and code is not None:
            from . import in_flight

            in_flight.reaped()
        return code

    return told


# ---- processes that start with an empty interpreter -----------------------------------------------------------------------


def reduce_process(self: BaseProcess, protocol: SupportsIndex) -> Any:
    """Reduce a process that is about to be started so that it installs before it loads its work."""
    reduced: Any = object.__reduce_ex__(self, max(2, operator.index(protocol)))
    options = _options
    if options is None or reduced[0].__name__ != "__newobj__":
        return reduced
    return (start, (tuple(options), *reduced[1]), *reduced[2:])


def start(options: tuple[Any, ...], cls: type[BaseProcess], *args: Any) -> Any:
    """In a new worker: install, then make the process object that is being loaded."""
    install(Options(*options))
    make: Any = cls.__new__
    return make(cls, *args)
