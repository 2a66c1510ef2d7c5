"""A loss and its gradient, recorded where that gives the same numbers without Python's work."""

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_ext._unchecked import unchecked
from pyro_ext.training.compiled.bindings import bind
from pyro_ext.training.compiled.graph import record
from pyro_ext.training.compiled.reading import without_reading
from pyro_ext.training.compiled.thin import thin
from pyro_ext.training.randomness import without_numpy

__all__ = ["Step", "loss_and_grads"]

Step = Callable[[Tensor], tuple[Tensor, list[Tensor]]]


def loss_and_grads(loss: Callable[[Tensor], Tensor], params: Sequence[Tensor], x: Tensor) -> Step:
    """Return what gives a loss and its gradient, zero for parameters that it does not read.

    The loss is recorded as a graph of tensor operations, which must give at ``x`` what Python
    gives; where it cannot be recorded, and at arguments at which the graph fails, Python runs it.

    Args:
        loss: A loss as a function of one tensor.
        params: What to differentiate by; may change in place between two calls.
        x: An argument like all others.
    """

    def eager(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            value = loss(x)
            grads = torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True)
        return value.detach(), list(grads)

    try:
        with torch.random.fork_rng(devices=[]):
            replayed = _recorded(loss, params, x)
            value, grads = replayed(x)
            expected, expected_grads = eager(x)
        same = all(map(torch.equal, (value, *grads), (expected, *expected_grads)))
    except Exception:  # of the recorder; what the loss raises, Python raises again
        return eager
    if not same:
        return eager

    def step(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        # Most factorizations that fail give NaN in a graph; some raise, for all points together.
        with contextlib.suppress(torch.linalg.LinAlgError, ValueError):  # type: ignore[attr-defined]
            return replayed(x)
        return eager(x)

    return step


def _recorded(loss: Callable[[Tensor], Tensor], params: Sequence[Tensor], x: Tensor) -> Step:
    with torch.enable_grad(), unchecked(), without_numpy(), without_reading():
        recorded = record(loss, params, [x], thin)
    bind(recorded.graph)
    call = recorded.graph.forward
    held = [tensor.detach() for tensor in recorded.held]
    given = {id(param): index for index, param in enumerate(recorded.params)}
    places = [given.get(id(param)) for param in params]

    def replayed(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            value, *grads = call(x, *held)
        return value, [
            torch.zeros_like(param) if place is None else grads[place]
            for param, place in zip(params, places, strict=True)
        ]

    return replayed
