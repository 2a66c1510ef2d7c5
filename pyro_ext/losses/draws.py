"""Which draws of a guide a loss's gradient can be taken of."""

from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
from torch import Tensor

from pyro_ext._score_function import is_reparameterized
from pyro_ext._strata import mixture
from pyro_ext.losses.strata import explain_mixture
from pyro_ext.structure import sample_sites, unwrapped
from pyro_ext.weights import LogWeights

if TYPE_CHECKING:
    from pyro_ext.losses.loss import BoundLoss

__all__ = ["SCORE_ESTIMATORS", "check_draws"]

SCORE_ESTIMATORS = ("score", "vimco", "wake")


def check_draws(loss: "BoundLoss", log_weights: LogWeights) -> None:
    """Raise if a loss's estimator is not that of a guide site's draws.

    Args:
        loss: The loss.
        log_weights: Log weights of the pair.

    Raises:
        ValueError: If a site is not reparameterized and the estimator wants it to be, or if a
            factor of the guide does not say whether it is, or does not tell its draws apart.
    """
    for name, site in sample_sites(log_weights.guide_trace):
        if isinstance(site["fn"], dist.Unit) and "has_rsample" not in vars(site["fn"]):
            raise ValueError(
                f"guide site '{name}': expected has_rsample in a pyro.factor of a guide; got none."
                f" Write: pyro.factor('{name}', ..., has_rsample=True) for what reparameterized "
                "draws make, such as a log-Jacobian, has_rsample=False for the log density of "
                "others."
            )
        if is_reparameterized(site):
            continue
        if loss.estimator not in SCORE_ESTIMATORS:
            _refuse(loss, name, site, log_weights)
        elif isinstance(site["fn"], dist.Unit) and loss.estimator != "wake":
            _check_factor(name, site["fn"].log_factor, log_weights.max_plate_nesting)


def _refuse(loss: "BoundLoss", name: str, site: Any, log_weights: LogWeights) -> None:
    drawn = mixture(site)
    if drawn is not None:
        raise ValueError(explain_mixture(loss, site, drawn, log_weights))
    kind, family = type(loss).__name__, type(unwrapped(site["fn"])).__name__
    other = [known for known in loss.estimators if known in SCORE_ESTIMATORS]
    instead = f"px.{kind}(estimator='{other[0]}')" if other else "px.ELBO(estimator='score')"
    raise ValueError(
        f"{loss!r}: expected every guide site to be reparameterized; got site '{name}', "
        f"{family}, which is not. Write: {instead}, or hide '{name}' from the guide and enumerate "
        "it: pyro.infer.TraceEnum_ELBO() with infer={'enumerate': 'parallel'} in the model."
    )


def _check_factor(name: str, factor: Tensor, nesting: int) -> None:
    particles = range(factor.dim() - nesting)
    if any(factor.shape[dim] > 1 and factor.stride(dim) == 0 for dim in particles):
        raise ValueError(
            f"guide site '{name}': expected the log density of a draw for each particle; got one "
            f"for all of them. Write: pyro.sample('{name}_draw', ..., infer={{'is_auxiliary': "
            "True}) for the draw that it is the density of, or num_particles=1."
        )
