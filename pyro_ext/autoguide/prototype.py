"""The first look at a model: its latent sites, and values to start from."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine import Trace
from torch import Size, Tensor
from torch.distributions import Transform
from torch.distributions.constraints import Constraint

from pyro_ext._bijections import bijection_to, support_of_components
from pyro_ext.autoguide.packing import Frame, Latent
from pyro_ext.structure import is_delta

__all__ = ["check_continuous", "check_start", "latent_of", "prototype_of"]

_CIRCULAR = (dist.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)


def prototype_of(
    model: Callable[..., Any],
    init_loc_fn: Callable[[Any], Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    owner: str,
) -> Trace:
    """Run the model once from initial values and return its latent sites.

    Args:
        model: The model.
        init_loc_fn: A per-site initializer.
        args: The model's arguments.
        kwargs: The model's keyword arguments.
        owner: Class name of the guide, for messages.

    Raises:
        ValueError: If a site has neither draws nor a support to start from, or its initializer
            gives another shape.
    """
    start = InitMessenger(_Start(init_loc_fn, owner))
    latents = poutine.block(start(model), prototype_hide_fn)
    with torch.no_grad():
        trace: Trace = poutine.block(poutine.trace(latents).get_trace)(*args, **kwargs)
    return trace


class _Start:
    """An initializer that also knows where to start a site that nothing can be drawn from."""

    def __init__(self, init_loc_fn: Callable[[Any], Tensor], owner: str) -> None:
        self.init_loc_fn, self.owner = init_loc_fn, owner

    def __call__(self, site: Any) -> Tensor:
        try:
            value = self.init_loc_fn(site)
        except NotImplementedError:
            return self._feasible(site)
        return self._shaped(site, value)

    def _shaped(self, site: Any, value: Any) -> Tensor:
        """Give each element of the site's plates the value, where one is for all."""
        shape = tuple(site["fn"].batch_shape + site["fn"].event_shape)
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if isinstance(value, Tensor):
            with suppress(RuntimeError):
                # The tensor itself where it has the shape: Pyro leaves a note on it.
                return value if got == shape else value.expand(shape)
        raise ValueError(
            f"{self.owner}: expected init_loc_fn to give site '{site['name']}' a tensor of shape "
            f"{shape}; got {got}. Write: init_to_value(values={{'{site['name']}': value}}) with a "
            "tensor of that shape, or of one that broadcasts to it."
        )

    @staticmethod
    def _drawn(fn: Any) -> Tensor:
        """Return any value of a discrete site, with which the model runs on to the others."""
        try:
            value: Tensor = fn.sample()
        except NotImplementedError:
            return torch.zeros(fn.batch_shape + fn.event_shape)
        return value

    def _feasible(self, site: Any) -> Tensor:
        """Map zero to the support, for a flat prior such as ``ImproperUniform``."""
        name, fn = site["name"], site["fn"]
        if fn.support.is_discrete:
            return self._drawn(fn)
        transform = _bijection(name, fn.support, owner=self.owner)
        shape = Size(fn.batch_shape + fn.event_shape)
        try:
            value: Tensor = transform(torch.zeros(transform.inverse_shape(shape)))
        except ValueError as error:
            raise ValueError(
                f"{self.owner}: expected site '{name}' to have a shape that its support "
                f"{fn.support} allows; got {tuple(shape)}. Write: dist.ImproperUniform(support, "
                "batch_shape, event_shape) with the shape of one value as event_shape."
            ) from error
        return value


def check_continuous(sites: dict[str, Any], *, owner: str) -> None:
    """Raise if there are discrete sites.

    Args:
        sites: The sites of the prototype.
        owner: Class name of the guide, for messages.

    Raises:
        ValueError: If there are; the message names all of them.
    """
    supports = {name: site["fn"].support for name, site in sites.items()}
    names = [name for name, support in supports.items() if support.is_discrete]
    if names:
        raise ValueError(
            f"{owner}: expected continuous latent sites; got {names}, of which '{names[0]}' has "
            f"support {supports[names[0]]}. Write: {owner}(pyro.poutine.block(model, hide={names}"
            "), ...), and sum these out, by pyro.infer.SVI with TraceEnum_ELBO(), or give them a "
            "guide of their own; or a model without them, by dist.MixtureSameFamily."
        )


def _bijection(name: str, support: Constraint, *, owner: str) -> Transform:
    try:
        return bijection_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"{owner}: expected supports that real numbers map to one to one; got site '{name}' "
            f"with support {support}. Write: poutine.reparam(model, config={{'{name}': ...}}) "
            "with a reparameterizer of pyro.infer.reparam, or sample free numbers and make the "
            f"value of them, pyro.deterministic('{name}', ...)."
        ) from error


def latent_of(name: str, site: Any, *, owner: str) -> Latent:
    """Return how a site of the prototype is packed.

    Args:
        name: Name of the site.
        site: The site in the prototype.
        owner: Class name of the guide, for messages.

    Raises:
        ValueError: If the site has no bijection, has all its mass at one value, is in a sequential
            plate, or has a batch dim that is in no plate.
    """
    fn = site["fn"]
    if is_delta(site):
        raise ValueError(
            f"{owner}: expected latents with a density; got site '{name}', a Delta, which has all "
            f"its mass at one value. Write: pyro.deterministic('{name}', value)."
        )
    base = fn.base_dist if isinstance(fn, dist.Independent) else fn
    if isinstance(base, _CIRCULAR):
        raise ValueError(
            f"{owner}: expected a latent on the real line or in a part of it; got site '{name}', "
            f"a {type(base).__name__}, whose density repeats itself there. Write: an angle "
            f"pyro.sample('{name}', dist.Uniform(-math.pi, math.pi)) with the density as "
            "pyro.factor, or a dist.ProjectedNormal."
        )
    _bijection(name, fn.support, owner=owner)
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized:
            raise ValueError(
                f"{owner}: expected vectorized plates; got site '{name}' in the sequential plate "
                f"'{frame.name}'. Write: with pyro.plate('{frame.name}', size): in place of the "
                "loop."
            )
    frames = (Frame(f.name, f.dim, f.size) for f in site["cond_indep_stack"])
    ordered = tuple(sorted(frames, key=lambda frame: frame.dim))
    sizes = {frame.dim: frame.size for frame in ordered}
    shape = tuple(fn.batch_shape)
    if any(size != sizes.get(dim - len(shape), 1) for dim, size in enumerate(shape)):
        raise ValueError(
            f"{owner}: expected the batch dims of site '{name}' to be those of "
            f"its plates {[(frame.name, frame.dim, frame.size) for frame in ordered]}; got "
            f"batch shape {shape}. Write: dist.Normal(...).to_event(1), or open a plate."
        )
    support = support_of_components(fn.support)
    return Latent(name, support, Size(fn.event_shape), ordered)


def check_start(latent: Latent, value: Tensor, *, owner: str) -> None:
    """Raise if a latent starts where its bijection does not reach.

    Args:
        latent: The latent.
        value: Where it starts.
        owner: Class name of the guide, for messages.

    Raises:
        ValueError: If it does; the message names the site.
    """
    z = latent.transform.inv(value)
    # Bijections clamp: a value outside comes back as another one.
    if z.isfinite().all() and torch.allclose(latent.transform(z), value, rtol=1e-3, atol=1e-3):
        return
    raise ValueError(
        f"{owner}: expected init_loc_fn to start site '{latent.name}' inside its support, "
        f"{latent.support}; got values from {value.min():.4g} to {value.max():.4g}. Write: "
        f"init_to_value(values={{'{latent.name}': value}}) with finite values inside, or "
        "init_loc_fn=init_to_median."
    )
