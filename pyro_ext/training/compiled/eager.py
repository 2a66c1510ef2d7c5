"""The step as Python runs it: validation off, and one optimizer for all parameters."""

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_ext._modules import of_stored_modules
from pyro_ext.structure import trace_params, trainable
from pyro_ext.training.compiled.denormals import Flushed
from pyro_ext.training.compiled.nonfinite import all_finite
from pyro_ext.training.compiled.optimizer import AllParameters

__all__ = ["eager_step"]


def eager_step(
    loss: Callable[[], Tensor],
    optimizer: AllParameters,
    *,
    validate: bool,
) -> tuple[float, list[Tensor], bool]:
    """Take one step.

    Args:
        loss: Returns the differentiable loss.
        optimizer: The optimizer, which takes in parameters that are new.
        validate: Whether Pyro checks shapes, supports and parameters.

    Returns:
        The loss, the parameters that it read, and whether the step was applied: with a loss or
        gradient that is not finite it is not.
    """
    with Flushed():
        return _step(loss, optimizer, validate=validate)


def _step(
    loss: Callable[[], Tensor], optimizer: AllParameters, *, validate: bool
) -> tuple[float, list[Tensor], bool]:
    with pyro.validation_enabled(validate), poutine.trace(param_only=True) as capture:
        value = of_stored_modules(loss) if validate else loss()
    params = trainable(trace_params(capture.trace))
    number = value.item()
    if not value.requires_grad:
        return number, params, True
    optimizer.include(params)
    grads = torch.autograd.grad(value, params, allow_unused=True)
    finite = all_finite([value.detach(), *(g for g in grads if g is not None)])
    if finite:
        optimizer.step(params, grads)
    return number, params, finite
