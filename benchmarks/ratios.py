"""Density ratios and mutual information of normals, against closed forms.

A run fails if it misses the mutual information by more than 10 %, and warns of itself where the
samples cannot bear the value. Prints Markdown tables; cells are kept in
`benchmarks/results/ratios.json`, so a run can be taken up again:

    python benchmarks/ratios.py
"""

import argparse
import math
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from _results import Cells

import pyro_ext as px

__all__ = ["exact_critic", "learned", "main", "normals", "pairs"]

INFORMATION = (2, 4, 6, 8, 10)
BATCH = 64
ADAM = partial(torch.optim.Adam, lr=0.01)
Sampler = Callable[[int], Tensor]


def correlation(information: float, num_pairs: int) -> float:
    """Return ρ of each of d pairs whose mutual information is -d/2 log(1 - ρ²) in all."""
    return math.sqrt(1 - math.exp(-2 * information / num_pairs))


def pairs(information: float, num_pairs: int) -> tuple[Sampler, Sampler]:
    """Return samplers of (x, y) together, and of x and y apart."""
    rho = correlation(information, num_pairs)

    def joint(num: int) -> Tensor:
        x, noise = torch.randn(num, num_pairs), torch.randn(num, num_pairs)
        return torch.cat([x, rho * x + math.sqrt(1 - rho**2) * noise], 1)

    return joint, lambda num: torch.randn(num, 2 * num_pairs)


def exact_critic(information: float, num_pairs: int = 20, repeats: int = 2000) -> dict[str, Any]:
    """Return mean and spread of the bounds at the exact log ratio, on batches of 64 pairs."""
    torch.manual_seed(0)
    rho = correlation(information, num_pairs)
    found: dict[str, list[float]] = {"infonce": [], "nwj": [], "dv": []}
    apart = ~torch.eye(BATCH, dtype=torch.bool)
    for _ in range(repeats):
        x, y = pairs(information, num_pairs)[0](BATCH).double().split(num_pairs, 1)
        a, b = x.unsqueeze(1), y.unsqueeze(0)
        quadratic = (rho**2 * (a**2 + b**2) - 2 * rho * a * b).sum(-1) / (2 * (1 - rho**2))
        scores = information - quadratic
        diagonal, others = scores.diag(), scores[apart].reshape(BATCH, BATCH - 1)
        found["infonce"].append(float(px.ratio.infonce(diagonal, others)))
        found["nwj"].append(float(px.ratio.nwj(1 + diagonal, 1 + others.flatten())))
        found["dv"].append(float(px.ratio.dv(diagonal, others.flatten())))
    return {
        name: [statistics.mean(v), statistics.stdev(v), statistics.median(v)]
        for name, v in found.items()
    }


def learned(
    p: Sampler, q: Sampler, dim: int, *, num_ratios: int, seed: int, batch_size: int = 256
) -> dict[str, Any]:
    """Return estimates of KL(p‖q) by quadratic critics, one or a chain of them."""
    torch.manual_seed(seed)
    make = partial(px.ratio.QuadraticCritic, dim)
    if num_ratios == 1:
        ratio: Any = px.ratio.DensityRatio(make(), optim=ADAM)
    else:
        ratio = px.ratio.TelescopingRatio(make, num_ratios=num_ratios, optim=ADAM)
    ratio.fit(p, q, num_steps=2000, batch_size=batch_size, seed=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = {method: ratio.kl(method=method).value for method in ("plug-in", "nwj", "dv")}
    return found | {"warned": len(caught) > 0}


def bridged(bridge: str, seed: int) -> dict[str, Any]:
    """Return what a chain of four networks says of 6 nats, and whether it warns."""
    p, q = pairs(6, 20)
    torch.manual_seed(seed)
    chain = px.ratio.TelescopingRatio(
        partial(px.ratio.MLPCritic, 40, quadratic=True), num_ratios=4, bridge=bridge
    )
    chain.fit(p, q, num_steps=800, seed=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return {"kl": chain.kl().value, "warned": len(caught) > 0}


def normals(dim: int, critic: str, seed: int) -> dict[str, Any]:
    """Return errors of log ratio, KL and JS for two normals of KL divergence near 1/2."""
    torch.manual_seed(seed)
    loc, scale = torch.full((dim,), dim**-0.5), torch.linspace(0.8, 1.1, dim)
    one = torch.ones(dim)
    p = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)
    q = torch.distributions.Independent(torch.distributions.Normal(0 * one, one), 1)
    made = px.ratio.QuadraticCritic(dim) if critic == "quadratic" else px.ratio.MLPCritic(dim)
    rate = 0.03 if critic == "quadratic" else 0.003
    ratio = px.ratio.DensityRatio(made, optim=partial(torch.optim.Adam, lr=rate))
    ratio.fit(
        lambda n: p.sample((n,)), lambda n: q.sample((n,)), num_steps=1500, batch_size=512,
        num_held_out=100_000, seed=seed,
    )  # fmt: skip
    x, y = p.sample((100_000,)), q.sample((100_000,))
    exact_x, exact_y = p.log_prob(x) - q.log_prob(x), p.log_prob(y) - q.log_prob(y)
    with torch.no_grad():
        error = float((ratio.log_ratio(x) - exact_x).square().mean().sqrt())
    return {
        "exact kl": float(torch.distributions.kl_divergence(p, q)),
        "kl": ratio.kl().value,
        "exact js": float(px.ratio.jsd(exact_x, exact_y)),
        "js": ratio.js().value,
        "error of log r": error,
    }


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation over seeds."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    """Compute what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    results = Path("benchmarks/results/ratios.json")
    parser.add_argument("--cells", type=Path, default=results)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    cells, seeds = Cells(options.cells), range(options.seeds)
    lines = [
        "| MI | InfoNCE, K = 64 | NWJ | DV | (median of NWJ) |",
        "| --: | --: | --: | --: | --: |",
    ]
    for mi in INFORMATION:
        row = cells.get(f"exact critic, {mi}", partial(exact_critic, mi))
        bounds = [f"{row[n][0]:.3f} ({row[n][1]:.2f})" for n in ("infonce", "nwj", "dv")]
        lines.append(f"| {mi} | {' | '.join(bounds)} | {row['nwj'][2]:.2f} |")
    lines += [
        "",
        "| MI | pairs | one critic | chain of 4 | seeds |",
        "| --: | --: | --: | --: | --: |",
    ]
    for mi, num_pairs, batch_size in (*((mi, 20, 256) for mi in INFORMATION), (20, 40, 512)):
        p, q = pairs(mi, num_pairs)
        texts = []
        for num_ratios in (1, 4):
            found = [
                cells.get(
                    f"learned, {mi}, {num_pairs} pairs, {num_ratios} ratios, seed {seed}",
                    partial(
                        learned, p, q, 2 * num_pairs,
                        num_ratios=num_ratios, seed=seed, batch_size=batch_size,
                    ),
                )
                for seed in seeds
            ]  # fmt: skip
            values = [one["plug-in"] for one in found]
            warned = sum(one["warned"] for one in found)
            failed = sum(abs(value - mi) > 0.1 * mi for value in values)
            texts.append(f"{spread(values)}; {failed} failed, {warned} warned")
        lines.append(f"| {mi} | {num_pairs} | {' | '.join(texts)} | {len(seeds)} |")
    lines += ["", "| waymarks | KL of 6 by networks | warned |", "| :-- | --: | --: |"]
    for bridge in ("linear", "mixture"):
        found = [
            cells.get(f"bridge, {bridge}, seed {seed}", partial(bridged, bridge, seed))
            for seed in seeds
        ]
        warned = sum(one["warned"] for one in found)
        lines.append(
            f"| {bridge} | {spread([one['kl'] for one in found])} | {warned} of {len(seeds)} |"
        )
    lines += ["", "| d | critic | KL, exact | KL | JS, exact | JS | rms error of log r |"]
    lines.append("| --: | :-- | --: | --: | --: | --: | --: |")
    for dim in (1, 2, 5, 10, 20):
        for critic in ("quadratic", "network"):
            found = [
                cells.get(f"normals, {dim}, {critic}, seed {s}", partial(normals, dim, critic, s))
                for s in seeds
            ]
            kl, js, error = (
                spread([one[name] for one in found]) for name in ("kl", "js", "error of log r")
            )
            exact = found[0]
            lines.append(
                f"| {dim} | {critic} | {exact['exact kl']:.3f} | {kl} | {exact['exact js']:.3f} "
                f"| {js} | {error} |"
            )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
