#!/usr/bin/env python3
"""Write the section "Commands and options" of docs/reference/command-line.md from the argument parsers.

The installed package provides the parsers. A test checks that the section is up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib import import_module
from pathlib import Path

from pyray_ser import cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "command-line.md"
BEGIN = "<!-- written by tools/commands_page.py -->\n"
END = "<!-- end -->\n"


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    parser = argparse.ArgumentParser(prog=f"pyray-ser {command}")
    import_module(f"pyray_ser.cli.{command}").add_arguments(parser)
    return parser


def names_of(action: argparse.Action) -> list[str]:
    """Return the spellings of an argument, the last one with its value."""
    value = (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else str(action.metavar or action.dest.upper())
    )
    if action.option_strings:
        return [*action.option_strings[:-1], action.option_strings[-1] + ("" if action.nargs == 0 else f" {value}")]
    return [{"*": f"[{value} ...]", "?": f"[{value}]"}.get(str(action.nargs), value)]


def meaning_of(action: argparse.Action, prog: str) -> str:
    """Return the help text of an argument, with its default."""
    text = (action.help or "") % {"default": action.default, "prog": prog}
    has_default = action.option_strings and action.default not in (None, False, "", [], argparse.SUPPRESS)
    if has_default and "default" not in text and f"({action.default})" not in text:
        text += f" (default: {action.default})"
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


def section_of(command: str, purpose: str) -> list[str]:
    """Return the lines about a command."""
    parser = parser_of(command)
    lines = [
        f"### {parser.prog}",
        "",
        f"{purpose[:1].upper()}{purpose[1:]}.",
        "",
        "| argument | meaning |",
        "|---|---|",
    ]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
            names = ", ".join(f"`{name}`" for name in names_of(action))
            lines.append(f"| {names} | {meaning_of(action, parser.prog)} |")
    return [*lines, ""]


def render(text: str) -> str:
    """Return the text of the page with a new section."""
    lines = [line for command, purpose in sorted(cli.COMMANDS.items()) for line in section_of(command, purpose)]
    found = re.search(f"{BEGIN}.*{END}", text, re.DOTALL)
    if found is None:
        raise ValueError(f"{PAGE} must contain the lines {BEGIN.strip()!r} and {END.strip()!r}")
    return text[: found.start()] + BEGIN + "\n" + "\n".join(lines) + "\n" + END + text[found.end() :]


def main() -> int:
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
