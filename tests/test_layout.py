import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyro_ext"

LAYERS = (
    {"nn", "minibatch", "structure"},
    {"families"},
    {"weights", "bounds", "autoguide"},
    {"losses", "ratio"},
    {"diagnostics", "training"},
    {"citation", "testing"},
    {"__init__"},
)
"""Parts of the package from the bottom up; private modules (`_name.py`) lie at the bottom."""

OUTSIDE = {"models", "guides", "tests", "tutorials", "benchmarks", "helpers", "conftest"}

# What importing pyro_ext may load on top of what importing pyro loads.
ALLOWED_AT_IMPORT = {"jaxtyping", "pyro_ext", "wadler_lindig"}

SOURCES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(), filename=str(path))
    for path in sorted(PACKAGE.rglob("*.py"))
}
EVERY_SOURCE = pytest.mark.parametrize("source", SOURCES)


def part_of(source):
    """Return the part that the file lies in: `autoguide` of autoguide/joint.py."""
    return Path(source).parts[0].removesuffix(".py")


def layer_of(part):
    if part.startswith("_") and part != "__init__":
        return 0
    found = [depth for depth, parts in enumerate(LAYERS) if part in parts]
    assert found, f"pyro_ext.{part} has no layer: place it in LAYERS"
    return found[0]


def imported_modules(source):
    """Yield the absolute name of each module or member that the file imports, wherever it does."""
    package = ["pyro_ext", *Path(source).parts[:-1]]
    for node in ast.walk(SOURCES[source]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_parts(source):
    """Return the parts of pyro_ext that the file imports; `__init__` stands for the package."""
    names = {part_of(other) for other in SOURCES}
    parts = set()
    for module in imported_modules(source):
        if module.split(".")[0] == "pyro_ext":
            part = [*module.split("."), "__init__"][1]
            parts.add(part if part in names else "__init__")
    return parts


def test_the_page_has_these_layers():
    order = (ROOT / "ARCHITECTURE.md").read_text().partition("## Import order")[2]
    lines = order.strip().partition("\n\n")[0].splitlines()
    page = [set(re.findall(r"\w+", line)) - {"_private"} for line in reversed(lines)]
    assert page == list(LAYERS[:-1])


def test_there_are_sources():
    assert "__init__.py" in SOURCES
    assert imported_parts("__init__.py") >= {"autoguide", "bounds", "families"}


@EVERY_SOURCE
def test_imports_run_downwards(source):
    here = part_of(source)
    above = {part for part in imported_parts(source) if layer_of(part) > layer_of(here)}
    assert not above, f"pyro_ext/{source} imports from a layer above its own: {sorted(above)}"


def test_parts_do_not_import_each_other_in_a_circle():
    graph = {}
    for source in SOURCES:
        graph.setdefault(part_of(source), set()).update(imported_parts(source) - {part_of(source)})
    while graph:
        leaves = {part for part, below in graph.items() if not below & graph.keys()}
        assert leaves, f"import each other in a circle: {sorted(graph)}"
        graph = {part: below for part, below in graph.items() if part not in leaves}


@EVERY_SOURCE
def test_package_does_not_import_the_rest_of_the_repository(source):
    roots = {module.split(".")[0] for module in imported_modules(source)}
    assert not roots & OUTSIDE


def forbidden(tree, *, asserts):
    """Yield (line, what) of what no file of the package may do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and not asserts:
            yield node.lineno, "assert; raise an error that says what was expected"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            for name in {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}:
                if any(imported.split(".")[0] == name for imported in names):
                    yield node.lineno, name
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"eval", "exec", "builtins.eval", "builtins.exec"}:
                yield node.lineno, called
            if called == "torch.load" and not any(
                option.arg == "weights_only" and ast.unparse(option.value) == "True"
                for option in node.keywords
            ):
                yield node.lineno, "torch.load without weights_only=True"
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            if any(alias.name == "load" for alias in node.names):
                yield node.lineno, "from torch import load; write torch.load"


@EVERY_SOURCE
def test_no_unsafe_call_and_no_bare_assert(source):
    found = list(forbidden(SOURCES[source], asserts=part_of(source) == "testing"))
    assert not found, f"pyro_ext/{source}: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "from torch import load",
        "assert x",
    ],
)
def test_forbidden_lines_are_found(line):
    assert list(forbidden(ast.parse(line), asserts=False))


@pytest.mark.parametrize("line", ["torch.load('x', weights_only=True)", "model.eval()"])
def test_allowed_lines_pass(line):
    assert not list(forbidden(ast.parse(line), asserts=False))


WATCH_IMPORT = """
import json, os, random, sys, warnings
import numpy, torch, pyro
from torch.distributions import Distribution, Transform

def state():
    return {
        "argument validation": repr(Distribution._validate_args),
        "members of Distribution": sorted(f"{k} {id(v)}" for k, v in vars(Distribution).items()),
        "members of Transform": sorted(f"{k} {id(v)}" for k, v in vars(Transform).items()),
        "default dtype": repr(torch.get_default_dtype()),
        "default device": repr(torch.get_default_device()),
        "gradient mode": repr(torch.is_grad_enabled()),
        "threads": repr(torch.get_num_threads()),
        "deterministic": repr(torch.are_deterministic_algorithms_enabled()),
        "torch random state": repr(torch.get_rng_state().sum()),
        "numpy random state": repr(numpy.random.get_state()),
        "python random state": repr(hash(random.getstate())),
        "numpy print and error options": repr((numpy.get_printoptions(), numpy.geterr())),
        "pyro parameter store": sorted(pyro.get_param_store().keys()),
        "pyro handlers": repr(pyro.poutine.runtime._PYRO_STACK),
        "pyro settings": repr(pyro.settings.get()),
        "warning filters": repr(warnings.filters),
        "environment": dict(os.environ),
    }

roots = lambda: {name.partition(".")[0] for name in sys.modules}
before, loaded = state(), roots()
import pyro_ext
after = state()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "loaded": sorted(roots() - loaded - set(sys.stdlib_module_names)),
}))
"""


@pytest.fixture(scope="module")
def fresh_import():
    """What importing pyro_ext into a fresh interpreter that has Pyro changes and loads."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH_IMPORT],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_changes_no_global_state(fresh_import):
    assert not fresh_import["changed"]


def test_import_loads_little_more_than_pyro(fresh_import):
    heavy = set(fresh_import["loaded"]) - ALLOWED_AT_IMPORT
    assert not heavy, f"import these where they are used, not when pyro_ext is imported: {heavy}"
