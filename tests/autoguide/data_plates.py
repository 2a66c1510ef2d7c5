"""Models that see their rows in different ways, and guides whose rows show."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px

__all__ = [
    "CLUSTERS",
    "EVERY_SOURCE",
    "NUM",
    "Encoder",
    "amortized",
    "indexed_batch",
    "indexed_full",
    "inside",
    "per_datapoint",
    "recovered",
    "rows_of_traces",
    "sliced",
]

NUM = 12
CLUSTERS = torch.where(torch.arange(NUM) < NUM // 2, -5.0, 5.0) + torch.linspace(-1, 1, NUM)
"""Rows so far apart that a latent shows at once which row it was fitted to."""


def sliced(x):
    """Called with the rows of the batch."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def inside(x, size=4):
    """Called with all rows; draws its own subsample."""
    with pyro.plate("data", len(x), subsample_size=size) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def indexed_full(x, rows):
    """Called with all rows, and with those to use."""
    with pyro.plate("data", NUM, subsample=rows) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def indexed_batch(x, rows):
    """Called with the rows of the batch and their indices, as a DataLoader gives them."""
    with pyro.plate("data", NUM, subsample=rows):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Encoder:
    """The datum itself, and a record of the rows that it was asked for."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, *rest):
        self.seen.append(x.clone())
        return torch.stack([x, torch.ones_like(x)], -1)


def per_datapoint(model):
    return px.AutoPerDatapoint(model)


def amortized(model):
    return px.AutoAmortized(model, Encoder())


EVERY_SOURCE = pytest.mark.parametrize("build", [per_datapoint, amortized])


def rows_of_traces(model, guide, *args):
    """Return the plate's rows on both sides, and the scale of the latent on both sides."""
    lw = px.log_weights(model, guide, *args)
    traces = lw.model_trace, lw.guide_trace
    scales = [trace.nodes["z"]["scale"] for trace in traces]
    return [trace.nodes["data"]["value"] for trace in traces], scales


def recovered(guide, *args):
    """Tell whether each row's latent lies at its own datum."""
    return torch.allclose(guide.median(*args)["z"], CLUSTERS * 100 / 101, rtol=0, atol=0.3)
