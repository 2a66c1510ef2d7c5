"""Losses and gradients that are not finite: which step, which site, which rows; and what then."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_ext._checks import Pair
from pyro_ext._site_log_prob import site_log_prob
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.structure import sample_sites
from pyro_ext.training.badrows import nonfinite_rows
from pyro_ext.training.batches import Step
from pyro_ext.training.history import RECORD_EVERY
from pyro_ext.training.optimizers import Optimizers, values
from pyro_ext.training.stepper import Taken
from pyro_ext.weights import log_weights

__all__ = ["Blowups", "explain_nonfinite"]

_WAYS = ("raise", "skip", "halve")
_MOST = {"skip": 100, "halve": 20}


class Blowups:
    """Steps whose loss or gradient was not finite, and were left out.

    Args:
        way: ``"raise"`` an error; ``"skip"`` the step; or ``"halve"``: go back to parameters and
            optimizer of at most 50 steps before, and halve all learning rates.
        pair: Model and guide.
        loss: The loss.
        named: Parameters and buffers by name.
        restore: Lets the buffers that a step changes be what they were before it.

    Raises:
        ValueError: If ``way`` is unknown.
    """

    def __init__(
        self,
        way: str,
        pair: Pair,
        loss: BoundLoss,
        named: Mapping[str, Tensor],
        restore: Callable[[], None],
    ) -> None:
        if way not in _WAYS:
            raise ValueError(
                f"fit: expected nonfinite to be one of {list(_WAYS)}; got {way!r}. Write: "
                "nonfinite='raise'."
            )
        self._way, self._pair, self._loss, self._named = way, pair, loss, named
        self._restore = restore
        self._kept: list[tuple[Tensor, Tensor]] = []
        self.steps: list[int] = []

    def before(self, number: int, optimizers: Optimizers | None) -> None:
        """Keep what ``"halve"`` goes back to.

        Args:
            number: Number of the step that comes.
            optimizers: The optimizers, once there are some.
        """
        if self._way == "halve" and (number % RECORD_EVERY == 0 or not self._kept):
            self._keep(optimizers)

    def kept(self) -> list[Tensor]:
        """Return what ``"halve"`` goes back to, for a checkpoint."""
        return [kept for _, kept in self._kept]

    def load(self, kept: Sequence[Tensor], optimizers: Optimizers | None) -> None:
        """Take over what another run goes back to.

        Args:
            kept: What ``kept`` returned.
            optimizers: The optimizers, in the state of the other run's.
        """
        if self._way == "halve":
            self._keep(optimizers)
            # Before the first step there were no optimizers, whose tensors come last.
            self._kept = [(now, saved) for (now, _), saved in zip(self._kept, kept, strict=False)]

    def handle(self, number: int, taken: Taken, step: Step, optimizers: Optimizers | None) -> None:
        """Raise, or do what was asked for instead.

        Args:
            number: Number of the step.
            taken: What came of it.
            step: The step.
            optimizers: The optimizers.

        Raises:
            ValueError: If that was asked for, or it happens again and again.
        """
        self._restore()
        error = self._explain(number, taken, step)
        self._restore()  # the batch was run again
        if self._way == "raise":
            raise error
        self.steps.append(number)
        most = _MOST[self._way]
        again = self.steps[-most:]
        if len(again) == most and (self._way == "halve" or again[0] == number - most + 1):
            raise ValueError(
                f"{error} It happened {most} times{'' if self._way == 'halve' else ' in a row'}."
            ) from error
        if len(self.steps) == 1:
            done = "left out" if self._way == "skip" else "undone, with all rates halved"
            warnings.warn(f"{error} The step is {done}.", UserWarning, stacklevel=2)
        if self._way == "halve" and optimizers is not None:
            with torch.no_grad():
                for tensor, kept in self._kept:
                    tensor.copy_(kept)
            optimizers.halve()

    def told(self, stopped: str) -> str:
        """Return why a run stopped, with the number of steps that were left out.

        Args:
            stopped: Why it stopped.
        """
        if not self.steps:
            return stopped
        return f"{stopped}; {len(self.steps)} steps were left out as not finite"

    def _explain(self, number: int, taken: Taken, step: Step) -> ValueError:
        if taken.elsewhere is not None:
            return ValueError(
                f"fit: expected a finite loss and gradient; got others at step {number} in "
                f"process {taken.elsewhere}, whose own message says where."
            )
        with step.context:
            return explain_nonfinite(
                number, taken.loss.item(), self._pair, self._loss, step, self._named
            )

    def _keep(self, optimizers: Optimizers | None) -> None:
        tensors = list(self._named.values())
        for optimizer in [] if optimizers is None else optimizers.optimizers:
            for state in optimizer.state.values():
                tensors += [value for value in state.values() if isinstance(value, Tensor)]
        self._kept = [(tensor, tensor.detach().clone()) for tensor in tensors]


def explain_nonfinite(
    number: int,
    loss: float,
    pair: Pair,
    objective: BoundLoss,
    step: Step,
    named: Mapping[str, Tensor],
) -> ValueError:
    """Return an error that says where a loss or gradient that is not finite comes from.

    Args:
        number: Number of the step.
        loss: Its loss.
        pair: Model and guide.
        objective: The loss as an object.
        step: The step, whose context is active.
        named: Parameters by name.
    """
    model, guide, args, kwargs = pair.model, pair.guide, step.args, step.kwargs
    what = "gradient" if loss - loss == 0 else "loss"
    start = f"fit: expected a finite {what}; got {'nan' if what == 'gradient' else loss}"
    start = f"{start} at step {number}."
    end = "The step was not applied: the parameters are those of the step before."
    rows = nonfinite_rows((*args, *kwargs.values()), step.rows)
    for name, param in named.items():
        if not torch.isfinite(param).all():
            return ValueError(
                f"{start} Parameter '{name}' of shape {tuple(param.shape)} is not finite already. "
                f"Lower the learning rate, or write clip_norm=10.0. {end}"
            )
    with _first_bad_module(model, guide) as bad:
        try:
            with torch.no_grad(), pyro.validation_enabled(is_validate=True):
                weights = log_weights(model, guide, *args, joint=True, **kwargs)
        except ValueError as error:
            side = "guide" if _fails_alone(guide, args, kwargs) else "model"
            return ValueError(
                f"{start} Run again with validation, the {side} says: {error} "
                f"{_told(bad)}{rows}{end}"
            )
    for side, trace in (("guide", weights.guide_trace), ("model", weights.model_trace)):
        for name, site in sample_sites(trace):
            log_prob = site_log_prob(site)
            if torch.isfinite(log_prob).all():
                continue
            return ValueError(
                f"{start} Site '{name}' of the {side} has log_prob {log_prob.flatten()[0].item()} "
                f"under {site['fn']}. {_told(bad)}{rows}{end}"
            )
    names = _bad_gradients(pair, objective, step, named)
    if names:
        return ValueError(
            f"{start} Run again, the loss is finite, and the gradient of {names} is not: the "
            f"derivative of an operation is infinite there. Write clip_norm=10.0 or a prior that "
            f"keeps away from the edge. {rows}{end}"
        )
    return ValueError(
        f"{start} A second draw on the same batch is finite: rare draws overflow. Lower the "
        f"learning rate or init_scale. {rows}{end}"
    )


@contextmanager
def _first_bad_module(model: Any, guide: Any) -> Iterator[list[str]]:
    """Note the first module whose output is not finite though its input is."""
    found: list[str] = []
    hooks: list[Any] = []

    def watch(label: str) -> Callable[..., None]:
        def look(module: Any, inputs: Any, output: Any) -> None:
            bad = isinstance(output, Tensor) and not torch.isfinite(output).all()
            fine = all(torch.isfinite(x).all() for x in inputs if isinstance(x, Tensor))
            if bad and fine:
                found.append(label)

        return look

    seen: set[int] = set()
    for side, root in (("guide", guide), ("model", model)):
        parts = root.named_modules() if isinstance(root, torch.nn.Module) else ()
        for name, part in parts:
            if name and id(part) not in seen:
                seen.add(id(part))
                hooks.append(part.register_forward_hook(watch(f"module '{name}' of the {side}")))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _told(bad: Sequence[str]) -> str:
    return f"The first values that are not finite come out of {bad[0]}. " if bad else ""


def _fails_alone(
    guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    try:
        with torch.no_grad(), pyro.validation_enabled(is_validate=True), poutine.block():
            poutine.trace(guide).get_trace(*args, **kwargs).compute_log_prob()
    except ValueError:
        return True
    return False


def _bad_gradients(
    pair: Pair, objective: BoundLoss, step: Step, named: Mapping[str, Tensor]
) -> str:
    """Return the names of parameters whose gradient is not finite, run once more."""
    params = {name: param for name, param in named.items() if param.requires_grad}
    with pyro.validation_enabled(is_validate=False):
        value = objective.differentiable_loss(pair.model, pair.guide, *step.args, **step.kwargs)
    if not value.requires_grad:
        return ""
    grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
    bad = [
        f"'{name}'"
        for name, grad in zip(params, grads, strict=True)
        if grad is not None and not torch.isfinite(values(grad)).all()
    ]
    return ", ".join(bad)
