"""The ten models of `posteriordb_models.py` in NumPyro, with the same sites and arguments."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints

__all__ = ["MODELS"]


def flat(name, size=None):
    support = constraints.real if size is None else constraints.real_vector
    event = () if size is None else (size,)
    return numpyro.sample(name, dist.ImproperUniform(support, (), event))


def flat_positive(name):
    return numpyro.sample(name, dist.ImproperUniform(constraints.positive, (), ()))


def eight_schools(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def ark(y, lags):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma).to_event(1), obs=y)


def arma(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = numpyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = numpyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))

    def advance(error, pair):
        error = pair[1] - (mu + phi * pair[0] + theta * error)
        return error, error

    first = y[0] - (mu + phi * mu)
    _, later = lax.scan(advance, first, (y[:-1], y[1:]))
    errors = jnp.concatenate([first[None], later])
    zeros = jnp.zeros_like(errors)
    numpyro.sample("error", dist.Normal(zeros, sigma).to_event(1), obs=errors)


def regression(x, y, *, beta_prior, sigma_prior):
    if beta_prior is None:
        beta = flat("beta", x.shape[1])
    else:
        beta = numpyro.sample("beta", beta_prior.expand([x.shape[1]]).to_event(1))
    sigma = flat_positive("sigma") if sigma_prior is None else numpyro.sample("sigma", sigma_prior)
    numpyro.sample("y", dist.Normal(x @ beta, sigma).to_event(1), obs=y)


def blr(x, y):
    regression(x, y, beta_prior=dist.Normal(0.0, 10.0), sigma_prior=dist.HalfNormal(10.0))


def flat_regression(x, y):
    regression(x, y, beta_prior=None, sigma_prior=None)


def kidscore(x, y):
    regression(x, y, beta_prior=None, sigma_prior=dist.HalfCauchy(2.5))


def gp_regression(x, y):
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    square = (x[:, None] - x) ** 2
    covariance = alpha**2 * jnp.exp(-square / (2 * rho**2)) + sigma * jnp.eye(len(x))
    zeros = jnp.zeros(len(x))
    numpyro.sample("y", dist.MultivariateNormal(zeros, covariance_matrix=covariance), obs=y)


def gauss_mix(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    log_weight = jnp.stack([jnp.log(theta), jnp.log1p(-theta)])
    parts = dist.Normal(mu, sigma).log_prob(y[:, None]) + log_weight
    numpyro.factor("y", jnp.logaddexp(parts[:, 0], parts[:, 1]).sum())


def garch(y, sigma1):
    mu, alpha0 = flat("mu"), flat_positive("alpha0")
    alpha1 = numpyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
    numpyro.factor("jacobian", jnp.log1p(-alpha1))
    beta1 = share * (1 - alpha1)

    def advance(variance, before):
        variance = alpha0 + alpha1 * (before - mu) ** 2 + beta1 * variance
        return variance, variance

    first = jnp.square(sigma1)
    _, later = lax.scan(advance, first, y[:-1])
    scale = jnp.sqrt(jnp.concatenate([first[None], later]))
    numpyro.sample("y", dist.Normal(mu, scale).to_event(1), obs=y)


MODELS: dict[str, Callable[..., Any]] = {
    "eight_schools-eight_schools_noncentered": eight_schools,
    "arK-arK": ark,
    "arma-arma11": arma,
    "sblri-blr": blr,
    "gp_pois_regr-gp_regr": gp_regression,
    "low_dim_gauss_mix-low_dim_gauss_mix": gauss_mix,
    "mesquite-logmesquite": flat_regression,
    "garch-garch11": garch,
    "kidiq-kidscore_interaction": kidscore,
    "nes2000-nes": flat_regression,
}
