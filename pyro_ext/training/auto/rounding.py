"""Do draws lie so far out that their latents round to the edge of the support?"""

import torch

from pyro_ext.training.auto.correct import Pool
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.verdict import Finding

__all__ = ["rounded"]

_OFF = 0.1  # unconstrained units
_SHARE = 1e-3


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
