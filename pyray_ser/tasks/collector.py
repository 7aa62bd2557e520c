"""The thread that reads where nobody else does, and sees off processes that were let go.

It has no lock: finalizers and signal handlers ask for it in the middle of anything, its own code included.
What others change is one step of a dict or deque each, and the thread looks again after it is told.
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

__all__ = ["Collector", "collector", "end_collector", "ending"]


class Collector:
    """Reads on behalf of channels, reaps processes, and runs periodic chores."""

    def __init__(self) -> None:
        self._epoll = epoll_above_standard(select.epoll())
        self._bell = Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._epoll.register(self._bell.fileno(), select.EPOLLIN)
        self._ending = False
        # The thread is over; what is added later must go to another one.
        self.over = False
        # Descriptor -> whose it is.
        self._channels: dict[int, Channel] = {}
        self._turns: dict[Channel, Turn] = {}
        # The turn for which all descriptors of a channel were registered.
        self._registered: dict[Channel, Turn] = {}
        self._watched: dict[int, tuple[Descriptor, Callable[[], object]]] = {}
        # Channels to be looked at without their descriptors being ready.
        self._fresh: deque[Channel] = deque()
        # Called four times a second, for as long as they return True.
        self._chores: list[Callable[[], bool]] = []
        self._ended = allocate_lock()
        self._ended.acquire()
        self.thread = -1
        try:
            # Not threading's: its start takes locks that the code below a signal handler may hold.
            self.thread = start_new_thread(self._run, ())
        except RuntimeError:
            # From 3.12 on an interpreter that ends starts no more threads: `end` does its work then. At any other time
            # nobody would.
            if not _ending:
                self.close()
                raise
            self.thread = 1

    def add(self, channel: Channel, turn: Turn) -> None:
        """Read for a channel until it has no call under way."""
        self._turns[channel] = turn
        self.register(channel)
        if channel.calls.pending or not channel.calls.busy or channel.calls.fileno() < 0:
            self.look_at(channel)
        if self.over:
            self.remove(channel)
            channel.collect_later()

    def look_at(self, channel: Channel) -> None:
        """Look at a channel soon, although none of its descriptors is ready."""
        self._fresh.append(channel)
        self._ring()

    def register(self, channel: Channel) -> None:
        """Watch the descriptors of a channel. Can be repeated: `add` may be interrupted by what waits for it."""
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
            # It was let go since this began.
            self._drop_unless_new(channel, found)

    def has(self, channel: Channel) -> bool:
        """Return whether it watches a channel's pipe. Not yet if `add` was interrupted before the kernel knew."""
        turn = self._turns.get(channel)
        # Its descriptor may be another channel's by now.
        watched = self._channels.get(channel.calls.fileno()) is channel
        return turn is not None and self._registered.get(channel) is turn and watched

    def resume(self, channel: Channel) -> None:
        """Go on writing for a channel that it reads for."""
        try:
            self._epoll.modify(channel.calls.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except (OSError, ValueError):
            return  # it was removed meanwhile; who removes it looks whether something is left

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
        """Watch a descriptor no more."""
        fd = descriptor.fileno()
        if fd >= 0 and self._watched.pop(fd, None) is not None:
            self._unregister(fd)

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
                    continue  # the other one, then; both if others change it at the same time
                except (OSError, ValueError):
                    # Either the descriptor was closed meanwhile, by what was to be done with it, or this is over.
                    return
                return

    def _unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            return  # closed by somebody else, who closes all there are; the kernel forgot it then

    def _ring(self) -> None:
        try:
            os.eventfd_write(self._bell.fileno(), 1)
        except OSError:
            return  # closed, or rung already as often as can be counted

    def end(self) -> None:
        """End the thread, once every process that it watches has ended; wait 5 s for that at most."""
        global _collector
        self._ending = True
        self._ring()
        if self.thread == 1:
            self._run(5)
        elif self.thread != get_ident():
            if self._ended.acquire(timeout=5):
                # The thread itself ended this wait.
                self._ended.release()
            elif _collector is self:
                # It ends with what it still watches. The next one that ends a collector must not wait for it again.
                _collector = None

    def close(self) -> None:
        """Close its descriptors."""
        self._epoll.close()
        self._bell.close()

    def _run(self, seconds: float = inf) -> None:
        limit = time.monotonic() + seconds
        try:
            while not self._is_over() and time.monotonic() < limit:
                # Others append meanwhile.
                for chore in list(self._chores):
                    if not self._guarded(chore):
                        self._chores.remove(chore)
                looks = bool(self._chores) or limit < inf
                self._handle([fd for fd, _ in self._epoll.poll(0.25 if looks else -1)])
        finally:
            if self._ended.locked():
                self._ended.release()

    def _guarded(self, act: Callable[..., Any], *arguments: object) -> Any:
        """Call something; what it raises is logged and does not end the thread, which everybody relies on."""
        try:
            return act(*arguments)
        except BaseException:
            if self.thread == 1:
                raise  # this is the thread of somebody who wants to hear of Ctrl-C
            _log.exception("the thread that reads the answers of workers goes on after an error in %r", act)
            return None

    def _is_over(self) -> bool:
        global _collector
        if not self._ending or self._channels or self._watched:
            return False
        self.over = True
        if self._channels or self._watched:
            # Added before `over` could be seen.
            self.over = False
            return False
        if _collector is self:
            _collector = None
        self.close()
        return True

    def _handle(self, readable: list[int]) -> None:
        # Whose they are is looked up for all of them first: a channel that dies of the first has closed the second by then,
        # whose number may be a new channel's.
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
            # It was removed while somebody was about to add it; whoever reads now finds what has come.
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
                # An error came out of the middle: the rest is there, and the pipe will not tell.
                self.look_at(channel)
            if calls.dead or not (calls.busy or calls.blocked or calls.pending):
                self.remove(channel)
                channel._after_reading()
                channel.close_if_idle()

    def remove(self, channel: Channel) -> None:
        """Read for a channel no more. Before its descriptors are closed."""
        channel._collected = None
        self._drop(channel)
        turn = self._turns.pop(channel, None)
        if turn is not None:
            turn.end()

    def _drop_unless_new(self, channel: Channel, descriptors: tuple[int, ...] | None = None) -> None:
        self._drop(channel, descriptors)
        if channel.calls.reader == self.thread and not self.has(channel):
            # Another thread has added the channel again between the check of our caller and this.
            self.register(channel)

    def _drop(self, channel: Channel, descriptors: tuple[int, ...] | None = None) -> None:
        self._registered.pop(channel, None)
        known = descriptors or _descriptors(channel)
        if min(known) < 0:
            # Another thread has closed one already: find its number. Others change the table meanwhile.
            known = tuple(fd for fd, found in list(self._channels.items()) if found is channel)
        for fd in known:
            # Of one that has died they are gone already.
            if self._channels.get(fd) is channel:
                del self._channels[fd]
                self._unregister(fd)
                if fd in self._watched:
                    # The process is let go, and to be reaped: `bury` watches the same descriptor.
                    self._register(fd, select.EPOLLIN)


def _descriptors(channel: Channel) -> tuple[int, ...]:
    return channel.calls.fileno(), channel.process.watch.fileno()


_collector: Collector | None = None
# Inside `ending`.
_ending = False


def collector() -> Collector:
    """Return this process's collector."""
    global _collector
    while True:
        found = _collector
        if found is not None and not found.over:
            return found
        # Two that come at the same time make two; the one that is not kept has nothing to do, and ends.
        made = Collector()
        if _collector is None or _collector.over:
            _collector = made
        else:
            made.end()


@contextmanager
def ending() -> Iterator[None]:
    """Inside, the collector may be without a thread: `end_collector`, which must be called there, does its work."""
    global _ending
    _ending = True
    try:
        yield
    finally:
        _ending = False


def end_collector() -> None:
    """End the thread that reads, after everything that it reads from."""
    last = _collector
    if last is not None:
        last.end()


def after_fork_in_child() -> None:
    """Forget the parent's collector."""
    global _collector, _ending
    last, _collector, _ending = _collector, None, False
    if last is not None:
        last.over = True
        last._epoll.close()


os.register_at_fork(after_in_child=after_fork_in_child)
