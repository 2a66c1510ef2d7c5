"""The ratio of two densities from their samples."""

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_ext._cited import references_of
from pyro_ext.ratio.fitted import FittedRatio
from pyro_ext.ratio.objective import Bound, Objective
from pyro_ext.ratio.trainer import CriticTrainer, Regularizer

__all__ = ["DensityRatio"]


class DensityRatio(FittedRatio):
    r"""Estimate log p/q by a critic that is trained to tell samples of p from samples of q.

    .. math:: T^* = \operatorname{argmax}_T \text{bound}(T),
        \qquad \log \frac{p(x)}{q(x)} \approx \log r(T^*(x))

    Args:
        critic: Module from ``(*batch, dim)`` to ``batch``, e.g. ``px.ratio.MLPCritic(dim)``.
        bound: What it climbs: ``"jsd"`` (logistic), ``"nwj"``, ``"dv"``, ``"infonce"``, or
            ``"f:"`` and the name of an f-divergence, e.g. ``"f:chi2"``; or a
            ``Bound`` of your own.
        optim: From a list of parameters to a torch optimizer; by default Adam from 3e-3.
        regularizer: Penalty on the slope, weight decay and instance noise; none by default.

    Raises:
        ValueError: If the bound is unknown.

    References:
        Density Ratio Estimation in Machine Learning (Sugiyama, Suzuki and Kanamori, 2012) |
        https://doi.org/10.1017/CBO9781139035613

    Example:
        >>> p, q = dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0)
        >>> adam = lambda params: torch.optim.Adam(params, lr=0.05)
        >>> ratio = DensityRatio(px.ratio.QuadraticCritic(1), optim=adam)
        >>> ratio.fit(
        ...     lambda n: p.sample((n, 1)), lambda n: q.sample((n, 1)), num_steps=500, seed=0
        ... )
        >>> round(ratio.kl().value, 1)  # 1/2
        0.5
    """

    papers: ClassVar[tuple[str, ...]] = ("sugiyama2012density",)

    def __init__(
        self,
        critic: nn.Module,
        *,
        bound: str | Bound = "jsd",
        optim: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
        regularizer: Regularizer | None = None,
    ) -> None:
        super().__init__()
        self.trainer = CriticTrainer(critic, Objective(bound), optim, regularizer)

    @property
    def critic(self) -> nn.Module:
        """The critic."""
        return self.trainer.critic

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizer

    def _step(self, x_p: Tensor, x_q: Tensor) -> Tensor:
        return self.trainer.step(x_p, x_q)

    def _settle(self, x_p: Tensor, x_q: Tensor) -> None:
        self.trainer.settle(x_q)

    def _log_ratio(self, x: Float[Tensor, " *batch dim"]) -> Float[Tensor, " *batch"]:
        return self.trainer.log_ratio(x)

    def _papers_in_use(self) -> Iterable[str]:
        return references_of(self.trainer.objective, self.trainer.regularizer)
