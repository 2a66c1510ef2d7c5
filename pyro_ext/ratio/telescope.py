"""Ratios of distributions that are far apart, as a product of ratios of near ones."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_ext._modules import evaluated
from pyro_ext.ratio.fitted import FittedRatio
from pyro_ext.ratio.objective import Bound, Objective
from pyro_ext.ratio.trainer import outputs_of

__all__ = ["BRIDGES", "TelescopingRatio", "linear_waymarks", "mixture_waymarks"]


def linear_waymarks(
    x_p: Float[Tensor, " num dim"], x_q: Float[Tensor, " num dim"], num_ratios: int
) -> list[Tensor]:
    r"""Return samples of p, of the distributions on the way, and of q.

    .. math:: x_k = x_p \cos\frac{\pi k}{2 m} + x_q \sin\frac{\pi k}{2 m}

    Equal angles keep both the means and the variances of neighbours close.

    Args:
        x_p: Samples of p, shape ``(num, dim)``.
        x_q: Independent samples of q, shape ``(num, dim)``.
        num_ratios: Number m of ratios.

    References:
        Telescoping Density-Ratio Estimation (Rhodes, Xu and Gutmann, 2020) |
        https://arxiv.org/abs/2006.12204
    """
    angles = [math.pi / 2 * k / num_ratios for k in range(1, num_ratios)]
    return [x_p, *(math.cos(a) * x_p + math.sin(a) * x_q for a in angles), x_q]


def mixture_waymarks(
    x_p: Float[Tensor, " num dim"], x_q: Float[Tensor, " num dim"], num_ratios: int
) -> list[Tensor]:
    r"""Return samples of p, of mixtures of p and q, and of q.

    .. math:: p_k = w_k p + (1 - w_k) q, \qquad w_k = 4^{-k}, \ 0 < k < m

    Args:
        x_p: Samples of p, shape ``(num, dim)``.
        x_q: Independent samples of q, shape ``(num, dim)``.
        num_ratios: Number m of ratios.
    """
    between = [
        torch.where(torch.rand_like(x_p[:, :1]) < 4.0**-k, x_p, x_q) for k in range(1, num_ratios)
    ]
    return [x_p, *between, x_q]


BRIDGES = {"linear": linear_waymarks, "mixture": mixture_waymarks}


class TelescopingRatio(FittedRatio):
    r"""Estimate log p/q by a chain of waymarks from p to q, with a critic between neighbours.

    .. math:: \log \frac{p(x)}{q(x)} = \sum_{k=0}^{m-1} \log \frac{p_k(x)}{p_{k+1}(x)},
        \qquad p_0 = p, \ p_m = q

    A single critic that tells p from q without effort learns nothing about how far apart they are.
    Neighbours overlap. ``kl`` warns where a link's own divergence is beyond log of the number of
    samples; the sum of all links may well be. Each critic is asked about samples of p, of which
    those far down the chain have seen few: that is not in the standard error, so compare chains.
    Where p and q overlap, ``kl`` also warns if a multiple of log r tells them apart better.

    Args:
        make_critic: Makes one critic, from ``(*batch, dim)`` to ``batch``.
        num_ratios: Number m of ratios.
        bridge: ``"linear"`` waymarks, or ``"mixture"`` ones.
        bound: What each critic climbs, as in ``px.ratio.DensityRatio``.
        optim: From a list of parameters to a torch optimizer; by default Adam from 3e-3.

    Raises:
        ValueError: If the bridge or the bound is unknown, or ``num_ratios`` is not positive.

    References:
        Telescoping Density-Ratio Estimation (Rhodes, Xu and Gutmann, 2020) |
        https://arxiv.org/abs/2006.12204

    Example:
        >>> p, q = dist.Normal(4.0, 1.0), dist.Normal(0.0, 1.0)
        >>> adam = lambda params: torch.optim.Adam(params, lr=0.1)
        >>> ratio = TelescopingRatio(
        ...     lambda: px.ratio.QuadraticCritic(1), num_ratios=4, optim=adam
        ... )
        >>> ratio.fit(
        ...     lambda n: p.sample((n, 1)), lambda n: q.sample((n, 1)), num_steps=500, seed=0
        ... )
        >>> abs(ratio.log_ratio(torch.tensor([4.0])).item() - 8.0) < 1.0
        True
    """

    papers: ClassVar[tuple[str, ...]] = ("rhodes2020telescoping",)

    _instead: ClassVar[str] = "Compare fits with more ratios and more samples"

    def __init__(
        self,
        make_critic: Callable[[], nn.Module],
        *,
        num_ratios: int = 4,
        bridge: str = "linear",
        bound: str | Bound = "jsd",
        optim: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
    ) -> None:
        super().__init__()
        if bridge not in BRIDGES:
            raise ValueError(
                f"TelescopingRatio: expected bridge to be one of {list(BRIDGES)}; got {bridge!r}. "
                "Write: bridge='linear'."
            )
        if num_ratios < 1:
            raise ValueError(
                f"TelescopingRatio: expected num_ratios >= 1; got {num_ratios}. "
                "Write: num_ratios=4."
            )
        self.bridge = bridge
        self.critics = nn.ModuleList(make_critic() for _ in range(num_ratios))
        self.objectives = [Objective(bound) for _ in range(num_ratios)]
        params: list[Tensor] = list(self.critics.parameters())
        self.optimizer = torch.optim.Adam(params, lr=3e-3) if optim is None else optim(params)

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer

    def _step(self, x_p: Tensor, x_q: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        bound = self._bound(x_p, x_q)
        (-bound).backward()
        self.optimizer.step()
        return bound.detach()

    def _settle(self, x_p: Tensor, x_q: Tensor) -> None:
        marks = self._marks(x_p, x_q)[1:]
        with evaluated(*self.critics):
            for objective, critic, mark in zip(self.objectives, self.critics, marks, strict=True):
                objective.settle(outputs_of(critic, mark))

    def _links(self) -> list[tuple[Tensor, Tensor]]:
        x_p, x_q = self._samples()
        num = min(len(x_p), len(x_q))
        with torch.no_grad(), torch.random.fork_rng(devices=()), evaluated(*self.critics):
            torch.manual_seed(0)
            marks = self._marks(x_p[:num], x_q[:num])
            return [
                (
                    objective.log_ratio(outputs_of(critic, near)),
                    objective.log_ratio(outputs_of(critic, far)),
                )
                for objective, critic, (near, far) in zip(
                    self.objectives, self.critics, pairwise(marks), strict=True
                )
            ]

    def _marks(self, x_p: Tensor, x_q: Tensor) -> list[Tensor]:
        return BRIDGES[self.bridge](x_p, x_q, len(self.critics))

    def _bound(self, x_p: Tensor, x_q: Tensor) -> Tensor:
        size = len(x_p)
        bounds = []
        for objective, critic, near in zip(
            self.objectives, self.critics, pairwise(self._marks(x_p, x_q)), strict=True
        ):
            outputs = outputs_of(critic, torch.cat(near))
            bounds.append(objective(outputs[:size], outputs[size:]))
        return torch.stack(bounds).sum()

    def _log_ratio(self, x: Float[Tensor, " *batch dim"]) -> Float[Tensor, " *batch"]:
        with evaluated(*self.critics):
            parts = [
                objective.log_ratio(outputs_of(critic, x))
                for objective, critic in zip(self.objectives, self.critics, strict=True)
            ]
        return torch.stack(parts).sum(0)

    def _papers_in_use(self) -> Iterable[str]:
        return self.objectives[0].references
