"""The thread that reads those channels that no other thread reads, and reaps processes that are no longer needed.

The collector has no lock, because finalizers and signal handlers may call it at any point, even while its own code
runs. Other threads change its state in single atomic steps of a dict or deque, and then wake the thread, which checks
again.
"""

from __future__ import annotations

import os
import select
import time
from _thread import allocate_lock, get_ident, start_new_thread
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any

from .. import _log
from .._calls import Descriptor
from .._descriptors import epoll_above_standard

if TYPE_CHECKING:
    from .._calls import Turn
    from .channel import Channel, Peer

__all__ = ["Collector", "collector", "end_collector", "ending", "forget"]


class Collector:
    """Reads channels, reaps processes, and runs periodic chores."""

    def __init__(self) -> None:
        self._epoll = epoll_above_standard(select.epoll())
        self._bell = Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._epoll.register(self._bell.fileno(), select.EPOLLIN)
        self._ending = False
        # The thread has ended; channels and chores that are added later must go to another collector.
        self.over = False
        # Descriptor -> the channel that owns the descriptor.
        self._channels: dict[int, Channel] = {}
        self._turns: dict[Channel, Turn] = {}
        # Channel -> the turn for which all descriptors of the channel were registered.
        self._registered: dict[Channel, Turn] = {}
        self._watched: dict[int, tuple[Descriptor, Callable[[], object]]] = {}
        # Channels that must be read although none of their descriptors is ready.
        self._fresh: deque[Channel] = deque()
        # Functions that are called four times a second, as long as they return True.
        self._chores: list[Callable[[], bool]] = []
        self._ended = allocate_lock()
        self._ended.acquire()
        self.thread = -1
        _all[self] = None
        try:
            # Do not use `threading.Thread`: starting one acquires locks that may be held by code that a signal handler
            # has interrupted.
            self.thread = start_new_thread(self._run, ())
        except RuntimeError:
            # Since Python 3.12 an interpreter that is shutting down starts no threads. In that case `end` does the
            # thread's work. At any other time no code would do this work, so raise the error.
            if not _ending:
                self.close()
                raise
            self.thread = 1

    def add(self, channel: Channel, turn: Turn) -> None:
        """Read a channel until it has no calls in progress."""
        self._turns[channel] = turn
        self.register(channel)
        if channel.calls.pending or not channel.calls.busy or channel.calls.fileno() < 0:
            self.look_at(channel)
        if self.over:
            self.remove(channel)
            channel.collect_later()

    def look_at(self, channel: Channel) -> None:
        """Read a channel soon, even if none of its descriptors is ready."""
        self._fresh.append(channel)
        self._ring()

    def register(self, channel: Channel) -> None:
        """Watch the descriptors of a channel. The method may be called twice, because code that interrupts `add` and
        waits for the channel also calls it."""
        turn = self._turns.get(channel)
        found = _descriptors(channel)
        writes = select.EPOLLOUT if channel.calls.blocked else 0
        for fd, events in zip(found, (select.EPOLLIN | writes, select.EPOLLIN), strict=True):
            if fd >= 0:
                self._channels[fd] = channel
                self._register(fd, events)
        if turn is not None:
            self._registered[channel] = turn
        if channel.calls.reader != self.thread or found != _descriptors(channel):
            # Another thread has removed the channel since this method started.
            self._drop_unless_new(channel, found)

    def has(self, channel: Channel) -> bool:
        """Return whether this collector watches a channel's pipe; False while `add` is interrupted before the
        registration."""
        turn = self._turns.get(channel)
        # The descriptor's number may have been reused for another channel.
        watched = self._channels.get(channel.calls.fileno()) is channel
        return turn is not None and self._registered.get(channel) is turn and watched

    def resume(self, channel: Channel) -> None:
        """Write the remaining bytes of a channel that this collector reads."""
        try:
            self._epoll.modify(channel.calls.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except (OSError, ValueError):
            return  # the channel was removed meanwhile; the removing code checks whether bytes are left

    def watch(self, descriptor: Descriptor, act: Callable[[], object]) -> None:
        """Call ``act()`` once when a descriptor becomes readable."""
        fd = descriptor.fileno()
        if fd < 0:
            return
        self._watched[fd] = descriptor, act
        self._register(fd, select.EPOLLIN)
        if self.over and self._watched.pop(fd, None) is not None:
            collector().watch(descriptor, act)

    def forget(self, descriptor: Descriptor) -> None:
        """Stop watching a descriptor."""
        fd = descriptor.fileno()
        if fd >= 0 and self._watched.pop(fd, None) is not None:
            self._unregister(fd)
            if self._ending:
                self._ring()

    def bury(self, process: Peer) -> None:
        """Reap a process when it has ended."""
        self.watch(process.watch, process.reap)

    def repeat(self, chore: Callable[[], bool]) -> None:
        """Call ``chore()`` four times a second, as long as it returns True."""
        self._chores.append(chore)
        self._ring()
        if self.over:
            collector().repeat(chore)

    def _register(self, fd: int, events: int) -> None:
        while True:
            for change in (self._epoll.register, self._epoll.modify):
                try:
                    change(fd, events)
                except (FileExistsError, FileNotFoundError):
                    continue  # try the other call, and repeat both if another thread changes the registration meanwhile
                except (OSError, ValueError):
                    # Another thread has closed the descriptor or this collector meanwhile.
                    return
                return

    def _unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            return  # other code closed every copy of the descriptor, and the kernel dropped the registration

    def _ring(self) -> None:
        try:
            os.eventfd_write(self._bell.fileno(), 1)
        except OSError:
            return  # the eventfd is closed, or its counter is at its maximum

    def end(self) -> None:
        """End the thread once every process that it watches has ended; wait at most 5 s for that."""
        global _collector
        self._ending = True
        self._ring()
        if self.thread == 1:
            self._run(5)
        elif self.thread != get_ident():
            if self._ended.acquire(timeout=5):
                # The thread releases this lock when it ends, so it has ended.
                self._ended.release()
            elif _collector is self:
                # The thread still watches descriptors and will end later. The next call must not wait for it again.
                _collector = None

    def close(self) -> None:
        """Close the collector's own descriptors."""
        _all.pop(self, None)
        self._epoll.close()
        self._bell.close()

    def _run(self, seconds: float = inf) -> None:
        limit = time.monotonic() + seconds
        try:
            while not self._is_over() and time.monotonic() < limit:
                # Iterate over a copy, because other threads may append meanwhile.
                for chore in list(self._chores):
                    if not self._guarded(chore):
                        self._chores.remove(chore)
                looks = bool(self._chores) or limit < inf
                self._handle([fd for fd, _ in self._epoll.poll(0.25 if looks else -1)])
        finally:
            if self._ended.locked():
                self._ended.release()

    def _guarded(self, act: Callable[..., Any], *arguments: object) -> Any:
        """Call a function and log its exceptions, so that they do not end the thread that all channels rely on."""
        try:
            return act(*arguments)
        except BaseException:
            if self.thread == 1:
                raise  # this is a thread of the program, which must receive Ctrl-C
            _log.exception("the thread that reads the answers of workers continues after an error in %r", act)
            return None

    def _is_over(self) -> bool:
        global _collector
        if not self._ending or self._channels or self._watched:
            return False
        self.over = True
        if self._channels or self._watched:
            # Another thread added a channel or a descriptor before `over` was set.
            self.over = False
            return False
        if _collector is self:
            _collector = None
        self.close()
        return True

    def _handle(self, readable: list[int]) -> None:
        # Look up the channels of all ready descriptors first, because handling one descriptor may close others, and a
        # new channel may get their numbers.
        for fd, channel, watched in [(fd, self._channels.get(fd), self._watched.get(fd)) for fd in readable]:
            if fd == self._bell.fileno():
                os.eventfd_read(fd)
            elif watched is not None:
                if self._watched.get(fd) is watched:
                    self._unregister(fd)
                    self._watched.pop(fd, None)
                    self._guarded(watched[1])
            elif channel is not None and self._channels.get(fd) is channel:
                self._guarded(self._read, channel, 1 if fd == channel.calls.fileno() else 2)
        while self._fresh:
            channel = self._fresh.popleft()
            self._guarded(self._read, channel, 0)

    def _read(self, channel: Channel, state: int) -> None:
        calls = channel.calls
        if calls.reader != self.thread:
            # Other code was adding the channel while it was removed. The thread that now reads the channel finds the
            # bytes that have arrived.
            self._drop_unless_new(channel)
            return
        try:
            if calls.blocked:
                calls.resume()
                self._register(calls.fileno(), select.EPOLLIN | (select.EPOLLOUT if calls.blocked else 0))
            channel.serve()
            channel.pump(state)
        finally:
            if calls.pending:
                # An exception interrupted the handling of frames. The remaining frames were read already, so the pipe
                # will not become readable for them.
                self.look_at(channel)
            if calls.dead or not (calls.busy or calls.blocked or calls.pending):
                self.remove(channel)
                channel._after_reading()
                channel.close_if_idle()

    def remove(self, channel: Channel) -> None:
        """Stop reading for a channel. Call this before its descriptors are closed."""
        channel._collected = None
        self._drop(channel)
        turn = self._turns.pop(channel, None)
        if turn is not None:
            turn.end()

    def _drop_unless_new(self, channel: Channel, descriptors: tuple[int, ...] | None = None) -> None:
        self._drop(channel, descriptors)
        if channel.calls.reader == self.thread and not self.has(channel):
            # Another thread has added the channel again since our caller's check.
            self.register(channel)

    def _drop(self, channel: Channel, descriptors: tuple[int, ...] | None = None) -> None:
        self._registered.pop(channel, None)
        known = descriptors or _descriptors(channel)
        if min(known) < 0:
            # Another thread has closed one of the descriptors already: find its number in the table. Other threads
            # change the table meanwhile, so iterate over a copy.
            known = tuple(fd for fd, found in list(self._channels.items()) if found is channel)
        for fd in known:
            # The entries of a channel that died were removed already.
            if self._channels.get(fd) is channel:
                # Code that interrupts this method may have removed the channel since.
                self._channels.pop(fd, None)
                self._unregister(fd)
                if fd in self._watched:
                    # The process has not been reaped yet, and `bury` watches the same descriptor.
                    self._register(fd, select.EPOLLIN)


def _descriptors(channel: Channel) -> tuple[int, ...]:
    return channel.calls.fileno(), channel.process.watch.fileno()


_collector: Collector | None = None
# All collectors whose thread has not ended: those that still watch something outlive `end`.
_all: dict[Collector, None] = {}
# Whether the program executes a block of `ending`.
_ending = False


def collector() -> Collector:
    """Return this process's collector."""
    global _collector
    while True:
        found = _collector
        if found is not None and not found.over:
            return found
        # Two threads may each make a collector. The collector that is not kept has nothing to do and ends.
        made = Collector()
        if _collector is None or _collector.over:
            _collector = made
        else:
            made.end()


def forget(descriptor: Descriptor) -> None:
    """Stop watching a descriptor, also if a collector that is ending watches it."""
    for one in list(_all):
        one.forget(descriptor)


@contextmanager
def ending() -> Iterator[None]:
    """Allow collectors without a thread inside the block; `end_collector` must be called later to do their work."""
    global _ending
    _ending = True
    try:
        yield
    finally:
        _ending = False


def end_collector() -> None:
    """End the collector's thread after all channels that it reads have ended."""
    last = _collector
    if last is not None:
        last.end()


def after_fork_in_child() -> None:
    """Forget the parent's collectors."""
    global _collector, _ending
    inherited = list(_all)
    _all.clear()
    _collector, _ending = None, False
    for one in inherited:
        one.over = True
        one._epoll.close()


os.register_at_fork(after_in_child=after_fork_in_child)
