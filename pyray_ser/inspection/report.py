"""The printed report, in the format of Ray's report."""

import sys
from typing import Any, TextIO

from .failure import FailureTuple
from .path import root_name
from .text import brief, shorten
from .tracing import Trace, trace

__all__ = ["inspect_serializability", "report_text"]

_RULE = "=" * 80
# Maximum number of failures that a report describes; the others are only counted.
_SHOWN = 20


def inspect_serializability(
    obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Find all parts of an object that prevent it from being pickled, and print a report.

    The inspector visits the object once, as the pickler would, but writes nothing. The visit continues after a
    failure, so it finds every object that cannot be pickled: inside containers, closures, globals, default arguments,
    slots and the results of ``__reduce__`` and ``__getstate__``, at any depth.

    Parameters
    ----------
    obj : object
        Anything.
    name : str, optional
        Name of the object in the report; functions and classes have names already.
    depth : int, optional
        Maximum number of holders on the path to a failure that the report shows, the nearest ones first. This limits
        the report, not the search.
    print_file : file, optional
        Where to print; default is `sys.stdout`.

    Returns
    -------
    serializable : bool
        Whether `put` would store the object.
    failures : set of FailureTuple
        ``(obj, name, parent)`` for each object that cannot be pickled, with `.path` and `.hint`. At most 1,000 are
        returned; the report contains the total number of failures.

    Examples
    --------
    >>> import threading
    >>> from pyray_ser.inspection import inspect_serializability
    >>> lock = threading.Lock()
    >>> def test():
    ...     print(lock)
    >>> ok, failures = inspect_serializability(test, name="test")  # doctest: +ELLIPSIS
    ====...
    Checking Serializability of <function test at 0x...>
    ====...
    !!! FAIL serialization: cannot pickle '_thread.lock' object
    Detected 1 global variable. Checking serializability...
        Serializing 'lock' <unlocked _thread.lock object at 0x...>...
        !!! FAIL serialization: cannot pickle '_thread.lock' object
            path: test -> global 'lock'
            hint: create it where it is used: ...
    ====...
    Variable:
    <BLANKLINE>
        FailTuple(lock [obj=<unlocked _thread.lock object at 0x...>, parent=<function test at 0x...>])
    <BLANKLINE>
    was found to be non-serializable. ...
    ====...
    >>> ok, [failure.path for failure in failures]
    (False, ["test -> global 'lock'"])
    """
    result = trace(obj, name)
    file = sys.stdout if print_file is None else print_file
    file.write(report_text(result, depth))
    return not result.total_failures, set(result.failures)


def report_text(result: Trace, depth: int = 3) -> str:
    """Return the report on a traced object."""
    lines = [_RULE, f"Checking Serializability of {brief(result.root, 200)}", _RULE]
    if result.failures:
        lines += _failed(result, depth)
    elif result.root_global is not None:
        lines += _by_name(result.root, *result.root_global)
    return "\n".join(lines) + "\n"


def _by_name(root: Any, module: str, name: str) -> list[str]:
    """Say that the root is pickled by its name, and what was therefore not checked."""
    if issubclass(type(root), type):
        kind, inside = "This class", "its attributes and its instances"
    elif callable(root):
        kind, inside = "This function", "its code and the global variables that it uses"
    else:
        kind, inside = "This object", "its attributes"
    lines = [
        f"{kind} is pickled by its name, {shorten(f'{module}:{name}', 200)}: a process that loads it imports it.",
        f"So the pickle does not contain {inside}, and they were not checked.",
    ]
    if issubclass(type(root), type):
        lines.append("hint: inspect an instance of the class to find out whether its instances can be pickled")
    return lines


def _failed(result: Trace, depth: int) -> list[str]:
    failures = result.failures
    lines = [f"!!! FAIL serialization: {failures[0].error}"]
    shown = failures[:_SHOWN]
    for heading, group in _by_kind(shown).items():
        count = f"{len(group)} {heading if len(group) == 1 else _plural(heading)}"
        if group[0].parent is None:
            lines += _details(group[0], "", depth)
            continue
        lines.append(f"Detected {count}. Checking serializability...")
        for failure in group:
            lines.append(f"    Serializing {shorten(failure.name)!r} {brief(failure.obj)}...")
            lines.append(f"    !!! FAIL serialization: {failure.error}")
            lines += _details(failure, "    ", depth)
    lines += [_RULE, "Variable:" if len(shown) == 1 else "Variables:", ""]
    lines += [f"    {failure!r}" for failure in shown]
    lines.append("")
    missing = len(failures) - len(shown)
    if missing or result.total_failures > len(failures):
        lines.append(f"and {missing} more; the pickler was refused {result.total_failures} times in all.")
    was = "was" if len(shown) == 1 else "were"
    lines += [
        f"{was} found to be non-serializable. Everything that was reached has been checked: without "
        f"{'it' if len(shown) == 1 else 'them'}, the rest can",
        "be serialized. Leave such objects out in __getstate__, make them where they are used, or teach the library about",
        "their class with pyray_ser.util.register_serializer.",
        _RULE,
    ]
    return lines


def _details(failure: FailureTuple, indent: str, depth: int) -> list[str]:
    lines = []
    if failure.path:
        lines.append(f"{indent}    path: {_last_parts(failure.path, depth)}")
    if failure.hint:
        lines.append(f"{indent}    hint: {failure.hint}")
    return lines


def _last_parts(path: str, depth: int) -> str:
    """Keep the part of a path after its last `depth` arrows, and shorten the result to a few lines."""
    parts = path.split(" -> ")
    if len(parts) > depth + 1 > 0:
        parts = [parts[0], "...", *parts[len(parts) - depth :]]
    return shorten(" -> ".join(parts), 300)


def _by_kind(failures: list[FailureTuple]) -> dict[str, list[FailureTuple]]:
    """Group the failures as Ray's report does: globals, closures, attributes, and the rest."""
    groups: dict[str, list[FailureTuple]] = {}
    for failure in failures:
        groups.setdefault(_kind(failure), []).append(failure)
    return groups


def _kind(failure: FailureTuple) -> str:
    last = failure.path.rpartition(" -> ")[2]
    for word, heading in (
        ("global ", "global variable"),
        ("closure ", "nonlocal variable"),
        ("default ", "default argument"),
        ("annotation ", "annotation"),
    ):
        if last == f"{word}{failure.name!r}":
            return heading
    if last.endswith(f".{failure.name}"):
        return "attribute"
    return "item" if root_name(failure.parent) is None else "part"


def _plural(heading: str) -> str:
    return f"{heading}s"
