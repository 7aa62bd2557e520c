"""The colours and fonts of all pictures, in light and in dark mode."""

from __future__ import annotations

from html import escape

__all__ = ["COLOURS", "MONO", "SANS", "STYLE", "document"]

COLOURS = {
    # name: (light, dark)
    "ink": ("#1c2430", "#e4e8ee"),
    "soft": ("#586374", "#a0aab8"),
    "line": ("#c3cad5", "#495362"),
    "panel": ("#f5f7fa", "#1d222a"),
    "accent": ("#1f5fbf", "#78aefc"),
    "pale": ("#e3edfb", "#1a2b45"),
    "on-accent": ("#ffffff", "#0c1626"),
    "other": ("#aab4c2", "#5d6878"),
    "good": ("#2c7a4b", "#5fc98c"),
    "pale-good": ("#e2f3e8", "#15301f"),
    "warm": ("#925f00", "#e3a53b"),
    "pale-warm": ("#fbefd5", "#35280f"),
    "bad": ("#b3402a", "#f2836b"),
    "pale-bad": ("#fbe7e2", "#3c1d17"),
}
"""A name of a colour -> its value in light mode and in dark mode."""

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def _rules(mode: int) -> str:
    return "".join(
        f".f-{name}{{fill:{values[mode]}}}.s-{name}{{stroke:{values[mode]}}}" for name, values in COLOURS.items()
    )


STYLE = (
    f"text{{font-family:{SANS}}}.mono{{font-family:{MONO}}}.bold{{font-weight:600}}"
    f"{_rules(0)}@media (prefers-color-scheme:dark){{{_rules(1)}}}"
)
"""The style sheet: the class ``f-NAME`` fills with a colour, ``s-NAME`` draws lines with it."""


def document(width: float, height: float, title: str, description: str, parts: list[str]) -> str:
    """Return an SVG file with a transparent background, and with a title and a description for screen readers."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-labelledby="title desc">\n'
        f'<title id="title">{escape(title)}</title>\n<desc id="desc">{escape(description)}</desc>\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )
