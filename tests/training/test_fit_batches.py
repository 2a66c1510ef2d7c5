"""Mini-batches of a fit: which rows, how many, of which plate."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from training.fit_cases import local, quiet

import pyro_ext as px
from pyro_ext.testing import NormalLocal


def test_every_epoch_shows_every_row_once():
    seen = []

    def model(x):
        seen.append(x.tolist())
        local(x)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, 1.0))

    x = torch.arange(7.0)
    quiet(model, Guide(), px.ELBO(), x, num_steps=6, batch_size=3, seed=0)
    batches = seen[-6:]
    assert [len(rows) for rows in batches] == [3, 3, 1, 3, 3, 1]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(row for rows in epoch for row in rows) == x.tolist()
    assert batches[:3] != batches[3:]


def test_all_tensors_with_a_row_per_datum_are_cut():
    def model(x, y, weight, name):
        assert len(x) == len(y)
        assert weight.shape == (2,)
        assert name == "name"
        local(x)

    data = torch.zeros(6), torch.zeros(6, 3), torch.zeros(2), "name"
    guide = px.AutoPerDatapoint(model)
    assert quiet(model, guide, px.ELBO(), data, num_steps=4, batch_size=4).num_steps == 4


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_batch_sizes_outside(batch_size):
    match = rf"expected batch_size between 1 and 10 for plate 'data'; got {batch_size}\."
    with pytest.raises(ValueError, match=match):
        quiet(local, data=torch.zeros(10), num_steps=2, batch_size=batch_size)


def test_a_batch_size_that_is_not_the_models():
    exact = NormalLocal(torch.zeros(10), subsample_size=5)
    with pytest.raises(ValueError, match=r"batch_size 5, the model's own for plate 'data'; got 3"):
        quiet(exact.model, px.AutoPerDatapoint(exact.model), px.ELBO(), exact.x, batch_size=3)


def test_a_data_plate_that_is_ambiguous_or_absent():
    def model(x):
        with pyro.plate("rows", 4, dim=-1), pyro.plate("columns", 4, dim=-2):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    guide = px.AutoJoint(model)
    with pytest.raises(ValueError, match=r"\['rows', 'columns'\].*plate='data'"):
        quiet(model, guide, px.ELBO(), torch.zeros(4, 4), num_steps=1, batch_size=2)
    with pytest.raises(ValueError, match="got 'absent'"):
        quiet(
            model, guide, px.ELBO(), torch.zeros(4, 4), num_steps=1, batch_size=2, plate="absent"
        )


def test_the_guides_plate_is_the_data_plate_even_if_it_was_not_named():
    """A second plate of the same size, without latents: only the guide knows, once set up."""

    def model(x, y):
        local(x)
        with pyro.plate("outcomes", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    guide = px.AutoPerDatapoint(model)
    with pytest.raises(ValueError, match="'outcomes'"):
        quiet(model, guide, px.ELBO(), (torch.zeros(6),) * 2, num_steps=2, batch_size=3, plate="x")
    data = torch.zeros(6), torch.zeros(6)
    assert quiet(model, guide, px.ELBO(), data, num_steps=2, batch_size=3).num_steps == 2
