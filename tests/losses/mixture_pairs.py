"""Models whose guides are mixtures, with log q and the stratified bounds in plain torch."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import reference
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

import pyro_ext as px
from pyro_ext.families.family import positive
from pyro_ext.families.mixture import Mixture

__all__ = ["FAMILY", "KINDS", "NOISE", "Pair", "X", "bound_of", "log_q", "normals", "response"]

FAMILY = Mixture(px.Diagonal(), num_components=2)
X = torch.tensor([0.4, -0.3, 1.5])
NOISE = 0.8
KINDS = ("global", "local", "both")


class Pair(nn.Module):
    """A model and its guide, each latent a mixture of two normals far from the posterior."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.prior = torch.tensor(0.3, requires_grad=True)
        generator = torch.Generator().manual_seed(1)
        rows = 0.5 * torch.randn(4, FAMILY.num_params(1), generator=generator)
        rows = rows + torch.tensor([1.2, -0.6, -0.9, 0.3, 0.8, 0.1])
        self.shared, self.table = nn.Parameter(rows[0]), nn.Parameter(rows[1:])

    @property
    def params(self) -> list[Tensor]:
        used = {"global": [self.shared], "local": [self.table], "both": [self.shared, self.table]}
        return [self.prior, *used[self.kind]]

    def model(self, x: Tensor) -> None:
        level = self.prior
        if self.kind != "local":
            level = pyro.sample("mu", dist.Normal(level, torch.ones(1)).to_event(1)).squeeze(-1)
        with pyro.plate("data", len(x), dim=-1):
            mean = level
            if self.kind != "global":
                prior = dist.Normal(level.unsqueeze(-1), torch.ones(1)).to_event(1)
                mean = pyro.sample("z", prior).squeeze(-1)
            pyro.sample("x", dist.Normal(response(mean), NOISE), obs=x)

    def forward(self, x: Tensor) -> None:
        if self.kind != "local":
            pyro.sample("mu", FAMILY.distribution(self.shared, 1))
        if self.kind != "global":
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", FAMILY.distribution(self.table, 1))


def response(z: Tensor) -> Tensor:
    return z + 0.3 * z**2


def normals(params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, means and scales of π, each of shape ``(*batch, 2)``."""
    each = params[..., 2:].unflatten(-1, (2, 2))
    return params[..., :2], each[..., 0], positive(each[..., 1])


def log_q(z: Tensor, params: Tensor) -> Tensor:
    logits, loc, scale = normals(params)
    return MixtureSameFamily(Categorical(logits=logits), Normal(loc, scale)).log_prob(z)


def bound_of(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The bound of log weights and log strata, in loops."""
    name = type(loss).__name__

    def elbo(log_w: Tensor, log_s: Tensor) -> Tensor:
        return reference.elbo(log_s.exp() * log_w)

    def iwae(log_w: Tensor, log_s: Tensor) -> Tensor:
        return reference.iwae(log_w + log_s)

    if name in ("ELBO", "Annealed"):
        return elbo
    if name == "CIWAE":
        return lambda w, s: loss.beta * elbo(w, s) + (1 - loss.beta) * iwae(w, s)
    if name in ("Renyi", "CUBO"):
        order = loss.order if name == "CUBO" else 1 - loss.alpha
        return lambda w, s: iwae(order * w, s) / order
    return iwae
