"""Whether a graph computes what the eager step computes, from the same random numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_ext.training.compiled.simplify import Unsuitable
from pyro_ext.training.compiled.step import StepGraph

__all__ = ["TOLERANCE", "NotFinite", "Uncompiled", "prove", "unchanged"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of loss and gradient, relative to the largest entry; others: 1e-2."""


class NotFinite(Unsuitable):
    """Loss or gradient of the eager step are not finite, so that nothing can be compared."""


class Uncompiled(Unsuitable):
    """The step was recorded, but what the compiler makes of it, if anything, is not that step."""


@contextmanager
def unchanged(tensors: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Within this context tensors and random state may change; afterwards they are as before.

    An expanded tensor shares memory among its entries: torch writes it never in place, and so it
    is left alone.

    Args:
        tensors: The tensors.
        device: Where random numbers are drawn, too.
    """
    written = [tensor for tensor in tensors if not _expanded(tensor)]
    copies = [tensor.detach().clone() for tensor in written]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(written, copies, strict=True):
                tensor.copy_(copy)


def _expanded(tensor: Tensor) -> bool:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in steps)


def prove(
    step: StepGraph,
    eager: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    changing: Sequence[Tensor],
    device: torch.device,
) -> None:
    """Raise if the step differs from the eager one on the same random numbers.

    The recorded graph must give the eager loss and gradient, and the compiled step the loss, and
    the state of the optimizer, that the graph gives when torch runs it operation by operation.

    Args:
        step: The step.
        eager: The differentiable loss as a function of the step's tensors.
        tensors: The step's tensors.
        changing: Tensors besides that a step may change: buffers of modules.
        device: Where random numbers are drawn, too.

    Raises:
        Unsuitable: If graph and eager step differ.
        Uncompiled: If graph and compiled step differ.
        NotFinite: If the eager one is not finite.
    """
    recorded = step.recorded
    everything = [*recorded.params, *step.state, *changing]
    with unchanged(everything, device):
        value = eager(*tensors)
        grads = torch.autograd.grad(value, recorded.params)
    if not all(bool(torch.isfinite(part).all()) for part in (value, *grads)):
        raise NotFinite("its loss or gradient was not finite on the batch to prove it with")
    with unchanged(everything, device), torch.no_grad():
        loss, *recorded_grads = recorded.graph(*tensors, *recorded.held)
    scale = float(value.detach().abs())
    why = _difference("loss of the graph", [loss], [value.detach()], scale)
    why = why or _difference("gradient of the graph", recorded_grads, grads, scale)
    if why:
        raise Unsuitable(f"{why}. Write compile=False, and please report it")
    if step.call is step.reference:
        return
    results = []
    for call in (step.reference, step.call):
        with unchanged(everything, device), torch.no_grad():
            outputs = call([*tensors, *step.fixed])
            results.append([tensor.clone() for tensor in (*outputs, *step.state)])
    if why := _difference("compiled step", results[1], results[0], scale):
        raise Uncompiled(f"{why}. Write compile='record', and please report it")


def _difference(
    what: str, found: Sequence[Tensor], expected: Sequence[Tensor], loss: float
) -> str | None:
    """Say how far apart tensors are, or return None if they are not."""
    largest = max(float(tensor.abs().max()) for tensor in expected if tensor.numel())
    for one, other in zip(found, expected, strict=True):
        if not other.numel():
            continue
        exact = other.dtype
        tolerance = TOLERANCE.get(exact, 1e-2)
        # What rounding alone makes of entries that cancel.
        floor = 10 * torch.finfo(exact).eps * loss if exact.is_floating_point else 0.0
        size = max(float(other.abs().max()), 1e-3 * largest)
        difference = float((one.to(exact) - other).abs().max())
        if not difference <= tolerance * size + floor:
            return (
                f"the {what} differs from the eager one by {difference:.2g} where values are of "
                f"size {size:.2g}"
            )
    return None
