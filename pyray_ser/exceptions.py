"""All exceptions of pyray_ser.

::

    PyraySerError                     (Exception)
     +-- ObjectStoreFullError         (MemoryError)        no room for an object
     +-- StoreFullError               (RuntimeError)       no room for a client, a name, a slot
     +-- ObjectLostError              (LookupError)        the object cannot come back
     |    +-- ObjectFreedError                             ... because a process called free()
     |    +-- ForeignStoreError                            ... from here: its store is out of reach
     +-- GetTimeoutError              (TimeoutError)       not ready in the time given
     +-- StoreBusyError               (TimeoutError)       a living, stopped process holds the lock
     +-- CorruptObjectError           (ValueError)         stored or transmitted bytes are damaged
     +-- StoreVersionError            (RuntimeError)       a store of another format
     +-- StoreClosedError             (ValueError)         used after shutdown()
     +-- StoreNotFoundError           (FileNotFoundError)  no store of that name
     +-- StoreAccessError             (PermissionError)    a store that this user may not open
     +-- NameNotFoundError            (FileNotFoundError)  no object of that name
     +-- NameExistsError              (FileExistsError)    the name is taken
     +-- SerializationError           (TypeError)          something inside cannot be pickled
     +-- DeepRecursionError           (PicklingError, RecursionError)
     +-- TaskError                                         a task raised (dual class, see there)
     +-- TaskCancelledError                                a task was cancelled
     +-- WorkerDiedError              (RuntimeError)       a worker process is gone

Where Python has a matching exception, the class also derives from it, so existing code that catches
``MemoryError``, ``TimeoutError`` or ``TypeError`` needs no change.

All classes accept an optional message, and facts as keyword arguments, which become attributes.
Without a message, the text is composed from the facts: what happened, to which object or store, and
what to do next. Pickling an exception keeps its facts, because exceptions are sent between
processes.
"""

import signal as _signal
from pickle import PicklingError as _PicklingError
from typing import Any

__all__ = [
    "CorruptObjectError",
    "DeepRecursionError",
    "ForeignStoreError",
    "GetTimeoutError",
    "NameExistsError",
    "NameNotFoundError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectStoreFullError",
    "PyraySerError",
    "SerializationError",
    "StoreAccessError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreFullError",
    "StoreNotFoundError",
    "StoreVersionError",
    "TaskCancelledError",
    "TaskError",
    "WorkerDiedError",
]


def bytes_text(number: int) -> str:
    """Return a byte count with a unit: ``1536`` -> ``'1.5 KiB'``."""
    if number < 1024:
        return f"{number} bytes"
    size = float(number)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1024 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"


def _seconds(number: float) -> str:
    return f"{number:g} s"


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, or a replacement if the exception's ``__str__`` fails."""
    try:
        return str(error)
    except Exception:
        return f"<{type(error).__name__}, whose __str__ fails>"


class PyraySerError(Exception):
    """Root of all exceptions of this library.

    Parameters
    ----------
    message : str, optional
        The text of the error; the default is composed from the facts.
    **facts
        Values for the attributes of the class.
    """

    # The keyword arguments that a class accepts: the public attributes that it or a base class declares with a default.
    _facts: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = (name for name, value in vars(cls).items() if name[0] != "_" and not hasattr(value, "__get__"))
        cls._facts = cls._facts.union(*(getattr(base, "_facts", ()) for base in cls.__bases__), own)

    def __init__(self, message: str | None = None, **facts: Any) -> None:
        for key in facts:
            if key not in self._facts:
                raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {key!r}")
        self.__dict__.update(facts)
        super().__init__(self._compose() if message is None else message)

    def _compose(self) -> str:
        return (type(self).__doc__ or "").partition("\n")[0]


class ObjectStoreFullError(PyraySerError, MemoryError):
    """The store has no room for an object, and nothing could be dropped or spilled.

    Attributes
    ----------
    size : int or None
        Bytes that were requested.
    capacity : int or None
        Capacity of the store in bytes.
    used : int or None
        Bytes of live objects.
    pinned : int or None
        Bytes of live objects with views, which can be neither moved nor spilled.
    holders : str or None
        Text about the objects that use the memory: the largest ones, their owners, where they were
        created.
    reason : str or None
        Why there is no room, if not because of the capacity: a full tmpfs, a cgroup limit, a full
        spill disk.
    hint : str or None
        What the user can do, in special cases.
    spills : bool
        Whether the store has a spill directory.
    """

    size: int | None = None
    capacity: int | None = None
    used: int | None = None
    pinned: int | None = None
    holders: str | None = None
    reason: str | None = None
    hint: str | None = None
    spills: bool = False

    def __new__(cls, *args: Any, **facts: Any) -> "ObjectStoreFullError":
        # tblib makes exceptions by `cls.__new__(cls)`, which MemoryError's own method refuses for a class of two bases.
        return Exception.__new__(cls, *args)

    def _compose(self) -> str:
        what = "an object" if self.size is None else f"an object of {bytes_text(self.size)}"
        text = f"no room in the store for {what}"
        if self.reason:
            text += f": {self.reason}"
        figures = [
            f"{label} {bytes_text(value)}"
            for label, value in (
                ("capacity", self.capacity),
                ("in use", self.used),
                ("pinned by views", self.pinned),
            )
            if value is not None
        ]
        if figures:
            text += f" ({', '.join(figures)})"
        if self.holders:
            text += f". Held by: {self.holders}"
        return f"{text}. hint: {self.hint or self._advice()}"

    def _advice(self) -> str:
        if self.size is not None and self.capacity is not None and self.size > self.capacity:
            return "it is larger than the whole store: raise init(capacity=...), or give a spill_dir"
        advice = "drop refs and views that are not needed, free() objects, or raise init(capacity=...)"
        return advice if self.spills else f"{advice}, or give a spill_dir"


class StoreFullError(PyraySerError, RuntimeError):
    """A fixed table of the store is full: clients, object slots, names or tokens.

    Attributes
    ----------
    table : str
        Name of the table; default ``"clients"``.
    limit : int or None
        Maximum number of entries in the table.
    """

    table: str = "clients"
    limit: int | None = None

    def _compose(self) -> str:
        limit = "" if self.limit is None else f" (limit {self.limit})"
        text = f"the store's table of {self.table} is full{limit}"
        if self.table == "clients":
            return text + "; end processes that no longer need the store, or raise init(max_clients=...)"
        return text + "; drop what is no longer needed"


class ObjectLostError(PyraySerError, LookupError):
    """An object is gone and cannot be brought back.

    Attributes
    ----------
    ref : str or None
        The reference, as text.
    store : str or None
        The store that contained the object.
    pid : int or None
        The process that created it.
    reason : str or None
        What happened to the object: its creator died before sealing it, its store ended, or its
        spill file is gone.
    """

    ref: str | None = None
    store: str | None = None
    pid: int | None = None
    reason: str | None = None

    def _which(self) -> str:
        text = "object" if self.ref is None else f"object {self.ref}"
        if self.store is not None:
            text += f" of store {self.store}"
        if self.pid is not None:
            text += f" (created by process {self.pid})"
        return text

    def _compose(self) -> str:
        reason = self.reason or "its store has ended or its creator died before it was complete"
        return f"{self._which()} is lost: {reason}; put it again"


class ObjectFreedError(ObjectLostError):
    """A process deleted the object by ``free()``."""

    def _compose(self) -> str:
        return f"{self._which()} was freed; keep it until its last get, or put it again"


class ForeignStoreError(ObjectLostError):
    """The reference belongs to a store that this process cannot reach.

    Attributes
    ----------
    node : str or None
        The host of the store.
    """

    node: str | None = None

    def _compose(self) -> str:
        where = "" if self.node is None else f" on {self.node}"
        reason = self.reason or "that store is not on this node, or not visible from here"
        return f"{self._which()}{where} cannot be read here: {reason}; send the value (serialize) instead of the ref"


class GetTimeoutError(PyraySerError, TimeoutError):
    """An object, a name or a result was not ready in time.

    Attributes
    ----------
    ref : str or None
        The awaited reference, as text.
    timeout : float or None
        Seconds waited.
    pending : int or None
        Number of awaited references that were not ready.
    """

    ref: str | None = None
    timeout: float | None = None
    pending: int | None = None

    def _compose(self) -> str:
        what = "object" if self.ref is None else f"object {self.ref}"
        if self.pending is not None and self.pending != 1:
            what = f"{self.pending} objects ({self.ref}, ...)" if self.ref else f"{self.pending} objects"
        verb = "were" if self.pending is not None and self.pending != 1 else "was"
        after = "in time" if self.timeout is None else f"after {_seconds(self.timeout)}"
        hint = "repeat the call with a longer timeout, or check the process that makes it"
        return f"{what} {verb} not ready {after}; {hint}"


class StoreBusyError(PyraySerError, TimeoutError):
    """A process that is alive but stopped holds the store's lock.

    Attributes
    ----------
    pid : int or None
        The process that holds the lock.
    timeout : float or None
        Seconds that the caller waited for the lock.
    """

    pid: int | None = None
    timeout: float | None = None

    def _compose(self) -> str:
        who = "a process" if self.pid is None else f"process {self.pid}"
        after = "" if self.timeout is None else f" after {_seconds(self.timeout)}"
        hint = "continue or end it" if self.pid is None else f"continue it (kill -CONT {self.pid}) or end it"
        return f"{who} holds the store's lock but is stopped{after}; {hint}, then repeat the call"


class CorruptObjectError(PyraySerError, ValueError):
    """The bytes of an object are damaged.

    Attributes
    ----------
    ref : str or None
        The object, if it came from a store.
    reason : str or None
        The check that failed.
    offset : int or None
        Position in the bytes at which the check failed.
    """

    ref: str | None = None
    reason: str | None = None
    offset: int | None = None

    def _compose(self) -> str:
        what = "the serialized object" if self.ref is None else f"object {self.ref}"
        text = f"{what} is damaged"
        if self.reason:
            text += f": {self.reason}"
        if self.offset is not None:
            text += f" (at byte {self.offset})"
        return text + "; it was cut short, altered, or is not in this format: make it again from its source"


class StoreVersionError(PyraySerError, RuntimeError):
    """The store was made by an incompatible version of this library.

    Attributes
    ----------
    found, expected : object
        The format versions, as numbers or text.
    store : str or None
        Which store.
    """

    found: object = None
    expected: object = None
    store: str | None = None

    def _compose(self) -> str:
        what = "the store" if self.store is None else f"store {self.store}"
        text = f"{what} has another format"
        if self.found is not None:
            text += f": {self.found}, and this library reads {self.expected}"
        return text + "; use one version of pyray_ser in all processes, or open a store of another name"


class StoreClosedError(PyraySerError, ValueError):
    """A reference or store was used after ``shutdown()``.

    Attributes
    ----------
    store : str or None
        Which store.
    """

    store: str | None = None

    def _compose(self) -> str:
        what = "the store" if self.store is None else f"store {self.store}"
        return f"{what} is closed in this process; its values stay valid, but refs do not: call get() before shutdown()"


class StoreNotFoundError(PyraySerError, FileNotFoundError):
    """There is no store of that name or at that path.

    Attributes
    ----------
    store : str or None
        The name or path.
    """

    store: str | None = None

    def _compose(self) -> str:
        what = "such a store" if self.store is None else f"store {self.store!r}"
        return f"there is no {what}; it was never made, or its last process has ended: make it with init(name=...)"


class StoreAccessError(PyraySerError, PermissionError):
    """A store was found, but may not be used: wrong owner, mode, or a symbolic link.

    Attributes
    ----------
    path : str or None
        The path of the file or directory.
    reason : str or None
        What is wrong with the file or directory.
    """

    path: str | None = None
    reason: str | None = None

    def _compose(self) -> str:
        what = "the store" if self.path is None else f"the store at {self.path}"
        reason = self.reason or "it does not belong to this user alone"
        return f"{what} is refused: {reason}; remove it or choose another name"


class NameNotFoundError(PyraySerError, FileNotFoundError):
    """No object of that name is in the store.

    Attributes
    ----------
    name : str or None
        The requested name.
    """

    name: str | None = None

    def _compose(self) -> str:
        what = "of that name" if self.name is None else f"named {self.name!r}"
        return f"no object {what}; see names(), or wait for it with get_by_name(name, timeout=...)"


class NameExistsError(PyraySerError, FileExistsError):
    """The name belongs to another object.

    Attributes
    ----------
    name : str or None
        The requested name.
    owner : str or None
        When the other object got the name, and which process made it.
    """

    name: str | None = None
    owner: str | None = None

    def _compose(self) -> str:
        what = "the name" if self.name is None else f"the name {self.name!r}"
        since = f" ({self.owner})" if self.owner else ""
        return f"{what} is taken{since}; use put(..., replace=True), delete() the name, or choose another"


class SerializationError(PyraySerError, TypeError):
    """Something inside a value cannot be pickled.

    Raised by ``put`` and ``remote``, chained to the error of the object that refused.

    Attributes
    ----------
    path : str or None
        The path from the given value to that object, such as ``.model.cache['k'][1]``.
    failures : tuple of FailureTuple
        All objects that cannot be pickled, if a search for them was made.
    """

    path: str | None = None
    failures: tuple[Any, ...] = ()

    def _compose(self) -> str:
        where = f" (at {self.path})" if self.path else ""
        return f"cannot pickle the value{where}; see util.inspect_serializability"

    def __reduce__(self) -> tuple[Any, ...]:
        # Leave out `failures`, which contains objects that cannot be pickled.
        state = {**self.__dict__, "failures": ()}
        return (type(self), self.args, state)


class DeepRecursionError(PyraySerError, _PicklingError, RecursionError):
    """Foreign code nests more deeply than the C stack allows.

    Attributes
    ----------
    path : str or None
        The beginning of the path.
    """

    path: str | None = None

    def _compose(self) -> str:
        where = f" (at {self.path})" if self.path else ""
        return (
            f"deep recursion while pickling{where}: reducers written in Python nest more deeply than the stack "
            "allows; flatten the structure, or pickle in a thread with a larger stack (threading.stack_size)"
        )


class TaskError(PyraySerError):
    """A task or an actor's method raised an exception.

    ``get`` raises an instance of a class that derives from this one and from the
    type of the original exception, so both
    ``except TaskError`` and ``except ValueError`` catch it.

    Attributes
    ----------
    cause : BaseException or None
        The original exception, if it could be pickled.
    remote_traceback : str
        The traceback in the worker, as text.
    task : str or None
        Which function or method.
    pid : int or None
        The worker process.
    """

    cause: BaseException | None = None
    remote_traceback: str = ""
    task: str | None = None
    pid: int | None = None

    def _compose(self) -> str:
        what = "a task" if self.task is None else f"task {self.task}"
        where = "" if self.pid is None else f" in worker process {self.pid}"
        text = f"{what} failed{where}"
        if self.cause is not None:
            text += f": {type(self.cause).__name__}: {text_of(self.cause)}"
        if self.remote_traceback:
            text += f"\n\nThe traceback there:\n{self.remote_traceback.rstrip()}"
        return text


class TaskCancelledError(PyraySerError):
    """The task was cancelled before it had a result.

    Attributes
    ----------
    task : str or None
        Which function or method.
    """

    task: str | None = None

    def _compose(self) -> str:
        what = "the task" if self.task is None else f"task {self.task}"
        return f"{what} was cancelled; submit it again if its result is needed"


class WorkerDiedError(PyraySerError, RuntimeError):
    """A worker process ended while it had work.

    Attributes
    ----------
    pid : int or None
        The process.
    exitcode : int or None
        The exit code as in ``multiprocessing``: a negative number means a signal.
    task : str or None
        The function or method that has no result.
    reason : str or None
        Why the current process ended the worker, if it did.
    began : bool
        False if the process ended before it accepted calls, so that the task cannot have begun.
    """

    pid: int | None = None
    exitcode: int | None = None
    task: str | None = None
    reason: str | None = None
    began: bool = True

    @property
    def signal(self) -> int | None:
        """Number of the signal that ended the process, or None."""
        return -self.exitcode if self.exitcode is not None and self.exitcode < 0 else None

    def _compose(self) -> str:
        who = "a worker process" if self.pid is None else f"worker process {self.pid}"
        word = "before it finished" if self.began else "before it could run"
        during = "" if self.task is None else f" {word} {self.task}"
        if self.reason is not None:
            return f"{who} {self.reason}{during}"
        hint = "see its output for the cause"
        if not self.began:
            hint = (
                "its output says why; hint: under spawn and forkserver, code that starts tasks must be behind "
                "`if __name__ == '__main__':`"
            )
        if self.signal is not None:
            try:
                name = _signal.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            how = f"was killed by {name}"
            if name == "SIGKILL":
                hint = "probably by the kernel for lack of memory (see dmesg), or by kill -9"
            elif name in ("SIGSEGV", "SIGBUS"):
                hint = (
                    "probably by code that writes into a read-only array without checking its flags. hint: arrays that a "
                    "task gets are read-only, and ufunc.at (numpy.add.at) ignores that: copy the array before"
                )
        elif self.exitcode is None:
            how = "died"
        else:
            how = f"exited with status {self.exitcode}"
        return f"{who} {how}{during}; {hint}"
