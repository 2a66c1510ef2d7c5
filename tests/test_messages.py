"""Every error message has one form: where, what was expected, what came, the line to write."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "pyro_ext"
FORM = re.compile(r"\S.*: expected \S.*; got \S.*\. Write: \S.*\.", re.DOTALL)


def template(node):
    """Return a string literal with {} for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "{}"


def messages():
    """Yield place and template of each message that a `raise` of the package writes itself."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                message = node.exc.args[0]
                if ast.unparse(node.exc.func) in CLAUSES:
                    continue
                if isinstance(message, ast.JoinedStr | ast.Constant):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", template(message)


CLAUSES = ("NotFinite", "Uncompiled", "Unsuitable")
"""Exceptions whose text is a part of another sentence: why a step is not compiled."""
PASSED_ON = {
    "site '{}': {}",
    "fit: {} {}",
    "fit: before the first step, {} {}",
    "{} It happened {} times{}.",
    "load_pair: {} Write: px.save_pair(path, model, guide, x), to save it again.",
}
"""Another message, of this form or Pyro's own, with a few words about it."""
HALF = re.compile(r"\S.*: expected \S.*; got \S.*\.", re.DOTALL)
HALVES = ("training/files", "training/checkpoints")
"""What is found in a file; whoever reads it adds the line to write."""
MESSAGES = dict(messages())


@pytest.mark.parametrize("place", MESSAGES)
def test_message_has_the_form(place):
    text = MESSAGES[place]
    form = HALF if place.startswith(HALVES) else FORM
    assert text in PASSED_ON or form.fullmatch(text)


def test_there_are_messages():
    assert len(MESSAGES) > 200


@pytest.mark.parametrize(
    "text",
    [
        "IWAE: expected num_particles >= 1; got 0.",
        "IWAE: expected num_particles >= 1. Write: px.IWAE(10).",
        "expected num_particles >= 1; got 0. Write: px.IWAE(10).",
        "IWAE: expected num_particles >= 1; got 0. Write px.IWAE(10).",
    ],
)
def test_other_forms_are_found(text):
    assert not FORM.fullmatch(text)
    assert FORM.fullmatch("IWAE: expected num_particles >= 1; got 0. Write: px.IWAE(10).")
