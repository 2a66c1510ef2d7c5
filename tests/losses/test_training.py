"""Where each loss ends: 2,000 steps on 200 points, against the optimum of the family."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_ext as px

pytestmark = pytest.mark.slow
STEPS, KEPT = 2_000, 1_000
NUM = 200
X = torch.randn(NUM, generator=torch.Generator().manual_seed(7)) * 2**0.5 + 0.5


class Model(nn.Module):
    """z_i ~ N(level, 1), x_i ~ N(z_i, 1): the best level is the mean of the data."""

    def __init__(self, level: Tensor) -> None:
        super().__init__()
        self.level = nn.Parameter(level)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.level, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Guide(nn.Module):
    """q(z | x) = N(shift + gain x, exp(log_sd)), which holds the posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor([0.5, 0.3, 0.2]))

    def forward(self, x: Tensor) -> None:
        shift, gain, log_sd = self.raw
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shift + gain * x, log_sd.exp()))


class TiedGuide(nn.Module):
    """The posterior under the model's own level, as in the E-step of EM; nothing to learn."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.tied = [model]

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = (x + self.tied[0].level.detach()) / 2
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))


def iterates(objective: Any, params: list[Tensor]) -> Tensor:
    """The parameters at each of the kept steps."""
    optimizer = torch.optim.Adam(params, lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1.0 if step < STEPS - KEPT else 0.25
    )
    kept = []
    for step in range(STEPS):
        optimizer.zero_grad()
        objective(X).backward()
        optimizer.step()
        schedule.step()
        if step >= STEPS - KEPT:
            kept.append(torch.cat([p.detach().flatten().clone() for p in params]))
    return torch.stack(kept)


def assert_near(kept: Tensor, optimum: Tensor) -> None:
    """Within four standard errors of the averaged iterates, from ten batch means of a hundred.

    An estimator without noise at the optimum has no error there: 1e-4 is left for the last steps.
    """
    means = kept.reshape(10, -1, kept.shape[1]).mean(1)
    error = means.std(0) / len(means) ** 0.5
    away = (kept.mean(0) - optimum).abs()
    assert (away < 4 * error + 1e-4).all(), (away / error, error)
    assert (error < 0.02).all(), error


BOTH: dict[str, Any] = {
    "ELBO": px.ELBO(),
    "IWAE": px.IWAE(5, estimator="dreg"),
    "MIWAE": px.MIWAE(2, 3),
    "CIWAE": px.CIWAE(5, estimator="dreg"),
    "Renyi": px.Renyi(5, estimator="vimco"),
    "PIWAE": px.PIWAE(2, 3),
    "WakeSleep": px.WakeSleep(10),
    "Annealed": px.Annealed(px.ELBO(estimator="stl"), px.LinearSchedule(0.1, 1.0, num_steps=500)),
}


def test_every_loss_is_trained_here() -> None:
    trained = {type(loss).__name__ for loss in BOTH.values()} | {"CUBO", "JackknifeIWAE", "Sleep"}
    others = {"BoundLoss", "LinearSchedule", "CosineSchedule"}
    assert trained | others == set(px.losses.__all__)


@pytest.mark.parametrize("name", BOTH)
def test_model_and_guide_end_at_the_optimum(name: str) -> None:
    """The bound is the evidence there: all of these losses have one optimum."""
    model, guide = Model(torch.tensor(-0.5)), Guide()
    kept = iterates(BOTH[name](model, guide), [model.level, guide.raw])
    mean = X.mean()
    optimum = torch.stack([mean, mean / 2, torch.tensor(0.5), torch.tensor(0.5).log() / 2])
    assert_near(kept, optimum)


def test_the_upper_bound_trains_the_guide() -> None:
    """Minimised by the model it would lower the evidence, so that the model is given."""
    model, guide = Model(X.mean()), Guide()
    kept = iterates(px.CUBO(10, estimator="dreg")(model, guide), [guide.raw])
    optimum = torch.stack([X.mean() / 2, torch.tensor(0.5), torch.tensor(0.5).log() / 2])
    assert_near(kept, optimum)


def test_the_jackknife_trains_the_model() -> None:
    """No bound, it is no objective for the guide, which is the posterior of each step."""
    model = Model(torch.tensor(-0.5))
    kept = iterates(px.JackknifeIWAE(5)(model, TiedGuide(model)), [model.level])
    assert_near(kept, X.mean().reshape(1))


def test_the_sleep_phase_trains_the_guide() -> None:
    """On the model's own data: the optimum is the posterior, whatever the data given."""
    model, guide = Model(X.mean()), Guide()
    kept = iterates(px.Sleep({"x": 0})(model, guide), [guide.raw])
    optimum = torch.stack([X.mean() / 2, torch.tensor(0.5), torch.tensor(0.5).log() / 2])
    assert_near(kept, optimum)
