"""The scripts in `benchmarks/`, as modules."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

__all__ = ["load"]


@cache
def load(name: str) -> ModuleType:
    """Return the script of that name."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"script_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))  # as for a script that is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
