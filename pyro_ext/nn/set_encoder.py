"""An encoder of sets: the order of their members does not matter."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyro_ext.nn.mlp import MLP

__all__ = ["SetEncoder"]


class SetEncoder(nn.Module):
    r"""Features of exchangeable groups of any size, padded to one length.

    .. math:: y = \rho\Big(\frac1n \sum_{m=1}^n \phi(x_m),\ \log(1 + n)\Big)

    with n the number of members that the mask marks. A posterior of a group's latent, given its
    members, is a function of the set and of its size.

    Args:
        in_features: Size of a member.
        hidden: Widths of the hidden layers of φ, and of ρ.
        out_features: Size of the result.
        activation: Makes the activation that follows each hidden layer.

    Raises:
        ValueError: If members and mask do not fit, or the mask is none of booleans.

    References:
        Deep Sets (Zaheer et al., 2017) | https://arxiv.org/abs/1703.06114

    Example:
        >>> encoder = px.nn.SetEncoder(2, out_features=8)
        >>> members, mask = torch.randn(5, 10, 2), torch.rand(5, 10) < 0.5
        >>> encoder(members, mask).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden: Sequence[int] = (32,),
        out_features: int = 32,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.member = MLP(in_features, hidden, out_features, activation=activation)
        self.group = MLP(out_features + 1, hidden, out_features, activation=activation)

    def forward(
        self,
        members: Float[Tensor, "*batch members in_features"],
        mask: Bool[Tensor, "*batch members"],
    ) -> Float[Tensor, "*batch out_features"]:
        """Map groups to features; what the mask leaves out is not looked at.

        Args:
            members: Shape ``(*batch, members, in_features)``.
            mask: Which members there are, shape ``(*batch, members)``.
        """
        given = isinstance(mask, Tensor)
        if not given or mask.dtype != torch.bool or mask.shape != members.shape[:-1]:
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if given else type(mask).__name__
            raise ValueError(
                f"SetEncoder: expected a mask of booleans of shape {tuple(members.shape[:-1])}, "
                f"one for each member; got {got}. Write: "
                "encoder(members, mask.bool()) with mask.shape == members.shape[:-1]."
            )
        count = mask.sum(-1, keepdim=True).to(members.dtype)
        # Not a product: padding may be anything, NaN too, and its gradient must be zero.
        known = torch.where(mask.unsqueeze(-1), members, 0.0)
        features = torch.where(mask.unsqueeze(-1), self.member(known), 0.0)
        mean = features.sum(-2) / count.clamp(min=1)
        result: Tensor = self.group(torch.cat([mean, count.log1p()], -1))
        return result
