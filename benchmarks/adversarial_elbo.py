"""The adversarial estimate of an ELBO that is known: its error, and where it says so itself.

z has D dimensions, x_d ~ N(z_d, s²); the guide is normal and knows its density, but the critic
does not. The narrower q, the farther it is from the prior, and the more the critic underestimates.
Prints a Markdown table; cells are kept in `benchmarks/results/adversarial_elbo.json`:

    python benchmarks/adversarial_elbo.py
"""

import argparse
import statistics
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

sys.path.insert(0, str(Path(__file__).parent))

from _results import Cells

import pyro_ext as px

__all__ = ["CASES", "cell", "main"]

SEEDS = range(10)
CASES = ((2, 0.5), (10, 0.5), (20, 0.05))


def cell(dim: int, width: float, contrast: str, seed: int) -> dict[str, Any]:
    """Return the exact ELBO, the evidence, the estimate, its error and whether it is flagged."""
    pyro.set_rng_seed(seed)
    x = torch.ones(dim)
    shape = torch.ones(dim)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(dim), shape).to_event(1))
        pyro.sample("x", dist.Normal(z, width).to_event(1), obs=x)

    def guide() -> None:  # a little too wide
        pyro.sample("z", dist.Normal(0.9 * x, 1.2 * width * shape).to_event(1))

    loss = px.Adversarial(256, contrast=contrast)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", px.ratio.RatioWarning)
        found = loss.evaluate(model, guide, num_particles=5000, num_steps=500)
    exact = -px.ELBO(num_particles=20_000).loss(model, guide)
    evidence = float(dist.Normal(0.0, (1 + width**2) ** 0.5).log_prob(x).sum())
    return {
        "elbo": exact, "evidence": evidence, "estimate": found.value, "se": found.se,
        "flagged": bool(found.doubts),
    }  # fmt: skip


def main() -> None:
    """Compute what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    results = Path("benchmarks/results/adversarial_elbo.json")
    parser.add_argument("--cells", type=Path, default=results)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    cells = Cells(options.cells)
    lines = ["| D | s | contrast | evidence | exact ELBO | estimate | above evidence | flagged |"]
    lines.append("| --: | --: | :-- | --: | --: | --: | --: | --: |")
    for dim, width in CASES:
        for contrast in ("prior", "adaptive"):
            found = [
                cells.get(
                    f"{dim}, {width}, {contrast}, seed {seed}",
                    partial(cell, dim, width, contrast, seed),
                )
                for seed in range(options.seeds)
            ]
            values = [one["estimate"] for one in found]
            above = sum(one["estimate"] > one["evidence"] for one in found)
            flagged = sum(one["flagged"] for one in found)
            lines.append(
                f"| {dim} | {width} | {contrast} | {found[0]['evidence']:.2f} "
                f"| {statistics.mean(one['elbo'] for one in found):.2f} "
                f"| {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} "
                f"| {above} of {len(found)} | {flagged} of {len(found)} |"
            )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
