"""Remote functions, which ``remote`` makes from functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from sys import is_finalizing
from typing import Any, NoReturn, TypeAlias

from ..exceptions import SerializationError
from . import engine, protocol
from .call import after, make
from .channel import number

__all__ = ["Function", "RemoteFunction"]


class Function:
    """A function as it is sent to workers: pickled once, at its first call, and loaded once by each worker."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = getattr(function, "__qualname__", None) or repr(function)
        self.number = number()
        try:
            payload, self.held = protocol.encode(function)
        except SerializationError as error:
            made = SerializationError(
                f"the remote function {self.name}: {error}", path=error.path, failures=error.failures
            )
            for note in getattr(error, "__notes__", ()):
                made.add_note(note)
            raise made from error.__cause__
        self.frame = protocol.write(protocol.FUNCTION, self.number, payload)


# Name of an option -> the test of its value, and the description of valid values for the error message.
Tests: TypeAlias = "dict[str, tuple[Callable[[Any], bool], str]]"
_OPTIONS: Tests = {
    "max_retries": (lambda value: _count(value) and value >= 0, "an int >= 0"),
    "name": (lambda value: isinstance(value, str), "a str"),
    "num_returns": (lambda value: _count(value) and value >= 1, "an int >= 1"),
    "stream": (lambda value: isinstance(value, bool), "a bool"),
}


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_options(given: dict[str, Any], known: Tests, what: str) -> dict[str, Any]:
    """Return the options, or raise an error for unknown or invalid ones."""
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"{what} has no option {key!r} (it has {', '.join(known)}); workers are equal and there is no scheduler "
                "that could place them"
            )
        test, wanted = known[key]
        if not test(value):
            raise ValueError(f"{key} must be {wanted}, not {value!r}")
    return given


class RemoteFunction:
    """
    A function that runs in a worker process.

    ``f.remote(...)`` returns a reference immediately; ``f.options(...)`` returns the same function with other options:

    ``num_returns``
        Return this number of references; the function must return as many values.
    ``stream``
        Return a `ResultStream`; the function must return an iterator. This is the default for generator functions.
    ``max_retries``
        How many times the function is run again if its worker dies; default 0.
    ``name``
        The name that is shown in errors.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = check_options(options, _OPTIONS, "a remote function")
        self._pickled: Function | None = None
        streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self._several: bool | int = options.get("num_returns", 1)
        if options.get("stream", streams and self._several == 1):
            if self._several != 1:
                raise ValueError("stream and num_returns exclude each other")
            self._several = True
        elif self._several == 1:
            self._several = False
        self._name = options.get("name") or getattr(function, "__qualname__", None) or repr(function)
        self._max_retries = options.get("max_retries", 0)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"a remote function is called by {self._name}.remote(...); here, use {self._name}.local(...)")

    @property
    def local(self) -> Callable[..., Any]:
        """callable : the function itself."""
        return self._function

    def options(self, **options: Any) -> RemoteFunction:
        """Return the same function with other options."""
        made = RemoteFunction(self._function, {**self._options, **options})
        made._pickled = self._pickled
        return made

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """
        Run the function in a worker.

        Returns
        -------
        TaskRef
            With the corresponding options, a list of these, or a `ResultStream`.
        """
        if is_finalizing():
            raise RuntimeError(f"{self._name} cannot run: the interpreter is ending, and its workers have ended")
        runs = engine.current()
        function = self._pickled
        if function is None:
            made = Function(self._function)
            # No lock is held here, because pickling runs user code, which may call this method. If two pickled
            # functions are made, one of them is discarded.
            function = self._pickled
            if function is None:
                function = self._pickled = made
        call = make(self._name, function.number, args, kwargs, self._several, runs)
        result = call.hand_over()
        if call.pending:
            after(list(call.pending), lambda: runs.submit(function, call, self._max_retries))
        else:
            runs.submit(function, call, self._max_retries)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"<remote function {self._name}>"
