"""A flow between the noise and the fitted normal, for what no normal can follow."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_ext.families import Flow
from pyro_ext.training.auto.affine import Affine, log_ratios
from pyro_ext.training.auto.density import Density

__all__ = ["Bent", "bend"]

_BATCH = 64
_STEPS = (500, 1000)
_RATE = 3e-3
_MAX_NORM = 10.0
_SIGMAS = 3.0
_WORTH = 0.02
"""Nats for which another round of steps is worth its cost."""


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


def bend(density: Density, base: Affine, family: Flow, seed: int) -> Bent:
    r"""Fit the transforms of a flow to what the normal leaves.

    The target is near a standard normal already in the noise of the base, and the flow starts at
    the identity, so that one step size fits all: Adam along a cosine, in rounds that get longer
    while they pay. The gradient sticks to the path, whose noise vanishes as q reaches p:

    .. math:: \nabla_\phi \mathcal{L} = \mathbb{E}_\varepsilon\!\left[
        \nabla_z\!\left(\log p(x, z) - \log q_\phi(z)\right) \nabla_\phi z_\phi(\varepsilon)\right]

    Args:
        density: The target.
        base: The normal.
        family: The flow, whose transforms score any z.
        seed: Seed.

    References:
        Sticking the Landing (Roeder et al., 2017) | https://arxiv.org/abs/1703.09194
        Advances in Black-Box VI (Agrawal et al., 2020) | https://arxiv.org/abs/2006.10343
    """
    dim = density.dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family.network(dim).to(density.dtype)
    q = Bent(base, network)
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.randn((2048, dim), generator=generator, dtype=density.dtype)
    best, before = _copied(network), _ratios(density, q, held_out)
    for steps in _STEPS:
        _climb(density, q, steps, generator)
        after = _ratios(density, q, held_out)
        gain = after - before
        mean, error = float(gain.mean()), float(gain.std()) / len(gain) ** 0.5
        if not mean > _SIGMAS * error:
            network.load_state_dict(best)
            break
        best, before = _copied(network), after
        if mean < _WORTH:
            break
    network.requires_grad_(requires_grad=False)
    return q


def _climb(density: Density, q: Bent, steps: int, generator: torch.Generator) -> None:
    params = list(q.layers.parameters())
    optimizer = torch.optim.Adam(params, lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        half = torch.randn((_BATCH // 2, density.dim), generator=generator, dtype=q.base.loc.dtype)
        noise = torch.cat([half, -half])
        z, _ = q.forward(noise)
        value, grad = density.value_and_grad(z.detach())
        leaf = z.detach().requires_grad_()
        inverse, log_det = q.inverse(leaf)
        log_q = -0.5 * inverse.square().sum(-1) - log_det
        path = grad - torch.autograd.grad(log_q.sum(), leaf)[0]
        good = torch.isfinite(path).all(-1) & torch.isfinite(value)
        if not bool(good.any()):
            continue
        loss = -(z * path)[good].sum() / len(z)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, _MAX_NORM)
        optimizer.step()
        schedule.step()


def _ratios(density: Density, q: Bent, noise: Tensor) -> Tensor:
    with torch.no_grad():
        return log_ratios(density, q, noise)


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
