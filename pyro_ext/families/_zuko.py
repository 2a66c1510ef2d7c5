"""Autoregressive and coupling layers from zuko. No other module imports it."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ext.families._context import average_last, zero_last
from pyro_ext.families._steps import LayerSpec, Step

__all__ = ["ZukoLayer"]


def _import() -> Any:
    """Import zuko, which turns torch's argument validation off, and leave that as it was."""
    found = Distribution._validate_args
    try:
        return importlib.import_module("zuko")
    finally:
        Distribution.set_default_validate_args(found)


# Here and not in a function, so that unpickling a layer does not import zuko first.
zuko = _import()


class _Coupling(zuko.transforms.CouplingTransform):  # type: ignore[name-defined, misc]
    """Every second coordinate given the others.

    zuko's own asks a mask for the places in each pass: more work, and a compiler cannot know how
    many there will be. Its way back runs the network twice, for the values and for the log
    determinant.
    """

    def __init__(self, meta: Callable[[Tensor], Any], first: int) -> None:
        zuko.transforms.Transform.__init__(self)
        self.meta, self.first = meta, first
        self.idx_a, self.idx_b = slice(first, None, 2), slice(1 - first, None, 2)

    def merge(self, x_a: Tensor, x_b: Tensor, shape: torch.Size) -> Tensor:
        even, odd = (x_b, x_a) if self.first else (x_a, x_b)
        pairs = odd.shape[-1]
        merged = torch.stack([even[..., :pairs], odd], -1).flatten(-2)
        return merged if even.shape[-1] == pairs else torch.cat([merged, even[..., pairs:]], -1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log |det ∂y/∂x|."""
        y_a, y_b = self.split(y)
        univariate = self.meta(y_a)
        x_b = univariate.inv(y_b)
        return self.merge(y_a, x_b, y.shape), univariate.call_and_ladj(x_b)[1]


class _LazyCoupling(zuko.flows.GeneralCouplingTransform):  # type: ignore[name-defined, misc]
    """zuko's network for the coupling; in one dimension zuko makes another layer of this call."""

    def __init__(self, *, mask: Tensor, **options: Any) -> None:
        super().__init__(mask=mask, **options)
        self.first = int(not mask[0])

    def forward(self, context: Tensor | None = None) -> _Coupling:
        return _Coupling(partial(self.meta, context), self.first)


class ZukoLayer(nn.Module):
    """A layer of zuko that starts at the identity.

    Args:
        spec: Sizes.
        pattern: What a coordinate is transformed given: those before it, or half of the others.
            The order turns from layer to layer. In one dimension there are no others.
        univariate: How a coordinate is transformed.
        network_reads: Which side of x ↦ y the network reads: with ``"x"`` drawing takes one pass,
            with ``"y"`` scoring does. The other way takes D passes if the pattern is
            autoregressive, and one if it is a coupling.
    """

    def __init__(
        self,
        spec: LayerSpec,
        *,
        pattern: Literal["autoregressive", "coupling"],
        univariate: Literal["affine", "additive", "spline"],
        network_reads: Literal["x", "y"] = "x",
    ) -> None:
        super().__init__()
        transform, shapes = {
            "affine": (zuko.transforms.MonotonicAffineTransform, [(), ()]),
            "additive": (zuko.transforms.AdditiveTransform, [()]),
            "spline": (
                zuko.transforms.MonotonicRQSTransform,
                [(spec.num_bins,), (spec.num_bins,), (spec.num_bins - 1,)],
            ),
        }[univariate]
        options: dict[str, Any] = {
            "features": spec.dim,
            "context": spec.context,
            "univariate": transform,
            "shapes": shapes,
            "hidden_features": spec.hidden,
            "activation": nn.SiLU,
        }
        places = torch.arange(spec.dim)
        if pattern == "autoregressive":
            order = places.flip(0) if spec.index % 2 else places
            lazy = zuko.flows.MaskedAutoregressiveTransform(order=order, **options)
        else:
            lazy = _LazyCoupling(mask=places % 2 == spec.index % 2, **options)
        if hasattr(lazy, "hyper"):
            zero_last(lazy.hyper)
            if spec.averaged:
                average_last(lazy.hyper)
        else:
            for param in lazy.parameters():
                nn.init.zeros_(param)
        self.lazy, self.network_reads = lazy, network_reads

    def forward(self, context: Tensor | None) -> Step:
        """Return the step for this context."""
        transform = self.lazy(context)

        def follow(rows: Tensor) -> tuple[Tensor, Tensor]:
            out, log_det = transform.call_and_ladj(rows)
            return out, log_det

        def against(rows: Tensor) -> tuple[Tensor, Tensor]:
            if isinstance(transform, _Coupling):
                return transform.inverse_and_ladj(rows)
            out = transform.inv(rows)
            return out, transform.call_and_ladj(out)[1]

        if self.network_reads == "x":
            return Step(follow, against)
        return Step(lambda x: _negate(against(x)), lambda y: _negate(follow(y)))


def _negate(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    rows, log_det = result
    return rows, -log_det
