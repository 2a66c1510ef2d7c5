"""Numbers that a family starts from, the same in each process and on each device."""

import torch
from torch import Tensor

__all__ = ["fixed_normal"]


def fixed_normal(*shape: int) -> Tensor:
    """Return normal numbers in double precision on the CPU, whatever torch's defaults are."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
