"""Layers whose weights are latents: `PyroModule[nn.Linear]` with `PyroSample`."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import pyro_ext as px

X = torch.linspace(-1.0, 1.0, 15).reshape(5, 3)
Y = X.sum(-1).tanh()


def prior(*shape: int) -> Any:
    return PyroSample(dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


class Net(PyroModule):
    """A network whose first layer has a prior."""

    def __init__(self, kind: str, *, bias: bool = True) -> None:
        super().__init__()
        self.kind = kind
        conv = kind == "Conv1d"
        self.first = PyroModule[nn.Conv1d](1, 2, 2) if conv else PyroModule[nn.Linear](3, 2, bias)
        self.first.weight = prior(*self.first.weight.shape)
        if bias:
            self.first.bias = prior(2)

    def forward(self, x: Tensor, y: Tensor) -> None:
        if self.kind == "by hand":
            h = (self.first.weight @ x.unsqueeze(-1)).squeeze(-1)
            h = h + self.first.bias
        else:
            h = self.first(x.unsqueeze(-2) if self.kind == "Conv1d" else x)
            h = h.mean(-1) if self.kind == "Conv1d" else h
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(h.tanh().sum(-1), 0.5), obs=y)


def warning_of(model: PyroModule) -> str:
    guide = px.AutoJoint(model)
    assert px.ELBO().loss(model, guide, X, Y) > 0
    with pytest.warns(UserWarning, match="'Net' takes one draw at a time") as caught:
        px.ELBO(4).loss(model, guide, X, Y)
    (told,) = caught
    return str(told.message)


def test_a_linear_layer_of_latents_says_what_to_write() -> None:
    told = warning_of(Net("Linear"))
    line = "h = (self.first.weight @ h.unsqueeze(-1)).squeeze(-1) + self.first.bias in place of"
    assert line in told


def test_a_linear_layer_without_bias() -> None:
    assert "h = (self.first.weight @ h.unsqueeze(-1)).squeeze(-1) in place" in warning_of(
        Net("Linear", bias=False)
    )


def test_another_layer_of_latents() -> None:
    told = warning_of(Net("Conv1d"))
    assert "functions that take batch dims" in told


def test_what_is_to_be_written_is_the_layer() -> None:
    layer, by_hand = Net("Linear"), Net("by hand")
    guide = px.AutoJoint(by_hand, init_scale=1.0)
    found = px.log_weights(by_hand, guide, X, Y, num_particles=4, joint=True)
    for index in range(4):
        data = {name: draws[index] for name, draws in found.latents.items()}
        trace = poutine.trace(poutine.condition(layer, data=data)).get_trace(X, Y)
        log_p = found.terms[0].log_p[index]
        torch.testing.assert_close(trace.log_prob_sum(), log_p, rtol=0, atol=1e-10)
