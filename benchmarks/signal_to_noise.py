"""Signal-to-noise ratio of IWAE gradients: reparam falls with K, dreg rises, stl is biased.

The toy of Rainforth et al. (2018, arXiv 1802.04537): z ~ N(mu, I), x | z ~ N(z, I) in D = 20
dimensions, q(z | x) = N(A x + b, 2/3 I), with all parameters perturbed by N(0, 0.01^2) from their
optimum A = I/2, b = mu/2. One backward pass gives independent replicates: each has a row of b.

    python benchmarks/signal_to_noise.py --out docs/figures
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

import pyro_ext as px

DIM = 20
ESTIMATORS = ("reparam", "dreg", "stl")
COLORS = {"reparam": "C0", "dreg": "C1", "model": "C2", "stl": "C3"}


class Toy:
    """The model and guide with a row of parameters per replicate."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.mu = normal(DIM)
        self.x = self.mu + math.sqrt(2) * normal(DIM)
        perturbed = self.mu + 0.01 * normal(DIM)
        self.model_mean = perturbed
        weight = 0.5 * torch.eye(DIM, dtype=torch.float64) + 0.01 * normal(DIM, DIM)
        self.guide_mean = weight @ self.x + 0.5 * self.mu + 0.01 * normal(DIM)

    def gradients(
        self, num_particles: int, estimator: str, replicates: int
    ) -> tuple[Tensor, Tensor]:
        """Return gradients by b and by mu, shape ``(replicates, DIM)`` each."""
        shift = torch.zeros(replicates, DIM, dtype=torch.float64, requires_grad=True)
        mean = self.model_mean.expand(replicates, DIM).clone().requires_grad_()
        scale = torch.tensor(math.sqrt(2 / 3), dtype=torch.float64)
        one = torch.ones((), dtype=torch.float64)

        def model(x: Tensor) -> None:
            with pyro.plate("data", replicates):
                z = pyro.sample("z", dist.Normal(mean, one).to_event(1))
                pyro.sample("x", dist.Normal(z, one).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            b = pyro.param("b", lambda: shift)
            with pyro.plate("data", replicates):
                pyro.sample("z", dist.Normal(self.guide_mean + b, scale).to_event(1))

        with pyro.get_param_store().scope():
            loss = px.IWAE(num_particles, estimator=estimator)
            value = -loss.differentiable_loss(model, guide, self.x.expand(replicates, DIM))
            (b,) = (p for _, p in pyro.get_param_store().named_parameters())
            by_b, by_mu = torch.autograd.grad(value, [b, mean])
        return by_b, by_mu


def measure(
    particles: Sequence[int], budget: int = 1_000_000, seed: int = 0
) -> dict[str, dict[int, dict[str, float]]]:
    """Return mean, standard deviation and SNR of each gradient at each K.

    Args:
        particles: Values of K.
        budget: Draws of z per K and estimator, K times the number of replicates.
        seed: Seed of the toy and of the draws.
    """
    toy = Toy(seed)
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in (*ESTIMATORS, "model")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bar = tqdm([(k, name) for k in particles for name in ESTIMATORS], disable=None)
        for num, name in bar:
            by_b, by_mu = _replicates(toy, num, name, max(budget // num, 200))
            found[name][num] = _summary(by_b)
            if name == "reparam":
                found["model"][num] = _summary(by_mu)
    for num in particles:
        # |mean| / sd has a floor of sqrt(2/pi/n) where the mean drowns: dreg has the same mean.
        signal = found["dreg"][num]["mean"]
        found["reparam"][num]["snr"] = signal / found["reparam"][num]["sd"]
    return found


def _replicates(toy: Toy, num: int, name: str, count: int) -> tuple[Tensor, Tensor]:
    chunk = max(min(count, 400_000 // num), 1)
    parts = [toy.gradients(num, name, min(chunk, count - at)) for at in range(0, count, chunk)]
    by_b, by_mu = (torch.cat(part) for part in zip(*parts, strict=True))
    return by_b, by_mu


def _summary(gradients: Tensor) -> dict[str, float]:
    mean, sd = gradients.mean(0).abs(), gradients.std(0)
    return {
        "mean": mean.mean().item(),
        "sd": sd.mean().item(),
        "snr": (mean / sd).mean().item(),
    }


def slope(found: dict[int, dict[str, float]], key: str, least: int = 16) -> float:
    """Return the least-squares slope of log(value) in log K, over K >= least."""
    used = [num for num in found if num >= least]
    x = np.log(used)
    y = np.log([found[num][key] for num in used])
    return float(np.polyfit(x, y, 1)[0])


def draw(found: dict[str, dict[int, dict[str, float]]]) -> Figure:
    """Draw SNR against K, and the mean gradient, where the bias of stl shows."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = {"reparam": "guide, reparam", "dreg": "guide, dreg", "model": "model"}
    for name, label in labels.items():
        ks = list(found[name])
        rate = slope(found[name], "snr")
        ratios = [found[name][k]["snr"] for k in ks]
        left.loglog(ks, ratios, "o-", color=COLORS[name], label=f"{label}: K^{rate:+.2f}")
    left.set(xlabel="particles K", ylabel="signal-to-noise ratio", title="of the IWAE gradient")
    left.legend(loc="center right", bbox_to_anchor=(1.0, 0.43))  # between the lines
    for name in ("dreg", "stl"):
        ks = list(found[name])
        means = [found[name][k]["mean"] for k in ks]
        right.loglog(ks, means, "o-", color=COLORS[name], label=name)
    right.set(xlabel="particles K", ylabel="|mean gradient|", title="stl keeps a bias for K > 1")
    right.legend()
    return figure


def main() -> None:
    """Measure, print the table, save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/signal_to_noise"))
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--budget", type=int, default=1_000_000, help="draws per K and estimator")
    found = measure(parser.parse_args().particles, parser.parse_args().budget)
    print(
        "| K | reparam sd | dreg sd | |mean| | reparam SNR | dreg SNR | stl |mean| | model SNR |"
    )
    print("|---" * 8 + "|")
    for num in found["dreg"]:
        reparam, dreg = found["reparam"][num], found["dreg"][num]
        row = [reparam["sd"], dreg["sd"], dreg["mean"], reparam["snr"], dreg["snr"]]
        row += [found["stl"][num]["mean"], found["model"][num]["snr"]]
        print(f"| {num} | " + " | ".join(f"{value:.3g}" for value in row) + " |")
    rates = {name: slope(found[name], "snr") for name in ("reparam", "dreg", "model")}
    print("slopes of log SNR in log K, K >= 16:", {k: round(v, 3) for k, v in rates.items()})
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    draw(found).savefig(out / "signal_to_noise.png", dpi=150)


if __name__ == "__main__":
    main()
