import math
from functools import partial

import pytest
import torch

from pyro_ext import ratio as pr


def test_r1_penalty_of_a_quadratic():
    critic = pr.QuadraticCritic(3)
    with torch.no_grad():
        critic.weight.copy_(torch.randn(3, 3))
        critic.slope.copy_(torch.randn(3))
    x = torch.randn(7, 3)
    slope = x @ (critic.weight + critic.weight.T) + critic.slope
    penalty = pr.r1_penalty(critic, x)
    torch.testing.assert_close(penalty, slope.square().sum(-1).mean() / 2)
    penalty.backward()
    assert critic.weight.grad.abs().min() > 0


def test_spectral_norm_bounds_the_slope():
    x = torch.randn(500, 4)
    plain, spectral = pr.MLPCritic(4, hidden=(32,)), pr.MLPCritic(4, hidden=(32,), spectral=True)
    for critic in (plain, spectral):
        with torch.no_grad():
            for name, weight in critic.named_parameters():
                weight.mul_(20 if "weight" in name or "original" in name else 1)
        for _ in range(50):  # power iterations, in training mode
            critic(x)
    steepest = [float(slopes(critic, x).max()) for critic in (plain, spectral)]
    assert steepest[0] > 10
    assert steepest[1] <= 1 + 1e-6


def slopes(critic, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x)
    return slope.norm(dim=-1)


def fit(regularizer, seed=0):
    torch.manual_seed(seed)
    critic = pr.MLPCritic(2, hidden=(32,))
    trainer = pr.CriticTrainer(critic, pr.Objective("jsd"), regularizer=regularizer)
    for _ in range(400):
        trainer.step(torch.randn(128, 2) + 3, torch.randn(128, 2))
    return critic


@pytest.mark.parametrize(
    "regularizer",
    [pr.Regularizer(r1=1.0), pr.Regularizer(weight_decay=3.0), pr.Regularizer(noise=2.0)],
    ids=str,
)
def test_each_regularizer_makes_the_critic_flatter(regularizer):
    x = torch.randn(500, 2) + 1.5
    free, held = (float(slopes(fit(r), x).mean()) for r in (None, regularizer))
    assert held < 0.7 * free


def test_weight_decay_reaches_an_optimizer_of_the_users():
    trainer = pr.CriticTrainer(
        pr.QuadraticCritic(1),
        pr.Objective(),
        partial(torch.optim.SGD, lr=0.1),
        pr.Regularizer(weight_decay=0.3),
    )
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.3]


def test_instance_noise_falls_to_zero():
    fading = pr.Regularizer(noise=2.0, noise_steps=10)
    assert [fading.noise_at(step) for step in (0, 5, 10, 99)] == [2.0, 1.0, 0.0, 0.0]
    assert pr.Regularizer(noise=2.0).noise_at(99) == 2.0


def test_a_step_climbs_the_bound_and_leaves_the_samples_alone():
    x_p = (torch.randn(64, 1) + 1).requires_grad_()
    x_q = torch.randn(64, 1)
    trainer = pr.CriticTrainer(
        pr.QuadraticCritic(1), pr.Objective(), partial(torch.optim.SGD, lr=0.1)
    )
    first, second = trainer.step(x_p, x_q), trainer.step(x_p, x_q)
    assert float(first) == pytest.approx(math.log(2) - math.log(2))
    assert second > first
    assert x_p.grad is None


def test_noise_over_no_steps():
    with pytest.raises(ValueError, match=r"Regularizer: expected noise_steps .* >= 1; got 0"):
        pr.Regularizer(noise=0.5, noise_steps=0)


@pytest.mark.parametrize("name", ["r1", "weight_decay", "noise"])
def test_negative_numbers(name):
    with pytest.raises(ValueError, match=rf"expected {name} >= 0; got -1.*Write: {name}=0\.1"):
        pr.Regularizer(**{name: -1.0})
