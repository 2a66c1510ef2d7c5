"""VAE and IWAE on MNIST, in the set-up of Burda, Grosse and Salakhutdinov (2015).

One stochastic layer (784-200-200-50) or two (784-200-200-100-100-100-50), tanh, batches of 20,
pixels drawn again at each step, Adam with their settings, and their schedule: eight stages of 1,
3, ..., 2187 epochs at learning rates from 1e-3 to 1e-4, of which ``--fraction`` is run, each
stage shortened alike. Test NLL by 5,000 samples and active units are kept in a JSON file:

    python benchmarks/iwae.py --data mnist.npz --fraction 1 --checkpoints runs/iwae

The same call goes on where one was stopped. ``--time`` measures minutes of an epoch instead.
"""

import argparse
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _images import (
    Stage,
    Training,
    active_units,
    cost_per_epoch,
    load,
    negative_log_likelihood,
    train,
)
from _results import Cells
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_ext as px
from models._names import unique_name
from pyro_ext.nn import MLP

__all__ = ["Decoder", "Encoder", "adam", "cells_of", "main", "schedule"]

LATENTS = {1: (50,), 2: (100, 50)}
HIDDEN = {1: (200,), 2: (200, 100)}
BATCH = 20


class ConditionalNormal(nn.Module):
    """Normal whose mean and log standard deviation are one network of two tanh layers."""

    def __init__(self, given: int, hidden: int, size: int) -> None:
        super().__init__()
        self.network = tanh_network(given, hidden, 2 * size)

    def forward(self, given: Tensor) -> Any:
        loc, log_scale = self.network(given).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class Decoder(PyroModule):
    """The model: z_L ~ N(0, I), z_l | z_{l+1} normal, x | z_1 Bernoulli.

    Args:
        layers: Number of stochastic layers, 1 or 2.
        mean: Mean of the training images, which starts the bias of the pixels.
    """

    def __init__(self, layers: int, mean: Tensor) -> None:
        super().__init__(unique_name("decoder"))
        sizes, hidden = LATENTS[layers], HIDDEN[layers]
        self.pixels = tanh_network(sizes[0], hidden[0], len(mean))
        self.pixels.layers[-1].bias.data = torch.logit(mean.clamp(0.001, 0.999))
        self.layers = nn.ModuleList(
            ConditionalNormal(above, width, below)
            for (below, above), width in zip(pairwise(sizes), hidden[1:], strict=True)
        )
        self.top = sizes[-1]

    def forward(self, x: Tensor) -> None:
        depth = len(self.layers)
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(self.top), 1.0).to_event(1)
            z = pyro.sample(f"z{depth + 1}", prior)
            for index in range(depth, 0, -1):
                z = pyro.sample(f"z{index}", self.layers[index - 1](z))
            pixels = dist.Bernoulli(logits=self.pixels(z), validate_args=False)
            pyro.sample("x", pixels.to_event(1), obs=x)


class Encoder(PyroModule):
    """The guide: q(z_1 | x) q(z_2 | z_1).

    Args:
        layers: Number of stochastic layers, 1 or 2.
        num_pixels: Pixels of an image.
    """

    def __init__(self, layers: int, num_pixels: int) -> None:
        super().__init__(unique_name("encoder"))
        sizes = (num_pixels, *LATENTS[layers])
        self.layers = nn.ModuleList(
            ConditionalNormal(below, width, above)
            for (below, above), width in zip(pairwise(sizes), HIDDEN[layers], strict=True)
        )

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = x
            for index, layer in enumerate(self.layers, start=1):
                z = pyro.sample(f"z{index}", layer(z))


def tanh_network(given: int, hidden: int, size: int) -> MLP:
    """Return two tanh layers and a linear one, with Glorot's weights."""
    network = MLP(given, (hidden, hidden), size, activation=nn.Tanh)
    for layer in network.layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


def adam(params: list[Tensor]) -> torch.optim.Optimizer:
    """Return Adam as in the authors' code: second moments start at one."""
    made = torch.optim.Adam(params, lr=1e-3, betas=(0.99, 0.999), eps=1e-4)
    for param in params:
        zeros, ones = torch.zeros_like(param), torch.ones_like(param)
        made.state[param] = {
            "step": torch.tensor(0.0, device="cpu"),
            "exp_avg": zeros,
            "exp_avg_sq": ones,
        }
    return made


def schedule(num_images: int, fraction: float) -> list[Stage]:
    """Return the eight stages, each shortened to this fraction.

    Args:
        num_images: Images of an epoch.
        fraction: Share of the 3,280 epochs.
    """
    per_epoch = num_images // BATCH
    return [
        Stage(round(fraction * 3**i * per_epoch), 1e-4 * round(10 ** (1 - i / 7), 1))
        for i in range(8)
    ]


def cells_of(options: argparse.Namespace) -> dict[str, tuple[int, Any]]:
    """Return layers and loss of each cell of the table by its name."""
    found: dict[str, tuple[int, Any]] = {}
    for layers in options.layers:
        for k in options.particles:
            losses = {"VAE/reparam": px.ELBO(k)}
            losses |= {f"IWAE/{e}": px.IWAE(k, estimator=e) for e in ("reparam", "dreg")}
            for name, loss in losses.items():
                if k > 1 or not name.endswith("IWAE/reparam"):  # which is the VAE
                    found[f"{layers}/{name}/{k}"] = layers, loss
    return {name: cell for name, cell in found.items() if options.only in name}


def training_of(layers: int, loss: Any, images: Tensor, seed: int, *, compile: bool) -> Training:
    """Return model, guide and loss of a cell, not yet trained."""
    torch.manual_seed(seed)
    model = Decoder(layers, images.mean(0)).to(images.device)
    guide = Encoder(layers, images.shape[1]).to(images.device)
    return Training(model, guide, loss, adam, BATCH, compile, seed)


def cell(
    name: str,
    make: Any,
    images: Tensor,
    test: Tensor,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train a cell of the table and judge it."""
    training = make(compile=not options.eager)
    stages = schedule(len(images), options.fraction)
    folder = options.checkpoints
    path = None if folder is None else folder / f"{name.replace('/', '-')}.pt"
    train(training, images, stages, checkpoint=path)
    torch.manual_seed(options.seed + 1)
    x = test[: options.test_images]
    nll, se = negative_log_likelihood(
        training.model, training.guide, x, num_samples=options.samples
    )
    return {
        "nll": nll,
        "se": se,
        "active": active_units(training.guide, x),
        "epochs": training.step * BATCH / len(images),
        "fraction": options.fraction,
        "samples": options.samples,
        "test_images": len(x),
        "seconds": training.seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    """Compute what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=".npz of MNIST")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/iwae.json"))
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 5, 50])
    parser.add_argument("--only", default="", help="part of a cell's name, such as IWAE/dreg")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the 3,280 epochs")
    parser.add_argument("--fixed-binarization", action="store_true")
    parser.add_argument("--checkpoints", type=Path, help="folder to save to and to go on from")
    parser.add_argument("--device", type=torch.device, default="cpu", help="such as cuda")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--time", action="store_true", help="measure minutes of an epoch")
    parser.add_argument("--samples", type=int, default=5000, help="to estimate log p(x) with")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    loaded = load(options.data, fixed=options.fixed_binarization)
    images, test = (pixels.to(options.device) for pixels in loaded)
    cells = Cells(options.out)
    pixels = "fixed" if ((images == 0) | (images == 1)).all() else "dynamic"
    for name, (layers, loss) in cells_of(options).items():
        make = partial(training_of, layers, loss, images, options.seed)
        if options.time:
            cells.get(f"time/{name}", partial(cost_per_epoch, make, images))
        else:
            job = partial(cell, f"{pixels}/{name}", make, images, test, options)
            cells.get(f"{pixels}/{name}/{options.fraction:g}", job)


if __name__ == "__main__":
    main()
