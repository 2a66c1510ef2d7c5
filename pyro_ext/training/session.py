"""A fit while it runs: its state, and the loop over its steps."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from pyro_ext._checks import Pair
from pyro_ext._progress import hidden
from pyro_ext._run import held
from pyro_ext.losses import Annealed
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.batches import Batches, Step, batches_of, told_rows
from pyro_ext.training.callbacks import Progress
from pyro_ext.training.checkpoints import Checkpoints
from pyro_ext.training.compiled.builder import buffers
from pyro_ext.training.compiled.proof import unchanged
from pyro_ext.training.graphs import Graphs
from pyro_ext.training.history import RECORD_EVERY, History
from pyro_ext.training.holdout import anneals_a_share
from pyro_ext.training.loader import LoaderBatches, loader_in, told_of
from pyro_ext.training.memory import Chunks
from pyro_ext.training.moving import MovingBuffers
from pyro_ext.training.nonfinite import Blowups
from pyro_ext.training.optimizers import Optimizers
from pyro_ext.training.parameters import find_parameters, optimizer_by_side
from pyro_ext.training.randomness import get_random, set_random
from pyro_ext.training.run import Run
from pyro_ext.training.settings import Settings
from pyro_ext.training.signals import Signals
from pyro_ext.training.snapshot import (
    check_asked,
    check_tensors,
    digest,
    load_tensors,
    named_tensors,
)
from pyro_ext.training.stepper import Stepper, Taken
from pyro_ext.training.store import OwnedEntries

__all__ = ["Session"]

_ORDER = 2**32  # between the seed of a run and that of its order of rows
_RANK = 2**33  # between the seeds of the noise of two processes


class Session:
    """The state of a fit between two steps.

    Args:
        settings: What was asked for.

    Raises:
        ValueError: If there is nothing to train, data and batch size do not fit, or a checkpoint
            cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.number, self.num_steps, self.seconds = 0, settings.num_steps, 0.0
        self.stopped: str | None = None
        self._bar: tqdm[Any] | None = None
        self._random: dict[str, Any] | None = None
        model, guide, args = settings.model, settings.guide, settings.args
        self._store = OwnedEntries(model, guide)
        self._chunks = Chunks(settings.loss, settings.chunk)
        loss, ranks = self._chunks.loss, settings.ranks
        self._ranks, self._fresh, self._readable = ranks, True, settings.checkpoints is None
        if ranks.size > 1 and not loss.needs_density:
            raise ValueError(
                f"fit: expected a loss without a critic in {ranks.size} processes, each of which "
                f"would train one of its own; got {loss!r}. Write: one process."
            )
        with self._isolated(), self._store.entered():
            torch.manual_seed(settings.seed)
            if isinstance(loss, Annealed):
                loss.start(settings.num_steps)
            loader, dealt = loader_in(args), None
            if loader is not None:
                dealt = LoaderBatches(model, guide, loader, settings.plate, ranks)
            first = Step(args) if dealt is None else dealt.first
            pair = Pair(model, guide, first.args, first.kwargs)
            with first.context:
                self.params = self._chunks.run(
                    partial(find_parameters, pair, train=settings.train), settings.devices
                )
            loss = self._chunks.loss
            trained = self.params.trained
            plate = settings.plate or getattr(guide, "plate", None)
            changing = buffers((model, guide, loss))
            num_data = told_rows(pair, plate) or 1 if dealt is None else dealt.num_data
            self._changing, ranks.trained = changing, trained
            still = partial(unchanged, changing, trained[0].device)
            self.history = History(loss, num_data, still, ranks)
            order = settings.seed + _ORDER
            self.batches: Batches = (
                batches_of(model, args, settings.batch_size, plate, order, ranks)
                if dealt is None
                else dealt
            )
            optim = settings.optim
            if isinstance(optim, Mapping):
                optim = optimizer_by_side(optim, pair)
            make = partial(
                Optimizers,
                optim,
                settings.schedule,
                trained,
                clip_norm=settings.clip_norm,
                average=ranks.average if ranks.size > 1 else None,
            )
            graphs = Graphs(
                (model, guide, loss),
                trained,
                compile=settings.compile,
                deterministic=settings.deterministic,
                say=self._say,
            )
            self.stepper = Stepper(model, guide, loss, trained, make, graphs, ranks)
            every = (*trained, *self.params.held)
            self._named = named_tensors(model, guide, loss, every)
            self._moving = MovingBuffers()
            restore = self._moving.restore
            self._blowups = Blowups(settings.nonfinite, pair, loss, self._named, restore)
            if settings.holdout is not None:
                self._num_held_out = settings.holdout.count(model, guide, plate)
            if changing:
                self._rehearse(still)
            self._start_together()
            if settings.checkpoints is not None:
                self._take_up(settings.checkpoints)

    def train(self) -> None:
        """Take the steps that are left.

        Raises:
            ValueError: If a loss or gradient is not finite.
        """
        start = time.perf_counter() - self.seconds
        checkpoints, saved = self.settings.checkpoints, self.number
        bar = tqdm(
            total=self.num_steps,
            initial=self.number,
            desc="fit",
            leave=False,
            disable=hidden(wanted=self.settings.progress and self._ranks.rank == 0),
        )
        still = held(self.params.held)
        signals = Signals(wanted=checkpoints is not None)
        with signals, self._isolated(), self._store.entered(), still, bar:
            self._bar = bar
            if self._fresh:
                self._save()
            while self.stopped is None and self.number < self.num_steps:
                self._step(next(self.batches))
                self.seconds = time.perf_counter() - start
                bar.update()
                if checkpoints is not None:
                    self._check_readable(checkpoints)
                    end = self._ranks.largest(signals.received)[0]
                    if self.number % checkpoints.every == 0 or end:
                        self._save()
                        saved = self.number
                    if end:
                        signals.received = end
                        break
            if self.stopped is None and not signals.received:
                self.stopped = f"num_steps={self.num_steps} reached"
            if saved != self.number:
                self._save()

    def resume(self, num_steps: int) -> None:
        """Take further steps.

        Args:
            num_steps: Number of steps beyond those that were taken.
        """
        self.stopped, self.num_steps = None, self.number + num_steps
        self.history.go_on()
        self.train()

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
            self._blowups.told(self.stopped or "told to end by a signal"),
            np.array(history.elbos) / history.num_data,
            np.array(history.elbo_steps, dtype=np.int64),
            history.num_data,
            compiled=self.stepper.graphs.told,
            holdout_per_datum=np.array(history.holdout),
            holdout_steps=np.array(history.holdout_steps, dtype=np.int64),
            session=self,
        )

    def _step(self, step: Step) -> None:
        settings, number = self.settings, self.number
        last = number == self.num_steps - 1
        self._tell_time()
        self.history.before(number, settings.model, settings.guide, step, last=last)
        self._blowups.before(number, self.stepper.optimizers)
        self._moving.keep()
        taken = self._take(step)
        if not taken.applied:
            self._blowups.handle(number, taken, step, self.stepper.optimizers)
        self.history.after(number, taken.loss)
        self.number += 1
        if number % RECORD_EVERY == 0 and self._bar is not None and not self._bar.disable:
            self._bar.set_postfix(self.history.shown())
        holdout, plateau = settings.holdout, settings.plateau
        if holdout is not None and (self.number % holdout.every == 0 or last):
            self.history.holdout.append(
                holdout.evaluate(
                    settings.model, settings.guide, self._chunks.loss, settings.devices
                )
                / self._num_held_out
            )
            self.history.holdout_steps.append(number)
        if plateau is not None:
            self.stopped = plateau.reached(self.history, settings.loss, self._blowups.steps)
        self._call_back(Progress(number, self.num_steps, self.history))
        if self._changing:
            self._ranks.broadcast(self._changing)

    def _call_back(self, progress: Progress) -> None:
        """Call the callbacks, in the process that shows and writes what comes of the fit."""
        if not (callbacks := self.settings.callbacks):
            return
        with torch.random.fork_rng(devices=self.settings.devices):  # a look changes nothing
            told = [callback(progress) for callback in callbacks if self._ranks.rank == 0]
        for answer in told:
            if not (answer is None or isinstance(answer, str)):
                raise TypeError(
                    "fit: expected a callback to return None, or a text that stops the fit; got "
                    f"{answer!r}. Write: return 'why' to stop, or return None."
                )
        first = next(filter(None, told), None)
        if self._ranks.largest(first is not None)[0]:
            self.stopped = self.stopped or self._ranks.gather(first)[0]

    def _tell_time(self) -> None:
        """Let an annealed loss be at this step of this run: other runs may have it, too."""
        for loss in (self.settings.loss, self._chunks.loss):
            if isinstance(loss, Annealed):
                loss.step, loss.total = self.number, self.settings.num_steps

    def _take(self, step: Step) -> Taken:
        """Take a step, with fewer particles at once if there is not the memory for all."""

        def act(loss: BoundLoss) -> Taken:
            self._tell_time()
            return self.stepper.take(step, self.number, self.num_steps - self.number)

        return self._chunks.run(act, self.settings.devices, self.stepper.change_loss)

    def _save(self) -> None:
        """Save once for all processes."""
        checkpoints, self._fresh = self.settings.checkpoints, False
        if checkpoints is None:
            return
        state = self._state()
        if self._ranks.rank == 0:
            checkpoints.save(self.number, state)

    def _check_readable(self, checkpoints: Checkpoints) -> None:
        """Look once whether checkpoints can be read, rather than when the first one is needed."""
        if not self._readable and self.stepper.optimizers is not None:
            loss = self._chunks.loss.training_state()
            checkpoints.check({"stepper": self.stepper.state(), "loss": loss})
            self._readable = True

    def _state(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "asked": self._asked(),
            "tensors": {name: tensor.detach() for name, tensor in self._named.items()},
            "stepper": self.stepper.state(),
            "loss": self._chunks.loss.training_state(),
            "batches": self.batches.state(),
            "history": self.history.state(),
            "blowups": self._blowups.steps,
            "kept": self._blowups.kept(),
            "chunk": self._chunks.size,
            "random": self._ranks.gather(get_random(self.settings.devices)),
        }

    def _asked(self) -> dict[str, Any]:
        """Return what another fit must have in common with this one to go on with it."""
        settings = self.settings
        asked = {
            "loss": repr(settings.loss),
            "data": digest(settings.args),
            "batch_size": settings.batch_size,
            "train": settings.train,
            "clip_norm": settings.clip_norm,
            "seed": settings.seed,
            **({} if (loader := loader_in(settings.args)) is None else told_of(loader)),
            "schedule": "none" if settings.schedule is None else "one of learning rates",
        }
        # A schedule is made for a number of steps.
        made_for_a_number = settings.schedule is not None or anneals_a_share(settings.loss)
        return asked | {"num_steps": settings.num_steps} if made_for_a_number else asked

    def _take_up(self, checkpoints: Checkpoints) -> None:
        found = checkpoints.last()
        self._ranks.check_same(
            "the last checkpoint",
            None if found is None else found[0].name,
            "a folder that all of them see",
        )
        if found is None:
            return
        (path, state), self._fresh = found, False
        asked = self._asked()
        # What an older file does not tell is taken to be the same.
        check_asked({**asked, **state["asked"]}, asked, f"fit: {path}")
        check_tensors(self._named, state["tensors"], f"fit: {path}")
        if self._chunks.adopt(state["chunk"]):
            self.stepper.change_loss(self._chunks.loss)
        self.stepper.load(state["stepper"], f"fit: {path}")
        load_tensors(self._named, state["tensors"], f"fit: {path}")
        self.number, self.seconds, self.stopped = (
            state["number"],
            state["seconds"],
            state["stopped"],
        )
        if self.number < self.num_steps and (self.stopped or "").startswith("num_steps"):
            self.stopped = None
        self._chunks.loss.load_training_state(state["loss"])
        self.batches.load(state["batches"])
        self.history.load(state["history"])
        if self.number < self.num_steps:
            self.history.go_on()
        self._blowups.steps = list(state["blowups"])
        self._blowups.load(state.get("kept", ()), self.stepper.optimizers)
        rank, states = self._ranks.rank, state["random"]
        if rank < len(states):
            set_random(states[rank], self.settings.devices)
        else:  # there are more processes than before
            torch.manual_seed(self.settings.seed + rank * _RANK + self.number)

    def _start_together(self) -> None:
        """Let all processes have the same data and first parameters, and noise of their own."""
        ranks = self._ranks
        if ranks.size == 1:
            return
        ranks.check_same(
            "the data",
            digest(self.settings.args),
            "px.fit(model, guide, loss, x) with all rows; each process takes its part",
        )
        ranks.broadcast(list(self._named.values()))
        if ranks.rank > 0:
            torch.manual_seed(self.settings.seed + ranks.rank * _RANK)

    def _rehearse(self, unchanged: Callable[[], AbstractContextManager[None]]) -> None:
        """Let the plates be found now, which runs the modules, so that no buffer counts it."""
        settings, start = self.settings, self.batches.state()
        loss, learned = self._chunks.loss, self._chunks.loss.training_state()
        step = next(self.batches)
        moving = self._moving.found(self._changing)
        with unchanged(), moving, held(self.params.held), step.context:
            loss.differentiable_loss(settings.model, settings.guide, *step.args, **step.kwargs)
        loss.load_training_state(learned)
        self.batches.load(start)

    def _say(self, what: str | None) -> None:
        if self._bar is not None:
            self._bar.set_description(what or "fit")

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        """Leave the caller's random states as they were, and go on with the fit's own.

        Gradients are on, also within a caller's ``torch.no_grad()``.
        """
        devices = self.settings.devices
        before = get_random(devices)
        if self._random is not None:
            set_random(self._random, devices)
        try:
            with torch.enable_grad():
                yield
        finally:
            self._random = get_random(devices)
            set_random(before, devices)
