"""What a critic climbs, and how its output becomes a log ratio."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext._cited import Cited
from pyro_ext.ratio.conjugate import DIVERGENCES
from pyro_ext.ratio.divergences import dv, infonce, jsd, log_mean_exp, nwj

__all__ = ["BOUNDS", "Bound", "Objective"]


@dataclass(frozen=True)
class Bound:
    """A bound of a divergence, as a thing to climb: what a critic's ``bound=`` takes.

    Args:
        value: From outputs on samples of p and of q to the bound.
        offset: What to subtract from the best output to get log p/q; None if that is a constant
            that the bound leaves free.
        papers: What to cite for it.

    Example:
        >>> def brier(t_p, t_q):  # a proper score: the best output is log p/q
        ...     return -torch.sigmoid(-t_p).square().mean() - torch.sigmoid(t_q).square().mean()
        >>> objective = Objective(Bound(brier))
        >>> objective(torch.zeros(5), torch.zeros(5))
        tensor(-0.5000)
    """

    value: Callable[[Tensor, Tensor], Tensor]
    offset: float | None = 0.0
    papers: tuple[str, ...] = ()


_F_GAN = "nowozin2016fgan"

BOUNDS = {
    "jsd": Bound(jsd, papers=("goodfellow2014generative",)),
    "nwj": Bound(nwj, offset=1.0, papers=("nguyen2010estimating", _F_GAN)),
    "dv": Bound(dv, offset=None, papers=("donsker1983asymptotic", "belghazi2018mine")),
    "infonce": Bound(infonce, offset=None, papers=("oord2018representation",)),
    **{f"f:{name}": Bound(known.bound, papers=(_F_GAN,)) for name, known in DIVERGENCES.items()},
}


class Objective(Cited):
    r"""A bound with its memory: the running mean of e^T under q that ``dv`` and ``infonce`` need.

    Args:
        bound: A ``Bound``, or the name of one: ``"jsd"``, ``"nwj"``, ``"dv"``, ``"infonce"``, or
            ``"f:"`` and the name of an f-divergence.
        decay: Share of the old in the running mean at each step.

    Raises:
        ValueError: If the bound is unknown.

    Example:
        >>> Objective("nwj").log_ratio(torch.tensor([1.0]))
        tensor([0.])
    """

    def __init__(self, bound: str | Bound = "jsd", *, decay: float = 0.99) -> None:
        if not isinstance(bound, Bound) and bound not in BOUNDS:
            raise ValueError(
                f"ratio: expected bound to be one of {list(BOUNDS)}; got {bound!r}. "
                "Write: bound='jsd', or bound=px.ratio.Bound(value)."
            )
        self.bound = bound if isinstance(bound, Bound) else BOUNDS[bound]
        self.decay = decay
        self.log_average: Tensor | None = None

    def __call__(
        self, t_p: Float[Tensor, " num_p"], t_q: Float[Tensor, " num_q"]
    ) -> Float[Tensor, ""]:
        """Return the bound to climb, and update the running mean.

        Args:
            t_p: Outputs on samples of p, shape ``(num_p,)``.
            t_q: Outputs on samples of q, shape ``(num_q,)``.
        """
        if self.bound.offset is None:
            self._remember(log_mean_exp(t_q.detach()))
        if self.bound.value is dv:
            return dv(t_p, t_q, self.log_average)
        return self.bound.value(t_p, t_q)

    def log_ratio(self, t: Float[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
        """Return log p/q from the critic's output.

        Args:
            t: Outputs, shape ``batch``.
        """
        offset = self.bound.offset
        if offset is not None:
            return t - offset
        return t if self.log_average is None else t - self.log_average

    def settle(self, t_q: Float[Tensor, " num_q"]) -> None:
        """Replace the running mean by the mean of many samples, once the critic stays still.

        Args:
            t_q: Outputs on samples of q, shape ``(num_q,)``.
        """
        if self.bound.offset is None:
            self.log_average = log_mean_exp(t_q.detach())

    def _papers_in_use(self) -> Iterable[str]:
        return self.bound.papers

    def _remember(self, new: Tensor) -> None:
        if self.log_average is None:
            self.log_average = new
            return
        old = self.log_average + math.log(self.decay)
        self.log_average = torch.logaddexp(old, new + math.log1p(-self.decay))
