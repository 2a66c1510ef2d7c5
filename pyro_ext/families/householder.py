"""Normals whose covariance is a product of reflections and a diagonal."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.nn.functional import normalize

from pyro_ext._whole import whole
from pyro_ext.families._fixed import fixed_normal
from pyro_ext.families.affine_family import AffineFamily
from pyro_ext.families.family import inverse_positive, positive
from pyro_ext.families.linear_map import LinearMap

__all__ = ["Householder", "Reflected", "reflect"]


def reflect(
    rows: Float[Tensor, "*_ dim"], vectors: Float[Tensor, "*_ k dim"], *, inverse: bool = False
) -> Float[Tensor, "*_ dim"]:
    r"""Return :math:`H_k \cdots H_1 x` for each row x, with :math:`H = I - 2 v v^\top / v^\top v`.

    Args:
        rows: The rows x.
        vectors: The vectors v in the order in which they act; of any length but zero.
        inverse: Whether to return :math:`H_1 \cdots H_k x` instead.
    """
    units = normalize(vectors, dim=-1).unbind(-2)
    for unit in reversed(units) if inverse else units:
        rows = rows - 2 * (rows * unit).sum(-1, keepdim=True) * unit
    return rows


class Reflected(LinearMap):
    """S = H_k ... H_1 diag(s).

    Args:
        scale: s, positive, shape ``(*batch, dim)``.
        vectors: What the H reflect along, shape ``(*batch, k, dim)``.
    """

    def __init__(
        self, scale: Float[Tensor, " *batch dim"], vectors: Float[Tensor, " *batch k dim"]
    ) -> None:
        self.scale, self.vectors = scale, vectors

    @property
    def batch_shape(self) -> Size:
        """Batch shape of S."""
        return self.scale.shape[:-1]

    def apply(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S ε for each row ε."""
        return reflect(self.scale * rows, self.vectors)

    def solve(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S⁻¹ z for each row z."""
        return reflect(rows, self.vectors, inverse=True) / self.scale

    def log_abs_det(self) -> Tensor:
        """Return log |det S|, shape ``batch``."""
        return self.scale.log().sum(-1)

    def matrix(self) -> Tensor:
        """Return S, shape ``(*batch, dim, dim)``."""
        return reflect(torch.diag_embed(self.scale), self.vectors.unsqueeze(-3)).mT


@dataclass(frozen=True)
class Householder(AffineFamily):
    r"""Normals with a covariance that k reflections turn into a diagonal one.

    .. math::
        q(z; \pi) = \mathcal{N}(z \mid \mu, S S^\top), \qquad
        S = H_k \cdots H_1 \mathrm{diag}(s), \qquad H_i = I - 2 v_i v_i^\top / v_i^\top v_i

    P = 2D + kD; density and draws cost O(kD). The covariance has free eigenvalues s² and, with
    k = D, free eigenvectors. Where all s are equal the v do nothing: a guide starts there, with v
    in directions drawn once, and as soon as the s differ the v learn. From a ``scale`` with other
    entries reflections start in pairs that cancel, and one that is left over along an axis, so
    that the covariance is diag(scale²). In one dimension v does nothing.

    Args:
        num_reflections: Number k of reflections.

    Raises:
        ValueError: If there is no reflection.

    References:
        Improving variational auto-encoders using Householder flow (Tomczak and Welling, 2016)
        | https://arxiv.org/abs/1611.09630

    Example:
        >>> family = Householder(num_reflections=2)
        >>> family.num_params(100)
        400
        >>> q = family.distribution(family.initial_params(torch.zeros(100), torch.ones(100)), 100)
        >>> bool(torch.allclose(q.covariance_matrix, torch.eye(100), atol=1e-5))
        True
    """

    papers: ClassVar[tuple[str, ...]] = ("tomczak2016improving",)

    num_reflections: int = 2

    def __post_init__(self) -> None:
        """Check the number of reflections."""
        write = "px.Householder(num_reflections=2)"
        count = whole(self.num_reflections, "num_reflections", write=write, owner="Householder")
        object.__setattr__(self, "num_reflections", count)
        if count < 1:
            raise ValueError(
                f"Householder: expected num_reflections >= 1; got {self.num_reflections}. Write: "
                "px.Householder(num_reflections=2), or px.Diagonal() for independent latents."
            )

    def num_params(self, dim: int) -> int:
        """Return (2 + k) D."""
        return (2 + self.num_reflections) * dim

    def initial_params(
        self, loc: Float[Tensor, " *batch dim"], scale: Float[Tensor, " *batch dim"]
    ) -> Float[Tensor, " *batch params"]:
        """Return a π with mean ``loc`` and covariance diag(``scale``²).

        Args:
            loc: Mean, shape ``(*batch, dim)``.
            scale: Standard deviations, shape ``(*batch, dim)``.
        """
        scale = scale.expand_as(loc)
        count, dim = self.num_reflections, loc.shape[-1]
        drawn = fixed_normal(count, dim)
        paired = drawn[: count // 2].repeat_interleave(2, 0)
        if count % 2:
            paired = torch.cat([torch.eye(1, dim, dtype=drawn.dtype, device=drawn.device), paired])
        # The s of turned axes soon differ, where those of the coordinates may stay equal for long.
        round_ = (scale == scale[..., :1]).all(-1)[..., None, None]
        vectors = torch.where(round_, drawn.to(loc), paired.to(loc))
        return torch.cat([loc, inverse_positive(scale), vectors.flatten(-2)], dim=-1)

    def _affine(self, params: Tensor, dim: int) -> tuple[Tensor, LinearMap]:
        loc, raw, flat = params.split([dim, dim, dim * self.num_reflections], dim=-1)
        vectors = flat.unflatten(-1, (self.num_reflections, dim))
        return loc, Reflected(positive(raw), vectors)
