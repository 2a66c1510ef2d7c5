"""What the checks of guides and losses share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

__all__ = ["close", "isolated", "same_draws", "seeded"]

_ATOL = 1e-8


@contextmanager
def isolated() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        torch.manual_seed(0)
        yield


def close(left: Tensor, right: Tensor, what: str) -> None:
    assert left.shape == right.shape, f"{what}: shapes {tuple(left.shape)}, {tuple(right.shape)}"
    worst = (left - right).abs().max().item() if left.numel() else 0.0
    size = 1 + right.abs().max().item() if right.numel() else 1.0
    assert worst <= _ATOL * size, f"{what}: differ by {worst}, more than {_ATOL} of {size}"


def same_draws(left: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    assert left.keys() == right.keys(), f"{what}: sites {list(left)} and {list(right)}"
    for name, value in left.items():
        assert torch.equal(value, right[name]), f"{what}: site '{name}' differs"


def seeded(call: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    return call()
