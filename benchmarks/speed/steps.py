"""Time of one training step, against hand-written torch, Pyro's own SVI and NumPyro.

Hand-written torch and Pyro's own SVI also come compiled, by ``torch.compile`` and Pyro's JIT.

``python benchmarks/speed/steps.py`` runs all variants in turn, round by round, on one core, and
prints ratios to the hand-written step, with ``--out`` as Markdown and JSON. NumPyro is compared if
``--numpyro`` names a Python that has it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyro
import torch
from handwritten import handwritten
from pyro_own import PYRO_JIT, PYRO_OWN, lean_step, step
from workloads import WORKLOADS

import pyro_ext as px

HERE = Path(__file__).parent
Many = Callable[[int], Any]
STORE = pyro.get_param_store()
CLOCK = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

BARS = {
    ("W1", "step"): 0.70,
    ("W2", "step"): 0.80,
    ("W3", "step"): 0.06,
    ("W3", "run"): 0.025,
    ("W4", "step"): 0.28,
    ("W5", "step"): 0.45,
}
"""Largest ratios to the hand-written step that were aimed at."""

UNCOMPILED = {"W1": 0.75, "W3": 0.6, "W4": 0.75, "W5": 0.6}
"""Largest ratios of a step that is not compiled to Pyro's own that were aimed at."""


def times(take: Callable[[], Any]) -> Many:
    def many(count: int) -> None:
        for _ in range(count):
            take()

    return many


def adam(params: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3)


def variants(name: str, numpyro: Any) -> tuple[dict[str, Callable[[int], float]], float]:
    """Return functions from a number of steps to seconds per step, and seconds to compile."""

    def by_pyro() -> Many:
        work = WORKLOADS[name]()
        return times(step(work, work.guide, work.loss))

    def ours(*, compile: bool | str) -> Many:
        work = WORKLOADS[name]()
        svi = px.CompiledSVI(work.model, work.guide, adam, work.loss, compile=compile)
        return times(lambda: svi.step(*work.args))

    with STORE.scope() as state:
        work = WORKLOADS[name]()
        compiled = px.CompiledSVI(work.model, work.guide, adam, work.loss)
        compiled.step(*work.args)
        start = time.perf_counter()
        compiled.step(*work.args)
        seconds = time.perf_counter() - start
    made: dict[str, Callable[[int], float]] = {
        "hand-written": apart(lambda: times(handwritten(name))),
        "torch.compile": apart(lambda: times(handwritten(name, compile=True))),
        "Pyro's own": apart(lambda: times(step(*PYRO_OWN[name]()))),
        "Pyro's own, lean": apart(lambda: times(lean_step(*PYRO_OWN[name]()))),
    }
    if name in PYRO_JIT:
        made["Pyro's JIT"] = apart(lambda: times(step(*PYRO_JIT[name]())))
    made |= {
        "Pyro SVI": apart(by_pyro),
        "eager": apart(lambda: ours(compile=False)),
        "recorded": apart(lambda: ours(compile="record")),
        "step": timed(times(lambda: compiled.step(*work.args)), state),
        "run": timed(lambda count: compiled.run(count, *work.args), state),
    }
    if numpyro is not None:
        made["NumPyro update"] = lambda count: numpyro(name, "update", count)
        made["NumPyro scan"] = lambda count: numpyro(name, "scan", count)
    return made, seconds


def apart(build: Callable[[], Many]) -> Callable[[int], float]:
    """Time a variant with a parameter store of its own.

    Pyro trains the module that it saw first under a name, and no other one.
    """
    with STORE.scope() as state:
        many = build()
    return timed(many, state)


def timed(many: Many, state: Any) -> Callable[[int], float]:
    def measure(count: int) -> float:
        with STORE.scope(state):
            many(1)  # graphs look whether another store has the same parameters
            start = CLOCK()
            many(count)
            return (CLOCK() - start) / count

    return measure


def numpyro_process(python: str | None) -> Any:
    if python is None:
        return None
    process = subprocess.Popen(
        [python, str(HERE / "numpyro_side.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    stdin: Any = process.stdin
    stdout: Any = process.stdout
    stdout.readline()

    def ask(name: str, how: str, count: int) -> float:
        stdin.write(f"{name} {how} {count}\n")
        stdin.flush()
        return float(stdout.readline())

    return ask


def compare(name: str, numpyro: Any, rounds: int, seconds: float) -> dict[str, Any]:
    """Interleave the variants; return times and ratios of their fastest rounds, and medians.

    Processor time of one core: other work on the machine does not count, as far as it leaves the
    caches alone; the fastest rounds are those where it did.
    """
    made, compile_seconds = variants(name, numpyro)
    counts = {}
    for variant, measure in made.items():
        measure(3)
        guess = measure(5)
        counts[variant] = max(2, min(2000, 2 ** round_down(seconds / max(guess, 1e-6))))
        measure(counts[variant])
    found: dict[str, list[float]] = {variant: [] for variant in made}
    for _ in range(rounds):
        for variant, measure in made.items():
            found[variant].append(measure(counts[variant]))
    base = found["hand-written"]
    return {
        "what": WORKLOADS[name]().what,
        "compile_seconds": compile_seconds,
        "ms": {variant: 1e3 * min(times) for variant, times in found.items()},
        "ratio": {variant: min(times) / min(base) for variant, times in found.items()},
        "median_ratio": {
            variant: statistics.median(t / b for t, b in zip(times, base, strict=True))
            for variant, times in found.items()
        },
    }


def round_down(number: float) -> int:
    return max(0, int(number).bit_length() - 1)


def table(results: dict[str, Any]) -> str:
    names = list(results)
    rows = list(dict.fromkeys(v for r in results.values() for v in r["ratio"]))
    lines = ["| variant | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for variant in rows:
        cells = []
        for name in names:
            ratio = results[name]["ratio"].get(variant)
            bar = BARS.get((name, variant))
            if variant in ("eager", "recorded") and name in UNCOMPILED:
                bar = UNCOMPILED[name] * results[name]["ratio"]["Pyro's own"]
            cell = "" if ratio is None else f"{ratio:.3g}"
            if bar is not None and ratio is not None:
                cell += f" (aim {bar:.3g}{'' if ratio <= bar else ', missed'})"
            cells.append(cell)
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    cells = [f"{results[name]['ms']['hand-written']:.3g} ms" for name in names]
    lines.append("| *hand-written, fastest round* | " + " | ".join(cells) + " |")
    cells = [f"{results[name]['compile_seconds']:.1f} s" for name in names]
    lines.append("| *recording, compiling, proving* | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--numpyro", metavar="PYTHON", help="a Python that has NumPyro")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.06, help="of a variant in a round")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    # The compiled step does it by itself, NumPyro too. Without it the others get several times
    # slower on W2 as training goes on, and ratios would depend on the number of steps.
    torch.set_flush_denormal(True)
    numpyro = numpyro_process(options.numpyro)
    results = {}
    for name in options.workloads:
        torch.manual_seed(0)
        results[name] = compare(name, numpyro, options.rounds, options.seconds)
        print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "machine": platform.machine(),
    }
    text = f"Ratios of step times to the hand-written step. {about}\n\n{table(results)}\n"
    print(text)
    if options.out is not None:
        options.out.with_suffix(".md").write_text(text)
        full = json.dumps({"about": about, "results": results}, indent=2)
        options.out.with_suffix(".json").write_text(full + "\n")


if __name__ == "__main__":
    main()
