"""Actors: objects that live in their own process. ``remote`` turns a class into a class of actors.

The process that made an actor is its owner and communicates with it through a pipe. A handle can be sent to other
processes, which connect to the address where the actor listens. The actor runs the calls of each caller in the order in
which they were made.
"""

from __future__ import annotations

import inspect
import os
import time
import weakref
from _thread import get_ident, start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from sys import is_finalizing
from typing import Any, NoReturn

from .. import _log
from .._calls import Descriptor, take_first
from .._core import fork_count
from ..exceptions import ObjectLostError, SerializationError, TaskCancelledError, WorkerDiedError
from . import engine, in_order, protocol, settings, signatures
from .call import Call, after, argument_error, make, stop
from .channel import Channel, Job, Peer, fail, waits_for_itself
from .collector import collector, forget
from .function import Tests, _amounts, _count, check_options, mapped
from .listener import KILLED, listen, word_is_left
from .process import Process, new_address
from .process import kill as end_process
from .refs import TaskRef

__all__ = ["ActorClass", "ActorHandle", "kill"]

_OPTIONS: Tests = {
    "max_restarts": (lambda value: _count(value) and value >= -1, "an int >= -1 (without limit)"),
    "name": (lambda value: isinstance(value, str), "a str"),
    "resources": (lambda value: _amounts(value), "a dict of str to numbers > 0"),
}
# Owners that are starting their process again.
_restarting: dict[Owner, None] = {}
# How many chunks `ActorMethod.map` has in flight by default: enough for methods that wait in the actor's event loop.
_IN_FLIGHT = 16
_METHOD_OPTIONS: Tests = {
    "num_returns": (lambda value: _count(value) and value >= 1, "an int >= 1"),
    "stream": (lambda value: isinstance(value, bool), "a bool"),
}


class ActorClass:
    """
    A class whose instances are actors.

    ``Class.remote(...)`` starts a process, makes the instance there from the arguments, and returns an `ActorHandle`
    immediately. ``Class.options(...)`` returns the same class with other options:

    ``max_restarts``
        How many times the process is restarted with the same arguments if it dies; the default is 0, and -1 means no
        limit. The call that the dead process was running fails; later calls run in the new process. If the class has an
        ``async def`` method, all calls that were sent to the dead process fail, because they run at the same time.
    ``resources``
        What making the actor needs on its worker, as a dict of names and amounts; only on a cluster.
    ``name``
        The name in errors and in the list of processes.
    """

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self._class = cls
        self._options = check_options(options, _OPTIONS, "an actor")
        self._signature: signatures.Signature | None = None
        self.__doc__ = cls.__doc__
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"an actor is made by {self.__name__}.remote(...); for an instance here, use {self.__name__}.local(...)"
        )

    @property
    def local(self) -> type:
        """type : the class itself."""
        return self._class

    def options(self, **options: Any) -> ActorClass:
        """Return the same class with other options."""
        return ActorClass(self._class, {**self._options, **options})

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """
        Start an actor.

        Raises
        ------
        TypeError
            If the arguments do not fit the signature of the class.
        """
        signature = self._signature
        if signature is None:
            signature = self._signature = signatures.of_callable(self._class, self.__qualname__)
        signature.check(args, kwargs)
        methods = {
            name: inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value)
            for name, value in inspect.getmembers(self._class, callable)
            if not (name.startswith("__") and name.endswith("__")) or name == "__call__"
        }
        is_async = any(
            inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)
            for _, value in inspect.getmembers(self._class, callable)
        )
        name = self._options.get("name") or self._class.__qualname__
        cluster = engine.cluster()
        if cluster is not None:
            there = cluster.make_actor(self._class, name, args, kwargs, self._options, is_async)
            return ActorHandle(Grip(there), name, methods)
        if self._options.get("resources"):
            raise ValueError(
                f"resources of {name} need a cluster, because the workers of one node are equal; hint: "
                "init(address='tcp://...')"
            )
        client = Owner(
            name,
            self._class,
            lambda owner: make(f"{name}.__init__", self._class, args, kwargs, False, owner, protocol.CREATE),
            self._options.get("max_restarts", 0),
            is_async,
        )
        return ActorHandle(Grip(client), name, methods)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._class, self._options)

    def __repr__(self) -> str:
        return f"<actor class {self.__qualname__}>"


class Grip:
    """Shared by all handles of an actor in this process; released with the last handle, even if calls are in flight."""

    __slots__ = ("__weakref__", "client")

    def __init__(self, client: Any) -> None:
        self.client = client

    def __del__(self, is_finalizing: Callable[[], bool] = is_finalizing) -> None:
        # Get the function from a default argument: at shutdown, the interpreter may have cleared the module's globals.
        if not is_finalizing():
            self.client.release()


class Client:
    """
    The client's part of an actor: the channel to the actor, and the calls that wait for their arguments.

    This class needs no lock: a call moves from `_waiting` to the channel in one atomic step, and preparing a call twice
    does no harm.
    """

    channel: Channel
    # The address of the actor for other processes, and its process.
    address: str
    pid: int
    spans_hosts = False
    # True if the actor takes several calls in one message.
    takes_chunks = True
    # The class of the actor, if this process made the actor.
    cls: type | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        # The signatures of the methods that were called.
        self._signatures: dict[str, signatures.Signature] = {}
        self.killed = False
        # The reason that is reported for calls that fail because the actor has ended and will not be restarted.
        self.ended: WorkerDiedError | None = None
        # Calls in the order in which they were made; the first one waits for arguments.
        self._waiting: deque[Call] = deque()
        self._released = False
        self._forks = fork_count()
        # The thread that pops this item replaces the process of the channel.
        self._right = [True]
        self._replacing = 0

    def check_process(self) -> None:
        """Raise if the handle was made before this process was forked: only the parent receives the answers."""
        if self._forks != fork_count():
            raise ObjectLostError(
                f"the handle of actor {self.name} belongs to the parent of this process, which was forked since: send the "
                "handle as an argument instead",
                ref=f"<actor {self.name}>",
            )

    def check_arguments(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError if arguments do not fit the signature of a method, as far as this process knows it."""
        if self.cls is None:
            return
        signature = self._signatures.get(method)
        if signature is None:
            signature = signatures.of_method(self.cls, method, f"{self.name}.{method}")
            self._signatures[method] = signature
        signature.check(args, kwargs)

    def release(self) -> None:
        """Release the actor after the calls made so far. This method never blocks, because a destructor calls it."""
        self._released = True
        if not self._waiting:
            self.channel.close()

    def call(self, name: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], several: bool | int) -> Any:
        """Call a method; return what ``.remote`` returns."""
        call = make(name, method, args, kwargs, several, self)
        result = call.hand_over()
        self.submit(call)
        return result

    def submit(self, call: Call) -> None:
        """Send a call after all earlier calls."""
        if self.ended is not None:
            fail([call.job], self._ended_error)
        elif self._waiting or call.pending:
            self._waiting.append(call)
            after(list(call.pending), self._advance)
            # The actor may have ended meanwhile.
            self._fail_if_ended()
        else:
            self.channel.submit(call.job)

    def _fail_if_ended(self) -> None:
        if self.ended is not None:
            self._advance()

    def _advance(self) -> None:
        channel, waiting = self.channel, self._waiting
        sent = False
        while waiting:
            try:
                call = waiting[0]
            except IndexError:
                break
            if self.ended is not None:
                if take_first(waiting, call):
                    fail([call.job], self._ended_error)
                continue
            if call.job.ref.outcome is not None:
                # Cancelled.
                take_first(waiting, call)
                continue
            if not all(ref.outcome is not None for ref in call.pending):
                break
            failure = call.prepare()
            if failure is not None:
                if take_first(waiting, call):
                    stop(call.job, failure)
            elif channel.submit_first(waiting, call):
                sent = True
        if sent:
            # A thread may already be sleeping until the call is answered, because it found nothing to read when it
            # started.
            channel.collect_later()
        if self._released and not waiting:
            channel.close()

    def replace_later(self) -> None:
        """
        Have a thread replace the process of the channel, or end the channel.

        The program's signal handlers do not run in that thread, so their exceptions cannot interrupt the work.
        """
        if self._replacing == get_ident():
            raise waits_for_itself()
        try:
            start_new_thread(self._replace_in_turn, ())
        except RuntimeError as error:
            # The interpreter is ending, or the process has too many threads.
            self.replace_without_thread(error)

    def replace_without_thread(self, error: RuntimeError) -> None:
        """Replace the process of the channel, or end the channel, when no thread can be started."""
        self._replace_in_turn()

    def _replace_in_turn(self) -> None:
        channel = self.channel
        try:
            self._right.pop()
        except IndexError:
            # Another thread replaces the process, and checks again after that.
            return
        self._replacing = get_ident()
        try:
            if channel.calls.dead and not channel.dead:
                self.replace()
        except Exception as error:
            _log.exception("the process of actor %s could not be replaced", self.name)
            self._end(WorkerDiedError(f"actor {self.name} (process {self.pid}) has ended: {error}", pid=self.pid))
        finally:
            self._replacing = 0
            self._right.append(True)
            if channel.calls.dead and not channel.dead:
                # The new process has died, too, and the reader's thread found that this thread still had the right.
                self.replace_later()

    def replace(self) -> None:
        """Replace the dead process of the channel, or end the channel."""
        raise NotImplementedError

    def lost(self, channel: Channel) -> None:
        """Handle the death of the process: a thread decides which calls are sent again and which fail."""
        self.replace_later()

    def _end(self, ended: WorkerDiedError) -> None:
        """Fail all calls, because the actor has ended and will not be restarted."""
        if self.ended is None:
            self.ended = ended
        self.channel.give_up(self._ended_error)
        self._advance()

    def _ended_error(self, task: str) -> WorkerDiedError:
        ended = self.ended
        pid = self.pid if ended is None else ended.pid
        if self.killed or ended is None:
            process = f" (process {pid})" if pid else ""
            return WorkerDiedError(
                f"actor {self.name}{process} was ended by kill(), so {task} has no result",
                pid=pid or None,
                exitcode=None if ended is None else ended.exitcode,
                task=task,
            )
        if not ended.began:
            return WorkerDiedError(pid=ended.pid, exitcode=ended.exitcode, task=task, reason=ended.reason, began=False)
        return WorkerDiedError(
            f"{task} did not run, because actor {self.name} has ended and is not restarted: {ended}",
            pid=ended.pid,
            exitcode=ended.exitcode,
            task=task,
            reason=ended.reason,
        )

    def _watch(self, process: Peer, *sockets: Descriptor) -> None:
        """
        Watch for the end of a process, even if no call is pending.

        Parameters
        ----------
        process : Peer
        *sockets : Descriptor
            Closed after the actor has ended, unless it is restarted. Connections are refused from then on, so no
            process waits for this actor.
        """
        client = weakref.ref(self)

        def is_handled() -> bool:
            found = client()
            if found is not None and not found.channel.dead:
                if found.channel.process is process:
                    found.channel.notice_end()
                    return False
                # The actor was restarted, and another function watches its new process.
                return True
            for one in sockets:
                forget(one)
                one.close()
            return True

        def ended() -> None:
            # Another thread may be reading, or may replace the process, so check again.
            if not is_handled():
                collector().repeat(lambda: not is_handled())

        collector().watch(process.second_watch(), ended)

    # ---- the source of its references

    def announce(self, token: int, grip: Grip) -> None:
        """Report to the actor that another process will load a handle with this token."""
        self.channel.send(protocol.write(protocol.EXPECT, token))

    def hello(self, token: int) -> None:
        """Report to the actor that the handle with this token was loaded."""
        self.channel.send(protocol.write(protocol.HELLO, token))

    @property
    def is_over(self) -> bool:
        """bool : Whether the actor has ended and will not be restarted."""
        return self.channel.dead

    def kill(self) -> None:
        """End the actor immediately, without a restart."""
        self.killed = True
        self.channel.process.kill()

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """Read answers in the caller's thread, unless another thread reads."""
        if not self._waiting:
            return self.channel.collect(ref, deadline)
        # This code may have interrupted the code that sends the waiting calls, so check again soon.
        self._advance()
        soon = time.monotonic() + 0.05
        early = deadline is None or soon < deadline
        return self.channel.collect(ref, soon if early else deadline) and (not early or ref.outcome is not None)

    def collect_later(self, ref: TaskRef) -> bool:
        """Have another thread read the answers."""
        if self.channel.reads_here():
            return True
        self.channel.collect_later()
        return False

    def tell(self, ref: TaskRef, payload: bytes) -> None:
        """Report to the actor which results of a stream were taken."""
        job = ref.job
        if job is not None:
            self.channel.send(protocol.write(protocol.TAKEN, job.number, payload))

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Cancel a call that has not started."""
        if force:
            raise ValueError("force=True ends a worker of the pool; an actor is ended by kill(actor)")
        self.check_process()
        job = ref.job
        if job is None or not any(call.job is job for call in list(self._waiting)):
            return self.channel.cancel(ref, force)
        # The call stays in the queue until its turn comes, and is then dropped.
        job.ref.cancelled = True
        stop(job, TaskCancelledError(task=job.ref.name))
        # Later calls may be ready already.
        self._advance()
        return True


class Owner(Client):
    """The client that made the actor and restarts it."""

    def __init__(
        self,
        name: str,
        cls: type | None,
        creation: Callable[[Owner], Call],
        max_restarts: int,
        is_async: bool,
    ) -> None:
        super().__init__(name)
        self.cls = cls
        self._restarts = max_restarts
        self._async = is_async
        call = creation(self)
        self._creation = call
        self.address = new_address()
        # The socket stays open across restarts, so processes that connect during a restart wait in its backlog.
        self._listener = listen(self.address)
        # Other processes connect here to report that they killed the actor.
        self._killers = listen(self.address + KILLED)
        process = self._start()
        self.channel = Channel(process, process.pipe, self.lost)
        client = weakref.ref(self)

        killers = self._killers

        def killed_elsewhere() -> None:
            owner = client()
            if owner is None:
                return
            if word_is_left(killers):
                owner.kill()
            else:
                collector().watch(killers, killed_elsewhere)

        collector().watch(killers, killed_elsewhere)
        self._watch(process, self._killers, self._listener)
        self.submit(call)

    def _start(self) -> Process:
        share = settings.passed_on(settings.num_workers())
        process = Process(f"pyray_ser-{self.name}", settings.start_method(), share, self._listener)
        self.pid = process.pid
        return process

    def replace(self) -> None:
        """Restart the actor, or fail its calls."""
        process = self.channel.process
        assert isinstance(process, Process)
        # The pipe may have been closed before the process ended.
        end_process(process.process)
        ended = process.died(None)
        _restarting[self] = None
        try:
            restarted = self._restart(ended)
        finally:
            del _restarting[self]
        if not restarted:
            self._end(ended)
            # The actor will not be made again, so its arguments are not needed.
            self._creation.job.held = None
        process.reap()

    def _restart(self, ended: WorkerDiedError) -> bool:
        """Restart the actor if it may restart, and decide which calls are sent again and which fail."""
        if not self.killed and word_is_left(self._killers):
            self.killed = True
        if self.killed or self._restarts == 0:
            return False
        self._restarts -= 1
        try:
            fresh = self._start()
        except Exception:
            _log.exception("actor %s could not be started again", self.name)
            return False
        channel = self.channel
        again, begun = self._divide(list(channel.calls.sent.values()))
        self._fail_begun(begun, ended)
        if not channel.revive(fresh, fresh.pipe, again):
            # `shutdown` has closed the channel meanwhile.
            fresh.kill()
            collector().bury(fresh)
            return False
        self._watch(fresh, self._killers, self._listener)
        self._kill_again()
        return True

    def _end(self, ended: WorkerDiedError) -> None:
        if ended.began and not self.killed:
            # The process may have begun these calls, so they do not get the error of a call that did not run.
            jobs = list(self.channel.calls.sent.values())
            creation = self._creation.job
            self._fail_begun([creation] if creation in jobs else self._divide(jobs)[1], ended)
        super()._end(ended)

    def _fail_begun(self, jobs: list[Job], ended: WorkerDiedError) -> None:
        fail(jobs, lambda task: WorkerDiedError(pid=ended.pid, exitcode=ended.exitcode, task=task, reason=ended.reason))

    def _kill_again(self) -> None:
        """End the new process if `kill` was called for the previous one."""
        if self.killed:
            self.channel.process.kill()

    def _divide(self, jobs: list[Job]) -> tuple[list[Job], list[Job]]:
        """Return the calls to send to the new process, and the calls that the old process had started."""
        creation = self._creation.job
        made = creation not in jobs
        running = [job for job in jobs if job is not creation]
        cancelled = [job for job in running if job.ref.cancelled]
        running = [job for job in running if not job.ref.cancelled]
        # Without coroutines, only the first call can have begun. With coroutines, any call that was sent may have
        # begun.
        begun = [] if not made else running if self._async else running[:1]
        rest = [job for job in running if job not in begun]
        first = [] if self._creation in self._waiting else [creation]
        return first + rest, begun + cancelled


class ActorHandle:
    """
    Handle on an actor.

    ``handle.method.remote(...)`` calls a method and returns a reference immediately. The actor ends when its last
    handle is released and the calls made so far are done, or when the process that made it ends. Handles can be sent to
    other processes.
    """

    # Store the client in the instance's `__dict__`, because attribute access on a handle returns methods.
    _grip: Grip
    _client: Any
    _name: str
    _methods: dict[str, bool]

    def __init__(self, grip: Grip, name: str, methods: dict[str, bool]) -> None:
        self.__dict__["_grip"] = grip
        self.__dict__["_client"] = grip.client
        self.__dict__["_name"] = name
        self.__dict__["_methods"] = methods

    def __getattr__(self, name: str) -> ActorMethod:
        methods = self._methods
        if name not in methods:
            raise AttributeError(f"actor {self._name} has no method {name!r}")
        return ActorMethod(self, name, methods[name])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"attributes of actor {self._name} are set by its own methods")

    def __dir__(self) -> list[str]:
        return sorted(self._methods)

    def __reduce__(self) -> tuple[Any, ...]:
        from .remote_handles import reduce

        return reduce(self)

    def __eq__(self, other: object) -> bool:
        return type(other) is ActorHandle and other._client is self._client

    def __hash__(self) -> int:
        return hash(id(self._client))

    def __repr__(self) -> str:
        return f"<actor {self._name}>"


class ActorMethod:
    """A method of an actor, called with ``.remote(...)``."""

    __slots__ = ("_handle", "_method", "_several")

    def __init__(self, handle: ActorHandle, method: str, several: bool | int) -> None:
        self._handle = handle
        self._method = method
        self._several = several

    def options(self, **options: Any) -> ActorMethod:
        """Return the same method with other options: ``num_returns``, ``stream``."""
        check_options(options, _METHOD_OPTIONS, "an actor's method")
        several: bool | int = options.get("stream", self._several is True and "num_returns" not in options)
        if options.get("num_returns", 1) != 1:
            if several:
                raise ValueError("stream and num_returns exclude each other")
            several = options["num_returns"]
        return ActorMethod(self._handle, self._method, several)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """
        Call the method after the earlier calls of this process; return a reference immediately.

        Raises
        ------
        TypeError
            If the arguments do not fit the signature of the method. A process that did not make the actor gets this
            error from `get`.
        """
        client = self._handle._client
        client.check_process()
        client.check_arguments(self._method, args, kwargs)
        return client.call(self._name, self._method, args, kwargs, self._several)

    def map(
        self,
        iterable: Iterable[Any],
        /,
        *iterables: Iterable[Any],
        chunksize: int = 1,
        in_flight: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """
        Call the method for each item, and return an iterator over the results in order.

        New calls are made as results are taken. The actor runs them in order with all other calls of this process.

        Parameters
        ----------
        iterable, *iterables : iterable
            One for each argument. The shortest ends the iteration. Items that are references are replaced by their values.
        chunksize : int
            The number of items that are sent to the actor together. Larger values are faster for short calls. If the
            method is a coroutine function, the calls of a chunk run concurrently. On a cluster, items are always sent one
            by one.
        in_flight : int, optional
            Maximum number of chunks whose results were not taken; the default is 16.
        timeout : float, optional
            Seconds from the call of `map` after which the iterator raises `GetTimeoutError`.

        Returns
        -------
        iterator
            It keeps the actor alive. If it is dropped, calls that have not started are cancelled.

        Examples
        --------
        >>> @pyray_ser.remote
        ... class Scaler:
        ...     def __init__(self, factor):
        ...         self.factor = factor
        ...     def scale(self, x):
        ...         return self.factor * x
        >>> list(Scaler.remote(10).scale.map(range(4), chunksize=2))
        [0, 10, 20, 30]
        """
        in_order.check_count("chunksize", chunksize)
        if not self._handle._client.takes_chunks:
            chunksize = 1
        return mapped(
            self._name,
            self.remote,
            self._begin_chunk,
            (iterable, *iterables),
            several=self._several,
            chunksize=chunksize,
            in_flight=_IN_FLIGHT if in_flight is None else in_flight,
            timeout=timeout,
        )

    def _begin_chunk(self, chunk: list[tuple[Any, ...]]) -> TaskRef:
        client = self._handle._client
        client.check_process()
        for args in chunk:
            client.check_arguments(self._method, args, {})
        # The arguments of all calls in a row: so references among them are awaited and replaced as those of one call.
        row = tuple(arg for args in chunk for arg in args)
        try:
            call = make(self._name, self._method, row, {}, False, client, protocol.EACH, width=len(chunk[0]))
        except SerializationError as error:
            for args in chunk:
                found = argument_error(self._name, args, {}, error)
                if found is not error:
                    raise found from error.__cause__
            raise
        ref: TaskRef = call.hand_over()
        client.submit(call)
        return ref

    @property
    def _name(self) -> str:
        return f"{self._handle._name}.{self._method}"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"a method of an actor is called by .{self._method}.remote(...)")

    def __repr__(self) -> str:
        return f"<method {self._method} of {self._handle!r}>"


def kill(actor: ActorHandle) -> None:
    """
    End an actor immediately. Calls without a result fail with `WorkerDiedError`, and the actor is not restarted.

    Parameters
    ----------
    actor : ActorHandle

    Examples
    --------
    >>> @pyray_ser.remote
    ... class Counter:
    ...     def add(self, n):
    ...         return n
    >>> counter = Counter.remote()
    >>> pyray_ser.kill(counter)
    >>> pyray_ser.get(counter.add.remote(1))
    Traceback (most recent call last):
        ...
    pyray_ser.exceptions.WorkerDiedError: ...
    """
    if not isinstance(actor, ActorHandle):
        raise TypeError(f"kill() takes an actor's handle, not {type(actor).__name__!r}")
    client = actor._client
    client.check_process()
    client.kill()


def join_restarts() -> None:
    """Wait for restarts that other threads have begun, after `Channel.end`; at most 5 s."""
    until, me = time.monotonic() + 5, get_ident()
    while any(owner._replacing != me for owner in list(_restarting)) and time.monotonic() < until:
        time.sleep(0.001)


os.register_at_fork(after_in_child=_restarting.clear)
