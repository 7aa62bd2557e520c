"""``pyray-ser inspect package.module:object``."""

import argparse
import sys
from importlib import import_module
from typing import Any

from . import CommandError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "target", metavar="MODULE:OBJECT", help="what to inspect, such as package.module:object.attribute"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page with a treemap to FILE")
    parser.add_argument("--depth", type=int, default=3, help="how many holders on the way to show (default 3)")


def run(arguments: argparse.Namespace) -> int:
    """Inspect the object; return 1 if it cannot be pickled."""
    obj = find(arguments.target)
    from ..inspection import inspect

    found = inspect(obj, arguments.target.partition(":")[2])
    if arguments.html:
        try:
            with open(arguments.html, "w", encoding="utf-8") as file:
                file.write(found.to_html())
        except OSError as error:
            raise CommandError(f"cannot write {arguments.html}: {error.strerror}") from error
    print(found.to_json() if arguments.json else found.to_text(arguments.depth), end="\n" if arguments.json else "")
    return 0 if found.serializable else 1


def find(target: str) -> Any:
    """Import and return the object that ``package.module:object`` refers to."""
    module, colon, path = target.partition(":")
    if not module or not colon or not path:
        raise CommandError(f"{target!r} is not of the form package.module:object")
    # Allow modules in the current directory, as `python -m` does.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        obj = import_module(module)
    except (Exception, SystemExit) as error:
        raise CommandError(f"cannot import {module!r}: {type(error).__name__}: {error}") from error
    walked = module
    for name in path.split("."):
        try:
            obj = getattr(obj, name)
        except Exception as error:
            raise CommandError(f"{walked!r} has no {name!r}: {type(error).__name__}: {error}") from error
        walked += f".{name}" if ":" in walked else f":{name}"
    return obj
