"""k-hat: can the draws of a guide be corrected into draws of the posterior?"""

from collections.abc import Callable
from typing import Any

import torch

from pyro_ext._psis import MIN_DRAWS, KHat, k_hat
from pyro_ext.diagnostics._passes import (
    check_draws,
    inspect,
    joint_weights,
    local_weights,
    progress,
)
from pyro_ext.diagnostics._target import Fitted, resolve, undisturbed

__all__ = ["k_hat_joint", "k_hat_per_datapoint"]


def k_hat_joint(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    num_samples: int = 10_000,
    chunk_size: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> KHat:
    """Return k-hat of the joint weight of all latents and all data, a scalar.

    Scales are left out and subsampled plates show all their elements, so that the number does not
    depend on the mini-batch that the guide was trained with. With one latent per datapoint a joint
    weight is a product over all data: see ``k_hat_per_datapoint``.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: Its guide; left out with a run.
        *args: Arguments of both; by default the run's.
        num_samples: Number of draws.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If there are too few draws, or weights are not finite.

    Example:
        >>> from pyro_ext.testing import NormalGlobal
        >>> exact = NormalGlobal(torch.zeros(5))
        >>> k_hat_joint(exact.model, exact.guide, exact.x, num_samples=100).verdict
        'good'
    """
    num_samples = check_draws("k_hat_joint", num_samples, MIN_DRAWS)
    target = resolve("k_hat_joint", model, guide, args, kwargs)
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        parts = []
        with progress(num_samples, "k-hat") as bar:
            for draws in joint_weights(target, layout, num_samples, chunk_size):
                parts.append(draws.terms[0].log_w.cpu())
                bar.update(len(parts[-1]))
    return k_hat(torch.cat(parts))


def k_hat_per_datapoint(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> KHat:
    """Return k-hat of the weight of each datapoint's latents, one value per datapoint.

    It depends neither on the number of data nor on the mini-batch. Where there are global latents
    too, the weights are those given one draw of them from the guide.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: Its guide; left out with a run.
        *args: Arguments of both; by default the run's.
        num_samples: Number of draws per datapoint.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If the guide has no latents in a data plate, or there are too few draws.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.zeros(5))
        >>> k_hat_per_datapoint(exact.model, exact.guide, exact.x, num_samples=100).values.shape
        torch.Size([5])
    """
    num_samples = check_draws("k_hat_per_datapoint", num_samples, MIN_DRAWS)
    target = resolve("k_hat_per_datapoint", model, guide, args, kwargs)
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        if not layout.has_locals:
            raise ValueError(
                "k_hat_per_datapoint: expected latents in a data plate, so that every datapoint "
                "has a weight of its own; got a guide that draws none. Write: "
                "px.k_hat_joint(model, guide, *args)."
            )
        parts = []
        with progress(num_samples * layout.size, "k-hat per datapoint") as bar:
            for log_w in local_weights(target, layout, num_samples, chunk_size):
                parts.append(k_hat(log_w).values)
                bar.update(num_samples * log_w.shape[1 + layout.axis])
    return KHat(torch.cat(parts, layout.axis), num_samples)
