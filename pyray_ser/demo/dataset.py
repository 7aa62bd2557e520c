"""What the demo hands to its workers, whichever source it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class DemoError(Exception):
    """Something the user can do something about; its text is the one line that is printed."""


@dataclass
class Dataset:
    """A value to be shared and the questions to be asked about it.

    Attributes
    ----------
    title : str
        One line for the report.
    value : Any
        What is put, or pickled: containers of arrays and plain Python objects.
    questions : list of (str, tuple)
        Name of a function of `pyray_ser.demo.queries` and its arguments after the value.
    facts : dict of str to str
        Lines for the report about what is in the value.
    """

    title: str
    value: Any
    questions: list[tuple[str, tuple[Any, ...]]]
    facts: dict[str, str] = field(default_factory=dict)
