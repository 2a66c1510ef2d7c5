"""Networks that tell samples of p from samples of q."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pyro_ext.nn import MLP

__all__ = ["MLPCritic", "QuadraticCritic"]


class MLPCritic(nn.Module):
    """A multi-layer perceptron with one output.

    Args:
        dim: Size of one x.
        hidden: Widths of the hidden layers.
        quadratic: Whether to add a quadratic function, which starts at zero and holds the log
            ratio of two Gaussians.
        spectral: Whether to divide each weight matrix by its largest singular value, which makes
            the network's slope at most 1 with an activation of slope at most 1.

    References:
        Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018) |
        https://arxiv.org/abs/1802.05957

    Example:
        >>> MLPCritic(3)(torch.zeros(7, 5, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: tuple[int, ...] = (64, 64),
        quadratic: bool = False,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        # A ReLU has slope 1 at most; SiLU has 1.1.
        self.net = MLP(dim, hidden, 1, activation=nn.ReLU if spectral else nn.SiLU)
        self.quadratic = QuadraticCritic(dim) if quadratic else None
        if spectral:
            for layer in self.net.layers:
                if isinstance(layer, nn.Linear):
                    spectral_norm(layer)

    def forward(self, x: Float[Tensor, " *batch dim"]) -> Float[Tensor, " *batch"]:
        """Map ``(*batch, dim)`` to ``batch``."""
        out: Tensor = self.net(x)
        value = out.squeeze(-1)
        return value if self.quadratic is None else value + self.quadratic(x)


class QuadraticCritic(nn.Module):
    r"""A quadratic function, which holds the log ratio of any two Gaussians.

    .. math:: T(x) = x^\top W x + b^\top x + c

    Args:
        dim: Size of one x.

    Raises:
        ValueError: If an x has another size.

    Example:
        >>> QuadraticCritic(3)(torch.zeros(7, 5, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))
        self.slope = nn.Parameter(torch.zeros(dim))
        self.constant = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, " *batch dim"]) -> Float[Tensor, " *batch"]:
        """Map ``(*batch, dim)`` to ``batch``."""
        dim = len(self.slope)
        if x.shape[-1:] != (dim,):
            raise ValueError(
                f"QuadraticCritic: expected x of shape (*batch, {dim}); got {tuple(x.shape)}. "
                f"Write: px.ratio.QuadraticCritic({x.shape[-1] if x.dim() else 1})."
            )
        return ((x @ self.weight + self.slope) * x).sum(-1) + self.constant
