"""The contract of losses, for the tests of this package and of third parties."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.testing._common import close, isolated, seeded
from pyro_ext.testing.conjugate import ConjugateModel, NormalGlobal, NormalHierarchy, NormalLocal

__all__ = ["check_loss"]


def check_loss(factory: Callable[..., Any]) -> None:
    """Check that a loss keeps the contract of Pyro's losses and is exact where it can be.

    With the exact posterior as guide every bound on the evidence equals it, whatever the number of
    particles: the loss is minus the log evidence of three conjugate models. All forms of the loss
    agree at the same seed, and model and guide both get gradients.

    Args:
        factory: Builds the loss from ``num_particles``: a class, or a lambda with further options.

    Raises:
        AssertionError: If the loss breaks the contract.

    Example:
        >>> check_loss(px.ELBO)
        >>> check_loss(lambda num_particles: px.IWAE(num_particles, estimator="dreg"))
    """
    for num_particles in (1, 7):
        for exact in _conjugate_models():
            with isolated():
                _check_exact(factory, exact, num_particles)
        with isolated():
            _check_forms(factory, num_particles)


def _conjugate_models() -> tuple[ConjugateModel, ...]:
    x = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4], dtype=torch.float64)
    return NormalLocal(x, 0.7), NormalGlobal(x, 0.7), NormalHierarchy(x, 0.7, 0.5, 2.0)


def _check_exact(factory: Callable[..., Any], exact: ConjugateModel, num_particles: int) -> None:
    loss = factory(num_particles=num_particles)
    assert loss.num_particles == num_particles, f"num_particles is {loss.num_particles}"
    for _ in range(3):
        value = loss.loss(exact.model, exact.guide, *exact.args)
        assert isinstance(value, float), f"loss returns {type(value).__name__}, not float"
        gap = value + exact.log_evidence().item()
        assert abs(gap) < 1e-10 * (1 + abs(value)), (
            f"{type(exact).__name__} with its exact posterior, {num_particles} particles: loss + "
            f"log evidence is {gap}, not 0 (the loss is minus the bound)"
        )


class _Learned(pyro.nn.PyroModule):
    """Normal data with a learned prior mean, or their learned guide."""

    def __init__(self, *, is_guide: bool) -> None:
        super().__init__("learned_guide" if is_guide else "learned_model")
        self.is_guide = is_guide
        self.loc = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        scale = x.new_tensor(0.8)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc + (x / 2 if self.is_guide else 0.0), scale))
            if not self.is_guide:
                pyro.sample("x", dist.Normal(z, scale), obs=x)


def _check_forms(factory: Callable[..., Any], num_particles: int) -> None:
    x = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    model, guide = _Learned(is_guide=False), _Learned(is_guide=True)
    loss = factory(num_particles=num_particles)
    params = (model.loc, guide.loc)
    loss.loss(model, guide, x)  # what a first call finds out must not shift the random numbers
    plain = seeded(lambda: loss.loss(model, guide, x))
    tensor = seeded(lambda: loss.differentiable_loss(model, guide, x))
    assert tensor.shape == (), f"differentiable_loss has shape {tuple(tensor.shape)}, not ()"
    wanted = torch.autograd.grad(tensor, params, allow_unused=True)
    module = seeded(lambda: loss(model, guide)(x))
    by_module = torch.autograd.grad(module, params, allow_unused=True)
    stepped = seeded(lambda: loss.loss_and_grads(model, guide, x))
    for form, value in {"differentiable_loss": tensor, "loss(model, guide)": module}.items():
        assert abs(value.item() - plain) < 1e-10, f"{form}: {value.item()}, loss: {plain}"
    assert abs(stepped - plain) < 1e-10, f"loss_and_grads: {stepped}, loss: {plain}"
    for side, param, grad, other in zip(
        ("model", "guide"), params, wanted, by_module, strict=True
    ):
        assert grad is not None, f"the {side}'s parameter gets no gradient"
        assert other is not None, f"loss(model, guide) gives the {side} no gradient"
        assert param.grad is not None, f"loss_and_grads gives the {side} no gradient"
        assert grad.isfinite(), f"the {side}'s gradient is {grad}"
        close(param.grad, grad, f"the {side}'s gradient by loss_and_grads")
        close(other, grad, f"the {side}'s gradient by loss(model, guide)")
