"""Which diagnostic finds which fault, and how often.

A guide of known error stands against the exact posterior of `NormalLocal`: its sds multiplied by
a factor, or its means off by a share of an sd. Each diagnostic is repeated on new draws and says
"fault" or not, at its own limit; the share of faults found is its power, and for the exact guide
its rate of false alarms. What theory says stands beside it:

- k-hat of a normal q with sd c times the posterior's is 1 - c² for c < 1 (the largest weights are
  those of the tails that q lacks), and at most 0 for c > 1 or a shifted mean: k-hat cannot see a
  guide that is too wide.
- The effective share of the draws is 1 / E w², √(2 - c⁻²) / c for a scale c > 0.71, exp(-d²) for
  means off by d sds.

    python benchmarks/power.py [--repeats 50]
"""

import argparse
import math

import pyro
import pyro.distributions as dist
import torch

import pyro_ext as px
from pyro_ext.testing import NormalGlobal, NormalLocal

CASES = {
    "exact": (1.0, 0.0),
    "sd * 0.7": (0.7, 0.0),
    "sd * 1.4": (1.4, 0.0),
    "mean + 0.5 sd": (1.0, 0.5),
}
DRAWS, SIMULATIONS = 2000, 300
LEVEL = 0.01


def joint(factor, shift):
    exact = NormalGlobal.simulate(20)
    mean, covariance = exact.posterior()
    sd = covariance[0, 0].sqrt()

    def guide(x):
        pyro.sample("mu", dist.Normal(mean[0] + shift * sd, factor * sd))

    return exact, guide, (mean[0], sd)


def local(factor, shift):
    exact = NormalLocal(torch.zeros(SIMULATIONS))

    def guide(x):
        with pyro.plate("data", len(x)):
            sd = 0.5**0.5
            pyro.sample("z", dist.Normal(x / 2 + shift * sd, factor * sd))

    return exact, guide


def theory(factor, shift):
    k_hat = 1 - factor**2 if factor < 1 else 0.0
    square = math.sqrt(2 - factor**-2) / factor if factor**-2 < 2 else 0.0
    return k_hat, square * math.exp(-(shift**2))


def found(factor, shift, seed):
    exact, guide, (mean, sd) = joint(factor, shift)
    bounds = px.evidence(
        exact.model, guide, exact.x, num_particles=DRAWS, num_repeats=1, seed=seed
    )
    tree = px.to_datatree(
        exact.model, guide, exact.x, num_samples=DRAWS, seed=seed, predictive=False
    )
    noise = torch.randn(DRAWS, generator=torch.Generator().manual_seed(seed + 10_000))
    far = px.distances(tree, {"mu": mean + sd * noise}, seed=seed)
    moments = far.marginals
    off = abs(moments.worst_mean_error) > 0.1 + 3 * moments.noise[0]
    off |= abs(math.log(moments.worst_sd_ratio)) > math.log(1.1) + 3 * moments.noise[0]
    exact, guide = local(factor, shift)
    ranks = px.sbc(exact.model, guide, exact.x, num_simulations=SIMULATIONS, seed=seed)
    limit = bounds.k_hat.threshold
    return {
        "k-hat": bounds.k_hat.values.item(),
        "effective": bounds.effective_share,
        f"k-hat > {limit:.2f}": bounds.k_hat.values.item() > limit,
        "effective < 90 %": bounds.effective_share < 0.9,
        "moments": off,
        "MMD": far.mmd.p_value <= LEVEL,
        "classifier": far.classifier.p_value <= LEVEL,
        "SBC": ranks.p_value <= LEVEL,
        "VSBC": ranks.table.loc["z", "symmetry"] <= LEVEL,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    repeats = parser.parse_args().repeats
    torch.set_default_dtype(torch.float64)
    rows = {}
    for name, case in CASES.items():
        results = [found(*case, seed) for seed in range(repeats)]
        rows[name] = {key: sum(r[key] for r in results) / repeats for key in results[0]}
    columns = list(next(iter(rows.values())))
    print("| guide | k̂ (theory) | effective (theory) | " + " | ".join(columns[2:]) + " |")
    print("|" + " --- |" * (len(columns) + 1))
    for name, row in rows.items():
        k_hat, share = theory(*CASES[name])
        numbers = [f"{row['k-hat']:.2f} ({k_hat:.2f})", f"{row['effective']:.2f} ({share:.2f})"]
        powers = [f"{row[column]:.0%}" for column in columns[2:]]
        print(f"| {name} | " + " | ".join([*numbers, *powers]) + " |")


if __name__ == "__main__":
    main()
