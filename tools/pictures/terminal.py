"""Run commands, and draw what they print as a terminal."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

from palette import MONO
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

__all__ = ["draw"]

EXAMPLE = Path(__file__).resolve().parent / "example"
STORE = "pictures"  # as example/store.py names it
THEME = TerminalTheme(
    (21, 26, 33),
    (221, 227, 235),
    [(42, 49, 60), (242, 131, 107), (95, 201, 140), (227, 165, 59), (120, 174, 252), (190, 150, 235), (94, 199, 204),
     (196, 203, 213)],
    [(120, 132, 148), (250, 160, 140), (130, 220, 165), (240, 190, 100), (160, 200, 255), (210, 180, 245), (140, 220, 224),
     (240, 243, 247)],
)  # fmt: skip
# As rich's own format, but without a font from a server, and with a title for screen readers.
FORMAT = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{width}} {{height}}" role="img" aria-labelledby="title desc">
<title id="title">TITLE</title>
<desc id="desc">DESCRIPTION</desc>
<style>
.{{unique_id}}-matrix {{{{ font: {{char_height}}px {MONO}; line-height: {{line_height}}px; white-space: pre; }}}}
.{{unique_id}}-title {{{{ font: 600 17px system-ui, sans-serif; }}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal"><rect width="{{terminal_width}}" height="{{terminal_height}}"/></clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})" clip-path="url(#{{unique_id}}-clip-terminal)">
{{backgrounds}}
<g class="{{unique_id}}-matrix">
{{matrix}}
</g>
</g>
</svg>
"""


def run(command: list[str], width: int, folder: Path | None = None) -> str:
    """Return what a command prints, with its colours; progress, which it writes to stderr, is left out."""
    environment = {**os.environ, "COLUMNS": str(width), "FORCE_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", *command], capture_output=True, text=True, cwd=folder, env=environment, timeout=300
    )
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:  # 1 is a negative answer
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def picture(name: str, shown: list[tuple[str, str]], width: int) -> str:
    """Return a terminal with commands and their output, as SVG."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for number, (command, output) in enumerate(shown):
        if number:
            console.print()
        console.print(Text.assemble(("$ ", "bright_black"), (command, "bold bright_green")), soft_wrap=True)
        console.print(Text.from_ansi(output.strip("\n")))
    title = ", ".join(command for command, _ in shown)
    words = "\n".join(Text.from_ansi(output).plain.strip("\n") for _, output in shown)
    code = FORMAT.replace("TITLE", _braces(f"Terminal: {title}")).replace("DESCRIPTION", _braces(words))
    svg = console.export_svg(title=title, theme=THEME, code_format=code, unique_id=name)
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def _braces(text: str) -> str:
    """Return text that `str.format` does not change."""
    return escape(text).replace("{", "{{").replace("}", "}}")


@contextmanager
def store() -> Iterator[None]:
    """Run the program of which the pictures show the store."""
    # `top` shows the command, which should name no folder of this machine.
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["python", "store.py"], cwd=EXAMPLE, env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the program with the store did not start")
            yield
        finally:
            process.stdin.close()


def draw(folder: Path) -> list[Path]:
    """Write the pictures, and return their paths."""
    tool = ["pyray_ser"]
    # A picture shows no path of the machine that draws it.
    library = sysconfig.get_path("stdlib")
    made = []

    def write(name: str, command: str, output: str, most: int) -> None:
        width = max(map(len, [f"$ {command}", *Text.from_ansi(output).plain.splitlines()]))
        path = folder / f"terminal-{name}.svg"
        path.write_text(picture(f"t-{name}", [(command, output)], min(width, most)), encoding="utf-8")
        made.append(path)

    with tempfile.TemporaryDirectory(prefix="pyray_ser-", dir="/dev/shm") as stores:
        os.environ["PYRAY_SER_STORE_DIR"] = stores
        with store():
            write("ls", "pyray-ser ls", run([*tool, "ls", STORE], 112), 112)
            write("map", "pyray-ser map", run([*tool, "map", STORE], 80), 80)
            write("top", "pyray-ser top", run([*tool, "top", STORE, "-n", "1"], 112), 112)
        target = "model:pipeline"
        write("inspect", f"pyray-ser inspect {target}", run([*tool, "inspect", target], 88, EXAMPLE), 88)
        os.environ.pop("PYRAY_SER_STORE_DIR")
    write("demo", "make demo", run(["pyray_ser.demo"], 84).replace(library, "/usr/lib/python3"), 84)
    return made
