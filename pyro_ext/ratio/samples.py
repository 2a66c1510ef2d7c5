"""Samples for training a critic, and others that it never sees."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Sampler", "Samples", "check_same_dim"]

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
        ValueError: If the shape is another, or too few rows are left.
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


def check_same_dim(p: Samples, q: Samples) -> None:
    """Raise if the samples of p and q differ in size.

    Args:
        p: Samples of p.
        q: Samples of q.

    Raises:
        ValueError: If so.
    """
    if p.held_out.shape[1] != q.held_out.shape[1]:
        raise ValueError(
            f"DensityRatio: expected samples of one size; got {p.held_out.shape[1]} numbers in "
            f"one of p and {q.held_out.shape[1]} in one of q. Write: ratio.fit(p[:, columns], "
            "q[:, columns])."
        )


def _check(samples: Tensor, name: str) -> None:
    if samples.dim() != 2 or not samples.is_floating_point():
        raise ValueError(
            f"DensityRatio: expected samples of {name} as floats of shape (num, dim); got "
            f"{samples.dtype} of shape {tuple(samples.shape)}. Write: {name}.reshape(len({name}), "
            "-1)."
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
