"""Test accuracy with few labels: M2 and M1+M2 of lesson 6, on MNIST at full size.

Kingma et al. (2014) report test errors of 11.97 % (± 1.71) for M2 and 3.33 % (± 0.14) for M1+M2
with 100 labels of MNIST; the digits, without ``--data``, are smaller. Results are kept in a JSON
file:

    python benchmarks/semi_supervised.py --data mnist.npz --labels-per-class 10
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from _results import Cells, cpu_seconds
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import guides.vae
import pyro_ext as px
from guides.semi_supervised import M2Guide, fit_m2
from models.semi_supervised import M2, PartlyLabelled, data
from models.vae import VAE

__all__ = ["main"]


def m1(found: PartlyLabelled, options: argparse.Namespace) -> PartlyLabelled:
    """Return the standardized means of a VAE of all images, in their place."""
    everything = torch.cat([found.x_labelled, found.x_unlabelled])
    hidden = (options.hidden, options.hidden)
    vae = VAE(everything.shape[1], options.latent, hidden=hidden)
    guide = guides.vae.amortized_mean_field(vae, hidden=hidden)
    steps = _steps(len(everything), options)
    px.fit(
        vae,
        guide,
        px.ELBO(form="kl"),
        everything,
        partial(torch.optim.Adam, lr=1e-3),
        schedule=partial(CosineAnnealingLR, T_max=steps),
        num_steps=steps,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    with torch.no_grad():
        means = [guide.median(x)["z"] for x in (found[0], found[2], found[3])]
    center, scale = means[1].mean(0), means[1].std(0) + 1e-3
    known, unknown, test = ((z - center) / scale for z in means)
    return PartlyLabelled(known, found.y_labelled, unknown, test, found.y_test)


def accuracy(found: PartlyLabelled, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fit an M2 to images, or to M1's features, and classify the test set by its guide."""
    pyro.clear_param_store()
    torch.manual_seed(options.seed)
    begun = cpu_seconds()
    if kind == "M1+M2":
        found = m1(found, options)
    likelihood: Any = "gaussian" if kind == "M1+M2" else "bernoulli"
    num_features = found.x_test.shape[1]
    model = M2(num_features, options.latent, hidden=options.hidden, likelihood=likelihood)
    guide = M2Guide(model, hidden=options.hidden)
    fit_m2(
        found.x_unlabelled,
        found.x_labelled,
        found.y_labelled,
        model=model,
        guide=guide,
        weight=options.weight,
        num_steps=_steps(len(found.x_unlabelled), options),
        batch_size=options.batch_size,
        num_labelled=min(len(found.y_labelled), options.batch_size),
    )
    with torch.no_grad():
        right: Tensor = guide.classify(found.x_test).argmax(-1) == found.y_test.argmax(-1)
    return {
        "accuracy": right.double().mean().item(),
        "labels": len(found.y_labelled),
        "epochs": options.epochs,
        "test_images": len(right),
        "seconds": cpu_seconds() - begun,
    }


def _steps(num_images: int, options: argparse.Namespace) -> int:
    return max(1, round(options.epochs * num_images / options.batch_size))


def main(arguments: list[str] | None = None) -> None:
    """Compute what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help=".npz of MNIST; the 8 x 8 digits without it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/labels.json"))
    parser.add_argument("--labels-per-class", type=int, default=10)
    parser.add_argument("--epochs", type=float, default=100)
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--latent", type=int, default=50)
    parser.add_argument("--weight", type=float, default=46.0, help="of the classifier's loss")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    found = data(options.labels_per_class, path=options.data, seed=options.seed)
    cells = Cells(options.out)
    source = "digits" if options.data is None else "mnist"
    labels, epochs = len(found.y_labelled), options.epochs
    for kind in ("M2", "M1+M2"):
        name = f"{source}/{kind}/{labels} labels/{epochs:g} epochs/seed {options.seed}"
        cells.get(name, partial(accuracy, found, kind, options))


if __name__ == "__main__":
    main()
