"""What recording and compiling cost and save by the number of operations of an eager step.

``python benchmarks/speed/payoff.py`` prints a row for each workload; the constants of
``pyro_ext/training/payoff.py`` are rounded from it.
"""

import argparse
import time

import pyro
import torch
from workloads import WORKLOADS, Workload

import pyro_ext as px
from pyro_ext.training.payoff import CountOperations


def adam(params: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3)


def per_step(
    svi: px.CompiledSVI, args: tuple[torch.Tensor, ...], count: int, rounds: int
) -> float:
    svi.step(*args)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            svi.step(*args)
        times.append((time.perf_counter() - start) / count)
    return min(times)


def prepared(work: Workload, *, compile: bool | str) -> tuple[px.CompiledSVI, float]:
    """Return an SVI after its second step, and the seconds of that step."""
    svi = px.CompiledSVI(work.model, work.guide, adam, work.loss, compile=compile)
    svi.step(*work.args)
    start = time.perf_counter()
    svi.step(*work.args)
    return svi, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest of which is shown")
    options = parser.parse_args()
    head = ["workload", "operations", "eager"]
    for way in ("recorded", "compiled"):
        head += [way, "ready in", "pays after, steps"]
    print(f"| {' | '.join(head)} |\n| {' | '.join(['---', *['--:'] * (len(head) - 1)])} |")
    for name in options.workloads:
        pyro.clear_param_store()
        work = WORKLOADS[name]()
        plain, _ = prepared(work, compile=False)
        with CountOperations() as operations:
            plain.step(*work.args)
        eager = per_step(plain, work.args, 50, options.rounds)
        cells: list[str] = []
        for way in ("record", True):
            svi, seconds = prepared(work, compile=way)
            step = per_step(svi, work.args, 100, options.rounds)
            pays = f"{seconds / (eager - step):,.0f}" if step < eager else "never"
            cells += [f"{step * 1e3:.3g} ms", f"{seconds:.2g} s", pays]
        row = [name, operations.count, f"{eager * 1e3:.3g} ms", *cells]
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
