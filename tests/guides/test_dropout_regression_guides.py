from functools import partial

import pytest
import torch

import pyro_ext as px
from guides.dropout_regression import GUIDES
from models.dropout_regression import data, model, posterior


@pytest.mark.parametrize("name", GUIDES)
def test_the_mean_is_the_weight_of_dropout(name: str) -> None:
    x, y = data()
    x, y = x[:60, :2], y[:60]
    mean, covariance = posterior(x, y, keep=0.5)
    guide = GUIDES[name](model)
    loss, adam = px.ELBO(8, estimator="stl"), partial(torch.optim.Adam, lr=0.05)
    run = px.fit(model, guide, loss, (x, y), adam, num_steps=200, seed=0, progress=False)
    run = px.fit(
        model, guide, loss, (x, y), partial(torch.optim.Adam, lr=0.003), num_steps=100, seed=1
    )
    found = run.guide.get_posterior(x, y).mean
    off = (found - mean) / covariance.diagonal().sqrt()
    assert float(off.detach().abs().max()) < 0.1  # of a posterior standard deviation
