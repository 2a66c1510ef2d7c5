"""The partially importance-weighted bound."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext import bounds
from pyro_ext._checks import Pair
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.weights import LogWeights, Mode, weigh

__all__ = ["PIWAE"]


class PIWAE(BoundLoss):
    r"""Two bounds at once: the model climbs the tighter one, the guide the one with more signal.

    .. math::
        \nabla_\theta \log \frac{1}{MK} \sum_{m,k} w_{m,k}, \qquad
        \nabla_\phi \frac1M \sum_m \log \frac1K \sum_k w_{m,k}

    The value is minus the second bound, that of ``MIWAE``.

    Args:
        num_outer: Number M of sets of particles.
        num_particles: Number K of particles of each.
        estimator: ``"reparam"`` or ``"dreg"``, for the guide; see ``IWAE``.
        joint: Whether a model with global and local latents gets one joint weight.

    Raises:
        ValueError: If an argument is not in its range, or a model with global and local latents is
            not weighed jointly.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018) |
        https://arxiv.org/abs/1802.04537

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: every draw gives -log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> loss = PIWAE(num_outer=4, num_particles=10, estimator="dreg")
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 4)
        1.5155
    """

    papers: ClassVar[tuple[str, ...]] = ("rainforth2018tighter",)

    hierarchies: ClassVar[bool] = False
    chunks: ClassVar[bool] = False
    estimators: ClassVar[tuple[str, ...]] = ("reparam", "dreg")

    def __init__(
        self,
        num_outer: int = 8,
        num_particles: int = 8,
        *,
        estimator: str = "reparam",
        joint: bool = False,
    ) -> None:
        super().__init__(num_particles, estimator=estimator, num_outer=num_outer, joint=joint)

    def _options(self) -> dict[str, Any]:
        return {
            "num_outer": self.particles.outer,
            "num_particles": self.num_particles,
            "estimator": self.estimator,
        }

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.iwae(log_weights, log_strata=log_strata)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """Return the loss; its gradient is of one bound for the model, of another for the guide.

        Args:
            model: The model.
            guide: Its guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Raises:
            ValueError: If a guide site is not reparameterized, or model and guide do not match.
        """
        if not torch.is_grad_enabled():
            return super().differentiable_loss(model, guide, *args, **kwargs)
        self._check_replayable(guide, "px.MIWAE(estimator='reparam')")
        mode = Mode(
            "leaf",
            stop_guide=self.estimator == "dreg",
            stratified=self.estimator in self.stratified,
        )
        pair = Pair(model, guide, args, kwargs)
        log_weights = weigh(pair, self.particles, joint=self.joint, mode=mode)
        self._check(log_weights)
        value = log_weights.estimate(self._bound)
        parts = [self._path(log_weights, value)]
        for term in log_weights.terms:
            both = term.log_p - term.log_q.detach()
            for counts in (term.log_strata, term.log_outer_strata):
                both = both if counts is None else both + counts.detach()
            flat = both.flatten(0, 1) if self.particles.outer > 1 else both
            parts.append(self.particles.outer * term.scaled_sum(bounds.iwae(flat)))
            if self.estimator == "reparam":
                parts.append(term.estimate(self._bound, term.log_p.detach() - term.log_q))
        surrogate = torch.stack(parts).sum()
        return -(value.detach() + surrogate - surrogate.detach())

    def _path(self, log_weights: LogWeights, value: Tensor) -> Tensor:
        """Return a tensor whose gradient is the guide's, through its draws only."""
        leaves = [cut for cut in log_weights.leaves if cut.value.requires_grad]
        if not leaves:
            return value.new_zeros(())
        grads = torch.autograd.grad(
            value, [cut.leaf for cut in leaves], retain_graph=True, allow_unused=True
        )
        if self.estimator == "dreg":
            for term in log_weights.terms:
                term.scale_path(self._path_factor(term.log_w))
        parts = []
        for cut, grad in zip(leaves, grads, strict=True):
            if grad is None:
                continue
            if cut.path.weight is not None:
                grad = grad * cut.path.weight[(..., *(None,) * cut.event_dim)]
            parts.append((cut.value * grad).sum())
        return torch.stack(parts).sum()
