"""Planar, radial and Sylvester layers, which are left without an inverse."""

from abc import ABC, abstractmethod
from math import expm1, log
from typing import NoReturn

import torch
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.radial import ConditionedRadial
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_ext.families._context import zero_last
from pyro_ext.families._steps import LayerSpec, Step
from pyro_ext.families.householder import reflect
from pyro_ext.nn import MLP

__all__ = ["PlanarLayer", "RadialLayer", "SylvesterLayer"]


class _OneWayLayer(nn.Module, ABC):
    """A layer whose parameters are free, or come from a context; they start at the same values."""

    name: str

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.sizes, initial = self._initial(spec.dim)
        self.free: nn.Parameter | None = None
        self.network: MLP | None = None
        if spec.context:
            self.network = MLP(spec.context, spec.hidden, initial.numel())
            zero_last(self.network.layers)
            self.network.layers[-1].bias = nn.Parameter(initial)
        else:
            self.free = nn.Parameter(initial)

    @abstractmethod
    def _initial(self, dim: int) -> tuple[list[int], Tensor]:
        """Return the sizes of the parameters, and values that make the identity."""

    @abstractmethod
    def _forward(self, params: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log |det ∂y/∂x|."""

    def forward(self, context: Tensor | None) -> Step:
        """Return the step for this context."""
        flat = self.free if self.network is None else self.network(context)
        params = list(flat.split(self.sizes, dim=-1))  # type: ignore[union-attr]
        return Step(lambda x: self._forward(params, x), self._inverse)

    def _inverse(self, y: Tensor) -> NoReturn:
        raise ValueError(
            "Flow: expected a value that this distribution has just drawn by rsample(), and "
            f"gradients as they were then; got another one, and the transform {self.name!r} has "
            "no inverse to score it by. Write: estimator='reparam', which scores own draws only, "
            "or family=px.Flow('nsf'), which scores any."
        )


def _of_pyro(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    y = transform(x)
    return y, transform.log_abs_det_jacobian(x, y)


class PlanarLayer(_OneWayLayer):
    """y = x + û tanh(wᵀx + b)."""

    name = "planar"

    def _initial(self, dim: int) -> tuple[list[int], Tensor]:
        """Return u for which û, that Pyro makes of u and w, is zero: wᵀu = log(e - 1)."""
        w = torch.randn(dim)
        u = log(expm1(1)) * w / w.square().sum()
        return [1, dim, dim], torch.cat([torch.randn(1), u, w])

    def _forward(self, params: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return _of_pyro(ConditionedPlanar(tuple(params)), x)


class RadialLayer(_OneWayLayer):
    """y = x + β (x - x₀) / (α + ‖x - x₀‖)."""

    name = "radial"

    def _initial(self, dim: int) -> tuple[list[int], Tensor]:
        """Return two equal numbers for which β, their difference after softplus, is zero."""
        return [dim, 1, 1], torch.cat([torch.randn(dim), torch.zeros(2)])

    def _forward(self, params: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return _of_pyro(ConditionedRadial(tuple(params)), x)


class SylvesterLayer(_OneWayLayer):
    """y = x + Q R tanh(S Qᵀx + b), with upper triangles R and S and Q a product of reflections.

    Pyro's ``Sylvester`` multiplies Q from the other side, where the determinant is another one
    than it returns.
    """

    name = "sylvester"

    def _initial(self, dim: int) -> tuple[list[int], Tensor]:
        """Return R = 0."""
        reflections, triangle = (dim // 2 + 1) * dim, dim * (dim + 1) // 2
        sizes = [reflections, triangle, triangle, dim]
        drawn = torch.randn(sum(sizes))
        drawn[reflections : reflections + triangle] = 0.0
        return sizes, drawn

    def _forward(self, params: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        vectors, right, left, bias = params
        dim = x.shape[-1]
        vectors = vectors.unflatten(-1, (-1, dim))
        outer, inner = _upper(right, dim), _upper(left, dim)
        turned = reflect(x, vectors, inverse=True)
        act = ((inner @ turned.unsqueeze(-1)).squeeze(-1) + bias).tanh()
        y = x + reflect((outer @ act.unsqueeze(-1)).squeeze(-1), vectors)
        diagonals = outer.diagonal(dim1=-2, dim2=-1) * inner.diagonal(dim1=-2, dim2=-1)
        return y, torch.log1p((1 - act.square()) * diagonals).sum(-1)


def _upper(entries: Tensor, dim: int) -> Tensor:
    """Return an upper triangle with a diagonal in (-1, 1)."""
    row, col = torch.triu_indices(dim, dim, device=entries.device)
    matrix = entries.new_zeros(*entries.shape[:-1], dim, dim)
    matrix[..., row, col] = torch.where(row == col, entries.tanh(), entries)
    return matrix
