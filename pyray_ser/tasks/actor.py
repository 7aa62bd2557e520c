"""``remote`` on classes: an actor is an object in a process of its own.

Its owner, the process that made it, holds the pipe to it. A handle can be sent to other processes, which then call on the
actor at the address where it listens. Each caller's calls run in the order in which they were made.
"""

from __future__ import annotations

import inspect
from _thread import RLock
from collections import deque
from collections.abc import Callable
from sys import is_finalizing
from typing import Any, NoReturn

from .. import _log
from .._store import fork_count
from ..exceptions import ObjectLostError, TaskCancelledError, WorkerDiedError
from . import protocol, settings
from .call import Call, after, make, stop
from .channel import Channel, Job, fail
from .function import Tests, _count, check_options
from .process import Process, new_address
from .refs import Outcome, TaskRef

__all__ = ["ActorClass", "ActorHandle", "kill"]

_OPTIONS: Tests = {
    "max_restarts": (lambda value: _count(value) and value >= -1, "an int >= -1 (without limit)"),
    "name": (lambda value: isinstance(value, str), "a str"),
}
_METHOD_OPTIONS: Tests = {
    "num_returns": (lambda value: _count(value) and value >= 1, "an int >= 1"),
    "stream": (lambda value: isinstance(value, bool), "a bool"),
}


class ActorClass:
    """
    A class whose instances are actors.

    ``Class.remote(...)`` starts a process, makes the instance there from the arguments, and returns an `ActorHandle` at once.
    ``Class.options(...)`` gives the same class with other options:

    ``max_restarts``
        How often the process is started again, from the same arguments, if it dies; default 0, -1 is without limit. The call
        that it was running fails; those behind it run in the new one.
    ``name``
        What it is called in errors and in the list of processes.
    """

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self._class = cls
        self._options = check_options(options, _OPTIONS, "an actor")
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
        """Start an actor."""
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
        client = Owner(name, self._class, args, kwargs, self._options.get("max_restarts", 0), is_async)
        return ActorHandle(Grip(client), name, methods)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._class, self._options)

    def __repr__(self) -> str:
        return f"<actor class {self.__qualname__}>"


class Grip:
    """What the handles of one actor in this process share. Its end is theirs; calls under way do not hold it."""

    __slots__ = ("__weakref__", "client")

    def __init__(self, client: Client) -> None:
        self.client = client

    def __del__(self, is_finalizing: Callable[[], bool] = is_finalizing) -> None:
        # Bound here: at the end of the interpreter the names of modules are gone. What was to be ended has ended by then.
        if not is_finalizing():
            self.client.release()


class Client:
    """This process's side of one actor: the channel to it, and the calls that wait for their arguments."""

    channel: Channel
    # Where others call on the actor, and its process.
    address: str
    pid: int

    def __init__(self, name: str) -> None:
        self.name = name
        self.killed = False
        # Guards the order of calls that wait for their arguments.
        self._lock = RLock()
        self._waiting: deque[Call] = deque()
        self._released = False
        # It is known to have ended for good.
        self._gone = False
        self._forks = fork_count()

    def check_process(self) -> None:
        """Raise if this process was forked since: the answers go to the parent, and the actor is the parent's."""
        if self._forks != fork_count():
            raise ObjectLostError(
                f"the handle of actor {self.name} belongs to the parent of this process, which was forked since: send the "
                "handle as an argument instead",
                ref=f"<actor {self.name}>",
            )

    def release(self) -> None:
        """Let the actor go once the calls made so far are done. Never waits: a destructor calls it."""
        self._released = True
        if not self._waiting:
            self.channel.close()

    def submit(self, call: Call) -> None:
        """Send a call, behind those before it."""
        with self._lock:
            gone = self._gone and bool(call.pending)
            waits = not gone and bool(self._waiting or call.pending)
            if waits:
                self._waiting.append(call)
            elif not gone:
                self.channel.submit(call.job)
        if waits:
            after(list(call.pending), self._advance)
        elif gone:
            fail([call.job], self._ended_error)

    def _advance(self) -> None:
        stopped: list[tuple[Job, Outcome]] = []
        with self._lock:
            sent = False
            while self._waiting and all(ref.outcome is not None for ref in self._waiting[0].pending):
                call = self._waiting.popleft()
                if call.job.ref.outcome is not None:
                    continue
                failure = call.prepare()
                if failure is None:
                    self.channel.submit(call.job)
                    sent = True
                else:
                    stopped.append((call.job, failure))
            if sent:
                # Somebody may sleep until it is answered: there was nothing to read when he came.
                self.channel.collect_later()
            if self._released and not self._waiting:
                self.channel.close()
        # Not under the lock: callbacks may ask for that of another actor.
        for job, failure in stopped:
            stop(job, failure)

    def give_up(self) -> None:
        """Fail the calls that wait for their arguments: the actor has ended for good."""
        with self._lock:
            self._gone = True
            jobs = [call.job for call in self._waiting]
            self._waiting.clear()
        fail(jobs, self._ended_error)
        self._advance()

    def _ended_error(self, task: str) -> WorkerDiedError:
        return WorkerDiedError(
            f"actor {self.name} (process {self.pid}) was ended by kill(), so {task} has no result",
            pid=self.pid,
            task=task,
        )

    # ---- the source of its references

    def kill(self) -> None:
        """End the process now."""
        self.channel.process.kill()

    def collect(self, ref: TaskRef, deadline: float | None) -> bool:
        """Read answers in the caller's thread, if no other reads."""
        return self.channel.collect(ref, deadline)

    def collect_later(self, ref: TaskRef) -> None:
        """Let answers come in."""
        self.channel.collect_later(ref)

    def tell(self, ref: TaskRef, payload: bytes) -> None:
        """Tell the actor what of a stream was taken."""
        job = ref.job
        if job is not None:
            self.channel.send(protocol.write(protocol.TAKEN, job.number, payload))

    def cancel(self, ref: TaskRef, force: bool) -> bool:
        """Take back a call that has not started."""
        if force:
            raise ValueError("force=True ends a worker of the pool; an actor is ended by kill(actor)")
        self.check_process()
        with self._lock:
            job = ref.job
            call = next((call for call in self._waiting if call.job is job), None)
            if call is not None:
                self._waiting.remove(call)
        if call is None:
            return self.channel.cancel(ref, force)
        stop(call.job, TaskCancelledError(task=ref.name))
        # Those behind it waited only for their turn.
        self._advance()
        return True


class Owner(Client):
    """The client that made the actor, and starts it again."""

    def __init__(
        self,
        name: str,
        cls: type,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        max_restarts: int,
        is_async: bool,
    ) -> None:
        super().__init__(name)
        self._restarts = max_restarts
        self._async = is_async
        call = make(f"{name}.__init__", cls, args, kwargs, False, self, protocol.CREATE)
        self._creation = call
        self.address = new_address()
        self.ended: WorkerDiedError | None = None
        self.channel = self._start()
        self.submit(call)

    def _start(self) -> Channel:
        share = settings.passed_on(settings.num_workers())
        process = Process(f"pyray_ser-{self.name}", settings.start_method(), share, self.address)
        self.pid = process.pid
        return Channel(process, self.lost)

    def lost(self, channel: Channel, jobs: list[Job]) -> None:
        """Decide what becomes of the calls that a dead process leaves."""
        with self._lock:
            if channel is not self.channel:
                # Too late for the old process, in time for the new one.
                for job in jobs:
                    self.channel.submit(job)
                return
            if self.ended is None and not self._started_again():
                self.ended = channel.process.died(None)
            ended = self.ended is not None
            begun = [] if ended else self._pass_on(jobs)
        if ended:
            fail(jobs, self._ended_error)
            self.give_up()
        else:
            fail(begun, channel.process.died)

    def _started_again(self) -> bool:
        if self.killed or self._restarts == 0:
            return False
        self._restarts -= 1
        try:
            self.channel = self._start()
        except Exception:
            _log.exception("actor %s could not be started again", self.name)
            return False
        return True

    def _pass_on(self, jobs: list[Job]) -> list[Job]:
        """Give a new process the calls of the one before that it had not begun; return the others."""
        creation = self._creation.job
        running = [job for job in jobs if job.number != creation.number]
        # One after another: only the first can have begun. Coroutines: each that was sent can.
        begun = running if self._async else running[:1]
        if jobs and jobs[0].number == creation.number:
            begun = []
        if self._creation not in self._waiting:
            self.channel.submit(creation)
        for job in running:
            if job not in begun:
                self.channel.submit(job)
        if self._released and not self._waiting:
            self.channel.close()
        return begun

    def _ended_error(self, task: str) -> WorkerDiedError:
        ended = self.ended
        if ended is None:
            return super()._ended_error(task)
        if self.killed:
            return WorkerDiedError(
                f"actor {self.name} (process {ended.pid}) was ended by kill(), so {task} has no result",
                pid=ended.pid, exitcode=ended.exitcode, task=task,
            )  # fmt: skip
        return WorkerDiedError(pid=ended.pid, exitcode=ended.exitcode, task=task)

    def kill(self) -> None:
        """End the actor now and for good."""
        self.killed = True
        super().kill()


class ActorHandle:
    """
    Handle on an actor.

    ``handle.method.remote(...)`` calls a method and returns a reference at once. The actor ends with its last handle, once
    the calls before that are done, and with the process that made it. Handles can be sent to other processes.
    """

    # In the instance's dict: attribute access is for methods.
    _grip: Grip
    _client: Client
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
    """A method of an actor: call it with ``.remote(...)``."""

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
        """Call the method, behind the calls of this process before; return a reference at once."""
        client = self._handle._client
        client.check_process()
        call = make(f"{self._handle._name}.{self._method}", self._method, args, kwargs, self._several, client)
        result = call.hand_over()
        client.submit(call)
        return result

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"a method of an actor is called by .{self._method}.remote(...)")

    def __repr__(self) -> str:
        return f"<method {self._method} of {self._handle!r}>"


def kill(actor: ActorHandle) -> None:
    """
    End an actor now: calls that have no result fail with `WorkerDiedError`, and it is not started again.

    Parameters
    ----------
    actor : ActorHandle
    """
    if not isinstance(actor, ActorHandle):
        raise TypeError(f"kill() takes an actor's handle, not {type(actor).__name__!r}")
    client = actor._client
    client.check_process()
    client.kill()
    client.give_up()
