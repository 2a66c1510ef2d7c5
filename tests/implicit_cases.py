"""Guides without a density, and a model whose ELBO under them is known."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_ext as px
from pyro_ext.nn import MLP

__all__ = [
    "LOC",
    "SCALE",
    "XS",
    "AffineGuide",
    "Decoder",
    "Guide",
    "Sampler",
    "X",
    "exact_elbo",
    "local_model",
    "model",
]

X = torch.tensor(1.0)
XS = torch.tensor([1.0, -1.0, 0.5])
LOC, SCALE = 0.8, 0.5  # of q(z | x) for x = 1; the posterior is N(1/2, 1/2)


def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Guide(nn.Module):
    """N(a x, s²) for each x, as a function of noise: it has no density of its own."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(LOC))
        self.scale = nn.Parameter(torch.tensor(SCALE))

    def forward(self, x):
        if x.dim():
            with pyro.plate("data", len(x)):
                self.draw(x)
        else:
            self.draw(x)

    def draw(self, x):
        e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(self.slope * x + self.scale * e))


def exact_elbo(x):
    """ELBO of ``Guide``, differentiable by (a, s)."""
    a, s = torch.tensor(LOC, requires_grad=True), torch.tensor(SCALE, requires_grad=True)
    log_prior = dist.Normal(0.0, 1.0).log_prob(a * x) - s**2 / 2
    log_likelihood = dist.Normal(a * x, 1.0).log_prob(x) - s**2 / 2
    entropy = dist.Normal(0.0, s).entropy()
    value = (log_prior + log_likelihood + entropy).sum()
    return value.detach(), torch.autograd.grad(value, (a, s))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.loc + z, 0.5), obs=x)


class AffineGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, 0.0, 0.5]))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            slope, shift, scale = self.weights
            pyro.sample("z", dist.Delta(slope * x + shift + scale * e))


class Sampler(px.Family):
    """A network on noise, which cannot score."""

    @property
    def density(self):
        return "none"

    def num_params(self, dim):
        return 2 * dim

    def initial_params(self, loc, scale):
        return torch.cat([loc, scale.log()], -1)

    def network(self, dim):
        return MLP(dim, (8,), dim)

    def distribution(self, params, dim, network=None):
        return Draw(params[..., :dim], params[..., dim:].exp(), network)

    def quantile(self, posterior, prob):
        return posterior.rsample((999,)).quantile(prob, 0)


class Draw(dist.TorchDistribution):
    support = dist.constraints.real_vector
    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc, scale, network):
        self.loc, self.scale, self.network = loc, scale, network
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Draw(
            self.loc.expand(*batch_shape, -1),
            self.scale.expand(*batch_shape, -1),
            self.network,
        )

    def rsample(self, sample_shape=()):
        e = torch.randn(*sample_shape, *self.batch_shape, *self.event_shape)
        return self.loc + self.scale * (e + self.network(e))

    def log_prob(self, value):
        raise ValueError("no density")
