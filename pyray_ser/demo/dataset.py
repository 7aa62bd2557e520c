"""The data for the workers of the demo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class DemoError(Exception):
    """An error that the user can correct; its text is printed as one line."""


@dataclass
class Dataset:
    """A value that the demo shares, and questions about the value.

    Attributes
    ----------
    title : str
        One line for the report.
    value : Any
        The value that is put or pickled: containers of arrays and plain Python objects.
    questions : list of (str, tuple)
        Each question is the name of a function of `pyray_ser.demo.queries`, and the arguments that
        follow the value.
    facts : dict of str to str
        Lines for the report that describe the content of the value.
    """

    title: str
    value: Any
    questions: list[tuple[str, tuple[Any, ...]]]
    facts: dict[str, str] = field(default_factory=dict)
