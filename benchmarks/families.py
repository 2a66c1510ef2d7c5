"""What each family reaches, with one π per datapoint and with an encoder, where log p(x) is known.

Two models with one latent vector per datum:

- linear: probabilistic PCA, N = 2,000, D = 8, batches of 64. The posterior is a normal of full
  covariance whose mean is linear in the datum, so that both full-covariance guides can be exact
  and both mean fields stop at the same known gap.
- nonlinear: a decoder of one tanh layer, N = 100, D = 2. Log p(x) is a sum over a grid. The
  posterior is no normal and the encoder is small: L[amortized] ≤ L[per datapoint] ≤ log p(x).
  Here π_i starts at the encoder's answer; the networks of a flow are the amortized guide's.

    python benchmarks/families.py
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm.auto import tqdm

import pyro_ext as px
from guides.linear_gaussian import linear_encoder
from models.linear_gaussian import LinearGaussian, data

FAMILIES: dict[str, px.Family] = {
    "Diagonal": px.Diagonal(),
    "FullCovariance": px.FullCovariance(),
    "LowRank(1)": px.LowRank(rank=1),
    "Mixture(4)": px.Mixture(px.FullCovariance(), num_components=4),
    "Flow(nsf)": px.Flow("nsf", base=px.FullCovariance(), context=8),
    "Flow(maf)": px.Flow("maf", base=px.FullCovariance(), context=8),
}


@dataclass(frozen=True)
class Row:
    """One guide: nats per datum below the evidence, one number for each datum."""

    model: str
    source: str
    family: str
    gaps: Tensor
    seconds: float


class Nonlinear:
    """z ~ N(0, I_2), x | z ~ N(V tanh(U z), 0.3² I_5), with weights drawn once."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inner = 1.5 * torch.randn(8, 2, generator=generator)
        self.outer = torch.randn(5, 8, generator=generator) / 8**0.5

    def mean(self, z: Tensor) -> Tensor:
        """Return the mean of x at z."""
        return torch.tanh(z @ self.inner.T) @ self.outer.T

    def __call__(self, x: Tensor) -> None:
        """Sample ``z`` and ``x`` in the plate ``"data"``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.mean(z), 0.3).to_event(1), obs=x)

    def data(self, num: int) -> Tensor:
        """Draw data."""
        generator = torch.Generator().manual_seed(1)
        mean = self.mean(torch.randn(num, 2, generator=generator))
        return mean + 0.3 * torch.randn(num, 5, generator=generator)

    def log_evidence_per_datum(self, x: Tensor) -> Tensor:
        """Return log p(x_i) by a sum over a grid of step 0.03 on [-6, 6]²."""
        axis = torch.linspace(-6, 6, 401)
        z = torch.cartesian_prod(axis, axis)
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + 2 * (axis[1] - axis[0]).log()
        mean = self.mean(z)
        return torch.stack(
            [torch.logsumexp(prior + dist.Normal(mean, 0.3).log_prob(row).sum(-1), 0) for row in x]
        )


def gaps(model: Any, guide: Any, x: Tensor, num_particles: int = 200) -> Tensor:
    """Return an estimate of log p(x_i) - L_i for each datum, in nats, shape ``(N,)``."""
    torch.manual_seed(0)
    with torch.no_grad():
        terms = px.log_weights(model, guide, x, num_particles=num_particles).terms
    return model.log_evidence_per_datum(x) - px.bounds.elbo(terms[-1].log_w)


def fitted(
    model: Any, guide: Any, x: Tensor, *, lr: float, num_steps: int, batch_size: int | None
) -> float:
    """Fit a guide and return the seconds that it took."""
    start = time.perf_counter()
    particles = getattr(guide.family, "num_components", 4)
    px.fit(
        model,
        guide,
        px.ELBO(particles, estimator="stl"),
        x,
        partial(torch.optim.Adam, lr=lr),
        schedule=partial(CosineAnnealingLR, T_max=num_steps),
        num_steps=num_steps,
        batch_size=batch_size,
        seed=0,
        progress=False,
    )
    return time.perf_counter() - start


def linear(num: int = 2000, num_steps: int = 6000) -> Iterator[Row]:
    """Yield the rows of the linear model.

    Args:
        num: Number of data.
        num_steps: Steps of each fit.
    """
    model = LinearGaussian.random(num_features=16, latent_dim=8, sigma=0.6)
    x = data(num, model=model)
    for name in ("FullCovariance", "Diagonal"):
        family = FAMILIES[name]
        free = px.AutoPerDatapoint(model, family=family, sparse=True)
        encoded = px.AutoAmortized(model, linear_encoder(model), family=family)
        for source, guide, lr in (("per datapoint", free, 0.05), ("amortized", encoded, 0.02)):
            seconds = fitted(model, guide, x, lr=lr, num_steps=num_steps, batch_size=64)
            yield Row("linear", source, name, gaps(model, guide, x), seconds)


def nonlinear(num: int = 100, num_steps: int = 1500) -> Iterator[Row]:
    """Yield the rows of the nonlinear model; the rows per datapoint start at the encoder's answer.

    Args:
        num: Number of data.
        num_steps: Steps of each fit.
    """
    model = Nonlinear()
    x = model.data(num)
    for name, family in FAMILIES.items():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(5, 16), nn.Tanh())
        guide = px.AutoAmortized(model, encoder, family=family)
        seconds = fitted(model, guide, x, lr=0.02, num_steps=num_steps, batch_size=None)
        loss = px.ELBO(getattr(family, "num_components", 4), estimator="stl")
        run = px.refine(model, guide, loss, x, num_steps=num_steps // 3, seed=0, progress=False)
        yield Row("nonlinear", "per datapoint", name, gaps(model, run.guide, x), run.seconds)
        yield Row("nonlinear", "amortized", name, gaps(model, guide, x), seconds)


def markdown(rows: list[Row]) -> str:
    """Return the tables as Markdown: gaps, and what amortization costs on the same draws."""
    exact = float(LinearGaussian.random(16, 8, sigma=0.6).mean_field_gap())
    lines = [
        f"The best mean field of the linear model: {exact:.4f} nats per datum below log p(x).",
        "",
        "| model | source | family | gap, nats per datum | standard error | seconds |",
        "| :-- | :-- | :-- | --: | --: | --: |",
    ]
    for row in rows:
        gap, error = _mean(row.gaps)
        lines.append(
            f"| {row.model} | {row.source} | {row.family} | {gap:.4f} | {error:.4f} "
            f"| {row.seconds:.0f} |"
        )
    lines += ["", "| model | family | L[q*] - L[amortized] | standard error |"]
    lines.append("| :-- | :-- | --: | --: |")
    free = {(r.model, r.family): r for r in rows if r.source == "per datapoint"}
    for row in rows:
        if row.source == "amortized":
            cost, error = _mean(row.gaps - free[row.model, row.family].gaps)
            lines.append(f"| {row.model} | {row.family} | {cost:.4f} | {error:.4f} |")
    return "\n".join(lines)


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=None, help="steps of each fit")
    options = parser.parse_args()
    steps = {} if options.steps is None else {"num_steps": options.steps}
    torch.set_default_dtype(torch.float64)
    rows: list[Row] = []
    bar = tqdm(total=4 + 2 * len(FAMILIES), desc="fits")
    for source in (linear(**steps), nonlinear(**steps)):
        for row in source:
            rows.append(row)
            bar.update()
            bar.set_postfix(last=f"{row.family} {row.source}")
    bar.close()
    print(markdown(rows))


if __name__ == "__main__":
    main()
