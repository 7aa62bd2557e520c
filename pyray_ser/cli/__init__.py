"""The command line: ``pyray-ser COMMAND``, one file per command.

A command is a module of this package with ``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments)``, which
returns the exit status: 0, 1 for a negative answer, 2 for what could not be done. It is imported when it is asked for.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module

from .._version import __version__

__all__ = ["COMMANDS", "CommandError", "main"]

COMMANDS = {
    "bench": "measure what this library is worth on this machine",
    "check": "verify every invariant of each store",
    "clean": "remove what stores that are provably gone left behind",
    "doctor": "what this machine offers, what is in the way, and what to do about it",
    "inspect": "find what keeps an object from being pickled, and where its bytes are",
    "ls": "list the objects of each store",
    "map": "draw each store: live, pinned, free, spilled",
    "stat": "show the counters of each store",
    "top": "show stores and their largest objects, live",
}
"""Name of a command -> what it does, in one line."""


class CommandError(Exception):
    """What the user has to be told in one line, instead of a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the entry point of ``pyray-ser``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="pyray-ser", description="Tools for pyray_ser.")
    parser.add_argument("--version", action="version", version=f"pyray_ser {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if word in COMMANDS), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == asked:
            module = import_module(f".{name}", __name__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of objects are anything, terminals are not
    try:
        return int(arguments.run(arguments))
    except CommandError as error:
        print(f"pyray-ser {arguments.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # ... | head
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        return 130
