"""Every loss with each of its estimators, and which of them can fit a guide."""

import math
from typing import Any

from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.losses import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    Annealed,
    JackknifeIWAE,
    LinearSchedule,
    Renyi,
    WakeSleep,
)
from pyro_ext.losses.loss import BoundLoss

__all__ = ["losses_of"]

_K_SAMPLE: tuple[Any, ...] = (IWAE, MIWAE, PIWAE, CIWAE, Renyi, CUBO, JackknifeIWAE)


def losses_of(guide: Any) -> tuple[list[BoundLoss], list[BoundLoss]]:
    """Return the losses that fit a guide's families, and those that must refuse them.

    Args:
        guide: A guide that has been set up.
    """
    groups = guide.groups if isinstance(guide, PackedGuide) else ()
    densities = {group.family.density for group in groups}
    strata = math.lcm(*(getattr(group.family, "num_components", 1) for group in groups))
    hierarchical = len({group.packing.plate for group in groups}) > 1
    suited: list[BoundLoss] = []
    refused: list[BoundLoss] = []
    for loss in _losses(max(3, 2 * strata), max(2, strata), hierarchical=hierarchical):
        fits = "none" not in densities
        if "own" in densities:
            fits = fits and loss.estimator == "reparam"
        if strata > 1:  # draws of a mixture are not independent, and their scores do not cancel
            fits = fits and loss.estimator != "dreg" and not isinstance(loss, JackknifeIWAE)
            fits = fits and not (hierarchical and isinstance(loss, PIWAE))
        (suited if fits else refused).append(loss)
    return suited, refused


def _losses(num_particles: int, num_outer: int, *, hierarchical: bool) -> list[BoundLoss]:
    elbos = [ELBO(num_particles, estimator=estimator) for estimator in ELBO.estimators]
    schedule = LinearSchedule(0.5, 0.5, num_steps=1)
    return [
        *elbos,
        ELBO(num_particles, form="kl"),
        ELBO(num_particles, form="entropy"),
        *(Annealed(elbo, schedule) for elbo in elbos),
        WakeSleep(num_particles, joint=hierarchical),
        *(
            known(
                num_particles=num_particles,
                num_outer=num_outer,
                estimator=estimator,
                joint=hierarchical and not known.hierarchies,
            )
            for known in _K_SAMPLE
            for estimator in known.estimators
        ),
    ]
