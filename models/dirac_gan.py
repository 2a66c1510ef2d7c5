r"""Dirac-GAN: data at 0, a generator at θ, a critic that is a line; its closed forms.

.. math:: V(\psi, \theta) = f(C_\psi(\theta)) + f(-C_\psi(0)), \qquad f(t) = -\log(1 + e^{-t})

The critic ascends V less its penalty, the generator descends V. The stationary point is the
origin. Unregularized, the field turns about it: its eigenvalues are ±i/2.

References:
    Which Training Methods for GANs do actually Converge? (Mescheder, Geiger and Nowozin, 2018) |
    https://arxiv.org/abs/1801.04406

Example:
    >>> game(gamma=1.0).stability(torch.zeros(2)).verdict
    'stable'
"""

import cmath

from torch import Tensor
from torch.nn.functional import logsigmoid

import pyro_ext as px

__all__ = ["CRITICAL_GAMMA", "eigenvalues", "game", "step_eigenvalues"]

SLOPE = 0.5  # f'(0)
CRITICAL_GAMMA = 2 * SLOPE


def game(*, gamma: float = 0.0, affine: bool = False) -> px.ratio.Game:
    """Return the game.

    Args:
        gamma: Factor of the R1 penalty on the critic's slope at the data.
        affine: Whether the critic is ψ0 x + ψ1 instead of ψ0 x.
    """

    def losses(psi: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        constant = psi[1] if affine else psi.new_zeros(())
        value = logsigmoid(psi[0] * theta[0] + constant) + logsigmoid(-constant)
        return -value + gamma / 2 * psi[0] ** 2, value

    return px.ratio.Game(losses, num_psi=2 if affine else 1)


def eigenvalues(gamma: float = 0.0) -> tuple[complex, complex]:
    r"""Return those of the velocity field at the origin, with the linear critic.

    .. math:: -\gamma/2 \pm \sqrt{\gamma^2/4 - f'(0)^2}

    Args:
        gamma: Factor of the R1 penalty.
    """
    root = cmath.sqrt(gamma**2 / 4 - SLOPE**2)
    return -gamma / 2 + root, -gamma / 2 - root


def step_eigenvalues(
    gamma: float = 0.0, *, step_size: float = 0.2, alternating: bool = False
) -> tuple[complex, complex]:
    """Return those of one step at the origin, with the linear critic.

    Args:
        gamma: Factor of the R1 penalty.
        step_size: Step size h.
        alternating: Whether the generator moves first.
    """
    if not alternating:
        low, high = eigenvalues(gamma)
        return 1 + step_size * low, 1 + step_size * high
    # Trace and determinant of the product of the two players' steps.
    trace = 2 - step_size * gamma - (step_size * SLOPE) ** 2
    determinant = 1 - step_size * gamma
    root = cmath.sqrt(trace**2 / 4 - determinant)
    return trace / 2 + root, trace / 2 - root
