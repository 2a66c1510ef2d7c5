"""The same steps with Pyro's own guides, losses and optimizer."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn
from workloads import HIDDEN, LATENT, PIXELS, WORKLOADS, Workload, perceptron

Step = Callable[[], float]
Parts = tuple[Workload, Callable[..., Any], Any]
"""Workload, guide and loss."""


def step(work: Workload, guide: Callable[..., Any], loss: Any) -> Step:
    """Return a step of Pyro's SVI."""
    svi = SVI(work.model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    return lambda: svi.step(*work.args)


def lean_step(work: Workload, guide: Callable[..., Any], loss: Any) -> Step:
    """Return Pyro's loss with nothing checked, and one optimizer for all parameters."""
    with poutine.trace(param_only=True) as capture:
        loss.loss(work.model, guide, *work.args)
    sites = capture.trace.nodes.values()
    adam = torch.optim.Adam([s["value"].unconstrained() for s in sites], lr=1e-3, fused=True)

    def take() -> float:
        with pyro.validation_enabled(is_validate=False):
            value: float = loss.loss_and_grads(work.model, guide, *work.args)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return value

    return take


def vae(name: str, loss: Any) -> Parts:
    encoder = nn.Sequential(perceptron(PIXELS, HIDDEN, HIDDEN), nn.Softplus())
    head = nn.Linear(HIDDEN, 2 * LATENT)

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("head", head)
        with pyro.plate("data", len(x)):
            loc, raw = head(encoder(x)).chunk(2, -1)
            scale = nn.functional.softplus(raw)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return WORKLOADS[name](), guide, loss


def eight_schools(loss: Any) -> Parts:
    work = WORKLOADS["W3"]()
    return work, AutoNormal(work.model), loss


def logistic(loss: Any) -> Parts:
    work = WORKLOADS["W4"]()
    return work, AutoMultivariateNormal(work.model), loss


def local_latents(loss: Any) -> Parts:
    work = WORKLOADS["W5"]()

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x)))
        scale = pyro.param(
            "scale", lambda: torch.full((len(x),), 0.1), constraint=constraints.softplus_positive
        )
        with pyro.plate("data", len(x), subsample_size=256) as rows:
            pyro.sample("z", dist.Normal(loc[rows], scale[rows]))

    return work, guide, loss


MANY = {"num_particles": 10, "vectorize_particles": True, "max_plate_nesting": 1}


PYRO_OWN: dict[str, Callable[[], Parts]] = {
    "W1": lambda: vae("W1", Trace_ELBO()),
    "W2": lambda: vae("W2", RenyiELBO(alpha=0.0, **MANY | {"num_particles": 50})),
    "W3": lambda: eight_schools(Trace_ELBO()),
    "W4": lambda: logistic(Trace_ELBO(**MANY)),
    "W5": lambda: local_latents(Trace_ELBO()),
}

PYRO_JIT: dict[str, Callable[[], Parts]] = {
    "W1": lambda: vae("W1", JitTrace_ELBO(ignore_jit_warnings=True)),
    "W3": lambda: eight_schools(JitTrace_ELBO(ignore_jit_warnings=True)),
    "W4": lambda: logistic(JitTrace_ELBO(**MANY, ignore_jit_warnings=True)),
    "W5": lambda: local_latents(JitTrace_ELBO(ignore_jit_warnings=True)),
}
"""Pyro's K-sample bound has no compiled form."""
