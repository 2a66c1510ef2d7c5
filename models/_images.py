"""Images to fit: the digits that scikit-learn bundles, and MNIST."""

from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["DynamicBinarization", "Source", "Split", "data"]

Source = Literal["digits", "mnist"]


class Split(NamedTuple):
    """Images as rows, in [0, 1].

    Attributes:
        train: Shape ``(num_train, num_features)``.
        held_out: Shape ``(num_held_out, num_features)``.
    """

    train: Tensor
    held_out: Tensor


def data(
    source: Source = "digits",
    *,
    path: str | Path | None = None,
    binarize: bool = True,
    num_held_out: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Split:
    """Load images, split them, and binarize them once.

    Args:
        source: ``"digits"``, 1797 images of 8 x 8 pixels that scikit-learn bundles, or
            ``"mnist"``, 70 000 of 28 x 28.
        path: For MNIST, an .npz file with arrays ``x_train`` and ``x_test``; if None, scikit-learn
            downloads the data set and keeps a copy.
        binarize: Whether each pixel becomes a Bernoulli draw whose probability is its grey level.
            With False the grey levels are returned: for the Gaussian likelihood, or to wrap in
            :class:`DynamicBinarization`.
        num_held_out: Images to hold out; 297 of the digits, the usual 10 000 of MNIST by default.
        seed: Seed of the split of the digits and of the binarization.
        dtype: Floating dtype of the result; torch's default if None.

    Raises:
        ValueError: If the source is unknown, the file does not have the arrays, or more images are
            to be held out than there are.
        RuntimeError: If MNIST cannot be downloaded.
    """
    if source not in get_args(Source):
        raise ValueError(f"data: expected source in {get_args(Source)}, got {source!r}.")
    if source == "digits" and path is not None:
        raise ValueError("data: expected path=None for the digits; write data('mnist', path=...).")
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if source == "digits":
        images, usual = _digits().to(dtype), 297
        images = images[torch.randperm(len(images), generator=generator)]
    else:
        images, usual = _mnist(path, dtype)
    held_out = usual if num_held_out is None else num_held_out
    if not 0 <= held_out < len(images):
        raise ValueError(
            f"data: expected 0 <= num_held_out < {len(images)}, the number of images, "
            f"got {num_held_out}."
        )
    if binarize:
        images = torch.bernoulli(images, generator=generator)
    return Split(images[: len(images) - held_out], images[len(images) - held_out :])


class DynamicBinarization(Dataset[Tensor]):
    """Grey images as a data set that draws new binary pixels on every access.

    Made for a :class:`torch.utils.data.DataLoader`, so that model and encoder see the same draw.

    Args:
        images: Grey levels in [0, 1], shape ``(num, num_features)``.
        seed: Seed of a generator of its own.
    """

    def __init__(self, images: Tensor, *, seed: int = 0) -> None:
        if not ((images >= 0) & (images <= 1)).all():
            raise ValueError("DynamicBinarization: expected grey levels in [0, 1].")
        self.images = images
        self._generator = torch.Generator(images.device).manual_seed(seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.bernoulli(self.images[index], generator=self._generator)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """Draw a whole batch at once, as a data loader asks for it."""
        return list(torch.bernoulli(self.images[indices], generator=self._generator))


def _digits() -> Tensor:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    return torch.as_tensor(load_digits().data) / 16


def _mnist(path: str | Path | None, dtype: torch.dtype) -> tuple[Tensor, int]:
    if path is None:
        images, num_test = _download_mnist(), 10_000
    else:
        with np.load(path) as file:
            missing = {"x_train", "x_test"} - set(file.files)
            if missing:
                raise ValueError(
                    f"data: expected arrays 'x_train' and 'x_test' in {path}, got {file.files}."
                )
            images, num_test = (
                np.concatenate([file["x_train"], file["x_test"]]),
                len(file["x_test"]),
            )
    grey = torch.as_tensor(images).flatten(1).to(dtype)
    return grey / 255 if grey.max() > 1 else grey, num_test


def _download_mnist() -> "np.typing.NDArray[np.float64]":
    from sklearn.datasets import fetch_openml

    try:
        images = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff").data
    except (OSError, ValueError) as error:
        raise RuntimeError(
            "data: MNIST could not be downloaded from openml.org; without a network write "
            "data('mnist', path='mnist.npz') with a file that has x_train and x_test, or "
            "data('digits')."
        ) from error
    return np.asarray(images)
