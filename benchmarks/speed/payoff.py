"""What compiling costs and saves by the number of operations of an eager step.

``python benchmarks/speed/payoff.py`` prints a row for each workload; the constants of
``pyro_ext/training/payoff.py`` are rounded from it.
"""

import time

import pyro
import torch
from workloads import WORKLOADS

import pyro_ext as px
from pyro_ext.training.payoff import CountOperations


def adam(params: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3)


def per_step(svi: px.CompiledSVI, args: tuple[torch.Tensor, ...], count: int) -> float:
    svi.step(*args)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            svi.step(*args)
        times.append((time.perf_counter() - start) / count)
    return min(times)


def main() -> None:
    print("| workload | operations | eager | compiled | recording, compiling, proving |")
    print("| --- | --: | --: | --: | --: |")
    for name, make in WORKLOADS.items():
        pyro.clear_param_store()
        work = make()
        svi = px.CompiledSVI(work.model, work.guide, adam, work.loss, compile=False)
        svi.step(*work.args)
        with CountOperations() as operations:
            svi.step(*work.args)
        eager = per_step(svi, work.args, 50)
        other = px.CompiledSVI(work.model, work.guide, adam, work.loss)
        other.step(*work.args)
        start = time.perf_counter()
        other.step(*work.args)
        seconds = time.perf_counter() - start
        compiled = per_step(other, work.args, 200)
        print(
            f"| {name} | {operations.count} | {eager * 1e3:.3g} ms | {compiled * 1e3:.3g} ms | "
            f"{seconds:.3g} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
