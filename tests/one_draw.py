"""Models that take one draw at a time, each with one for many draws beside it."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import pyro_ext as px

__all__ = [
    "LOSSES",
    "MODELS",
    "NUM",
    "SLOWER",
    "Network",
    "X",
    "Y",
    "branched",
    "exact_evidence",
    "groups",
    "guide_of",
    "posterior",
    "regression",
    "unbatched",
    "with_auxiliary",
]

SLOWER = r"^The model '.*' takes one draw at a time\. .*write .*: docs/howto/particles\.md\.$"
NUM = 6


X = torch.linspace(-1.0, 1.0, 3 * NUM, dtype=torch.float64).reshape(NUM, 3).sin()
Y = torch.tensor([0.3, -0.2, 0.9, 1.4, -0.5, 0.1], dtype=torch.float64)
GROUP = torch.arange(NUM) % 3

Model = Callable[[Tensor, Tensor], None]


def regression(*, many: bool, data: int = NUM) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        loc = pyro.deterministic("loc", (x * w).sum(-1) if many else x @ w, event_dim=0)
        with pyro.plate("data", data):
            pyro.sample("y", dist.Normal(loc, 0.5), obs=y)

    return model


def groups(*, many: bool) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3):
            u = pyro.sample("u", dist.Normal(mu, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(u[..., GROUP] if many else u[GROUP], 0.5), obs=y)

    return model


def scalars(*, many: bool) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Gamma(2.0, 2.0))
        ab = torch.stack([a, b], -1) if many else torch.stack([a, b])
        pyro.sample("s", dist.Normal(ab, 1.0).to_event(1), obs=y[:2])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(ab.sum(-1), 0.5), obs=y)

    return model


def viewed(*, many: bool) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            loc = z if many else z.view(len(y), -1).sum(-1)
            pyro.sample("y", dist.Normal(loc, 0.5), obs=y)

    return model


def branched(*, many: bool) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = torch.where(mu > 0, 0.5, 1.5) if many else (0.5 if mu > 0 else 1.5)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mu, scale))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    return model


MODELS = [regression, groups, scalars, viewed, branched]
"""Each once for one draw, once for many."""

LOSSES = [
    px.ELBO(4),
    px.ELBO(4, estimator="stl"),
    px.ELBO(4, estimator="score"),
    px.IWAE(4),
    px.IWAE(4, estimator="dreg", num_outer=2),
    px.IWAE(4, estimator="vimco"),
    px.PIWAE(3, 3),
    px.IWAE(6).in_chunks(3),
]


def guide_of(model: Model) -> Any:
    torch.manual_seed(0)
    guide = px.AutoJoint(model, family=px.FullCovariance(), init_scale=0.5)
    guide.setup(X, Y)
    return guide


def exact_evidence(x: Tensor, y: Tensor) -> float:
    covariance = x @ x.mT + 0.25 * torch.eye(len(y))
    return dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y).item()


def posterior(spread: float = 1.0) -> Callable[..., None]:
    """Return the posterior of the regression as a guide, or one that is wider."""
    precision = torch.eye(3) + X.mT @ X / 0.25
    mean = torch.linalg.solve(precision, X.mT @ Y / 0.25)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("w", dist.MultivariateNormal(mean, precision_matrix=precision / spread))

    return guide


class Network(PyroModule):
    """A network of torch's layers whose weights are latents."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = PyroModule[nn.Linear](3, 2), PyroModule[nn.Linear](2, 1)
        for layer in (self.first, self.last):
            for name, value in list(layer.named_parameters()):
                prior = dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())
                setattr(layer, name, PyroSample(prior))

    def forward(self, x: Tensor, y: Tensor) -> None:
        loc = self.last(self.first(x).tanh()).squeeze(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 0.5), obs=y)


def unbatched(x: Tensor, y: Tensor) -> None:
    """A guide that takes one draw at a time too."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("w", dist.Normal(torch.stack([a, -a, a / 2]), 1.0).to_event(1))


def with_auxiliary(model: Any) -> Any:
    def joint(x: Tensor, y: Tensor) -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        model(x, y)

    return joint
