"""A flow between the noise and the fitted normal, for what no normal can follow."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_ext.families import Flow
from pyro_ext.training.auto.affine import Affine
from pyro_ext.training.auto.density import Density

__all__ = ["Bent", "unbent"]


@dataclass(frozen=True)
class Bent:
    r"""z = μ + S T(ε), with the transforms T of a flow.

    Args:
        base: The normal of μ and S.
        layers: The transforms.
    """

    base: Affine
    layers: nn.ModuleList

    def forward(self, noise: Float[Tensor, " points dim"]) -> tuple[Tensor, Tensor]:
        """Return z and log |det ∂z/∂ε|.

        Args:
            noise: ε.
        """
        total = self.base.log_det
        for layer in self.layers:
            noise, log_det = layer(None).forward(noise)
            total = total + log_det
        return self.base.push(noise), total

    def inverse(self, z: Float[Tensor, " points dim"]) -> tuple[Tensor, Tensor]:
        """Return ε and log |det ∂z/∂ε|.

        Args:
            z: Points.
        """
        noise, total = self.base.inverse(z)
        for layer in reversed(self.layers):
            noise, log_det = layer(None).inverse(noise)
            total = total + log_det
        return noise, total

    def slope(
        self, density: Density, noise: Float[Tensor, " points dim"]
    ) -> tuple[Float[Tensor, " points"], Float[Tensor, " points dim"]]:
        """Return value and gradient in ε of log p(z) + log |det ∂z/∂ε|.

        Args:
            density: The target.
            noise: ε.
        """
        with torch.enable_grad():
            leaf = noise.detach().requires_grad_()
            z, log_det = self.forward(leaf)
            value, grad = density.value_and_grad(z.detach())
            total = (z * grad).sum() + log_det.sum()
            (slope,) = torch.autograd.grad(total, leaf)
        value = value + log_det.detach()
        bad = ~torch.isfinite(slope).all(-1) | ~torch.isfinite(value)
        return value.masked_fill(bad, -math.inf), slope.masked_fill(bad[:, None], 0.0)

    @property
    def noise_dim(self) -> int:
        """Number of noise variables of a draw."""
        return len(self.base.loc)

    def parameters(self) -> list[Tensor]:
        """Return the parameters of the transforms."""
        return list(self.layers.parameters())

    def draw(self, noise: Float[Tensor, " points dim"]) -> Float[Tensor, " points dim"]:
        """Return z, differentiable in the parameters.

        Args:
            noise: ε.
        """
        return self.forward(noise)[0]

    def score(self, z: Float[Tensor, " points dim"]) -> Float[Tensor, " points dim"]:
        """Return ∇ log q(z).

        Args:
            z: Points.
        """
        leaf = z.requires_grad_()
        noise, log_det = self.inverse(leaf)
        log_q = -0.5 * noise.square().sum(-1) - log_det
        return torch.autograd.grad(log_q.sum(), leaf)[0]

    def map(self) -> "Bent":
        """Return this map."""
        return self


def unbent(base: Affine, family: Flow, seed: int) -> Bent:
    """Return a normal with the transforms of a flow, at the identity.

    Args:
        base: The normal.
        family: The flow, whose transforms score any z.
        seed: Seed of the networks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family.network(len(base.loc)).to(base.loc.dtype)
    return Bent(base, network.requires_grad_(requires_grad=False))
