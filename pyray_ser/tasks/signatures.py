"""Check the arguments of a remote call in the caller, where the error shows the line that made the call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import inf
from typing import Any

__all__ = ["Signature", "of_callable", "of_method"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# The maximum number of combinations of keywords that are remembered for a signature.
_MOST = 100


class Signature:
    """
    The parameters of a function or class.

    Parameters
    ----------
    name : str
        The name in the error message.
    signature : inspect.Signature or None
        None if it is unknown; then any arguments are accepted.

    Attributes
    ----------
    least, most : float
        A call without keywords is valid if the number of its arguments is in this range.
    fitting : set
        The number of positional arguments and the keywords of calls that were found to be valid.
    """

    __slots__ = ("_name", "_signature", "fitting", "least", "most")

    def __init__(self, name: str, signature: inspect.Signature | None) -> None:
        self._name = name
        self._signature = signature
        self.fitting: set[tuple[int | str, ...]] = set()
        self.least: float = 0
        self.most: float = inf
        if signature is None:
            return
        parameters = signature.parameters.values()
        required = [parameter.kind for parameter in parameters if parameter.default is inspect.Parameter.empty]
        self.least = sum(kind in _POSITIONAL for kind in required)
        if inspect.Parameter.KEYWORD_ONLY in required:
            self.least = inf
        if inspect.Parameter.VAR_POSITIONAL not in required:
            self.most = sum(parameter.kind in _POSITIONAL for parameter in parameters)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError if a call with these arguments would fail."""
        if (not kwargs and self.least <= len(args) <= self.most) or self._signature is None:
            return
        shape: tuple[int | str, ...] = (len(args), *kwargs)
        if shape in self.fitting:
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}: {error}; its signature is {self._name}{self._signature}") from None
        if len(self.fitting) < _MOST:
            self.fitting.add(shape)


def of_callable(function: Callable[..., Any], name: str) -> Signature:
    """
    Return the signature of a function or class.

    Parameters
    ----------
    function : callable
    name : str
        Name for the error message.
    """
    return Signature(name, _inspect(function))


def of_method(cls: type, method: str, name: str) -> Signature:
    """Return the signature of a method that is called through an instance."""
    found = inspect.getattr_static(cls, method, None)
    if isinstance(found, staticmethod):
        return Signature(name, _inspect(found.__func__))
    if isinstance(found, classmethod):
        found = found.__func__
    signature = _inspect(found) if inspect.isfunction(found) else None
    if signature is not None:
        parameters = list(signature.parameters.values())
        if parameters and parameters[0].kind in _POSITIONAL:
            return Signature(name, signature.replace(parameters=parameters[1:]))
    return Signature(name, None)


def _inspect(function: Any) -> inspect.Signature | None:
    # An attribute `__signature__` need not be true.
    if hasattr(function, "__signature__"):
        return None
    try:
        # A decorated function may take other arguments than the function that it wraps.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_KEYWORD} <= kinds:
        # `Signature.bind` rejects a keyword that has the name of a positional-only parameter, although it is valid.
        return None
    return signature
