"""Equations as MathML: no script, no font from elsewhere, readable offline."""

from docutils import nodes
from latex2mathml.converter import convert

__all__ = ["setup"]


def inline(translator, node):
    """Write an equation in a line of text."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(translator, node):
    """Write an equation on its own; a wide one scrolls."""
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app):
    """Make it a renderer for `html_math_renderer`."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(inline, None), block_renderers=(block, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
