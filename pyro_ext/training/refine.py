"""From an encoder's answer to the optimum for given data, row by row."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from pyro_ext.autoguide.encoder import EncoderGuide
from pyro_ext.autoguide.start import start_at_encoder
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.batches import arguments
from pyro_ext.training.fit import fit
from pyro_ext.training.loader import loader_in
from pyro_ext.training.run import Run

__all__ = ["refine"]


def refine(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    loss: BoundLoss | None = None,
    data: Any = None,
    optim: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
    *,
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    num_steps: int = 50,
    lr: float = 0.02,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Run:
    r"""Refine an encoder's answer for given data by a few steps on π of those rows alone.

    .. math:: \pi_i^{(0)} = \pi(x_i), \qquad
        \pi_i^{(t+1)} = \pi_i^{(t)} + \eta\, \nabla_{\pi_i} \mathcal{L}(x_i; \pi_i^{(t)})

    What the bound gains is what amortization costs on these data. The run's guide is an
    ``AutoPerDatapoint`` of these rows, whose globals and networks are copies that stand still; the
    amortized guide and the model stay as they are. Of ``AutoSemiAmortized`` the encoder's part is
    the start, since δ belongs to the rows that it was trained on.

    Args:
        model: A Pyro model.
        guide: An ``AutoAmortized`` or ``AutoSemiAmortized``.
        loss: What to minimize; by default ``ELBO()``.
        data: The model's argument, or a tuple of its arguments: the rows to refine.
        optim: From a list of parameters to a torch optimizer; by default Adam.
        schedule: From that optimizer to a torch learning-rate scheduler.
        num_steps: Number of steps.
        lr: Learning rate of the default optimizer, decayed to 0 on a cosine.
        batch_size: Rows of a mini-batch; by default all.
        seed: Seed of the steps; the caller's random state stays as it was.
        progress: Whether to show a progress bar.

    Returns:
        The refined guide with its history, as ``fit`` returns it.

    Raises:
        TypeError: If the guide has no encoder, or data are in a ``DataLoader``.

    References:
        Semi-Amortized Variational Autoencoders (Kim, Wiseman, Miller, Sontag and Rush, 2018) |
        https://arxiv.org/abs/1802.02550

        Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018) |
        https://arxiv.org/abs/1801.03558

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> guide = px.AutoAmortized(model, lambda x: x.unsqueeze(-1))
        >>> x = torch.tensor([2.0, 4.0])
        >>> run = refine(model, guide, data=x, num_steps=300, lr=0.1, seed=0)
        >>> [round(z) for z in run.guide.median(x)["z"].tolist()]  # x / 2
        [1, 2]
    """
    if not isinstance(guide, EncoderGuide):
        raise TypeError(
            f"refine: expected a guide with an encoder; got {type(guide).__name__}. Write: "
            "px.AutoAmortized(model, encoder), or train this guide: px.fit(model, guide, "
            "data=data)."
        )
    if loader_in(arguments(data)) is not None:
        raise TypeError(
            "refine: expected rows in a tensor or a tuple of arguments, as each has a π of its "
            "own; got a DataLoader. Write: px.refine(model, guide, data=x, batch_size=100)."
        )
    if optim is None:
        optim = partial(torch.optim.Adam, lr=lr)
        schedule = partial(CosineAnnealingLR, T_max=num_steps) if schedule is None else schedule
    with pyro.poutine.block():
        start = start_at_encoder(guide, *arguments(data))
    return fit(
        model,
        start,
        loss,
        data,
        optim,
        schedule=schedule,
        num_steps=num_steps,
        batch_size=batch_size,
        train="guide",
        seed=seed,
        progress=progress,
    )
