"""A request to guides: draw a mixture component by component, each as often as any other."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor

from pyro_ext.structure import plate_frames, unwrapped

__all__ = ["JoinedElements", "Stratified", "check_plates", "mixture", "stratified", "stratify"]

_AXES: ContextVar[tuple[int, ...] | None] = ContextVar("pyro_ext_strata", default=None)


@contextmanager
def stratify(axes: tuple[int, ...] | None) -> Iterator[None]:
    """Within this context, mixtures that are made here share out their particles.

    Args:
        axes: Batch dims of particles, negative; a mixture uses the first that its draws have.
            None if nothing is asked for.
    """
    token = _AXES.set(axes)
    try:
        yield
    finally:
        _AXES.reset(token)


class Stratified(TorchDistribution):
    r"""A mixture that can share out K particles evenly among its S components.

    .. math::
        \mathbb{E}_q h(z) = \mathbb{E}\, \frac1K \sum_k S \alpha_{c(k)} h(z_k),
        \qquad z_k \sim q_{c(k)}

    A component drawn at random hides how the draw depends on the shares α; here α is a factor
    that can be differentiated. Each batch element shares out in an order of its own, so that the
    strata of several sites cross.

    Args:
        log_share: log α, shape ``(*batch, S)``; it may lack batch dims that the draws have.
        batch_shape: Batch shape.
        event_shape: Event shape.
        validate_args: Whether values are checked.
    """

    log_strata: Tensor | None = None
    """log S α of the component of each particle of the last stratified draw, shape ``batch``."""

    def __init__(
        self,
        log_share: Tensor,
        batch_shape: Size,
        event_shape: Size,
        *,
        validate_args: bool | None,
    ) -> None:
        self.log_share = log_share
        self._axes = _AXES.get()
        self.has_rsample = self._axes is not None
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def _expanded(self, instance: "Stratified", batch_shape: Any) -> None:
        """Fill in an instance that is this distribution with a larger batch shape."""
        instance.log_share, instance._axes = self.log_share, self._axes
        instance.has_rsample = self.has_rsample
        super(Stratified, instance).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
        instance._validate_args = self._validate_args

    @property
    def num_strata(self) -> int:
        """Number S of components."""
        return self.log_share.shape[-1]

    @property
    def strata_dim(self) -> int | None:
        """The batch dim of the particles that are shared out, or None."""
        held = (dim for dim in self._axes or () if len(self.batch_shape) >= -dim)
        return next((dim for dim in held if self.batch_shape[dim] > 1), None)

    @abstractmethod
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw independently, without gradient."""

    @abstractmethod
    def _from(self, chosen: Tensor, sample_shape: Size) -> Tensor:
        """Draw from the chosen components, with gradient."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Share out the particles among the components, and draw from these.

        If the number of particles is no multiple of theirs, draw independently instead;
        ``has_rsample`` is False from then on.
        """
        dim = self.strata_dim
        count = 1 if dim is None else self.batch_shape[dim]
        if self._axes is None or count % self.num_strata:
            self.has_rsample = False
            return self.sample(sample_shape)
        return self._from(self._share_out(Size(sample_shape)), Size(sample_shape))

    def _share_out(self, sample_shape: Size) -> Tensor:
        """Return the component of each draw, and note its share; shape ``(*sample, *batch)``."""
        shape, dim = sample_shape + self.batch_shape, self.strata_dim
        device = self.log_share.device
        if dim is None:
            chosen = torch.zeros(shape, dtype=torch.long, device=device)
        else:
            chosen = torch.rand(shape, device=device).argsort(dim) % self.num_strata
        log_share = self.log_share.expand(*shape, self.num_strata)
        shares = log_share.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        self.log_strata = shares + math.log(self.num_strata)
        return chosen


def stratified(site: Any) -> Stratified | None:
    """Return the mixture of a guide site whose particles are shared out, or None.

    Args:
        site: A site of a guide's trace.

    Raises:
        ValueError: If another distribution is wrapped around the mixture.
    """
    fn = mixture(site)
    if fn is None or fn.num_strata == 1 or not fn.has_rsample:
        return None
    if fn is not site["fn"]:
        raise ValueError(
            f"guide site '{site['name']}': expected the mixture itself; got it inside "
            f"{type(site['fn']).__name__}. Write: with poutine.mask(mask=...) for .mask(), and "
            "no .to_event()."
        )
    return fn


def mixture(site: Any) -> Stratified | None:
    """Return the mixture that a guide site is drawn from, whether shared out or not, or None.

    Args:
        site: A site of a guide's trace.
    """
    fn = unwrapped(site["fn"])
    return fn if isinstance(fn, Stratified) else None


class JoinedElements(ValueError):
    """A weight joins elements of a plate that a mixture is in; particles have no part in it."""


def check_plates(site: Any, plates: tuple[str, ...]) -> None:
    """Raise if a weight joins elements of a plate that a mixture is in.

    Args:
        site: The site of the mixture in the guide's trace.
        plates: The plates of the weight that the site is part of.

    Raises:
        JoinedElements: If the mixture is in another plate too.
    """
    others = {frame.name for frame in plate_frames(site)} - set(plates)
    if others:
        raise JoinedElements(
            f"guide site '{site['name']}': expected a mixture inside the plates of its weight, "
            f"{sorted(plates)}; got one in {sorted(others)} too, whose elements the weight joins, "
            "and would count the strata of all of them at once. Write: joint=False; or, where the "
            "model itself joins the elements, px.ELBO(estimator='score')."
        )
