"""The replacements of `install`, and how they are undone."""

from __future__ import annotations

import functools
import importlib
import multiprocessing.connection
import multiprocessing.pool
import multiprocessing.popen_fork
import multiprocessing.popen_forkserver
import multiprocessing.popen_spawn_posix
import multiprocessing.process
import multiprocessing.queues
import multiprocessing.reduction
import multiprocessing.spawn
import pickle
import resource
import sys
import threading
from collections.abc import Callable
from multiprocessing import BufferTooShort
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from .. import _core, _log
from ..store import discovery
from . import audience, direct, imported, in_flight, main_by_value, message, processes, report
from .counts import counts, mark_installation

__all__ = ["Options", "current", "hook_feed", "hook_poll", "hook_put", "install", "join", "sending", "uninstall"]


class Options(NamedTuple):
    """The options of `install`."""

    min_bytes: int
    mmap_mode: str
    max_in_flight: int | None

    def check(self) -> Options:
        """Return the options, or raise an error if they are invalid."""
        if type(self.min_bytes) is not int or self.min_bytes < 1:
            raise ValueError(f"min_bytes must be a positive int, not {self.min_bytes!r}")
        if self.mmap_mode not in ("c", "r"):
            raise ValueError(f'mmap_mode must be "c" or "r", not {self.mmap_mode!r}')
        if self.max_in_flight is not None and (type(self.max_in_flight) is not int or self.max_in_flight < 0):
            raise ValueError(f"max_in_flight must be None or an int >= 0, not {self.max_in_flight!r}")
        return self


_options: Options | None = None
# Whether this process makes a store if it has none. It does so if it called `install` itself.
_opens = False
# Each entry: the object, the attribute's name, the original value (`_NOTHING` if the object itself had none), and the
# replacement.
_replaced: list[tuple[Any, str, object, object]] = []
_NOTHING = object()


def current() -> Options | None:
    """Return the current options, or None if nothing is installed."""
    return _options


def _replace(owner: Any, name: str, hook: Callable[[Any], Any]) -> None:
    if any(known is owner and attribute == name for known, attribute, _, _ in _replaced):
        return
    before = vars(owner).get(name, _NOTHING)
    value = hook(getattr(owner, name))
    if isinstance(before, staticmethod):
        value = staticmethod(value)
    _replaced.append((owner, name, before, value))
    setattr(owner, name, value)


def install(options: Options) -> Options | None:
    """Make the replacements; return the previous options, or None if nothing was installed."""
    global _opens
    options.check()
    _opens = True
    if _core.default() is None:
        # Make the store before any worker starts: a worker that finds no store would make its own, which ends with the
        # worker.
        discovery.open_default()
    report.log_at_exit()
    return _apply(options)


def join(options: Options) -> None:
    """Install the hooks in a new process, with the store of its parent or without a store."""
    try:
        if _core.default() is None:
            discovery.open_inherited()
    except Exception as error:
        # Without a store, buffers travel inside the messages.
        _log.debug("cannot attach to the parent's store: %r", error)
    _apply(options.check())


def _apply(options: Options) -> Options | None:
    global _options
    imported.everything()
    mark_installation()
    before, _options = _options, options
    connections: Any = multiprocessing.connection
    for module in (multiprocessing.queues, connections):
        _replace(module, "_ForkingPickler", lambda _: MessagePickler)
    _replace(connections._ConnectionBase, "send", hook_put)
    _replace(connections._ConnectionBase, "recv_bytes", _hook_recv_bytes)
    _replace(connections._ConnectionBase, "recv_bytes_into", _hook_recv_bytes_into)
    _replace(multiprocessing.queues.SimpleQueue, "put", hook_put)
    _replace(multiprocessing.queues.Queue, "_feed", hook_feed)
    _replace(multiprocessing.process.BaseProcess, "start", _hook_start)
    _replace(multiprocessing.reduction, "dump", processes.hook_dump)
    _replace(multiprocessing.spawn, "get_preparation_data", main_by_value.hook_preparation_data)
    for launching in (multiprocessing.popen_spawn_posix.Popen, multiprocessing.popen_forkserver.Popen):
        _replace(launching, "_launch", processes.hook_launch)
    for polling in (multiprocessing.popen_fork.Popen, multiprocessing.popen_forkserver.Popen):
        _replace(polling, "poll", hook_poll)
    pools: Any = multiprocessing.pool
    _replace(pools.MaybeEncodingError, "__init__", _hook_encoding_error)
    _replace(resource, "setrlimit", direct.hook_setrlimit)
    _hook_loky()
    return before


def _hook_encoding_error(original: Callable[..., None]) -> Callable[..., None]:
    """Return an ``__init__`` that keeps the note with the path to what cannot be pickled in the result of a `Pool`."""

    @functools.wraps(original)
    def __init__(self: BaseException, exc: object, value: object) -> None:
        original(self, exc, value)
        for note in getattr(exc, "__notes__", ()):
            self.add_note(note)

    return __init__


def uninstall() -> None:
    """Undo the replacements. A replacement that other code has wrapped meanwhile stays in place, but has no effect."""
    global _options
    _options = None
    for entry in reversed(list(_replaced)):
        owner, name, before, value = entry
        if vars(owner).get(name) is not value:
            continue
        if before is _NOTHING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
        _replaced.remove(entry)


_LOKY = tuple(
    f"{package}.backend.{module}"
    for package in ("loky", "joblib.externals.loky")
    for module in ("queues", "reduction", "popen_loky_posix")
)


def _hook_loky() -> None:
    """Make the replacements in loky if it was imported. Called repeatedly, because the import can come at any time."""
    for name in _LOKY:
        if name in sys.modules:
            break
    else:
        return
    loky: Any = sys.modules[f"{__package__}.loky"]
    for name, owner_of, attribute, hook in loky.HOOKS:
        module = sys.modules.get(name)
        # A module is incomplete while it is being imported.
        owner = None if module is None else owner_of(module)
        if owner is not None and hasattr(owner, attribute):
            _replace(owner, attribute, hook)


# ---- the destination of a message -----------------------------------------------------------------------------------------


class _Local(threading.local):
    """The state of the message that a thread is sending."""

    # The connection for the next message of ``send`` or ``put``, and the connection for all messages of a thread that
    # feeds a queue.
    to: Connection | None = None
    feeds: Connection | None = None
    # Whether a message is being pickled. Values that a reducer pickles meanwhile are not separate messages.
    pickling = False
    # The message that was pickled but not written yet.
    last: in_flight.Sending | None = None


_local = _Local()


class _Gather:
    """Context manager for pickling one message."""

    __slots__ = ("_taker",)

    def __init__(self, taker: in_flight.Sending) -> None:
        self._taker = taker

    def __enter__(self) -> in_flight.Sending:
        _local.pickling = True
        return self._taker

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        _local.pickling = False
        taker = self._taker
        if kind is not None:
            taker.cancel()
        elif taker.blobs:
            taker.enter()
            _local.last = taker


def sending() -> _Gather | None:
    """Return the object that takes the buffers of the message to be pickled; None if they stay in the message."""
    connection = _local.to
    if connection is None:
        connection = _local.feeds
    else:
        _local.to = None
    options = _options
    if options is None or connection is None or _local.pickling:
        return None
    return _Gather(in_flight.Sending(connection, options))


def _written() -> None:
    last = _local.last
    if last is not None:
        _local.last = None
        last.written()


def _connection_of(sender: Any) -> Connection | None:
    found = getattr(sender, "_writer", sender)
    return found if isinstance(found, Connection) else None


def hook_put(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement for ``Connection.send`` or ``SimpleQueue.put``, which pickle and write in one call."""

    @functools.wraps(original)
    def put(self: Any, obj: Any) -> Any:
        if _options is None:
            return original(self, obj)
        before = _local.to
        _local.to = _connection_of(self)
        try:
            return original(self, obj)
        finally:
            _local.to = before
            if _local.last is not None:
                _written()

    return put


def hook_feed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement for ``Queue._feed``, the function of the thread that pickles and writes the items of a queue."""

    @functools.wraps(original)
    def feed(buffer: Any, notempty: Any, send_bytes: Callable[[Any], Any], *args: Any) -> Any:
        connection = getattr(send_bytes, "__self__", None)

        def send(data: Any) -> None:
            try:
                send_bytes(data)
            finally:
                _written()

        _local.feeds = connection if isinstance(connection, Connection) else None
        try:
            return original(buffer, notempty, send, *args)
        finally:
            _local.feeds = None

    return feed


# ---- queues and pipes ---------------------------------------------------------------------------------------------------


class MessagePickler(ForkingPickler):
    """The pickler of multiprocessing's queues and connections."""

    @classmethod
    def dumps(cls, obj: Any, protocol: int | None = None) -> Any:
        """Pickle a message; its large buffers go through the store if the message goes to a pipe of this host."""
        options = _options
        if protocol is None and options is not None:
            if type(obj) is _core.ObjectRef:
                _local.to = None
                form = _core.pickle_for_message(obj)
                counts.sent(len(form))
                return form
            taking = sending()
            with message.PathOfFailure(obj):
                if taking is not None:
                    with taking as taker:
                        data = message.seal(message.dumps(obj, taker), taker.blobs)
                        counts.sent(len(data))
                        return data
                data = main_by_value.pickler().dumps(obj)
            if not _local.pickling:
                # This is not a call of `sent`, because small messages are frequent.
                size = len(data)
                counts.messages += 1
                counts.message_bytes += size
                if size >= options.min_bytes:
                    # The sender looked up its method before `install`, so the pipe is not known.
                    counts.refuse("started_before_install", size)
            return data
        return ForkingPickler.dumps(obj, protocol)

    @staticmethod
    def loads(data: Any, **kwargs: Any) -> Any:  # type: ignore[override] # the stubs say that it is a method
        """Load a message."""
        if _options is not None:
            _hook_loky()
        if data[-len(message.MAGIC) :] == message.MAGIC:
            return message.loads(data, **kwargs)
        return pickle.loads(data, **kwargs)


def _hook_recv_bytes(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def recv_bytes(self: Any, maxlength: int | None = None) -> bytes:
        data: bytes = original(self, maxlength)
        if data.endswith(message.MAGIC):
            message.keep(data)
        return data

    return recv_bytes


def _hook_recv_bytes_into(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def recv_bytes_into(self: Any, buf: Any, offset: int = 0) -> int:
        try:
            size: int = original(self, buf, offset)
        except BufferTooShort as short:
            message.keep(short.args[0])
            raise
        with memoryview(buf) as view, view.cast("B") as data:
            message.keep(data[offset : offset + size])
        return size

    return recv_bytes_into


# ---- processes ------------------------------------------------------------------------------------------------------------


def hook_poll(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement for ``Popen.poll`` that handles the messages of a process that has ended."""

    @functools.wraps(original)
    def poll(self: Any, *args: Any, **kwargs: Any) -> Any:
        running = self.returncode is None
        code = original(self, *args, **kwargs)
        if running and code is not None:
            in_flight.reaped()
        else:
            in_flight.tick()
        return code

    return poll


def _hook_start(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def start(self: Any) -> Any:
        if _options is not None:
            package, _, rest = type(self).__module__.rpartition(".backend.")
            if rest == "process" and f"{package}.backend.reduction" in _LOKY:
                # loky imports this module only when it starts its first process.
                importlib.import_module(f"{package}.backend.popen_loky_posix")
            _hook_loky()
            audience.changed()
            if _opens and _core.default() is None:
                try:
                    discovery.open_default()
                except Exception as error:
                    _log.debug("a process starts without a store: %r", error)
        try:
            return original(self)
        finally:
            audience.changed()

    return start
