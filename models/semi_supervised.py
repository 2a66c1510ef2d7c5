r"""Semi-supervised VAE (M2): a label, if it is known, and a latent vector for the rest.

.. math:: y \sim \mathrm{Categorical}(1/C), \quad z \sim N(0, I_D), \quad
          x \mid y, z \sim \mathrm{Bernoulli}(\mathrm{logits}(z, y))
          \ \text{ or } \ N(\mathrm{mean}(z, y), s^2 I)

References:
    Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014) |
    https://arxiv.org/abs/1406.5298

Example:
    >>> found = data(labels_per_class=5)
    >>> found.x_labelled.shape, found.x_unlabelled.shape, found.x_test.shape
    (torch.Size([50, 64]), torch.Size([1347, 64]), torch.Size([400, 64]))
"""

from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.nn.functional import one_hot

from models._names import unique_name
from pyro_ext.nn import MLP

__all__ = ["M2", "PartlyLabelled", "data"]

NUM_CLASSES = 10


class PartlyLabelled(NamedTuple):
    """Binary images of digits, few of them with a label, as a one-hot row.

    Attributes:
        x_labelled: Shape ``(labelled, pixels)``.
        y_labelled: Shape ``(labelled, 10)``.
        x_unlabelled: Shape ``(unlabelled, pixels)``.
        x_test: Shape ``(test, pixels)``.
        y_test: Shape ``(test, 10)``.
    """

    x_labelled: Tensor
    y_labelled: Tensor
    x_unlabelled: Tensor
    x_test: Tensor
    y_test: Tensor


def data(
    labels_per_class: int = 5,
    *,
    path: str | Path | None = None,
    num_test: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> PartlyLabelled:
    """Load the 1797 digits that scikit-learn bundles, or MNIST; black is what is above half grey.

    Args:
        labels_per_class: Number of labels to keep of each digit.
        path: For MNIST, an .npz file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``.
        num_test: Number of images to test on; 400 of the digits, the 10 000 of MNIST by default.
        seed: Seed of the split, and of which labels are kept.
        dtype: Floating dtype of the result; torch's default if None.

    Raises:
        ValueError: If there are not that many images of a digit, or none.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    generator = torch.Generator().manual_seed(seed)
    images, digits, num_test = (
        _digits(generator, num_test) if path is None else _mnist(path, generator, num_test)
    )
    x, y = images.to(dtype), digits.long()
    of_class = [(y[num_test:] == digit).nonzero()[:, 0] for digit in range(NUM_CLASSES)]
    most = min(len(rows) for rows in of_class)
    if not 1 <= labels_per_class <= most:
        raise ValueError(
            f"data: expected 1 <= labels_per_class <= {most}; got {labels_per_class}. "
            "Write: labels_per_class=5."
        )
    known = num_test + torch.cat([rows[:labels_per_class] for rows in of_class])
    unknown = torch.ones(len(x), dtype=torch.bool)
    unknown[known] = unknown[:num_test] = False
    labels = one_hot(y, NUM_CLASSES).to(dtype)
    return PartlyLabelled(x[known], labels[known], x[unknown], x[:num_test], labels[:num_test])


def _digits(generator: torch.Generator, num_test: int | None) -> tuple[Tensor, Tensor, int]:
    """Return black pixels, labels, and how many of the first rows are to test on."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    found = load_digits()
    order = torch.randperm(len(found.data), generator=generator)
    black = torch.as_tensor(found.data) > 7
    num_test = 400 if num_test is None else num_test
    return black[order], torch.as_tensor(found.target)[order], num_test


def _mnist(
    path: str | Path, generator: torch.Generator, num_test: int | None
) -> tuple[Tensor, Tensor, int]:
    names = ("x_test", "x_train", "y_test", "y_train")
    with np.load(path) as file:
        x_test, x_train, y_test, y_train = (torch.from_numpy(file[name]) for name in names)
    order = torch.randperm(len(x_train), generator=generator)
    num_test = len(x_test) if num_test is None else num_test
    black = torch.cat([x_test[:num_test], x_train[order]]).flatten(1) > 127
    return black, torch.cat([y_test[:num_test], y_train[order]]), num_test


class M2(PyroModule):
    """The generative half, as a Pyro model.

    Args:
        num_features: Size of x.
        latent_dim: Size of z.
        hidden: Width of the decoder's layer.
        likelihood: ``"bernoulli"`` for pixels, ``"gaussian"`` for real features (M1+M2).
    """

    noise: Tensor

    def __init__(
        self,
        num_features: int = 64,
        latent_dim: int = 8,
        *,
        hidden: int = 128,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
    ) -> None:
        super().__init__(unique_name("m2"))
        self.num_features, self.latent_dim, self.likelihood = num_features, latent_dim, likelihood
        self.decoder = MLP(latent_dim + NUM_CLASSES, (hidden,), num_features)
        if likelihood == "gaussian":
            noise = PyroParam(torch.tensor(0.5), constraint=constraints.positive)
            self.noise = cast(Tensor, noise)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """Sites ``y`` (one-hot), ``z`` (vector latent) and ``x`` in the plate ``"data"``.

        Args:
            x: Features, shape ``(batch, num_features)``.
            y: One-hot labels, shape ``(batch, 10)``, where they are known.
        """
        prior = dist.Normal(x.new_zeros(self.latent_dim), x.new_ones(())).to_event(1)
        with pyro.plate("data", len(x), dim=-1):
            label = pyro.sample("y", dist.OneHotCategorical(x.new_ones(NUM_CLASSES)), obs=y)
            z = pyro.sample("z", prior)
            pyro.sample("x", self._features(z, label), obs=x)

    def _features(self, z: Tensor, y: Tensor) -> TorchDistributionMixin:
        batch = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
        given = torch.cat([z.expand(*batch, -1), y.expand(*batch, -1)], -1)
        output: Tensor = self.decoder(given)
        features: TorchDistributionMixin = (
            dist.Bernoulli(logits=output)
            if self.likelihood == "bernoulli"
            else dist.Normal(output, self.noise)
        )
        independent: TorchDistributionMixin = features.to_event(1)
        return independent
