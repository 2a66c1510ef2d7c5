"""Losses of automatic fits, recorded where that gives the same numbers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.training.auto import ascend
from pyro_ext.training.auto.affine import Affine
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.replayed import loss_and_grads


class Counted:
    """A loss of two parameters that counts how often Python runs it."""

    def __init__(self, line=lambda total: total):
        self.slope = torch.tensor([1.5, -0.5], requires_grad=True)
        self.unread = torch.zeros(3, requires_grad=True)
        self.line, self.calls = line, 0

    @property
    def params(self):
        return [self.slope, self.unread]

    def __call__(self, x):
        self.calls += 1
        return self.line((self.slope.exp() * x.sin()).sum().tanh())


def expected(loss, x):
    total = (loss.slope.exp() * x.sin()).sum()
    return torch.autograd.grad(total.tanh(), loss.slope)[0]


X = torch.tensor([0.3, 0.7])


def test_a_loss_is_recorded_once_and_read_at_other_arguments_and_parameters():
    loss = Counted()
    step = loss_and_grads(loss, loss.params, X)
    calls = loss.calls
    for x in (X, -X, 2 * X):
        with torch.no_grad():
            loss.slope.add_(0.1)
        value, (slope, unread) = step(x)
        assert torch.equal(slope, expected(loss, x))
        assert torch.equal(value, (loss.slope.exp() * x.sin()).sum().tanh().detach())
        assert torch.equal(unread, torch.zeros(3))
    assert loss.calls == calls


@pytest.mark.parametrize(
    "line",
    [
        lambda total: total if total > 0 else -total,
        lambda total: total * float(total.detach().numpy() > 0),
        lambda total: total + torch.randn(()) * 0.0 + total * torch.rand(()).round() * 0.0,
    ],
    ids=["branch", "numpy", "random"],
)
def test_python_runs_what_cannot_be_recorded(line):
    loss = Counted(line)
    step = loss_and_grads(loss, loss.params, X)
    calls = loss.calls
    for x in (X, 3 * X):
        _, (slope, _) = step(x)
        torch.testing.assert_close(slope, expected(loss, x))
    assert loss.calls in (calls, calls + 2)


def test_a_branch_is_taken_anew_at_each_argument():
    loss = Counted(lambda total: total if total > 0 else 5 * total)
    step = loss_and_grads(loss, loss.params, X)
    torch.testing.assert_close(step(X)[1][0], expected(loss, X))
    torch.testing.assert_close(step(-X)[1][0], 5 * expected(loss, -X))


def test_another_number_at_each_call_is_not_recorded():
    loss = Counted(lambda total: total * torch.rand(()))
    step = loss_and_grads(loss, loss.params, X)
    assert not torch.equal(step(X)[0], step(X)[0])


def test_python_runs_where_the_graph_raises():
    factor = torch.tensor(1.0, requires_grad=True)

    def loss(x):
        try:
            return factor * torch.linalg.svdvals(x).sum()
        except torch.linalg.LinAlgError:
            return factor * -1.0

    step = loss_and_grads(loss, [factor], torch.eye(2))
    torch.testing.assert_close(step(4 * torch.eye(2))[1][0], torch.tensor(8.0))
    assert step(torch.full((2, 2), torch.nan))[1][0] == -1.0


def test_a_point_that_failed_when_the_loss_was_recorded_is_not_left_out_for_good():
    def correlated():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        covariance = torch.eye(2) + z[..., None, None] * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        seen = dist.MultivariateNormal(torch.zeros(2), covariance)
        pyro.sample("x", seen, obs=torch.tensor([0.5, -1.0]))

    density = Density(correlated, ())
    shift = torch.zeros(2, 1, requires_grad=True)

    def loss(x):
        value, grad = density.value_and_grad((x + shift).detach())
        return ((x + shift) * grad).sum() + value.masked_fill(value == -math.inf, 0.0).sum()

    step = loss_and_grads(loss, [shift], torch.tensor([[0.2], [3.0]]))
    (slope,) = step(torch.tensor([[0.2], [0.4]]))[1]
    torch.testing.assert_close(slope, density.value_and_grad(torch.tensor([[0.2], [0.4]]))[1])


class Rotten:
    """A density that is not a number where the first coordinate is positive."""

    dim, dtype, num_gradients = 2, torch.float64, 0

    def __init__(self, *, everywhere=False):
        self.everywhere = everywhere

    def value_and_grad(self, z):
        self.num_gradients += len(z)
        bad = z[:, 0] > (-math.inf if self.everywhere else 0.0)
        return (-z.square().sum(-1) / 2).masked_fill(bad, math.nan), -z

    def value(self, z):
        return -z.square().sum(-1) / 2


class Shift:
    """A normal whose mean moves."""

    noise_dim = 2

    def __init__(self):
        self.loc = torch.ones(2)

    def parameters(self):
        return [self.loc]

    def draw(self, noise):
        return self.loc + noise

    def score(self, z):
        return self.loc.detach() - z

    def map(self):
        return Affine(self.loc.detach().clone(), torch.ones(2))


def test_draws_without_a_density_count_for_nothing():
    q, density = Shift(), Rotten()
    # The score of both is the same but for the mean, so that every good draw has the gradient μ.
    assert next(ascend.ascend(density, q, rate=0.05, seed=0)) > 0.5
    assert q.loc.abs().max() < 0.2
    assert density.num_gradients == 500 * 64


def test_no_step_is_taken_where_no_draw_has_a_density():
    q = Shift()
    assert list(ascend.ascend(Rotten(everywhere=True), q, rate=0.05, seed=0)) == []
    assert torch.equal(q.loc, torch.ones(2))
