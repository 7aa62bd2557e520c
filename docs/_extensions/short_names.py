"""Resolve names in single backticks of docstrings: a link where the site describes the name, code otherwise."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode


def resolve(app: Sphinx, env, node, content: nodes.Element) -> nodes.Element | None:
    """Return a link for a name without its module, if exactly one object has it; else the plain text."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].partition("(")[0].lstrip(".~")
    found = env.domains["py"].find_obj(env, None, None, target, None, 1) if target else []
    exact = [match for match in found if match[0].startswith("pyray_ser.")]
    if len(exact) == 1 and not target[:1].islower():
        name, entry = exact[0]
    elif (entry := env.domains["py"].objects.get(f"pyray_ser.{target}")) and not _is_parameter(node, target):
        name = f"pyray_ser.{target}"
    else:
        # A parameter of the function, or a name of another library.
        return content
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def _is_parameter(node, target: str) -> bool:
    """Return whether a name means a parameter of the function whose docstring mentions it."""
    parent = node
    while parent is not None:
        if parent.tagname == "desc":
            signature = parent.next_node(nodes.Element)
            return any(parameter.astext().lstrip("*").split("=")[0].strip() == target
                       for parameter in signature.findall(lambda child: child.tagname == "desc_parameter"))  # fmt: skip
        parent = parent.parent
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the function."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
