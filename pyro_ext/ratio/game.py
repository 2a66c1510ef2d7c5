"""Games of two players that each descend a loss: where they rest, and whether they get there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

__all__ = ["Game", "Stability"]

Losses = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_ON_THE_AXIS = 1e-9
_AT_REST = 1e-10
_ROUNDINGS = 10  # what a number may be off by, in units of its precision
_SMALLEST_STEP = 1e-10


@dataclass(frozen=True)
class Stability:
    """What the linearized dynamics say about a stationary point.

    Args:
        verdict: ``"stable"`` (all rates of growth negative), ``"unstable"`` (one is positive), or
            ``"undecided"`` (the largest is zero, so that higher orders decide).
        growth: Largest rate of growth: real part of an eigenvalue of the velocity field, or
            the log of an absolute eigenvalue of a step.
        eigenvalues: All eigenvalues, shape ``(params,)``.

    Example:
        >>> game = px.ratio.Game(lambda psi, theta: ((psi**2).sum(), (theta**2).sum()), num_psi=1)
        >>> found = game.stability(torch.zeros(2))
        >>> found.verdict, round(found.growth, 3)
        ('stable', -2.0)
    """

    verdict: str
    growth: float
    eigenvalues: Complex[Tensor, " params"]


@dataclass(frozen=True)
class Game:
    r"""Two players, a critic ψ and a generator θ, who each descend a loss of both.

    .. math:: \dot s = v(s) = -(\nabla_\psi L_\psi, \nabla_\theta L_\theta), \qquad
        s = (\psi, \theta)

    Args:
        losses: From (ψ, θ) to (L_ψ, L_θ).
        num_psi: Size of ψ; the rest of a state is θ.

    References:
        The Numerics of GANs (Mescheder, Nowozin and Geiger, 2017) |
        https://arxiv.org/abs/1705.10461

    Example:
        >>> game = Game(lambda psi, theta: (-(psi * theta).sum(), (psi * theta).sum()), num_psi=1)
        >>> game.velocity(torch.tensor([1.0, 2.0]))
        tensor([ 2., -1.])
        >>> game.stability(torch.zeros(2)).verdict  # it turns in circles
        'undecided'
    """

    losses: Losses
    num_psi: int

    def velocity(self, state: Float[Tensor, " params"]) -> Float[Tensor, " params"]:
        """Return v(s), differentiable.

        Args:
            state: (ψ, θ), shape ``(params,)``.

        Raises:
            ValueError: If it has another shape, or leaves nothing for one of the players.
        """
        if state.dim() != 1 or not 0 < self.num_psi < len(state):
            raise ValueError(
                f"Game: expected a state (psi, theta) as one vector, num_psi={self.num_psi} "
                f"numbers and then at least one; got shape {tuple(state.shape)}. Write: "
                "torch.cat([psi, theta])."
            )
        with torch.enable_grad():
            if not state.requires_grad:
                state = state.detach().requires_grad_()
                return self._velocity(state).detach()
            return self._velocity(state)

    def jacobian(self, state: Float[Tensor, " params"]) -> Float[Tensor, " params params"]:
        """Return the derivative of the velocity field by autograd.

        Args:
            state: (ψ, θ), shape ``(params,)``.
        """
        found: Tensor = torch.autograd.functional.jacobian(self.velocity, state.detach())
        return found

    def stability(self, state: Float[Tensor, " params"]) -> Stability:
        """Return what the eigenvalues say of the continuous dynamics at a stationary point.

        Args:
            state: (ψ, θ), shape ``(params,)``.
        """
        eigenvalues = torch.linalg.eigvals(self.jacobian(state))
        return _judge(eigenvalues, float(eigenvalues.real.max()))

    def step_stability(
        self, state: Float[Tensor, " params"], *, step_size: float, alternating: bool = False
    ) -> Stability:
        """Return what the eigenvalues of one step say at a stationary point.

        Args:
            state: (ψ, θ), shape ``(params,)``.
            step_size: Step size h.
            alternating: As in ``step``.
        """
        jacobian: Tensor = torch.autograd.functional.jacobian(
            lambda s: self.step(s, step_size=step_size, alternating=alternating), state.detach()
        )
        eigenvalues = torch.linalg.eigvals(jacobian)
        return _judge(eigenvalues, float(eigenvalues.abs().max().log()))

    def stationary_point(
        self,
        start: Float[Tensor, " params"],
        *,
        num_steps: int = 50,
        tolerance: float | None = None,
    ) -> Float[Tensor, " params"]:
        """Return a point where the velocity is zero, by Newton's method with halved steps.

        Args:
            start: Where to start, shape ``(params,)``.
            num_steps: Largest number of steps.
            tolerance: Largest norm of the velocity there; by default 1e-10, or 1e-6 in single
                precision.

        Raises:
            RuntimeError: If none is found.
        """
        if tolerance is None:
            tolerance = max(_AT_REST, _ROUNDINGS * torch.finfo(start.dtype).eps)
        state, velocity = start.detach(), self.velocity(start.detach())
        for _ in range(num_steps):
            if float(velocity.norm()) <= tolerance:
                break
            # Least squares: the points may make up a line.
            direction = torch.linalg.pinv(self.jacobian(state)) @ velocity
            size = 1.0
            while size > _SMALLEST_STEP:
                tried = state - size * direction
                at_tried = self.velocity(tried)
                if float(at_tried.norm()) < float(velocity.norm()):
                    break
                size /= 2
            state, velocity = tried, at_tried
        if float(velocity.norm()) <= tolerance:
            return state
        raise RuntimeError(
            f"Game: expected a velocity below {tolerance:.3g}; got {float(velocity.norm()):.3g} "
            f"after {num_steps} Newton steps. Write: game.stationary_point(start), from elsewhere."
        )

    def step(
        self, state: Float[Tensor, " params"], *, step_size: float, alternating: bool = False
    ) -> Float[Tensor, " params"]:
        """Return the state after one step of both players.

        Args:
            state: (ψ, θ), shape ``(params,)``.
            step_size: Step size h.
            alternating: Whether θ moves first and ψ sees where it went; else both move at once.
        """
        if not alternating:
            return state + step_size * self.velocity(state)
        of_theta = torch.zeros_like(state)
        of_theta[self.num_psi :] = 1
        moved = state + step_size * of_theta * self.velocity(state)
        return moved + step_size * (1 - of_theta) * self.velocity(moved)

    def trajectory(
        self,
        start: Float[Tensor, " params"],
        *,
        step_size: float,
        num_steps: int,
        alternating: bool = False,
    ) -> Float[Tensor, " states params"]:
        """Return the states of ``num_steps`` steps, the start first.

        Args:
            start: (ψ, θ), shape ``(params,)``.
            step_size: Step size h.
            num_steps: Number of steps.
            alternating: As in ``step``.
        """
        states = [start.detach()]
        for _ in range(num_steps):
            states.append(self.step(states[-1], step_size=step_size, alternating=alternating))
        return torch.stack(states)

    def _velocity(self, state: Tensor) -> Tensor:
        psi, theta = state[: self.num_psi], state[self.num_psi :]
        loss_psi, loss_theta = self.losses(psi, theta)
        (of_psi,) = torch.autograd.grad(loss_psi, psi, create_graph=True, materialize_grads=True)
        (of_theta,) = torch.autograd.grad(
            loss_theta, theta, create_graph=True, materialize_grads=True
        )
        return -torch.cat([of_psi, of_theta])


def _judge(eigenvalues: Tensor, growth: float) -> Stability:
    # Eigenvalues are off by rounding, in units of the largest.
    size = max(1.0, float(eigenvalues.abs().max()))
    rounding = _ROUNDINGS * size * torch.finfo(eigenvalues.dtype).eps
    if abs(growth) <= max(_ON_THE_AXIS, rounding):
        verdict = "undecided"
    else:
        verdict = "stable" if growth < 0 else "unstable"
    return Stability(verdict, growth, eigenvalues)
