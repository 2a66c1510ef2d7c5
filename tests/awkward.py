"""Models whose sites are awkward for a guide, and every automatic guide and family."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ext as px
from pyro_ext.families import Flow

X = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4])


def one_global(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def awkward_globals(x):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    tril = pyro.sample("tril", dist.LKJCholesky(2, torch.tensor(2.0)))
    with pyro.plate("group", 3, dim=-2):
        shift = pyro.sample("shift", dist.Gamma(2.0, 1.0))
    loc = mu.sum((-1, -2)) + (weights * torch.arange(3.0)).sum(-1) + tril[..., 1, 0]
    loc = loc + shift.sum(-2, keepdim=True)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(loc, 1.0 + tau), obs=x)


def one_local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def awkward_locals(x):
    """The data plate at -1, with a plate to its left."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        part = pyro.sample("part", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("component", 2, dim=-2):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = w.sum(-1).sum(-2, keepdim=True) + part[..., 0] + rate
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def locals_at_2(x):
    """The data plate at -2, with a plate to its right that holds observations."""
    top = pyro.sample("top", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(top, 1.0))
        with pyro.plate("repeat", 2, dim=-1):
            w = pyro.sample("w", dist.Beta(2.0, 2.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x.unsqueeze(-1).expand(-1, 2))


def crossed_plates(x):
    """Latents in two plates that cross, and data where they do."""
    data, columns = pyro.plate("data", len(x), dim=-2), pyro.plate("column", 3, dim=-1)
    with data:
        row = pyro.sample("row", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with columns as column:
        shift = pyro.sample("shift", dist.Exponential(1.0))
    with data, columns:
        loc = row[..., 0] + row[..., 1] * column + shift
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x.unsqueeze(-1).expand(-1, 3))


class Encoder(nn.Module):
    def __init__(self, features=4):
        super().__init__()
        self.linear = nn.Linear(1, features)
        self.calls = []

    def forward(self, x):
        self.calls.append(x.shape)
        return self.linear(x.unsqueeze(-1)).tanh()


FAMILIES = {
    "diagonal": px.Diagonal(),
    "triangle": px.FullCovariance(),
    "dense": px.FullCovariance("dense"),
    "low-rank": px.LowRank(rank=2),
}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
SMALL_FLOW = Flow("nsf-coupling", num_transforms=1)
EVERY_FAMILY_AND_A_FLOW = pytest.mark.parametrize(
    "family", [*FAMILIES.values(), SMALL_FLOW], ids=[*FAMILIES, "flow"]
)
LOCAL_MODELS = {f.__name__: f for f in (one_local, awkward_locals, locals_at_2)}
SOURCES = {
    "per datapoint": lambda model, **kw: px.AutoPerDatapoint(model, plate="data", **kw),
    "amortized": lambda model, **kw: px.AutoAmortized(model, Encoder(), plate="data", **kw),
}
EVERY_SOURCE = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
GUIDES = {"joint": lambda model, **kw: px.AutoJoint(model, **kw), **SOURCES}
EVERY_GUIDE = pytest.mark.parametrize("build", GUIDES.values(), ids=GUIDES)


ADAM = {"lr": 0.01}


def steps(model, guide, loss, *args, number=2):
    """Return the losses of a few steps, after which every parameter has moved."""
    guide.setup(*args) if hasattr(guide, "setup") else guide(*args)
    before = {name: param.detach().clone() for name, param in guide.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam(ADAM), loss)
    losses = [svi.step(*args) for _ in range(number)]
    assert all(torch.tensor(value).isfinite() for value in losses)
    still = [n for n, param in guide.named_parameters() if torch.equal(param, before[n])]
    assert not still
    return losses


def shapes(values):
    return {name: tuple(value.shape) for name, value in values.items()}
