"""Samples for training a critic, and others that it never sees."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Sampler", "Samples", "check_alike"]

Sampler = Callable[[int], Tensor]
"""From a number n to n fresh samples, shape ``(n, dim)``."""


class Samples:
    """One distribution as its samples: batches for training, and a part held out.

    Args:
        source: A tensor ``(num, dim)``, of which a share is held out, or a sampler.
        name: ``"p"`` or ``"q"``, for messages.
        held_out: Share of a tensor's rows that is held out.
        num_held_out: Number of held-out samples from a sampler.

    Raises:
        ValueError: If the shape is another, a number is not finite, or too few rows are left.
        TypeError: If the source is neither a tensor nor a function.
    """

    def __init__(
        self, source: Tensor | Sampler, name: str, *, held_out: float, num_held_out: int
    ) -> None:
        with torch.no_grad():
            if isinstance(source, Tensor):
                _check(source, name)
                self.held_out, rows = _split(source, name, held_out)
                self._draw: Sampler = lambda size: rows[
                    torch.randint(len(rows), (size,), device=rows.device)
                ]
            elif not callable(source):
                raise TypeError(
                    f"DensityRatio: expected samples of {name} as a tensor, or a function that "
                    f"draws them; got {type(source).__name__}. Write: torch.as_tensor({name})."
                )
            else:
                self.held_out = source(num_held_out).detach()
                _check(self.held_out, name)
                self._draw = source

    def batch(self, size: int) -> Tensor:
        """Return a batch to train on: fresh samples, or rows drawn with replacement.

        Args:
            size: Number of samples.
        """
        with torch.no_grad():
            return self._draw(size).detach()


def check_alike(p: Samples, q: Samples, optimizer: torch.optim.Optimizer) -> None:
    """Raise if the samples of p and q differ in size, or in precision from the critic.

    Args:
        p: Samples of p.
        q: Samples of q.
        optimizer: That of the critic's parameters.

    Raises:
        ValueError: If so.
    """
    if p.held_out.shape[1] != q.held_out.shape[1]:
        raise ValueError(
            f"DensityRatio: expected samples of one size; got {p.held_out.shape[1]} numbers in "
            f"one of p and {q.held_out.shape[1]} in one of q. Write: ratio.fit(p[:, columns], "
            "q[:, columns])."
        )
    params = [param for group in optimizer.param_groups for param in group["params"]]
    wanted = params[0].dtype
    for name, samples in (("p", p.held_out), ("q", q.held_out)):
        if samples.dtype != wanted:
            raise ValueError(
                f"DensityRatio: expected samples of {name} in the critic's precision, {wanted}; "
                f"got {samples.dtype}. Write: {name}.to({wanted}), or critic.to({samples.dtype}) "
                "before the ratio is made of it."
            )


def _check(samples: Tensor, name: str) -> None:
    if samples.dim() != 2 or not samples.is_floating_point():
        instead = f"reshape(len({name}), -1)" if samples.dim() != 2 else "float()"
        raise ValueError(
            f"DensityRatio: expected samples of {name} as floats of shape (num, dim); got "
            f"{samples.dtype} of shape {tuple(samples.shape)}. Write: {name}.{instead}."
        )
    wrong = int((~samples.isfinite()).any(1).sum())
    if wrong:
        raise ValueError(
            f"DensityRatio: expected finite samples of {name}; got {wrong} of {len(samples)} with "
            f"NaN or infinity. Write: {name}[{name}.isfinite().all(1)]."
        )


def _split(rows: Tensor, name: str, held_out: float) -> tuple[Tensor, Tensor]:
    if not 0 < held_out < 1:
        raise ValueError(
            f"DensityRatio: expected held_out in (0, 1); got {held_out}. Write: held_out=0.2."
        )
    order = torch.randperm(len(rows), device=rows.device)
    count = math.ceil(held_out * len(rows))
    if count < 2 or len(rows) - count < 2:
        raise ValueError(
            f"DensityRatio: expected at least two rows of {name} to train on and two to hold "
            f"out; got {len(rows)} in all. Write: lambda n: ..., which returns n fresh samples, "
            "for the tensor."
        )
    return rows[order[:count]].detach(), rows[order[count:]].detach()
