"""A directive that describes the commands of ``pyray-ser`` from their argument parsers."""

from __future__ import annotations

import argparse
from importlib import import_module

from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyray_ser import cli


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    parser = argparse.ArgumentParser(prog=f"pyray-ser {command}", description=cli.COMMANDS[command])
    import_module(f"pyray_ser.cli.{command}").add_arguments(parser)
    return parser


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


def _rows(parser: argparse.ArgumentParser) -> list[str]:
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        names = list(action.option_strings) or [str(action.metavar or action.dest)]
        if action.choices is not None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        else:
            value = str(action.metavar or action.dest.upper())
        if action.option_strings and action.nargs != 0:
            names[-1] += f" {value}"
        elif not action.option_strings and action.choices is not None:
            names = [value]
        default = action.default
        text = (action.help or "") % {"default": default, "prog": parser.prog, "type": action.type}
        stated = default in (None, False, argparse.SUPPRESS, []) or "default" in text or f"({default})" in text
        if action.option_strings and not stated:
            text += f" (default: {default})"
        rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {_cell(text)} |")
    return rows


def _described(parser: argparse.ArgumentParser, text: str, level: int) -> list[str]:
    """Return the lines of Markdown for a command and for the commands below it."""
    lines = [f"{'#' * level} {parser.prog}", "", f"{text[:1].upper()}{text[1:].rstrip('.')}.", ""]
    usage = argparse.HelpFormatter(parser.prog, width=88)
    usage.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    lines += ["```text", usage.format_help().strip(), "```", ""]
    rows = _rows(parser)
    if rows:
        lines += ["| argument | meaning |", "|---|---|", *rows, ""]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, below in action.choices.items():
                lines += _described(below, texts.get(name, below.description or ""), level + 1)
    return lines


class Commands(SphinxDirective):
    """Describe all commands, one section for each."""

    def run(self) -> list:
        """Return the sections."""
        lines: list[str] = []
        for command, text in sorted(cli.COMMANDS.items()):
            lines += _described(parser_of(command), text, 3)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("pyray-ser-commands", Commands)
    return {"parallel_read_safe": True}
