"""All random states that a fit may draw from."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["Drawn", "get_random", "set_random", "without_numpy"]


def get_random(devices: Sequence[int]) -> dict[str, Any]:
    """Return the states of torch, Python and NumPy, as tensors, numbers and strings.

    Args:
        devices: GPUs that are drawn from.
    """
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (it is the user's)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in devices],
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
    }


def set_random(states: dict[str, Any], devices: Sequence[int]) -> None:
    """Set the states.

    Args:
        states: What ``get_random`` returned.
        devices: GPUs that are drawn from.
    """
    torch.set_rng_state(states["torch"])
    for device, state in zip(devices, states["cuda"], strict=True):
        torch.cuda.set_rng_state(state, device)
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


class Drawn(Exception):
    """Random numbers were drawn by NumPy."""


@contextmanager
def without_numpy() -> Iterator[None]:
    """Within this context NumPy's global generator is not to be used.

    Python's is not looked at, as libraries that check types draw from it.

    Raises:
        Drawn: If it was; it is as before then.
    """
    before: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    yield
    after: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    if not all(map(np.array_equal, before, after)):
        np.random.set_state(before)  # noqa: NPY002
        raise Drawn
