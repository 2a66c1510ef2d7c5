"""f-divergences and their variational bounds by the convex conjugate of f."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["DIVERGENCES", "FDivergence"]


@dataclass(frozen=True)
class FDivergence:
    r"""An f-divergence, with what its variational bound needs.

    .. math:: D_f(p \,\|\, q) = \mathbb{E}_q f(p / q)
        \ge \mathbb{E}_p T - \mathbb{E}_q f^*(T), \qquad f^*(t) = \sup_u u t - f(u)

    The best T is f'(p/q). A critic gives the log ratio V, and T = f'(e^V) is in the domain of f*
    whatever V is. To add a divergence, write the three functions; where T may round to the end of
    the domain, write f* at T as a function of V, too.

    Args:
        name: Its name.
        f: Convex, with f(1) = 0, for u > 0.
        slope: V ↦ f'(e^V).
        conjugate: t ↦ f*(t), infinite outside its domain.
        conjugate_at_slope: V ↦ f*(f'(e^V)); by default one function after the other.

    References:
        f-GAN (Nowozin, Cseke and Tomioka, 2016) | https://arxiv.org/abs/1606.00709

    Example:
        >>> v = torch.linspace(-2.0, 2.0, 5)
        >>> same = DIVERGENCES["kl"].bound(v, v)
        >>> torch.allclose(same, px.ratio.nwj(1 + v, 1 + v))
        True
    """

    name: str
    f: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    conjugate_at_slope: Callable[[Tensor], Tensor] | None = None

    def bound(
        self, log_ratio_p: Float[Tensor, " num_p"], log_ratio_q: Float[Tensor, " num_q"]
    ) -> Float[Tensor, ""]:
        """Return the bound for a critic that gives log ratios.

        Args:
            log_ratio_p: V on samples of p, shape ``(num_p,)``.
            log_ratio_q: V on samples of q, shape ``(num_q,)``.
        """
        if self.conjugate_at_slope is None:
            of_q = self.conjugate(self.slope(log_ratio_q))
        else:
            of_q = self.conjugate_at_slope(log_ratio_q)
        return self.slope(log_ratio_p).mean() - of_q.mean()


def _where(inside: Tensor, value: Callable[[Tensor], Tensor], t: Tensor, safe: float) -> Tensor:
    """Return ``value(t)`` inside the domain, infinity outside, without a gradient of nan."""
    return torch.where(inside, value(torch.where(inside, t, t.new_tensor(safe))), math.inf)


DIVERGENCES = {
    divergence.name: divergence
    for divergence in (
        FDivergence("kl", lambda u: u * u.log(), lambda v: 1 + v, lambda t: torch.exp(t - 1)),
        FDivergence(
            "reverse_kl",
            lambda u: -u.log(),
            lambda v: -torch.exp(-v),
            lambda t: _where(t < 0, lambda s: -1 - torch.log(-s), t, -1.0),
            lambda v: v - 1,
        ),
        FDivergence(
            "chi2",
            lambda u: (u - 1) ** 2,
            lambda v: 2 * torch.expm1(v),
            # For t < -2 the best u is 0, the end of the domain of f.
            lambda t: torch.where(t > -2, t + t.square() / 4, -1.0),
        ),
        FDivergence(
            "hellinger",
            lambda u: (u.sqrt() - 1) ** 2,
            lambda v: -torch.expm1(-v / 2),
            lambda t: _where(t < 1, lambda s: s / (1 - s), t, 0.0),
            lambda v: torch.expm1(v / 2),
        ),
        FDivergence(
            "jsd",
            lambda u: (u * u.log() - (u + 1) * ((u + 1) / 2).log()) / 2,
            lambda v: (math.log(2) - softplus(-v)) / 2,
            lambda t: _where(
                t < math.log(2) / 2, lambda s: -torch.log(2 - torch.exp(2 * s)) / 2, t, 0.0
            ),
            lambda v: (softplus(v) - math.log(2)) / 2,
        ),
    )
}
"""Divergences by name: KL(p‖q), KL(q‖p), Pearson's χ², squared Hellinger, Jensen-Shannon."""
