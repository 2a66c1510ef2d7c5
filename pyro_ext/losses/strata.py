"""What keeps a loss from sharing out its particles among the components of a mixture."""

from inspect import signature
from typing import TYPE_CHECKING, Any

from pyro_ext._strata import Stratified
from pyro_ext.structure import plate_frames
from pyro_ext.weights import LogWeights

if TYPE_CHECKING:
    from pyro_ext.losses.loss import BoundLoss

__all__ = ["explain_mixture"]


def explain_mixture(
    loss: "BoundLoss", site: Any, mixture: Stratified, log_weights: LogWeights
) -> str:
    """Return why the particles of a mixture were not shared out, and what to write.

    Args:
        loss: The loss.
        site: The mixture's site in the guide's trace.
        mixture: Its distribution.
        log_weights: Log weights of the pair.
    """
    name, count = type(loss).__name__, mixture.num_strata
    if loss.estimator not in loss.stratified:
        other = next((known for known in loss.estimators if known in loss.stratified), None)
        instead = f"px.{name}(estimator='{other}')"
        if other is None:
            instead = f"px.IWAE(num_particles={_above(loss.num_particles, count)})"
        return (
            f"{loss!r}: expected independent draws that can be differentiated; got guide site "
            f"'{site['name']}', a mixture, whose particles must be shared out among its "
            f"{count} components. Write: {instead}."
        )
    local = {plate for term in log_weights.terms for plate in term.plates}
    outside = bool(local) and local.isdisjoint(frame.name for frame in plate_frames(site))
    outer = outside and "num_outer" in signature(type(loss)).parameters
    option = "num_outer" if outer else "num_particles"
    got = loss.particles.outer if outer else loss.num_particles
    return (
        f"{loss!r}: expected {option} to be a multiple of {count}, so that the particles can be "
        f"shared out among the components of the mixture at guide site '{site['name']}'; got "
        f"{got}. Write: px.{name}({option}={_above(got, count)})."
    )


def _above(number: int, count: int) -> int:
    """Return the smallest multiple of ``count`` that is not below ``number``."""
    return -(-number // count) * count
