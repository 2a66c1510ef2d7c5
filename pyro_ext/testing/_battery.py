"""Every loss with each of its estimators, and which of them can fit a guide."""

from dataclasses import dataclass
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

__all__ = ["Powers", "losses_of", "powers_of"]

_K_SAMPLE: tuple[Any, ...] = (IWAE, MIWAE, PIWAE, CIWAE, Renyi, CUBO, JackknifeIWAE)


@dataclass(frozen=True)
class Powers:
    """What the families of a guide can do.

    Args:
        density: Which z they can all score: ``"any"``, ``"own"`` draws, ``"none"``.
        strata: Number that the particles must be a multiple of.
        hierarchical: Whether there is more than one group of latents.
    """

    density: str
    strata: int
    hierarchical: bool


def powers_of(guide: Any) -> Powers:
    """Return what the families of a guide can do.

    Args:
        guide: A guide that has been set up.
    """
    groups = guide.groups if isinstance(guide, PackedGuide) else ()
    densities = {group.family.density for group in groups}
    worst = "none" if "none" in densities else "own" if "own" in densities else "any"
    return Powers(worst, guide.num_strata if groups else 1, len(groups) > 1)


def losses_of(powers: Powers) -> tuple[list[BoundLoss], list[BoundLoss]]:
    """Return the losses that can fit a guide, and those that must refuse it.

    Args:
        powers: What the families of the guide can do.
    """
    suited: list[BoundLoss] = []
    refused: list[BoundLoss] = []
    for loss in _losses(powers):
        fits = powers.density != "none"
        if powers.density == "own":  # nothing that scores a draw again
            fits = fits and loss.estimator in ("reparam", "score", "vimco")
            fits = fits and not isinstance(loss, PIWAE)
        if powers.strata > 1:  # draws are not independent, and their scores do not cancel
            fits = fits and loss.estimator != "dreg" and not isinstance(loss, JackknifeIWAE)
            joint = powers.hierarchical and not loss.hierarchies
            fits = fits and not (joint and loss.estimator == "reparam")
        (suited if fits else refused).append(loss)
    return suited, refused


def _losses(powers: Powers) -> list[BoundLoss]:
    num_particles, num_outer = max(3, 2 * powers.strata), max(2, powers.strata)
    elbos = [ELBO(num_particles, estimator=estimator) for estimator in ELBO.estimators]
    schedule = LinearSchedule(0.5, 0.5, num_steps=1)
    return [
        *elbos,
        ELBO(num_particles, form="kl"),
        ELBO(num_particles, form="entropy"),
        *(Annealed(elbo, schedule) for elbo in elbos),
        WakeSleep(num_particles, joint=powers.hierarchical),
        *(
            known(
                num_particles=num_particles,
                num_outer=num_outer,
                estimator=estimator,
                joint=powers.hierarchical and not known.hierarchies,
            )
            for known in _K_SAMPLE
            for estimator in known.estimators
        ),
    ]
