"""Automatic fits of random models against long Hamiltonian Monte Carlo: which word is false?

A generator draws regressions (Gaussian, logistic, Poisson, negative binomial, Student-t), with and
without random intercepts (centred or not), with 2 to 200 latents. The reference runs many chains
on the non-centred form, whitened; its own error is in the table. Keeps each fit in a JSON file, so
that a run can be taken up again, and prints a Markdown table:

    python benchmarks/auto_random.py
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _results import Cells
from torch import Tensor
from torch.distributions import constraints

import pyro_ext as px
from pyro_ext.training.auto.affine import Affine, fixed_draws
from pyro_ext.training.auto.climb import climb
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.start import paths, starting_points

__all__ = ["Problem", "draw_problem", "funnel", "main", "reference"]

_LIMIT = 0.05
_DRAWS = 20_000
_WARM_UP = 60
LIKELIHOODS = ("gaussian", "logistic", "poisson", "negative binomial", "student")
STRUCTURES = ("fixed", "non-centred", "centred")
FUNNELS = ((10, 3.0), (2, 3.0), (10, 1.0), (30, 1.5))
"""Dimension and scale."""


@dataclass(frozen=True)
class Problem:
    """A posterior, and a form of it that is easy to sample.

    Args:
        name: What it is.
        model: The model to fit.
        easy: The same model, non-centred.
        args: Arguments of both.
        parameters: From draws of either's latents to what is compared.
    """

    name: str
    model: Callable[..., Any]
    easy: Callable[..., Any]
    args: tuple[Any, ...]
    parameters: Callable[[dict[str, Tensor]], Tensor]


def _model(likelihood: str, structure: str, *, flat: bool) -> Callable[..., None]:
    def model(x: Tensor, group: Tensor, num_groups: int, y: Tensor) -> None:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 5.0))
        if flat:
            prior = dist.ImproperUniform(constraints.real_vector, (), (x.shape[1],))
        else:
            prior = dist.Normal(0.0, 2.5).expand([x.shape[1]]).to_event(1)
        eta = alpha.unsqueeze(-1) + pyro.sample("beta", prior) @ x.mT
        if structure != "fixed":
            tau = pyro.sample("tau", dist.HalfNormal(1.0)).unsqueeze(-1)
            if structure == "centred":
                spread = dist.Normal(torch.zeros_like(tau), tau).expand(
                    [*tau.shape[:-1], num_groups]
                )
                effect = pyro.sample("effect", spread.to_event(1))
            else:
                raw = pyro.sample("raw", dist.Normal(0.0, 1.0).expand([num_groups]).to_event(1))
                effect = tau * raw
            eta = eta + effect[..., group]
        pyro.sample("y", _likelihood(likelihood, eta).to_event(1), obs=y)

    return model


def _likelihood(name: str, eta: Tensor) -> Any:
    if name == "logistic":
        return dist.Bernoulli(logits=eta)
    if name == "poisson":
        return dist.Poisson(eta.clamp(max=30).exp())
    size = pyro.sample("size", dist.LogNormal(0.0, 1.0)).unsqueeze(-1)
    if name == "negative binomial":
        return dist.NegativeBinomial(size, logits=eta - size.log())
    if name == "student":
        return dist.StudentT(4.0, eta, size)
    return dist.Normal(eta, size)


def _parameters(draws: dict[str, Tensor]) -> Tensor:
    num = len(draws["alpha"])
    values = {name: value.reshape(num, -1) for name, value in draws.items()}
    if "raw" in values:
        values["effect"] = values["tau"] * values.pop("raw")
    return torch.cat([values[name] for name in sorted(values)], -1)


def draw_problem(seed: int) -> Problem:
    """Return a random regression with simulated data."""
    rng = np.random.default_rng(seed)
    likelihood = LIKELIHOODS[seed % len(LIKELIHOODS)]
    structure = STRUCTURES[seed // len(LIKELIHOODS) % len(STRUCTURES)]
    num_predictors = int(np.exp(rng.uniform(0, np.log(60))))
    num_groups = int(np.exp(rng.uniform(np.log(5), np.log(130))))
    num = int(np.exp(rng.uniform(np.log(40), np.log(600)))) + 2 * num_predictors
    x = rng.normal(size=(num, num_predictors))
    x = x @ np.linalg.qr(rng.normal(size=(num_predictors, num_predictors)))[0]
    x = x * np.exp(rng.normal(size=num_predictors))
    group = rng.integers(num_groups, size=num)
    beta = rng.normal(size=num_predictors) / np.linalg.norm(x.std(0))
    eta = rng.normal() + x @ beta
    if structure != "fixed":
        eta = (
            eta
            + np.exp(rng.uniform(np.log(0.1), np.log(1.5))) * rng.normal(size=num_groups)[group]
        )
    if likelihood == "logistic":
        y = rng.uniform(size=num) < 1 / (1 + np.exp(-eta))
    elif likelihood == "poisson":
        y = rng.poisson(np.exp(eta))
    elif likelihood == "negative binomial":
        y = rng.negative_binomial(2, 2 / (2 + np.exp(eta)))
    else:
        noise = rng.normal(size=num) if likelihood == "gaussian" else rng.standard_t(4, size=num)
        y = eta + np.exp(rng.uniform(-1, 1)) * noise
    flat = bool(rng.integers(2)) and likelihood in ("gaussian", "student")
    dim = 1 + num_predictors + (structure != "fixed") * (1 + num_groups)
    dim += likelihood not in ("logistic", "poisson")
    easy = "fixed" if structure == "fixed" else "non-centred"
    return Problem(
        f"{likelihood}, {structure}{', flat' * flat}, D={dim}, n={num}",
        _model(likelihood, structure, flat=flat),
        _model(likelihood, easy, flat=flat),
        (torch.tensor(x), torch.tensor(group), num_groups, torch.tensor(y, dtype=torch.float64)),
        _parameters,
    )


def funnel(dim: int, scale: float) -> Problem:
    """Return a funnel, which no normal can follow."""

    def model() -> None:
        v = pyro.sample("v", dist.Normal(0.0, scale)).unsqueeze(-1)
        zero = torch.zeros_like(v).expand([*v.shape[:-1], dim - 1])
        pyro.sample("x", dist.Normal(zero, (v / 2).exp()).to_event(1))

    def easy() -> None:
        pyro.sample("v", dist.Normal(0.0, scale))
        pyro.sample("raw", dist.Normal(0.0, 1.0).expand([dim - 1]).to_event(1))

    def parameters(draws: dict[str, Tensor]) -> Tensor:
        v = draws["v"].reshape(-1, 1)
        x = (v / 2).exp() * draws["raw"] if "raw" in draws else draws["x"]
        return torch.cat([v, x.sign() * x.abs().log1p()], -1)

    return Problem(f"funnel, scale {scale}, D={dim}", model, easy, (), parameters)


def reference(
    problem: Problem, *, chains: int = 100, moves: int = 200, seed: int = 0
) -> tuple[Tensor, Tensor, float]:
    """Return means and standard deviations of the parameters, and the largest standard error.

    Hamiltonian Monte Carlo on the easy form, whitened by the moments of its own warm-up. The
    error, of a mean in sds or of an sd, relative, is told by the spread over chains.
    """
    density = Density(problem.easy, problem.args)
    generator = torch.Generator().manual_seed(seed)
    dim = density.dim
    q = max(paths(density, starting_points(density, 4, seed), seed), key=lambda c: c.elbo).q
    q = climb(density, q, fixed_draws(max(256, 4 * dim), dim, seed))
    u = 0.7 * torch.randn((chains, dim), generator=generator, dtype=torch.float64)
    u = torch.where(torch.isfinite(density.value(q.push(u)))[:, None], u, 0.5 * u)
    log_step = -0.25 * math.log(dim)
    for phase in range(3):
        seen = []
        for move in range(_WARM_UP):
            short = move % 5 == 4  # for chains that the usual step leaves where it is narrow
            size = math.exp(log_step) * (0.2 if short else 1.0)
            u, acceptance = _hamilton(density, q, u, size, generator)
            log_step += 0.0 if short else (acceptance - 0.8) / (1 + move) ** 0.6
            seen.append(q.push(u))
        if phase < 2:
            half = torch.cat(seen[len(seen) // 2 :])
            u = q.push(u)
            q = Affine(half.mean(0), torch.linalg.cholesky(torch.cov(half.mT)))
            u = q.pull(u)
            log_step = -0.25 * math.log(dim)
    kept = []
    for move in range(moves):
        size = math.exp(log_step) * (0.2 if move % 5 == 4 else 1.0)
        u, _ = _hamilton(density, q, u, size, generator)
        kept.append(problem.parameters(density.latents(q.push(u))))
    draws = torch.stack(kept, 1)
    mean, sd = draws.flatten(0, 1).mean(0), draws.flatten(0, 1).std(0)
    by_mean = draws.mean(1).std(0) / sd
    by_sd = (draws - mean).square().mean(1).std(0) / sd.square() / 2
    return mean, sd, float(torch.maximum(by_mean, by_sd).max()) / chains**0.5


def _hamilton(
    density: Density, q: Affine, u: Tensor, step: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Move all chains along a quarter of a period, with a step that each draws for itself."""
    options: Any = {"generator": generator, "dtype": u.dtype}
    size = step * (0.5 + torch.rand((len(u), 1), **options))
    speed = torch.randn(u.shape, **options)

    def slope(point: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = density.value_and_grad(q.push(point))
        return value, grad @ q.factor

    value, grad = slope(u)
    energy = value - 0.5 * speed.square().sum(-1)
    point, new_value = u, value
    for _ in range(min(math.ceil(1.6 / step), 24)):
        speed = speed + size / 2 * grad
        point = point + size * speed
        new_value, grad = slope(point)
        speed = speed + size / 2 * grad
    gain = new_value - 0.5 * speed.square().sum(-1) - energy
    chance = torch.nan_to_num(gain, nan=-torch.inf).clamp(max=0).exp()
    taken = torch.rand(len(u), **options) < chance
    return torch.where(taken.unsqueeze(-1), point, u), float(chance.mean())


@dataclass(frozen=True)
class Row:
    """One fit.

    Args:
        name: What was fitted.
        grade: The verdict's word.
        reasons: What stands behind it.
        family: Name of the guide's family.
        error: Worst error of a mean, in reference standard deviations.
        low: Smallest ratio of standard deviations.
        high: Largest one.
        slack: Error of the reference.
        seconds: Time of one core, with the draws.
    """

    name: str
    grade: str
    reasons: str
    family: str
    error: float
    low: float
    high: float
    slack: float
    seconds: float

    @property
    def claimed(self) -> bool:
        """Whether it may be used."""
        return self.grade != "not to be trusted"

    @property
    def right(self) -> bool:
        """Whether it is within the limits, but for the reference's error."""
        limit = _LIMIT + 2 * self.slack
        return self.error <= limit and 1 - limit <= self.low and self.high <= 1 + limit

    def __str__(self) -> str:
        """One line of the table."""
        why = "" if self.claimed else f" ({self.reasons})"
        mark = "" if self.right else " (outside)"
        return (
            f"| {self.name} | {self.family} | {self.grade}{why} | {self.error:.3f}{mark} | "
            f"{self.low:.2f} to {self.high:.2f} | {self.slack:.3f} | {self.seconds:.1f} |"
        )


def measure(problem: Problem, seed: int, moves: int) -> Row:
    """Fit one problem and compare it with its reference."""
    start = time.process_time()
    run = px.fit(
        problem.model, data=problem.args, optim="auto", family="auto", seed=seed, progress=False
    )
    torch.manual_seed(seed)
    draws = problem.parameters(run.sample(_DRAWS))
    spent = time.process_time() - start
    mean, sd, slack = reference(problem, moves=moves)
    ratio = draws.std(0) / sd
    return Row(
        problem.name,
        run.verdict.grade,
        "; ".join(run.verdict.reasons),
        type(run.guide.groups[0].family).__name__,
        float(((draws.mean(0) - mean) / sd).abs().max()),
        float(ratio.min()),
        float(ratio.max()),
        slack,
        spent,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=30)
    parser.add_argument("--first", type=int, default=0, help="seed of the first model")
    parser.add_argument("--moves", type=int, default=200, help="of each chain of a reference")
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/auto_random.json"))
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.models)
    jobs = {f"random {number}": (draw_problem(number), number) for number in numbers}
    for seed, (dim, scale) in enumerate(FUNNELS):
        jobs[f"funnel {dim} {scale}"] = (funnel(dim, scale), seed)
    cells, rows = Cells(options.out), []
    for key, (problem, seed) in jobs.items():
        if options.only not in problem.name:
            continue

        def compute(problem: Problem = problem, seed: int = seed) -> dict[str, Any]:
            return asdict(measure(problem, seed, options.moves))

        rows.append(Row(**cells.get(key, compute)))
    print("| model | family | verdict | mean error | sd ratios | error of reference | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(row)
    claimed = [row for row in rows if row.claimed]
    trusted = [row for row in rows if row.grade == "trusted"]
    print(
        f"\n{len(claimed)} of {len(rows)} claimed ({len(trusted)} trusted), "
        f"{sum(not row.right for row in claimed)} of them outside the limits. CPU seconds: median "
        f"{np.median([row.seconds for row in rows]):.1f}, "
        f"worst {max(row.seconds for row in rows):.1f}."
    )


if __name__ == "__main__":
    main()
