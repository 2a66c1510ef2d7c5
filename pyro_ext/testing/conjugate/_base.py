"""What the conjugate models share: the interface, the plate, masks."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import BoolTensor, Tensor

__all__ = [
    "ConjugateModel",
    "Posterior",
    "data_plate",
    "from_precision",
    "mask_rows",
    "observe",
    "observed",
    "randn",
]


class Posterior(NamedTuple):
    """Exact posterior moments of a vector of latents.

    Attributes:
        mean: Shape ``(*batch, latents)``.
        covariance: Shape ``(*batch, latents, latents)``.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> NormalLocal(torch.tensor([0.0, 2.0])).posterior().mean.flatten()
        tensor([0., 1.])
    """

    mean: Tensor
    covariance: Tensor


class ConjugateModel(ABC):
    """What every model of this module offers; subclasses are final.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))  # one of them
        >>> log_w = px.log_weights(exact.model, exact.guide, *exact.args).terms[0].log_w.sum()
        >>> torch.allclose(log_w, exact.log_evidence())  # whatever was drawn
        True
    """

    mask: Tensor | None

    def __post_init__(self) -> None:
        """Check the mask."""
        shape = self._data[-1].shape
        if self.mask is not None and (self.mask.dtype != torch.bool or self.mask.shape != shape):
            raise ValueError(
                f"mask: expected a boolean tensor of shape {tuple(shape)}; got {self.mask.dtype} "
                f"of shape {tuple(self.mask.shape)}. Write: mask=torch.isfinite(x)."
            )

    @property
    def args(self) -> tuple[Tensor, ...]:
        """What ``model`` and ``guide`` take: the data, then the mask if there is one."""
        return self._data if self.mask is None else (*self._data, self.mask)

    @property
    @abstractmethod
    def _data(self) -> tuple[Tensor, ...]:
        """All the data, rows first; the observed ones last."""

    @abstractmethod
    def model(self, *args: Any, **kwargs: Any) -> None:
        """The Pyro model."""

    @abstractmethod
    def guide(self, *args: Any, **kwargs: Any) -> None:
        """The exact posterior, as a Pyro guide."""

    @abstractmethod
    def log_evidence(self) -> Tensor:
        """Log p(x) of all the data, a scalar."""

    @abstractmethod
    def posterior(self) -> Posterior:
        """Exact posterior moments given all the data."""


@contextmanager
def data_plate(
    num: int, subsample_size: int | None, subsample: Tensor | None
) -> Generator[Tensor, None, None]:
    if subsample is not None:
        subsample_size = len(subsample)
    with pyro.plate("data", num, subsample_size, subsample=subsample) as rows:
        yield cast(Tensor, rows)


def mask_rows(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if mask is None else mask[rows]


def observe(
    name: str, likelihood: TorchDistributionMixin, x: Tensor, mask: Tensor | None, rows: Tensor
) -> None:
    with nullcontext() if mask is None else poutine.mask(mask=cast(BoolTensor, mask[rows])):
        pyro.sample(name, likelihood, obs=x[rows])


def observed(x: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(x) if mask is None else mask.to(x)


def from_precision(precision: Tensor, shift: Tensor) -> Posterior:
    factor = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve(shift[:, None], factor)[:, 0]
    return Posterior(mean, torch.cholesky_inverse(factor))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
