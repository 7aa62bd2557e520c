"""Remote functions, which ``remote`` makes from functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Iterable, Iterator
from math import inf
from sys import is_finalizing
from typing import Any, NoReturn, TypeAlias

from .._core import ObjectRef
from ..exceptions import SerializationError
from . import engine, in_order, protocol, settings, signatures
from .channel import number
from .refs import TaskRef, get

__all__ = ["Function", "RemoteFunction"]


class Function:
    """
    A function as it is sent to workers: pickled once, at its first call, and loaded once by each worker.

    Parameters
    ----------
    name : str
    which : int
        The number that calls use for the function.
    payload : bytes
        See `protocol.encode`.
    held : ObjectRef or None
        The object in the payload.
    """

    def __init__(self, name: str, which: int, payload: bytes, held: ObjectRef[Any] | None) -> None:
        self.name = name
        self.number = which
        self.payload = payload
        self.held = held
        self.frame = protocol.write(protocol.FUNCTION, which, payload)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Function:
        """Pickle a function."""
        name = getattr(function, "__qualname__", None) or repr(function)
        try:
            payload, held = protocol.encode(function)
        except SerializationError as error:
            made = SerializationError(f"the remote function {name}: {error}", path=error.path, failures=error.failures)
            for note in getattr(error, "__notes__", ()):
                made.add_note(note)
            raise made from error.__cause__
        return cls(name, number(), payload, held)


# Name of an option -> the test of its value, and the description of valid values for the error message.
Tests: TypeAlias = "dict[str, tuple[Callable[[Any], bool], str]]"
_OPTIONS: Tests = {
    "max_retries": (lambda value: _count(value) and value >= 0, "an int >= 0"),
    "name": (lambda value: isinstance(value, str), "a str"),
    "num_returns": (lambda value: _count(value) and value >= 1, "an int >= 1"),
    "resources": (lambda value: _amounts(value), "a dict of str to numbers > 0"),
    "stream": (lambda value: isinstance(value, bool), "a bool"),
}


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _amounts(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(amount, (int, float)) and amount > 0 for name, amount in value.items()
    )


def check_options(given: dict[str, Any], known: Tests, what: str) -> dict[str, Any]:
    """Return the options, or raise an error for unknown or invalid ones."""
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"{what} has no option {key!r} (it has {', '.join(known)}); the workers of one node are equal, and on a "
                "cluster Dask places tasks by their data and `resources`"
            )
        test, wanted = known[key]
        if not test(value):
            raise ValueError(f"{key} must be {wanted}, not {value!r}")
    return given


class RemoteFunction:
    """
    A function that runs in a worker process.

    ``f.remote(...)`` returns a reference immediately, and ``f.map(...)`` an iterator over results. ``f.options(...)``
    returns the same function with other options:

    ``num_returns``
        Return this number of references; the function must return as many values.
    ``stream``
        Return a `ResultStream`; the function must return an iterator. This is the default for generator functions.
    ``max_retries``
        How many times the function is run again if its worker dies; default 0.
    ``resources``
        What a task needs on its worker, as a dict of names and amounts; only on a cluster, see `init`.
    ``name``
        The name that is shown in errors.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = check_options(options, _OPTIONS, "a remote function")
        self._pickled: Function | None = None
        self._signature: signatures.Signature | None = None
        # Calls that need no further check, see `Signature`. Before the first call, there are none.
        self._least, self._most = inf, -inf
        self._fitting: Container[tuple[int | str, ...]] = ()
        # The function that calls this one for several items.
        self._chunks: RemoteFunction | None = None
        streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self.several: bool | int = options.get("num_returns", 1)
        if options.get("stream", streams and self.several == 1):
            if self.several != 1:
                raise ValueError("stream and num_returns exclude each other")
            self.several = True
        elif self.several == 1:
            self.several = False
        self.name = options.get("name") or getattr(function, "__qualname__", None) or repr(function)
        self.max_retries = options.get("max_retries", 0)
        self.resources: dict[str, float] = options.get("resources", {})

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"a remote function is called by {self.name}.remote(...); here, use {self.name}.local(...)")

    @property
    def local(self) -> Callable[..., Any]:
        """callable : the function itself."""
        return self._function

    def options(self, **options: Any) -> RemoteFunction:
        """Return the same function with other options."""
        made = RemoteFunction(self._function, {**self._options, **options})
        made._pickled = self._pickled
        if self._signature is not None and self.name == made.name:
            made._use(self._signature)
        return made

    def _use(self, signature: signatures.Signature) -> signatures.Signature:
        self._least, self._most, self._fitting = signature.least, signature.most, signature.fitting
        self._signature = signature
        return signature

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError if arguments do not fit the signature of the function."""
        signature = self._signature
        if signature is None:
            signature = self._use(signatures.of_callable(self._function, self.name))
        signature.check(args, kwargs)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """
        Run the function in a worker.

        Returns
        -------
        TaskRef
            With the corresponding options, a list of these, or a `ResultStream`.

        Raises
        ------
        TypeError
            If the arguments do not fit the signature of the function. A reference fits where any value does.
        """
        given = len(args)
        if not ((given, *kwargs) in self._fitting if kwargs else self._least <= given <= self._most):
            self._check(args, kwargs)
        if is_finalizing():
            raise RuntimeError(f"{self.name} cannot run: the interpreter is ending, and its workers have ended")
        return engine.current().call(self, args, kwargs)

    def pickled(self) -> Function:
        """Return the pickled function."""
        function = self._pickled
        if function is None:
            made = Function.of(self._function)
            # No lock is held here, because pickling runs user code, which may call this method. If two pickled
            # functions are made, one of them is discarded.
            function = self._pickled
            if function is None:
                function = self._pickled = made
        return function

    def check_options_of_node(self) -> None:
        """Raise ValueError if an option needs a cluster."""
        if self.resources:
            raise ValueError(
                f"resources of {self.name} need a cluster, because the workers of one node are equal; hint: "
                "init(address='tcp://...')"
            )

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
        Run the function for each item, and return an iterator over the results in order.

        New calls are made as results are taken, so an iterable may be endless and its items need not fit into the store
        together. To get references, use ``[f.remote(item) for item in iterable]``.

        Parameters
        ----------
        iterable, *iterables : iterable
            One for each argument. The shortest ends the iteration. Items that are references are replaced by their values.
        chunksize : int
            The number of items that are sent to a worker together. Larger values are faster for short calls.
        in_flight : int, optional
            Maximum number of chunks whose results were not taken. The default is twice the number of workers.
        timeout : float, optional
            Seconds from the call of `map` after which the iterator raises `GetTimeoutError`.

        Returns
        -------
        iterator
            If it is dropped, calls that have not started are cancelled.

        Examples
        --------
        >>> @pyray_ser.remote
        ... def square(x):
        ...     return x * x
        >>> list(square.map(range(4)))
        [0, 1, 4, 9]
        """
        if in_flight is None:
            in_flight = 2 * settings.num_workers()
        return mapped(
            self.name,
            self.remote,
            self._begin_chunk,
            (iterable, *iterables),
            several=self.several,
            chunksize=chunksize,
            in_flight=in_flight,
            timeout=timeout,
        )

    def _begin_chunk(self, chunk: list[tuple[Any, ...]]) -> TaskRef:
        for args in chunk:
            self._check(args, {})
        chunks = self._chunks
        if chunks is None:
            from .worker import Each

            options = {**self._options, "name": self.name}
            chunks = self._chunks = RemoteFunction(Each(self._function, self.name), options)
        ref: TaskRef = chunks.remote(chunk)
        return ref

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"<remote function {self.name}>"


def mapped(
    name: str,
    remote: Callable[..., TaskRef],
    begin_chunk: Callable[[list[tuple[Any, ...]]], TaskRef],
    iterables: tuple[Iterable[Any], ...],
    *,
    several: bool | int,
    chunksize: int,
    in_flight: int,
    timeout: float | None,
) -> Iterator[Any]:
    """
    Return the iterator of `RemoteFunction.map` and `ActorMethod.map`.

    Parameters
    ----------
    name : str
        Name of the function or method, for errors.
    remote : callable
        Begins one call.
    begin_chunk : callable
        Begins several calls, which together have one reference.
    iterables : tuple of iterable
        One for each argument.
    several : bool or int
        False if a call has one result.
    chunksize, in_flight, timeout
        As for `RemoteFunction.map`.
    """
    in_order.check_count("chunksize", chunksize)
    in_order.check_count("in_flight", in_flight)
    if several is not False:
        raise TypeError(f"map needs one result for each call, but {name} returns several; hint: use {name}.remote(...)")
    calls = in_order.chunks(iterables, chunksize)
    if chunksize == 1:
        return in_order.results(lambda chunk: remote(*chunk[0]), calls, in_flight, _one_value, _cancel, timeout)
    return in_order.results(begin_chunk, calls, in_flight, _values, _cancel, timeout)


def _one_value(ref: TaskRef, left: float | None) -> list[Any]:
    return [get(ref, None if left is None else max(0.0, left))]


def _values(ref: TaskRef, left: float | None) -> list[Any]:
    found: list[Any] = get(ref, None if left is None else max(0.0, left))
    return found


def _cancel(ref: TaskRef) -> None:
    source = ref.source
    if source is not None:
        source.cancel(ref, False)
