"""Importance weights of globals, each with importance draws of the locals inside."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.training.auto.correct import Pool, weighted
from pyro_ext.weights import LogWeights, log_weights

__all__ = ["NestedPool", "nested_pool"]

_AT_ONCE = 1_000_000
"""Local draws of one pass."""


@dataclass(frozen=True)
class NestedPool:
    """Weighted draws of all latents.

    Args:
        pool: Weighted flat globals; flat locals where there are no globals.
        latents: The draws, shape ``(draws, *site)`` each.
    """

    pool: Pool
    latents: dict[str, Tensor]

    def resample(self, num: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return draws without weights, shape ``(num, *site)`` each.

        Args:
            num: Number of draws.
            generator: Random numbers.
        """
        index = self.pool.indices(num, generator)
        return {name: value[index] for name, value in self.latents.items()}


def nested_pool(
    model: Callable[..., Any],
    guide: PackedGuide,
    args: tuple[Any, ...],
    *,
    num: int,
    inner: int,
    num_data: int,
) -> NestedPool:
    r"""Weigh draws of the globals by an estimate of their density that integrates the locals.

    .. math:: \hat p(x, \theta) = p(\theta) \prod_i \frac1K \sum_k
        \frac{p(x_i, z_{ik} \mid \theta)}{q(z_{ik} \mid \theta)}, \qquad
        w = \hat p(x, \theta) / q(\theta)

    The estimate has no bias, so that the weighted draws of the globals are exact for every K; one
    of the K draws of each datapoint's locals is picked by its own weight.

    Args:
        model: The model.
        guide: Its guide.
        args: The model's arguments, with all rows.
        num: Number of draws of the globals.
        inner: Number K of draws of the locals for each.
        num_data: Number of rows.

    References:
        The Pseudo-Marginal Approach for Efficient Monte Carlo Computations
        (Andrieu and Roberts, 2009) | https://doi.org/10.1214/07-AOS574
    """
    part = max(1, min(num, _AT_ONCE // (inner * max(num_data, 1))))
    log_w, latents = [], []
    local = guide.groups[-1].packing.plate is not None
    names = [site.name for site in guide.groups[-1].packing.sites] if local else []
    with torch.no_grad():
        for _ in range(math.ceil(num / part)):
            found = log_weights(
                model,
                guide,
                *args,
                num_particles=inner if local else part,
                num_outer=part if local else 1,
                joint=not local,
            )
            if not local:
                (term,) = found.terms
                log_w.append(term.log_w.reshape(part))
                latents.append(found.latents)
                continue
            log_w.append(_outer(found, part))
            latents.append(_picked(found, names, inner, part))
    values = {name: torch.cat([own[name] for own in latents]) for name in latents[0]}
    shown = {n: v for n, v in values.items() if n not in names} or values
    flat = torch.cat([value.reshape(len(value), -1) for value in shown.values()], -1)
    return NestedPool(weighted(flat.double(), torch.cat(log_w).double()), values)


def _outer(found: LogWeights, num: int) -> Tensor:
    total = torch.zeros(num)
    for term in found.terms:
        inside = term.log_w.logsumexp(0) - math.log(len(term.log_w))
        total = total + inside.reshape(inside.shape[0], -1).sum(-1)
    return total


def _picked(found: LogWeights, names: list[str], inner: int, num: int) -> dict[str, Tensor]:
    """Return one draw of the locals for each of the globals."""
    terms = [term for term in found.terms if term.plates]
    if len(terms) != 1 or terms[0].log_w.dim() != 3:
        raise ValueError(
            "fit: expected locals in one data plate with optim='auto'; got the plates "
            f"{[term.plates for term in terms]}. Write: px.fit(model, guide, data=data)."
        )
    weights = terms[0].log_w.softmax(0)
    size = weights.shape[-1]
    flat = weights.permute(1, 2, 0).reshape(-1, inner)
    index = torch.multinomial(flat, 1).reshape(num, 1, size)
    picked = {}
    for name, value in found.latents.items():
        if name not in names:
            picked[name] = value.reshape(num, *value.shape[2:])
            continue
        rest = value.dim() - 3
        at = index.reshape(num, 1, size, *(1,) * rest).expand(num, 1, size, *value.shape[3:])
        picked[name] = value.gather(1, at).squeeze(1)
    return picked
