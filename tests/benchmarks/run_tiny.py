"""Run the scripts of `benchmarks/` at tiny size, one after the other, in this process.

The only argument is a JSON object from names to arguments; prints JSON from names to what failed.
"""

import contextlib
import io
import json
import runpy
import sys
import traceback
import warnings
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def outcome(name: str, arguments: list[str]) -> str:
    """Return the traceback of a script, or nothing."""
    path = BENCHMARKS / f"{name}.py"
    sys.argv = [str(path), *arguments]
    sys.path[:0] = [str(path.parent), str(BENCHMARKS)]
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            runpy.run_path(str(path), run_name="__main__")
    except BaseException as error:
        helped = isinstance(error, SystemExit) and not error.code
        return "" if helped else traceback.format_exc()
    finally:
        del sys.path[:2]
    return ""


if __name__ == "__main__":
    import pyro
    import torch

    found = {}
    for name, arguments in json.loads(sys.argv[1]).items():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        torch.set_default_dtype(torch.float32)
        found[name] = outcome(name, arguments)
    print(json.dumps(found))
