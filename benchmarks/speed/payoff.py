"""What compiling costs and saves by the number of operations of an eager step.

``python benchmarks/speed/payoff.py`` prints a row for each workload; the constants of
``pyro_ext/training/payoff.py`` are rounded from it.
"""

import argparse
import time

import pyro
import torch
from workloads import WORKLOADS

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest of which is shown")
    options = parser.parse_args()
    print("| workload | operations | eager | compiled | recording, compiling, proving |")
    print("| --- | --: | --: | --: | --: |")
    for name in options.workloads:
        pyro.clear_param_store()
        work = WORKLOADS[name]()
        svi = px.CompiledSVI(work.model, work.guide, adam, work.loss, compile=False)
        svi.step(*work.args)
        with CountOperations() as operations:
            svi.step(*work.args)
        eager = per_step(svi, work.args, 50, options.rounds)
        other = px.CompiledSVI(work.model, work.guide, adam, work.loss)
        other.step(*work.args)
        start = time.perf_counter()
        other.step(*work.args)
        seconds = time.perf_counter() - start
        compiled = per_step(other, work.args, 200, options.rounds)
        print(
            f"| {name} | {operations.count} | {eager * 1e3:.3g} ms | {compiled * 1e3:.3g} ms | "
            f"{seconds:.3g} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
