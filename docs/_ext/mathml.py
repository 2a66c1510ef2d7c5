"""Equations as MathML: no script, no font from elsewhere, readable offline."""

import re

from docutils import nodes
from latex2mathml.converter import convert

__all__ = ["setup"]


NAMES = re.compile(r"(<mi>(?:log|exp|max|min|det|diag|argmax|tr|Var|KL|ELBO)</mi>)(?=<m[isu])")


def mathml(latex: str, display: str = "inline") -> str:
    """Return an equation in MathML, with a space after the name of a function."""
    return NAMES.sub(r'\1<mspace width="0.17em"/>', convert(latex, display=display))


def inline(translator, node):
    """Write an equation in a line of text."""
    translator.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block(translator, node):
    """Write an equation on its own; a wide one scrolls."""
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    """Make it a renderer for `html_math_renderer`."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(inline, None), block_renderers=(block, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
