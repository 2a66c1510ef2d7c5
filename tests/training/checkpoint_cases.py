"""A fit whose checkpoints are tried, and what it ends with."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px

X = torch.linspace(-2, 3, 10)


class Model(nn.Module):
    """Draws from Python's and NumPy's random numbers, too, and has a buffer that changes."""

    def __init__(self, width=1):
        super().__init__()
        self.loc, self.norm = nn.Parameter(torch.randn(width)), nn.BatchNorm1d(1)

    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc[0], 1.0))
            mean = z + 0.1 * self.norm(x.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", dist.Normal(mean, pyro.param("s", torch.tensor(0.7))), obs=x)


def fit(folder=None, *, model=None, guide=px.AutoPerDatapoint, data=X, num_steps=40, **options):
    pyro.clear_param_store()
    model = Model() if model is None else model
    if folder is not None:
        options = {"checkpoints": px.Checkpoints(folder, every=5), **options}
    options = {
        "optim": partial(Adam, lr=0.05),
        "schedule": partial(CosineAnnealingLR, T_max=40),
        "batch_size": 4,
        "compile": False,
        "seed": 3,
        "progress": False,
        **options,
    }
    loss = options.pop("loss", None) or px.IWAE(2)
    run = px.fit(model, guide(model), loss, data, num_steps=num_steps, **options)
    params = {name: p.detach().clone() for name, p in pyro.get_param_store()._params.items()}
    for side, module in (("model", model), ("guide", run.guide)):
        params |= {f"{side} {n}": t.clone() for n, t in nn.Module.state_dict(module).items()}
    return run, params


def same(one, other):
    assert np.array_equal(one[0].losses, other[0].losses)
    assert np.array_equal(one[0].elbo_per_datum, other[0].elbo_per_datum)
    assert one[0].stopped == other[0].stopped
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        assert torch.equal(tensor, other[1][name]), name


def stopped_at(number):
    """A callback that ends a run as an error would."""

    def callback(progress):
        if progress.step == number:
            raise KeyError("stopped here")

    return callback
