"""Complete what the theme leaves out for readers who use a keyboard or a screen reader."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def complete(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Give headings of the navigation a level, and let code and tables that scroll have the focus."""
    for key in ("furo_navigation_tree", "toctree"):
        if isinstance(context.get(key), str):
            context[key] = context[key].replace('role="heading">', 'role="heading" aria-level="2">')
    if "body" in context:
        context["body"] = context["body"].replace("<pre>", '<pre tabindex="0">')
        context["body"] = context["body"].replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the function after that of the theme."""
    app.connect("html-page-context", complete, priority=900)
    return {"parallel_read_safe": True}
