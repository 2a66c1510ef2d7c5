"""The API reference has every public name, and each says what it is and shows how it is used."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "api"
MODULES = ("pyro_ext", "pyro_ext.bounds", "pyro_ext.nn", "pyro_ext.ratio", "pyro_ext.testing")
REEXPORTED = ("autoguide", "diagnostics", "families", "losses", "training")


def names(module: ModuleType) -> list[str]:
    """Return what a module offers: `__all__`, or what its `import a as a` lines export."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    tree = ast.parse(inspect.getsource(module))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [alias.asname for node in imports for alias in node.names if alias.asname]


PUBLIC: dict[str, Any] = {}
for _module in map(importlib.import_module, MODULES):
    for _name in names(_module):
        _value = getattr(_module, _name)
        if not inspect.ismodule(_value) and _value not in PUBLIC.values():
            PUBLIC[f"{_module.__name__}.{_name}"] = _value
DESCRIBED = {name: it for name, it in PUBLIC.items() if inspect.isclass(it) or callable(it)}


def documented() -> set[str]:
    found = set()
    for page in API.glob("*.md"):
        module = ""
        for line in page.read_text().splitlines():
            if current := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = current[1]
            if entry := re.match(r"\.\. (?:auto\w+|py:data):: (\w+)", line):
                found.add(f"{module}.{entry[1]}")
    return found


def test_reference_has_every_public_name_and_no_other() -> None:
    shown = {
        id(getattr(importlib.import_module(n.rpartition(".")[0]), n.rpartition(".")[2])): n
        for n in documented()
    }
    missing = [name for name, it in PUBLIC.items() if id(it) not in shown]
    assert not missing, f"add them to docs/api: {missing}"
    assert len(shown) == len(documented()) == len(PUBLIC)


@pytest.mark.parametrize("part", REEXPORTED)
def test_what_a_part_offers_is_offered_at_the_top(part: str) -> None:
    module = importlib.import_module(f"pyro_ext.{part}")
    offered = [getattr(module, name) for name in names(module)]
    assert all(any(it is other for other in PUBLIC.values()) for it in offered)


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_public_name_has_a_sentence_and_an_example_that_runs(name: str) -> None:
    text = inspect.getdoc(DESCRIBED[name]) or ""
    first = text.split("\n\n")[0].replace("\n", " ")
    assert re.search(r"[.:]$", first), f"{name}: expected a sentence first; got {first!r}"
    assert ">>> " in text, f"{name}: expected an Example; its docstring has none"
