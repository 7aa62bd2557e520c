"""The command line: ``pyray-ser COMMAND``, one file per command.

A command is a module of this package with ``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments)``, which
returns the exit status: 0, 1 for a negative answer, 2 if the command could not run. The module is imported when the
command is used.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .._version import __version__

__all__ = ["COMMANDS", "CommandError", "main"]

COMMANDS = {
    "bench": "measure single operations, or a pool with and without this package",
    "check": "verify every invariant of each store",
    "clean": "remove the files of stores that no process uses any more",
    "doctor": "examine this machine, and say what to change",
    "inspect": "find out why an object cannot be pickled, and where its bytes are",
    "ls": "list the objects of each store: what they are, and which processes made and hold them",
    "map": "draw the memory of each store",
    "show": "show everything about one object",
    "stat": "show the counters of each store",
    "top": "show stores, their largest objects and their processes, continuously",
}
"""Name of a command -> what it does, in one line."""


class CommandError(Exception):
    """An error that is printed as one line, without a traceback."""


class _Parser(argparse.ArgumentParser):
    """A parser that reports errors when it writes its output; argparse's parser ignores them."""

    def _print_message(self, message: str, file: Any = None) -> None:
        file = sys.stderr if file is None else file
        if message and file is not None:
            file.write(message)
            file.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the entry point of ``pyray-ser``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    asked = next((word for word in argv if word in COMMANDS), None)
    name = "pyray-ser" if asked is None else f"pyray-ser {asked}"
    if sys.stdout is None:
        # Descriptor 1 is closed, so the next file that a command opens would get this number.
        _complain(f"{name}: cannot write its output: standard output is closed")
        return 2
    try:
        try:
            status = _run(argv, asked)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has exited, as with ``| head``
        _let_go_of_output()
        return 141
    except OSError as error:
        _let_go_of_output()
        _complain(f"{name}: {error if error.filename else error.strerror or error}")
        return 2
    except KeyboardInterrupt:
        _let_go_of_output()
        return 130
    return status


def _run(argv: list[str], asked: str | None) -> int:
    parser = _Parser(prog="pyray-ser", description="Tools for pyray_ser.")
    parser.add_argument("--version", action="version", version=f"pyray_ser {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == asked:
            module = import_module(f".{name}", __name__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # object names may contain characters that the encoding lacks
    try:
        return int(arguments.run(arguments))
    except CommandError as error:
        _complain(f"pyray-ser {arguments.command}: {error}")
        return 2


def _complain(text: str) -> None:
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            pass  # the error cannot be reported


def _let_go_of_output() -> None:
    """Discard buffered output; otherwise the interpreter would fail again at its end, with a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(nowhere, 1)
    finally:
        os.close(nowhere)
