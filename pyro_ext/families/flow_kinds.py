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
        papers: What to cite for it, besides what introduced flows.
    """

    layer: Callable[[LayerSpec], nn.Module]
    density: Literal["any", "own"] = "any"
    papers: tuple[str, ...] = ()


def _zuko(spec: LayerSpec, **options: Any) -> nn.Module:
    from pyro_ext.families._zuko import ZukoLayer

    return ZukoLayer(spec, **options)


_autoregressive = partial(_zuko, pattern="autoregressive")
_coupling = partial(_zuko, pattern="coupling")

_ZUKO = "rozet2022zuko"
_REAL_NVP, _SPLINES = "dinh2017density", "durkan2019neural"

KINDS: dict[str, Kind] = {
    "maf": Kind(
        partial(_autoregressive, univariate="affine", network_reads="y"),
        papers=("papamakarios2017masked", _ZUKO),
    ),
    "iaf": Kind(
        partial(_autoregressive, univariate="affine"), papers=("kingma2016improved", _ZUKO)
    ),
    "nsf": Kind(partial(_autoregressive, univariate="spline"), papers=(_SPLINES, _ZUKO)),
    "realnvp": Kind(partial(_coupling, univariate="affine"), papers=(_REAL_NVP, _ZUKO)),
    "nice": Kind(partial(_coupling, univariate="additive"), papers=("dinh2014nice", _ZUKO)),
    "nsf-coupling": Kind(partial(_coupling, univariate="spline"), papers=(_SPLINES, _ZUKO)),
    "planar": Kind(PlanarLayer, density="own"),
    "radial": Kind(RadialLayer, density="own"),
    "sylvester": Kind(SylvesterLayer, density="own", papers=("vandenberg2018sylvester",)),
}
KINDS["coupling"] = KINDS["realnvp"]
