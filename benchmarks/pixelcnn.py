"""A PixelCNN behind a latent vector (PixelVAE), on binary MNIST or, without ``--data``, on digits.

Gated masked convolutions in two stacks, without blind spot. The bound of ``--samples`` draws on
test images is kept in a JSON file; published are 81.30 nats for a PixelCNN and 79.02 for a
PixelVAE on binary MNIST. The same call goes on where one was stopped:

    python benchmarks/pixelcnn.py --data mnist.npz --epochs 200 --checkpoints runs/pixelcnn
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _images import Stage, Training, load, negative_log_likelihood, train
from _results import Cells
from torch import Tensor

import pyro_ext as px
from guides.pixel_vae import amortized_mean_field
from models.pixel_vae import PixelVAE

__all__ = ["fitted", "main"]


def fitted(
    images: Tensor, test: Tensor, name: str, options: argparse.Namespace
) -> dict[str, float]:
    """Train and judge.

    Args:
        images: Images to train on, shape ``(images, pixels)``.
        test: Images to test on.
        name: Name of the checkpoint.
        options: Those of the command line.
    """
    torch.manual_seed(options.seed)
    side = round(images.shape[1] ** 0.5)
    model = PixelVAE(
        (side, side), options.latent, channels=options.channels, num_layers=options.layers
    )
    guide = amortized_mean_field(model)
    guide.setup(test[: options.batch_size])
    adam = partial(torch.optim.Adam, lr=options.lr)
    loss: Any = px.ELBO(form="kl")
    compile = not options.eager
    training = Training(model, guide, loss, adam, options.batch_size, compile, options.seed)
    steps = round(options.epochs * (len(images) // options.batch_size))
    stages = [Stage(round(0.8 * steps), options.lr), Stage(round(0.2 * steps), options.lr / 10)]
    folder = options.checkpoints
    train(training, images, stages, checkpoint=folder / f"{name}.pt" if folder else None)
    x = test[: options.test_images]
    particles = max(1, 2000 // options.batch_size)
    nll, se = negative_log_likelihood(
        model, guide, x, num_samples=options.samples, rows=20, particles=particles
    )
    found = px.rates(model, guide, x[:100], num_samples=20, seed=0)
    return {
        "nll": nll,
        "se": se,
        "rate": found.rate.value / len(x[:100]),
        "epochs": options.epochs,
        "test_images": len(x),
        "samples": options.samples,
        "seconds": training.seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    """Compute what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help=".npz of MNIST; the 8 x 8 digits without it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pixelcnn.json"))
    parser.add_argument("--fixed-binarization", action="store_true")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--latent", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=200)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--checkpoints", type=Path, help="folder to save to and to go on from")
    parser.add_argument("--samples", type=int, default=500, help="to estimate log p(x) with")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    images, test = load(options.data, fixed=options.fixed_binarization)
    source = "digits" if options.data is None else "mnist"
    shape = f"{options.channels}x{options.layers}"
    name = f"{source}/{shape}/latent {options.latent}/{options.epochs:g} epochs"
    Cells(options.out).get(name, partial(fitted, images, test, name.replace("/", "-"), options))


if __name__ == "__main__":
    main()
