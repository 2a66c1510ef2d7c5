"""What all losses share: log weights in, one bound, one gradient estimator, a loss out."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.infer
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer.util import torch_item
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_ext._checks import Pair
from pyro_ext._terms import Particles
from pyro_ext.structure import is_random, sample_sites
from pyro_ext.weights import LogWeights, weigh

__all__ = ["BoundLoss"]


class BoundLoss(pyro.infer.ELBO):
    """Base of the losses; ``loss = -bound``.

    A loss object holds no state of a model or guide, so that one object serves any number of
    pairs.
    """

    estimators: ClassVar[tuple[str, ...]]

    def __init__(self, num_particles: int, *, estimator: str) -> None:
        name = type(self).__name__
        if isinstance(num_particles, bool) or not isinstance(num_particles, int):
            raise TypeError(
                f"{name}: expected num_particles to be an int; got {num_particles!r}. "
                f"Write: px.{name}(num_particles=10)."
            )
        if num_particles < 1:
            raise ValueError(
                f"{name}: expected num_particles >= 1; got {num_particles}. "
                f"Write: px.{name}(num_particles=10)."
            )
        if estimator not in self.estimators:
            raise ValueError(
                f"{name}: expected estimator to be one of {list(self.estimators)}; got "
                f"{estimator!r}. Write: px.{name}(num_particles={num_particles}, "
                f"estimator='{self.estimators[0]}')."
            )
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self.estimator = estimator

    def __repr__(self) -> str:
        """Return the expression that makes this loss."""
        name = type(self).__name__
        return f"{name}(num_particles={self.num_particles}, estimator='{self.estimator}')"

    @abstractmethod
    def _weigh(self, pair: Pair, *, stop_guide: bool, scale_path: bool) -> LogWeights:
        """Return the log weights that the bound is a function of."""

    @abstractmethod
    def _bound(self, log_weights: Tensor) -> Tensor:
        """Return the bound of log weights ``(particles, *batch)``."""

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """Return the loss, whose gradient is the chosen estimator's.

        Args:
            model: The model.
            guide: Its guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Raises:
            ValueError: If a guide site is not reparameterized, if a K-sample bound meets a
                subsampled plate without latents of its own, or if model and guide do not match.
        """
        stop = self.estimator != "reparam" and torch.is_grad_enabled()
        scale_path = self.estimator == "dreg" and stop
        if stop and isinstance(poutine.unwrap(guide), GuideMessenger):
            raise ValueError(
                f"{self!r}: expected a guide that can be replayed; got the messenger guide "
                f"{type(guide).__name__}. Write: px.{type(self).__name__}(estimator='reparam')."
            )
        pair = Pair(model, guide, args, kwargs)
        log_weights = self._weigh(pair, stop_guide=stop, scale_path=scale_path)
        self._check(log_weights)
        if scale_path:
            for term in log_weights.terms:
                term.scale_path(torch.softmax(term.log_w, 0))
        return -log_weights.estimate(self._bound)

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Return an estimate of the loss, without gradient.

        Args:
            model: The model.
            guide: Its guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.
        """
        with torch.no_grad():
            return float(torch_item(self.differentiable_loss(model, guide, *args, **kwargs)))

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Return an estimate of the loss, and add its gradient to the parameters' ``grad``.

        Args:
            model: The model.
            guide: Its guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(torch_item(loss))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        log_weights = weigh(Pair(model, guide, args, kwargs), Particles(1, 1), joint=True)
        return log_weights.model_trace, log_weights.guide_trace

    def _check(self, log_weights: LogWeights) -> None:
        name = type(self).__name__
        if torch.is_grad_enabled():
            for site_name, site in sample_sites(log_weights.guide_trace):
                if is_random(site) and not site["fn"].has_rsample:
                    raise ValueError(
                        f"{self!r}: expected every guide site to be reparameterized; site "
                        f"'{site_name}' is {type(site['fn']).__name__}, which is not. Enumerate "
                        f"it: pyro.infer.TraceEnum_ELBO() with infer={{'enumerate': 'parallel'}} "
                        f"in the model and '{site_name}' hidden from the guide, or use "
                        "pyro.infer.TraceGraph_ELBO()."
                    )
        for term in log_weights.terms:
            if term.subsampled is not None and term.log_p.shape[0] > 1:
                raise ValueError(
                    f"{self!r}: expected latents inside the subsampled plate "
                    f"'{term.subsampled}'; it holds none that the guide draws there, and a "
                    "K-sample bound of a subsampled likelihood is no bound. Write: px.ELBO(), "
                    f"or use the full batch with px.{name}."
                )
