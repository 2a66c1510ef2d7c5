"""The losses run an encoder once a step, on the rows of the batch, and see its dropout."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import EXACT, LOSSES, plain
from losses.pairs import FROZEN, Guide, X, every_loss
from torch import Tensor, nn

import pyro_ext as px
from pyro_ext.testing import NormalHierarchy, NormalLocal


class Counted(nn.Module):
    """An encoder that counts its calls and rows."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(1, 4), nn.Dropout(dropout)
        self.rows: list[int] = []

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        self.rows.append(len(x))
        features: Tensor = self.dropout(self.linear(x[:, None]))
        return features


@every_loss
def test_encoder_runs_once_a_step(name: str) -> None:
    loss = LOSSES[name](3)
    exact = NormalHierarchy(X) if loss.hierarchies else NormalLocal(X)
    encoder = Counted()
    guide = px.AutoAmortized(exact.model, encoder)
    loss.loss_and_grads(exact.model, guide, X)
    encoder.rows.clear()
    loss.loss_and_grads(exact.model, guide, X)
    assert encoder.rows == [10]
    loss.loss(exact.model, guide, X)
    assert encoder.rows == [10, 10]


@every_loss
@pytest.mark.parametrize("way", ["subsample_size", "subsample", "sliced"])
def test_encoder_sees_the_rows_of_the_batch_only(name: str, way: str) -> None:
    def model(x: Tensor, rows: Tensor | None = None) -> None:
        size = 3 if way == "subsample_size" else None
        with pyro.plate("data", len(x), size, subsample=rows) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    encoder = Counted()
    guide = px.AutoAmortized(model, encoder)
    guide.setup(X)
    encoder.rows.clear()
    for _ in range(3):
        rows = torch.randperm(10)[:3]
        if way == "sliced":
            with px.MiniBatch("data", 10, rows, sliced=True):
                LOSSES[name](3).loss_and_grads(model, guide, X[rows])
        else:
            LOSSES[name](3).loss_and_grads(model, guide, X, *([rows] * (way == "subsample")))
    assert set(encoder.rows) == {3}
    encoder.rows.clear()
    rows = torch.tensor([1, 4, 7])
    if way == "sliced":
        with px.MiniBatch("data", 10, rows, sliced=True):
            LOSSES[name](3).loss_and_grads(model, guide, X[rows])
    else:
        LOSSES[name](3).loss_and_grads(model, guide, X, *([rows] * (way == "subsample")))
    assert encoder.rows == [3]


@pytest.mark.parametrize("name", EXACT)
def test_frozen_replay_sees_the_same_dropout(name: str) -> None:
    """The value is that of the plain estimator: log q is that of the π that was drawn from."""
    exact = NormalLocal(X)
    guide = px.AutoAmortized(exact.model, Counted(dropout=0.5), init_scale=0.5)
    guide.setup(X)
    guide.head.weight.data.normal_()
    reparam = plain(name)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        value = LOSSES[name](3).loss_and_grads(exact.model, guide, X)
        pyro.set_rng_seed(seed)
        assert value == pytest.approx(reparam.loss(exact.model, guide, X), abs=1e-10)


@every_loss
def test_encoder_with_the_wrong_output(name: str) -> None:
    exact = NormalLocal(X)
    message = r"one feature vector for each of the 10 elements.*shape \(10, features\); got \({}\)"
    for encoder, shape in (
        (lambda x: x, "10,"),
        (lambda x: x[:, None, None], "10, 1, 1"),
        (lambda x: x[:4, None], "4, 1"),
    ):
        guide = px.AutoAmortized(exact.model, encoder)
        with pytest.raises(ValueError, match=message.format(shape)):
            LOSSES[name](3).loss(exact.model, guide, X)


@pytest.mark.parametrize("name", FROZEN)
def test_dropout_in_a_hand_written_guide_raises(name: str) -> None:
    """Run again, it is another q, from which the draws did not come."""

    class Noisy(Guide):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(1, 20), nn.Dropout(0.5), nn.Linear(20, 2))

    model, guide = NormalLocal(X).model, Noisy()
    with pytest.raises(ValueError, match=r"site 'z'.*dropout.*guide\.eval\(\)"):
        LOSSES[name](3).loss_and_grads(model, guide, X)
    LOSSES[name](3).loss_and_grads(model, guide.eval(), X)
    px.IWAE(3).loss_and_grads(model, guide.train(), X)
