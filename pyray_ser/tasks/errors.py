"""Send errors from a worker to the caller.

A worker describes an exception as a `Failure`. It always contains the exception's type, message and traceback as text,
and also the pickled exception if possible. The caller receives an instance of a class that is made at run time and
derives from `TaskError` and from the type of the original. So ``except TaskError`` and ``except ValueError`` both catch
the exception.
"""

from __future__ import annotations

import os
import traceback
from functools import cache
from typing import Any, NamedTuple, NoReturn

from .. import _log
from .._core import pack, unpack
from ..exceptions import TaskError, text_of

__all__ = ["INITIALIZER", "Failure", "describe", "raise_failure", "task_error"]

# The name of the task in the failure of a worker whose initializer raised an error.
INITIALIZER = "the initializer"
# Exceptions that derive from one of these would end the caller's program or disturb its event loop instead of reporting
# an error.
_NEVER_DUAL = (KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, StopAsyncIteration)


class Failure(NamedTuple):
    """An exception in the form in which it is sent to the caller."""

    # The pickled exception, for unpack(); empty if it cannot be pickled.
    pickled: bytes
    type: str
    text: str
    traceback: str
    task: str
    pid: int


def describe(error: BaseException, task: str) -> Failure:
    """
    Describe an exception that was just caught in a worker.

    Parameters
    ----------
    error : BaseException
    task : str
        The function that raised it.
    """
    # Leave out the frames of this package, which lead from serve() to the call.
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    if isinstance(error, TaskError) and error.remote_traceback:
        text = (
            f"{error.remote_traceback.rstrip()}\n\nThat was raised again by {task}:\n{text.partition(chr(10) * 2)[0]}\n"
        )
    try:
        pickled = pack(error)
        # Load the exception here as a test: an `__init__` that does not accept the exception's own args would fail only
        # in the caller, where the reason is unknown.
        unpack(pickled)
    except Exception:
        pickled = b""
    return Failure(pickled, _qualified(type(error)), text_of(error), text, task, os.getpid())


_HERE = os.path.dirname(os.path.abspath(__file__))


def _is_ours(filename: str) -> bool:
    return os.path.dirname(os.path.abspath(filename)) == _HERE


def _qualified(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def raise_failure(failure: Failure) -> NoReturn:
    """Raise the exception of a failure, as a new instance each time, because a shared one would collect tracebacks."""
    cause = None
    if failure.pickled:
        cause = unpack(failure.pickled)
    error = task_error(cause, failure)
    raise error from cause


def task_error(cause: BaseException | None, failure: Failure) -> TaskError:
    """
    Return the exception for the caller.

    Parameters
    ----------
    cause : BaseException or None
        The original exception, if it could be pickled.
    failure : Failure
    """
    facts: dict[str, Any] = {
        "cause": cause,
        "remote_traceback": failure.traceback,
        "task": failure.task,
        "pid": failure.pid,
    }
    if cause is None:
        text = f"task {failure.task} failed in worker process {failure.pid}: {failure.type}: {failure.text}"
        return TaskError(f"{text}\n\nThe traceback there:\n{failure.traceback.rstrip()}", **facts)
    kind: Any = type(cause)
    cls = _dual(kind)
    if cls is TaskError:
        return TaskError(**facts)
    arguments = arguments_of(cause)
    error = _blank(cls, kind, arguments)
    if error is None:
        return TaskError(**facts)
    # Copy the attributes of the original instead of calling the `__init__` of its type.
    error.__dict__.update(vars(cause))
    for name in _native_attributes(kind):
        try:
            setattr(error, name, getattr(cause, name))
        except Exception:
            continue  # the attribute is not set, read-only, or a property that fails
    error.__dict__.update(facts)
    try:
        error.args = arguments
    except Exception as problem:
        _log.debug("args of %s cannot be set: %r", cls.__name__, problem)
    for note in getattr(cause, "__notes__", ()):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    return error


def arguments_of(error: BaseException) -> tuple[Any, ...]:
    """Return ``error.args``, even if the type overrides `args` with a property that fails."""
    try:
        arguments = error.args
    except Exception as problem:
        _log.debug("args of %s fails: %r", type(error).__name__, problem)
        # Read the args that `BaseException` itself stores.
        arguments = vars(BaseException)["args"].__get__(error)
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _blank(cls: Any, kind: Any, arguments: tuple[Any, ...]) -> TaskError | None:
    """Return an uninitialized instance; None if its original type cannot be combined with `TaskError`."""
    # The `__new__` of the type may need other arguments, and that of `MemoryError` refuses derived classes.
    for maker in (cls.__new__, kind.__new__, Exception.__new__):
        try:
            made: TaskError = maker(cls, *arguments)
        except Exception as problem:
            _log.debug("%s does not make a %s: %r", maker, cls.__name__, problem)
        else:
            return made
    return None


@cache
def _native_attributes(cls: type) -> tuple[str, ...]:
    """Return the attributes that a built-in exception keeps outside of its __dict__, such as errno, start, code."""
    names = []
    for base in cls.__mro__:
        if base.__module__ == "builtins" and base not in (BaseException, Exception, object):
            names += [
                name
                for name, value in vars(base).items()
                if type(value).__name__ in ("member_descriptor", "getset_descriptor")
            ]
    return tuple(dict.fromkeys(names))


@cache
def _dual(cls: type) -> type[TaskError]:
    if issubclass(cls, _NEVER_DUAL):
        return TaskError
    if issubclass(cls, TaskError):
        return cls
    try:
        return type(
            f"TaskError[{cls.__qualname__}]",
            (TaskError, cls),
            {
                "__module__": __name__,
                "__doc__": cls.__doc__,
                "__str__": TaskError._compose,
                "__reduce__": _reduce,
                "_original": cls,
            },
        )
    except TypeError:
        # The type cannot be a base class, or its layout conflicts with that of `TaskError`.
        return TaskError


def _reduce(error: TaskError) -> tuple[Any, ...]:
    return load_task_error, (error.cause, error.remote_traceback, error.task, error.pid)


def load_task_error(cause: BaseException | None, remote_traceback: str, task: str, pid: int) -> TaskError:
    """Reconstruct an exception that is both a `TaskError` and of another type from its parts."""
    return task_error(cause, Failure(b"", "", "", remote_traceback, task, pid))
