"""A fit while it runs: its state, and the loop over its steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from pyro_ext._checks import Pair
from pyro_ext.losses import Annealed
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.batches import Step, batches_of, count_rows
from pyro_ext.training.graphs import Graphs
from pyro_ext.training.history import RECORD_EVERY, History
from pyro_ext.training.nonfinite import explain_nonfinite
from pyro_ext.training.optimizers import Optimizers
from pyro_ext.training.parameters import find_parameters, held
from pyro_ext.training.run import Run
from pyro_ext.training.stepper import Stepper
from pyro_ext.training.store import OwnedEntries

__all__ = ["Session", "Settings"]

_ORDER = 2**32  # between the seed of a run and that of its order of rows


@dataclass(frozen=True)
class Settings:
    """What a user asked of a fit, see ``fit``."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: BoundLoss
    args: tuple[Any, ...]
    optim: Callable[[list[Tensor]], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None
    num_steps: int
    batch_size: int | None
    plate: str | None
    train: str
    clip_norm: float | None
    compile: str | bool
    deterministic: bool
    seed: int
    progress: bool

    @property
    def devices(self) -> list[int]:
        """The GPUs that the data are on."""
        return sorted(
            {a.device.index or 0 for a in self.args if isinstance(a, Tensor) and a.is_cuda}
        )


class Session:
    """The state of a fit between two steps.

    Args:
        settings: What was asked for.

    Raises:
        ValueError: If there is nothing to train, or data and batch size do not fit.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.number, self.seconds, self.stopped = 0, 0.0, ""
        self._bar: tqdm[Any] | None = None
        model, guide, loss, args = settings.model, settings.guide, settings.loss, settings.args
        self._random: list[Tensor] = []
        self._store = OwnedEntries(model, guide)
        with self._isolated(), self._store.entered():
            torch.manual_seed(settings.seed)
            if isinstance(loss, Annealed):
                loss.start(settings.num_steps)
            pair = Pair(model, guide, args, {})
            self.params = find_parameters(pair, loss, settings.train)
            plate = settings.plate or getattr(guide, "plate", None)
            self.history = History(loss, count_rows(pair, plate), settings.devices)
            self.batches = batches_of(
                model, args, settings.batch_size, plate, settings.seed + _ORDER
            )
            trained = self.params.trained
            make = partial(
                Optimizers,
                settings.optim,
                settings.schedule,
                trained,
                clip_norm=settings.clip_norm,
            )
            graphs = Graphs(
                (model, guide, loss),
                trained,
                compile=settings.compile,
                deterministic=settings.deterministic,
                say=self._say,
            )
            self.stepper = Stepper(model, guide, loss, trained, make, graphs)

    def train(self) -> None:
        """Take the steps that are left.

        Raises:
            ValueError: If a loss or gradient is not finite.
        """
        start = time.perf_counter()
        bar = tqdm(
            total=self.settings.num_steps,
            initial=self.number,
            desc="fit",
            leave=False,
            disable=None if self.settings.progress else True,
        )
        with self._isolated(), self._store.entered(), held(self.params.held), bar:
            self._bar = bar
            while self.number < self.settings.num_steps:
                self._take(next(self.batches))
                bar.update()
        self.seconds += time.perf_counter() - start
        self.stopped = f"num_steps={self.settings.num_steps} reached"

    def run(self) -> Run:
        """Return the fitted guide with its history."""
        settings, history = self.settings, self.history
        return Run(
            settings.model,
            settings.guide,
            settings.loss,
            settings.args,
            torch.stack(history.losses).cpu().double().numpy(),
            self.seconds,
            settings.seed,
            self.stopped,
            np.array(history.elbos) / history.num_data,
            np.array(history.elbo_steps, dtype=np.int64),
            history.num_data,
            compiled=self.stepper.graphs.told,
        )

    def _take(self, step: Step) -> None:
        settings, number = self.settings, self.number
        loss, left = settings.loss, settings.num_steps - number
        if isinstance(loss, Annealed):
            loss.step = number
        self.history.before(number, settings.model, settings.guide, step, last=left == 1)
        taken = self.stepper.take(step, number, left)
        if not taken.applied:
            value = taken.loss.item()
            with step.context:
                raise explain_nonfinite(
                    number,
                    value,
                    settings.model,
                    settings.guide,
                    step.args,
                    step.rows,
                    self.params.trained,
                )
        self.history.after(number, taken.loss)
        if number % RECORD_EVERY == 0 and self._bar is not None:
            self._bar.set_postfix(loss=f"{taken.loss.item():.2f}")
        self.number += 1

    def _say(self, what: str | None) -> None:
        if self._bar is not None:
            self._bar.set_description(what or "fit")

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        """Leave the caller's random state as it was, and go on with the fit's own."""
        with torch.random.fork_rng(devices=self.settings.devices):
            if self._random:
                self._set_random(self._random)
            try:
                yield
            finally:
                self._random = self._get_random()

    def _get_random(self) -> list[Tensor]:
        cuda = [torch.cuda.get_rng_state(device) for device in self.settings.devices]
        return [torch.get_rng_state(), *cuda]

    def _set_random(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.settings.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)
