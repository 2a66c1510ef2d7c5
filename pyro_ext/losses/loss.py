"""What all losses share: log weights in, one bound, one gradient estimator, a loss out."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from inspect import signature
from typing import Any, ClassVar

import pyro.infer
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_ext._checks import Pair
from pyro_ext._cited import Cited
from pyro_ext._modules import of_stored_modules
from pyro_ext._sitewise import sitewise
from pyro_ext._terms import Particles
from pyro_ext.losses.chunks import in_chunks
from pyro_ext.losses.draws import check_draws
from pyro_ext.losses.score import score_surrogate
from pyro_ext.weights import LogWeights, Mode, weigh

__all__ = ["BoundLoss"]

ESTIMATOR_PAPERS = {
    "reparam": "kingma2014auto",
    "stl": "roeder2017sticking",
    "dreg": "tucker2019doubly",
    "score": "ranganath2014black",
    "vimco": "mnih2016variational",
}


class BoundLoss(Cited, pyro.infer.ELBO):
    """Base of the losses; ``loss = -bound``, or the bound itself where it is an upper one.

    ``estimators`` are the gradients that a loss has, and ``stratified`` those under which mixtures
    share out their particles; ``upper`` tells an upper bound, and ``hierarchies`` whether the
    bound may be taken of local latents inside each global draw.
    ``needs_density`` tells whether log q is asked for, as it is by all but the adversarial one;
    ``chunks`` whether value and gradient are functions of log weights, see ``in_chunks``.

    A loss object holds no state of a model or guide, so that one object serves any number of
    pairs.

    Example:
        >>> class Median(px.BoundLoss):
        ...     estimators = ("reparam",)
        ...     def __init__(self, num_particles=10, *, estimator="reparam"):
        ...         super().__init__(num_particles, estimator=estimator)
        ...     def _options(self):
        ...         return {"num_particles": self.num_particles}
        ...     def _bound(self, log_weights, *, log_strata=None):
        ...         return log_weights.median(0).values
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> round(Median(5).loss(exact.model, exact.guide, exact.x), 3)
        3.531
    """

    estimators: ClassVar[tuple[str, ...]]
    stratified: ClassVar[tuple[str, ...]] = ("reparam", "stl")
    upper: ClassVar[bool] = False
    hierarchies: ClassVar[bool] = True
    needs_density: ClassVar[bool] = True
    chunks: ClassVar[bool] = True
    _chunk_size: int | None = None
    _sitewise: bool = False
    _linear: bool = False

    def __init__(
        self, num_particles: int, *, estimator: str, num_outer: int = 1, joint: bool = False
    ) -> None:
        name = type(self).__name__
        for option, value in {"num_particles": num_particles, "num_outer": num_outer}.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"{name}: expected {option} to be an int; got {value!r}. "
                    f"Write: px.{name}({option}=10)."
                )
            if value < 1:
                raise ValueError(
                    f"{name}: expected {option} >= 1; got {value}. Write: px.{name}({option}=10)."
                )
        if estimator not in self.estimators:
            raise ValueError(
                f"{name}: expected estimator to be one of {list(self.estimators)}; got "
                f"{estimator!r}. Write: px.{name}(num_particles={num_particles}, "
                f"estimator='{self.estimators[0]}')."
            )
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self.estimator, self.joint = estimator, joint
        self.particles = Particles(num_particles, num_outer)

    def __repr__(self) -> str:
        """Return the expression that makes this loss."""
        given = self._options()
        known = signature(type(self)).parameters
        for name, value in {"num_outer": self.particles.outer, "joint": self.joint}.items():
            if name in known and value != known[name].default:
                given.setdefault(name, value)
        options = ", ".join(f"{name}={value!r}" for name, value in given.items())
        made = f"{type(self).__name__}({options})"
        return made if self._chunk_size is None else f"{made}.in_chunks({self._chunk_size})"

    def _papers_in_use(self) -> Iterable[str]:
        known = ESTIMATOR_PAPERS.get(self.estimator)
        return () if known is None else (known,)

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """Return the arguments that make this loss."""

    @abstractmethod
    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        """Return the bound of log weights ``(particles, *batch)``, see ``pyro_ext.bounds``."""

    def _adjust(self, model_trace: Trace, guide_trace: Trace) -> object:
        """Change log densities or scales of sites before they make up the log weights."""
        return None

    def _path_factor(self, log_weights: Tensor) -> Tensor:
        """Return what ``dreg`` multiplies the gradient through each particle by.

        Autograd weighs the path of particle k by the derivative of the bound by log w_k. The
        doubly reparameterized gradient has another weight there: this is the ratio of the two.
        """
        return torch.softmax(log_weights, 0)

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
        pair = Pair(model, guide, args, kwargs)
        if self._chunk_size is not None:
            return in_chunks(self, pair, self._chunk_size)
        log_weights = self._weigh(pair, self.particles)
        self._check(log_weights)
        return self._value(log_weights)

    def in_chunks(self, chunk_size: int) -> "BoundLoss":
        """Return this loss with no more than so many particles in memory at once.

        Value and gradient are those of all particles together: the log weights are computed chunk
        by chunk without gradient, and again chunk by chunk with it, from the same noise, now that
        it is known how much each particle counts. That takes about a third more time.

        Args:
            chunk_size: Largest number of particles at once, of the inner ones where there are.

        Raises:
            TypeError: If the number is no int.
            ValueError: If the loss is more than a function of log weights, or the number is not
                positive.

        Example:
            >>> IWAE = __import__("pyro_ext").IWAE
            >>> IWAE(num_particles=1000).in_chunks(100)
            IWAE(num_particles=1000, estimator='reparam').in_chunks(100)
        """
        name = type(self).__name__
        if not self.chunks:
            raise ValueError(
                f"{name}: expected a loss whose gradient is that of log weights; got one that "
                f"needs all particles at once. Write: px.IWAE({self.num_particles}).in_chunks("
                f"{chunk_size})."
            )
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
            raise TypeError(
                f"{name}: expected chunk_size to be an int; got {chunk_size!r}. "
                "Write: .in_chunks(100)."
            )
        if chunk_size < 1:
            raise ValueError(
                f"{name}: expected chunk_size >= 1; got {chunk_size}. Write: .in_chunks(100)."
            )
        other = copy.copy(self)
        other._chunk_size = chunk_size
        return other

    def training_state(self) -> dict[str, Any]:
        """Return what the loss itself has learned, for a checkpoint: nothing, as a rule."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take over what a loss had learned.

        Args:
            state: What ``training_state`` returned.
        """

    def _mode(self) -> Mode:
        """Return where gradients flow in this loss's log weights."""
        stop = self.estimator in ("stl", "dreg") and torch.is_grad_enabled()
        return Mode(
            "scaled" if self.estimator == "dreg" and stop else "attached",
            stop_guide=stop,
            stratified=self.estimator in self.stratified,
        )

    def _weigh(self, pair: Pair, particles: Particles) -> LogWeights:
        """Return log weights as this loss needs them."""
        mode = self._mode()
        if mode.stop_guide:
            self._check_replayable(pair.guide, f"px.{type(self).__name__}(estimator='reparam')")
        with sitewise(asked=self._sitewise):
            return weigh(
                pair,
                particles,
                joint=self.joint,
                mode=mode,
                adjust=self._adjust,
                linear=self._linear,
            )

    def _value(self, log_weights: LogWeights) -> Tensor:
        """Return the loss as a function of log weights, with its gradient by them."""
        if self._mode().values == "scaled":
            for term in log_weights.terms:
                term.scale_path(self._path_factor(term.log_w))
        bound = log_weights.estimate(self._bound)
        if self.estimator in ("score", "vimco") and torch.is_grad_enabled():
            bound = bound + score_surrogate(log_weights, self._bound, self.particles.outer)
        return bound if self.upper else -bound

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

        Raises:
            ValueError: If it depends on a module that Pyro's store does not know, though another
                one of its name; looked at where Pyro's validation is on.
        """
        compute = partial(self.differentiable_loss, model, guide, *args, **kwargs)
        loss = of_stored_modules(compute) if is_validation_enabled() else compute()
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(torch_item(loss))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        log_weights = weigh(
            Pair(model, guide, args, kwargs), Particles(1, 1), joint=True, mode=Mode()
        )
        return log_weights.model_trace, log_weights.guide_trace

    def _check_replayable(self, guide: Callable[..., Any], instead: str) -> None:
        if isinstance(poutine.unwrap(guide), GuideMessenger):
            raise ValueError(
                f"{self!r}: expected a guide that can be replayed; got the messenger guide "
                f"{type(guide).__name__}. Write: {instead}."
            )

    def _check(self, log_weights: LogWeights) -> None:
        name = type(self).__name__
        if torch.is_grad_enabled():
            check_draws(self, log_weights)
        several = any(term.log_p.shape[0] > 1 for term in log_weights.terms)
        if self.estimator == "dreg" and several and torch.is_grad_enabled():
            for site_name in log_weights.point_estimates:
                raise ValueError(
                    f"{self!r}: expected every guide site of a weight to be drawn; got site "
                    f"'{site_name}', a Delta at a parameter, whose gradient 'dreg' would weigh "
                    f"as that of a draw. Write: px.{name}(estimator='reparam')."
                )
        if not self.hierarchies and log_weights.hierarchical:
            raise ValueError(
                f"{self!r}: expected global latents or local ones; got a model with both, for "
                f"which this loss is defined jointly only. Write: px.{name}(..., joint=True)."
            )
        for term in log_weights.terms:
            apart = self._chunk_size is not None or not self.chunks
            if apart and isinstance(term.scale, Tensor) and term.scale.requires_grad:
                raise ValueError(
                    f"{self!r}: expected a poutine.scale without gradient, as this loss computes "
                    "its gradient from that of the log weights; got one that requires grad. "
                    "Write: poutine.scale(scale=s.detach()), or px.IWAE(num_particles="
                    f"{self.num_particles})."
                )
            if term.subsampled is not None and term.log_p.shape[0] > 1:
                raise ValueError(
                    f"{self!r}: expected a weight for each element of the subsampled plate "
                    f"'{term.subsampled}'; got one that sums over its elements, as the guide "
                    "draws no latents there, or they are not independent, and a K-sample bound of "
                    "a part of a sum is no bound. Write: px.ELBO(), or use the full batch with "
                    f"px.{name}."
                )
