"""Automatic fits of random models against long Hamiltonian Monte Carlo: how often is a word false?

A generator draws regressions (Gaussian, logistic, Poisson, negative binomial, Student-t), with and
without random intercepts (centred or not), with 2 to 200 latents. The reference runs many chains
on the non-centred form, whitened, and is dropped if they disagree. Prints a Markdown table:

    python benchmarks/auto_random.py
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from tqdm.auto import tqdm

import pyro_ext as px
from pyro_ext.training.auto.affine import climb, fixed_draws
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.drift import _move
from pyro_ext.training.auto.start import paths, starting_points

__all__ = ["Problem", "draw_problem", "funnel", "main", "reference"]

_LIMIT = 0.05
LIKELIHOODS = ("gaussian", "logistic", "poisson", "negative binomial", "student")
STRUCTURES = ("fixed", "non-centred", "centred")


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
    problem: Problem, *, chains: int = 64, moves: int = 250, seed: int = 0
) -> tuple[Tensor, Tensor, float]:
    """Return means and standard deviations of the parameters, and the largest R-hat."""
    density = Density(problem.easy, problem.args)
    generator = torch.Generator().manual_seed(seed)
    dim = density.dim
    q = max(paths(density, starting_points(density, 4, seed), seed), key=lambda c: c.elbo).q
    q = climb(density, q, fixed_draws(max(256, 4 * dim), dim, seed))
    u = 1.5 * torch.randn((chains, dim), generator=generator, dtype=torch.float64)
    u = torch.where(torch.isfinite(density.value(q.push(u)))[:, None], u, 0.5 * u)
    step = dim**-0.25
    for _ in range(8):
        _, acceptance, _, _ = _move(density, q, u, step, 3, generator)
        if acceptance > 0.75:
            break
        step *= 0.7
    kept = []
    for number in range(moves):
        u = _move(density, q, u, step, 1, generator)[0]
        if number >= moves // 4:
            kept.append(problem.parameters(density.latents(q.push(u))))
    draws = torch.stack(kept, 1)
    within = draws.var(1).mean(0)
    between = draws.mean(1).var(0) + within * (1 - 1 / draws.shape[1])
    r_hat = float((between / within).sqrt().max())
    flat = draws.flatten(0, 1)
    return flat.mean(0), flat.std(0), r_hat


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=30)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    problems = [draw_problem(options.first + seed) for seed in range(options.models)]
    problems += [funnel(10, 3.0), funnel(2, 3.0), funnel(10, 1.0), funnel(30, 1.5)]
    print("| model | verdict | worst mean error | sd ratios | R-hat of reference | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    claimed = false = 0
    for number, problem in enumerate(tqdm(problems, desc="models")):
        start = time.perf_counter()
        run = px.fit(
            problem.model,
            data=problem.args,
            optim="auto",
            family="auto",
            seed=number,
            progress=False,
        )
        seconds = time.perf_counter() - start
        torch.manual_seed(number)
        draws = problem.parameters(run.sample(20_000))
        mean, sd, r_hat = reference(problem)
        error = float(((draws.mean(0) - mean) / sd).abs().max())
        ratio = draws.std(0) / sd
        low, high = float(ratio.min()), float(ratio.max())
        right = error <= _LIMIT and 1 - _LIMIT <= low and high <= 1 + _LIMIT
        grade = run.verdict.grade
        claimed += grade != "not to be trusted"
        false += grade != "not to be trusted" and not right
        why = "" if grade != "not to be trusted" else f" ({'; '.join(run.verdict.reasons)})"
        print(
            f"| {problem.name} | {grade}{why} | {error:.3f} | {low:.2f} to {high:.2f} | "
            f"{r_hat:.3f} | {seconds:.1f} |",
            flush=True,
        )
    print(f"\n{claimed} of {len(problems)} claimed, {false} of them outside the limits.")


if __name__ == "__main__":
    main()
