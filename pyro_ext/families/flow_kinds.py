"""The transforms that a flow can be made of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from pyro_ext.families._one_way import PlanarLayer, RadialLayer, SylvesterLayer
from pyro_ext.families._steps import LayerSpec

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A transform of a flow.

    Args:
        layer: Builds the layer, at the identity.
        density: Which z it can score.
    """

    layer: Callable[[LayerSpec], nn.Module]
    density: Literal["any", "own"] = "any"


def _zuko(spec: LayerSpec, **options: Any) -> nn.Module:
    from pyro_ext.families._zuko import ZukoLayer

    return ZukoLayer(spec, **options)


_autoregressive = partial(_zuko, pattern="autoregressive")
_coupling = partial(_zuko, pattern="coupling")

KINDS: dict[str, Kind] = {
    "maf": Kind(partial(_autoregressive, univariate="affine", network_reads="y")),
    "iaf": Kind(partial(_autoregressive, univariate="affine")),
    "nsf": Kind(partial(_autoregressive, univariate="spline")),
    "realnvp": Kind(partial(_coupling, univariate="affine")),
    "nice": Kind(partial(_coupling, univariate="additive")),
    "nsf-coupling": Kind(partial(_coupling, univariate="spline")),
    "planar": Kind(PlanarLayer, density="own"),
    "radial": Kind(RadialLayer, density="own"),
    "sylvester": Kind(SylvesterLayer, density="own"),
}
KINDS["coupling"] = KINDS["realnvp"]
