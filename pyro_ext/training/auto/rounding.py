"""Do latents round to the edge of their support, or the guide's draws to a few numbers?"""

import torch
from torch import Tensor

from pyro_ext.training.auto.affine import Affine, Map
from pyro_ext.training.auto.bent import Bent
from pyro_ext.training.auto.correct import Pool
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.settle import held
from pyro_ext.training.auto.verdict import Finding

__all__ = ["resolved", "rounded"]

_OFF = 0.1  # unconstrained units
_SHARE = 1e-3
_GRAIN, _SD = 0.1, 0.05  # sds between two numbers; logarithm of a ratio of sds


def rounded(density: Density, pool: Pool) -> tuple[Finding, ...]:
    """Return a failed check if a share of the draws cannot be told from others by their values.

    Beyond that place the density is not the model's: 1 - 1e-20 is 1, so that a density with a pole
    there lacks what lies farther out. Nothing that reads the density alone can notice.

    Args:
        density: The target.
        pool: Weighted draws of it.
    """
    z = pool.z
    with torch.no_grad():
        again = density.packing.pack(density.latents(z))[0].reshape(z.shape)
    off = ~((again - z).abs() <= _OFF).all(-1)
    share = float(pool.weights[off].sum())
    if share <= _SHARE:
        return ()
    text = (
        f"{share:.1%} of the draws lie where latents round to the edge of their support (limit "
        f"{_SHARE:.1%}), so that the density there is not the model's"
    )
    return (Finding(passed=False, text=text),)


def resolved(q: Map, like: Tensor) -> tuple[Finding, ...]:
    """Return a failed check if a guide's precision is too coarse for what was found.

    Args:
        q: What was found, in double precision.
        like: The guide's parameters.
    """
    base = q.base if isinstance(q, Bent) else q
    if not isinstance(base, Affine):
        return ()
    grain = torch.finfo(like.dtype).eps * base.loc.abs() / base.sd
    change = (held(base, like).sd.to(base.sd) / base.sd).log().abs()
    if bool((grain <= _GRAIN).all()) and bool((change <= _SD).all()):
        return ()
    worst = int((grain / _GRAIN + change / _SD).argmax())
    text = (
        f"the guide's {like.dtype} is too coarse for an unconstrained mean of "
        f"{base.loc[worst]:.2g} with an sd of {base.sd[worst]:.1g}: use torch.float64, or units "
        "in which latents are of the order of one"
    )
    return (Finding(passed=False, text=text),)
