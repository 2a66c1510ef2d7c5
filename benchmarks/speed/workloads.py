"""The models that step times are compared on, as a user of Pyro writes them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_ext as px

LATENT, HIDDEN, PIXELS = 50, 200, 784


@dataclass(frozen=True)
class Workload:
    """A model with its guide and loss, and the arguments of a step."""

    what: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: Any
    args: tuple[Tensor, ...]
    num_particles: int


def perceptron(*sizes: int) -> nn.Sequential:
    """Softplus layers, linear at the end."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Softplus()]
    return nn.Sequential(*layers[:-1])


def vae(batch: int, num_particles: int) -> Workload:
    decoder = perceptron(LATENT, HIDDEN, HIDDEN, PIXELS)
    encoder = nn.Sequential(perceptron(PIXELS, HIDDEN, HIDDEN), nn.Softplus())

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    loss = px.ELBO() if num_particles == 1 else px.IWAE(num_particles)
    x = (torch.rand(batch, PIXELS) < 0.3).float()
    what = f"VAE 784-200-200-50, batch {batch}, {loss!r}"
    return Workload(what, model, px.AutoAmortized(model, encoder), loss, (x,), num_particles)


def eight_schools() -> Workload:
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y):
        mu, tau = pyro.sample("mu", dist.Normal(0, 5)), pyro.sample("tau", dist.HalfCauchy(5))
        with pyro.plate("schools", 8):
            z = pyro.sample("z", dist.Normal(0, 1))
            pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)

    return Workload("eight schools, mean field", model, px.AutoJoint(model), px.ELBO(), (y,), 1)


def logistic() -> Workload:
    x = torch.randn(5_000, 50)
    t = (torch.rand(5_000) < torch.sigmoid(x @ torch.randn(50))).float()

    def model(x, t):
        b = pyro.sample("b", dist.Normal(torch.zeros(50), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            logits = (b @ x.T).reshape(-1, len(x))  # particles lie left of the plate
            pyro.sample("t", dist.Bernoulli(logits=logits), obs=t)

    guide = px.AutoJoint(model, family=px.FullCovariance())
    what = "logistic regression, N = 5,000, D = 50, full rank, K = 10"
    return Workload(what, model, guide, px.ELBO(10), (x, t), 10)


def local_latents() -> Workload:
    x = torch.randn(10_000)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=256) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    what = "10,000 local latents, mean field, subsample 256"
    return Workload(what, model, px.AutoPerDatapoint(model), px.ELBO(), (x,), 1)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "W1": lambda: vae(100, 1),
    "W2": lambda: vae(20, 50),
    "W3": eight_schools,
    "W4": logistic,
    "W5": local_latents,
}
