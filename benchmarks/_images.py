"""Training on binary images that can be taken up again, and how a model of them is judged."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import cpu_seconds
from pyro import poutine
from torch import Tensor, nn
from tqdm.auto import tqdm

import pyro_ext as px
from models.vae import data
from pyro_ext.structure import is_random, sample_sites

__all__ = [
    "Stage",
    "Training",
    "active_units",
    "cost_per_epoch",
    "load",
    "negative_log_likelihood",
    "seconds_on",
    "train",
]

Step = Callable[[Tensor], float]


@dataclass(frozen=True)
class Stage:
    """Steps with one learning rate."""

    num_steps: int
    lr: float


@dataclass
class Training:
    """What is trained, and how.

    Args:
        model: A Pyro model that is a module.
        guide: Its guide, a module.
        loss: The loss.
        adam: From a list of parameters to the optimizer.
        batch_size: Images of a step.
        compile: Whether the step is compiled.
        seed: Seed of the order of images, of their pixels and of the guide's noise.
    """

    model: nn.Module
    guide: nn.Module
    loss: Any
    adam: Callable[[list[Tensor]], torch.optim.Optimizer]
    batch_size: int
    compile: bool = True
    seed: int = 0
    step: int = 0
    seconds: float = 0.0
    svi: px.CompiledSVI = field(init=False)
    _lr: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.svi = self._svi({})
        torch.manual_seed(self.seed)

    def _svi(self, state: dict[str, Any]) -> px.CompiledSVI:
        def adam(params: list[Tensor]) -> torch.optim.Optimizer:
            made = self.adam(params)
            if state:
                made.load_state_dict(state["optimizer"])
            made.param_groups[0]["lr"] = self._lr
            return made

        return px.CompiledSVI(
            self.model, self.guide, adam, self.loss, compile=self.compile, max_graphs=1
        )

    def take(self, x: Tensor, lr: float) -> float:
        """Take a step and return the loss.

        Args:
            x: Binary images, shape ``(batch_size, pixels)``.
            lr: Learning rate.
        """
        self._lr = lr
        if self.svi.optimizer is not None:
            self.svi.optimizer.param_groups[0]["lr"] = lr
        self.step += 1
        return self.svi.step(x)

    def save(self, path: Path) -> None:
        """Save parameters, optimizer, position and random state."""
        assert self.svi.optimizer is not None
        state = {
            "model": self.model.state_dict(),
            "guide": self.guide.state_dict(),
            "optimizer": self.svi.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state_all(),
            "step": self.step,
            "seconds": self.seconds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Go on from what was saved."""
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state["model"])
        self.guide.load_state_dict(state["guide"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.svi = self._svi(state)
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_gpu"])


def load(path: Path | None, *, fixed: bool, num_validation: int = 400) -> tuple[Tensor, Tensor]:
    """Return images to train on, grey or binary, and binary ones to test on.

    Args:
        path: MNIST (``x_train``, ``x_test``), or Larochelle's fixed binarization (``train``,
            ``test``, bits packed along rows); None for the 8 x 8 digits.
        fixed: Whether the pixels of training images are drawn once, not at each step.
        num_validation: Last images of MNIST's training set, which are left out.
    """
    if path is not None:
        with np.load(path) as file:
            if "train" in file.files:
                bits = (np.unpackbits(file[name], axis=1) for name in ("train", "test"))
                train, test = (torch.from_numpy(b).float() for b in bits)
                return train, test
    source: dict[str, Any] = {} if path is None else {"source": "mnist", "path": path}
    grey, binary = data(**source, binarize=False), data(**source)
    train = binary.train if fixed else grey.train
    return train[: len(train) - num_validation] if path is not None else train, binary.held_out


def train(
    training: Training,
    images: Tensor,
    stages: Iterable[Stage],
    *,
    checkpoint: Path | None = None,
    every: int = 3000,
) -> None:
    """Take the steps of all stages that are not taken yet.

    Pixels are Bernoulli draws of grey levels, drawn again at each step.

    Args:
        training: What is trained.
        images: Shape ``(images, pixels)``, in [0, 1].
        stages: Numbers of steps and learning rates, in turn.
        checkpoint: File to save to every so many steps, and to go on from.
        every: Number of steps between two checkpoints.
    """
    if checkpoint is not None and checkpoint.exists():
        training.load(checkpoint)
    rates = [rate for stage in stages for rate in [stage.lr] * stage.num_steps]
    size = training.batch_size
    per_epoch = len(images) // size
    epoch, order = -1, torch.empty(0, dtype=torch.long, device="cpu")
    bar = tqdm(total=len(rates), initial=training.step, disable=None)
    while training.step < len(rates):
        begun = seconds_on(images.device)
        for _ in range(min(every - training.step % every, len(rates) - training.step)):
            if epoch != training.step // per_epoch:
                epoch = training.step // per_epoch
                generator = torch.Generator("cpu").manual_seed(training.seed + epoch)
                order = torch.randperm(len(images), generator=generator, device="cpu")
            first = training.step % per_epoch * size
            x = torch.bernoulli(images[order[first : first + size]])
            loss = training.take(x, rates[training.step])
            bar.update()
        training.seconds += seconds_on(images.device) - begun
        bar.set_postfix(loss=f"{loss / size:.2f}")
        if checkpoint is not None:
            training.save(checkpoint)
    bar.close()


def seconds_on(device: torch.device) -> float:
    """Return processor time; on a GPU the time of day, once it has done what it was given.

    Args:
        device: Where the work is done.
    """
    if device.type != "cuda":
        return cpu_seconds()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def cost_per_epoch(
    make: Callable[..., Training], images: Tensor, *, rounds: int = 5, num_steps: int = 20
) -> dict[str, float]:
    """Return minutes of an epoch of eager and of compiled steps, and seconds to compile.

    Rounds of the two take turns; the fastest one counts.

    Args:
        make: From whether to compile to what is trained.
        images: Shape ``(images, pixels)``.
        rounds: Number of rounds of each.
        num_steps: Steps of a round.
    """
    found: dict[str, float] = {}
    steps: dict[str, Step] = {}
    for name, compile in (("eager", False), ("compiled", True)):
        training = make(compile=compile)
        x = torch.bernoulli(images[: training.batch_size])
        training.svi.step(x)
        begun = seconds_on(images.device)
        training.svi.step(x)
        found["compile_seconds"] = seconds_on(images.device) - begun
        steps[name] = training.svi.step
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begun = seconds_on(images.device)
            for _ in range(num_steps):
                step(x)
            times[name].append((seconds_on(images.device) - begun) / num_steps)
    per_epoch = len(images) // len(x)
    return found | {name: min(seconds) * per_epoch / 60 for name, seconds in times.items()}


@torch.no_grad()
def negative_log_likelihood(
    model: nn.Module,
    guide: nn.Module,
    x: Tensor,
    *,
    num_samples: int = 5000,
    rows: int = 50,
    particles: int = 500,
) -> tuple[float, float]:
    """Return minus the importance weighted bound in nats per image, and its error over images.

    Args:
        model: The model.
        guide: Its guide.
        x: Images, shape ``(images, pixels)``.
        num_samples: Draws of each image.
        rows: Images at once.
        particles: Draws at once.
    """
    found = []
    for part in tqdm(x.split(rows), desc="log p(x)", disable=None):
        sums, left = [], num_samples
        while left > 0:
            weights = px.log_weights(model, guide, part, num_particles=min(left, particles))
            sums.append(weights.terms[0].log_w.logsumexp(0))
            left -= particles
        found.append(math.log(num_samples) - torch.stack(sums).logsumexp(0))
    nats = torch.cat(found).double()
    return nats.mean().item(), (nats.std() / math.sqrt(len(nats))).item()


@torch.no_grad()
def active_units(guide: nn.Module, x: Tensor, *, num_draws: int = 50) -> list[int]:
    """Return how many units of each latent are active: Var over x of E_q[z | x] above 0.01.

    Args:
        guide: The guide; its sites are normal.
        x: Images.
        num_draws: Draws of the layers below, over which conditional means are averaged.
    """
    means: dict[str, Tensor] = {}
    for _ in range(num_draws):
        trace = poutine.trace(guide).get_trace(x)
        for name, site in sample_sites(trace):
            if is_random(site):
                means[name] = means.get(name, torch.zeros(())) + site["fn"].mean / num_draws
    return [int((mean.var(0) > 0.01).sum()) for _, mean in sorted(means.items())]
