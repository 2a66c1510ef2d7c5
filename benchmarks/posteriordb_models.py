"""Ten models of posteriordb in Pyro, and what their reference parameters are.

Each case holds a model, its arguments from the data file, and a function from draws of the latents
to the parameters that the reference has, by name.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import ordered_vector
from torch import Tensor
from torch.distributions import constraints

__all__ = ["CASES", "Case", "load", "log_evidences"]


@dataclass(frozen=True)
class Case:
    """A posterior with reference draws.

    Args:
        posterior: Its name in posteriordb.
        data: Name of the data file.
        model: The model.
        read: From the data file's content to the model's arguments.
        parameters: From draws of the latents, ``(draws, *site)``, to the reference parameters,
            ``(draws, parameters)``, in the reference's order.
    """

    posterior: str
    data: str
    model: Callable[..., Any]
    read: Callable[[dict[str, Any]], tuple[Any, ...]]
    parameters: Callable[[dict[str, Tensor]], Tensor]


def load(case: Case, path: Path) -> tuple[tuple[Any, ...], np.ndarray, np.ndarray]:
    """Return the model's arguments and the reference means and standard deviations.

    Args:
        case: The case.
        path: Folder of the data.
    """
    content = json.loads((path / case.data).read_text())
    reference = np.load(path / f"{case.posterior}.npz")
    return case.read(content), reference["mean"], reference["sd"]


def log_evidences(path: Path) -> dict[str, float]:
    """Return the log evidence of each posterior with a proper prior, for the models as below.

    Args:
        path: Folder of the data.
    """
    cases = json.loads((path / "cases.json").read_text())["cases"]
    known = {c["posterior"]: c["log_evidence"] for c in cases if c.get("log_evidence") is not None}
    # The density of an ordered pair is that of the pair on half of the plane, so twice as high.
    twice = "low_dim_gauss_mix-low_dim_gauss_mix"
    return known | ({twice: known[twice] - math.log(2)} if twice in known else {})


def flat(name, size=None):
    """Return a latent with a flat prior on the reals."""
    if size is None:
        return pyro.sample(name, dist.ImproperUniform(constraints.real, (), ()))
    return pyro.sample(name, dist.ImproperUniform(constraints.real_vector, (), (size,)))


def flat_positive(name):
    """Return a latent with a flat prior on the positive reals."""
    return pyro.sample(name, dist.ImproperUniform(constraints.positive, (), ()))


def columns(*names):
    """Return a stack of draws of these sites, the scalars and the vectors."""

    def parameters(draws):
        parts = [draws[name] for name in names]
        return torch.cat([p.reshape(len(p), -1) for p in parts], -1)

    return parameters


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def eight_schools(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def schools_parameters(draws):
    mu, tau = draws["mu"].reshape(-1, 1), draws["tau"].reshape(-1, 1)
    return torch.cat([mu + tau * draws["eta"].reshape(len(mu), -1), mu, tau], -1)


def ark(y, lags):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = alpha.unsqueeze(-1) + (lags * beta.unsqueeze(-2)).sum(-1)
    pyro.sample("y", dist.Normal(mean, sigma.unsqueeze(-1)).to_event(1), obs=y)


def read_ark(content):
    y, order = tensor(content["y"]), content["K"]
    lags = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)
    return y[order:], lags


def arma(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    error = y[0] - (mu + phi * mu)
    errors = [error]
    for t in range(1, len(y)):
        error = y[t] - (mu + phi * y[t - 1] + theta * error)
        errors.append(error)
    errors = torch.stack(errors, -1)
    pyro.sample(
        "error",
        dist.Normal(torch.zeros_like(errors), sigma.unsqueeze(-1)).to_event(1),
        obs=errors,
    )


def regression(x, y, *, beta_prior, sigma_prior):
    """Linear regression; a prior of None is flat."""
    if beta_prior is None:
        beta = flat("beta", x.shape[1])
    else:
        beta = pyro.sample("beta", beta_prior.expand([x.shape[1]]).to_event(1))
    sigma = flat_positive("sigma") if sigma_prior is None else pyro.sample("sigma", sigma_prior)
    mean = (x * beta.unsqueeze(-2)).sum(-1)
    pyro.sample("y", dist.Normal(mean, sigma.unsqueeze(-1)).to_event(1), obs=y)


def blr(x, y):
    regression(x, y, beta_prior=dist.Normal(0.0, 10.0), sigma_prior=dist.HalfNormal(10.0))


def flat_regression(x, y):
    regression(x, y, beta_prior=None, sigma_prior=None)


def kidscore(x, y):
    regression(x, y, beta_prior=None, sigma_prior=dist.HalfCauchy(2.5))


def gp_regression(x, y):
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    rho, alpha, sigma = (v[..., None, None] for v in (rho, alpha, sigma))
    square = (x[:, None] - x).square()
    covariance = alpha**2 * torch.exp(-square / (2 * rho**2)) + sigma * torch.eye(len(x)).to(x)
    zero = torch.zeros(len(x)).to(x)
    pyro.sample("y", dist.MultivariateNormal(zero, covariance_matrix=covariance), obs=y)


def gauss_mix(y):
    mu = pyro.sample("mu", dist.ImproperUniform(ordered_vector, (), (2,)))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    log_weight = torch.stack([theta.log(), torch.log1p(-theta)], -1)
    parts = dist.Normal(mu.unsqueeze(-2), sigma.unsqueeze(-2)).log_prob(y.unsqueeze(-1))
    pyro.factor("y", (parts + log_weight.unsqueeze(-2)).logsumexp(-1).sum(-1))


def garch(y, sigma1):
    mu, alpha0 = flat("mu"), flat_positive("alpha0")
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    # beta1 is flat on (0, 1 - alpha1): a share of it, with the log Jacobian of the share.
    share = pyro.sample("share", dist.Uniform(0.0, 1.0))
    pyro.factor("jacobian", torch.log1p(-alpha1))
    beta1 = share * (1 - alpha1)
    variance = torch.zeros_like(mu) + sigma1**2
    variances = [variance]
    for t in range(1, len(y)):
        variance = alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + beta1 * variance
        variances.append(variance)
    scale = torch.stack(variances, -1).sqrt()
    pyro.sample("y", dist.Normal(mu.unsqueeze(-1), scale).to_event(1), obs=y)


def garch_parameters(draws):
    alpha1 = draws["alpha1"]
    beta1 = draws["share"] * (1 - alpha1)
    return torch.stack([draws["mu"], draws["alpha0"], alpha1, beta1], -1).reshape(-1, 4)


def read_mesquite(content):
    logs = ["diam1", "diam2", "canopy_height", "total_height", "density"]
    x = [torch.ones(content["N"], dtype=torch.float64)]
    x += [tensor(content[name]).log() for name in logs] + [tensor(content["group"])]
    return torch.stack(x, -1), tensor(content["weight"]).log()


def read_kidiq(content):
    hs, iq = tensor(content["mom_hs"]), tensor(content["mom_iq"])
    return torch.stack([torch.ones_like(hs), hs, iq, hs * iq], -1), tensor(content["kid_score"])


def read_nes(content):
    age = tensor(content["age_discrete"])
    x = [torch.ones_like(age), tensor(content["real_ideo"]), tensor(content["race_adj"])]
    x += [(age == level).double() for level in (2, 3, 4)]
    x += [tensor(content[name]) for name in ("educ1", "gender", "income")]
    return torch.stack(x, -1), tensor(content["partyid7"])


CASES = (
    Case(
        "eight_schools-eight_schools_noncentered",
        "eight_schools.json",
        eight_schools,
        lambda c: (tensor(c["sigma"]), tensor(c["y"])),
        schools_parameters,
    ),
    Case("arK-arK", "arK.json", ark, read_ark, columns("alpha", "beta", "sigma")),
    Case(
        "arma-arma11",
        "arma.json",
        arma,
        lambda c: (tensor(c["y"]),),
        columns("mu", "phi", "theta", "sigma"),
    ),
    Case(
        "sblri-blr",
        "sblri.json",
        blr,
        lambda c: (tensor(c["X"]), tensor(c["y"])),
        columns("beta", "sigma"),
    ),
    Case(
        "gp_pois_regr-gp_regr",
        "gp_pois_regr.json",
        gp_regression,
        lambda c: (tensor(c["x"]), tensor(c["y"])),
        columns("rho", "alpha", "sigma"),
    ),
    Case(
        "low_dim_gauss_mix-low_dim_gauss_mix",
        "low_dim_gauss_mix.json",
        gauss_mix,
        lambda c: (tensor(c["y"]),),
        columns("mu", "sigma", "theta"),
    ),
    Case(
        "mesquite-logmesquite",
        "mesquite.json",
        flat_regression,
        read_mesquite,
        columns("beta", "sigma"),
    ),
    Case(
        "garch-garch11",
        "garch.json",
        garch,
        lambda c: (tensor(c["y"]), float(c["sigma1"])),
        garch_parameters,
    ),
    Case(
        "kidiq-kidscore_interaction",
        "kidiq.json",
        kidscore,
        read_kidiq,
        columns("beta", "sigma"),
    ),
    Case("nes2000-nes", "nes2000.json", flat_regression, read_nes, columns("beta", "sigma")),
)
