"""One step of a fit: eager, or by the graph where there is one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.batches import Step
from pyro_ext.training.compiled.nonfinite import all_finite
from pyro_ext.training.graphs import Graphs
from pyro_ext.training.optimizers import Optimizers, values
from pyro_ext.training.parameters import check_none_new
from pyro_ext.training.ranks import Ranks

__all__ = ["Stepper", "Taken"]


@dataclass(frozen=True)
class Taken:
    """A step that was taken.

    Args:
        loss: Its loss.
        applied: Whether loss and gradient were finite; if not, nothing was changed.
        elsewhere: Another process where they were not, if they were here.
    """

    loss: Tensor
    applied: bool
    elsewhere: int | None = None


class Stepper:
    """Takes the steps of a fit.

    Args:
        model: The model.
        guide: Its guide.
        loss: The loss.
        params: The trained parameters.
        make_optimizers: Makes the optimizers, once there are gradients.
        graphs: The graph of the step.
        ranks: The processes.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: BoundLoss,
        params: list[Tensor],
        make_optimizers: Callable[..., Optimizers],
        graphs: Graphs,
        ranks: Ranks,
    ) -> None:
        self._model, self._guide, self._loss = model, guide, loss
        self._params, self._make_optimizers = params, make_optimizers
        self.graphs, self._ranks = graphs, ranks
        self.optimizers: Optimizers | None = None
        self._checked = False

    def take(self, step: Step, number: int, left: int) -> Taken:
        """Take a step.

        Args:
            step: The step.
            number: Its number.
            left: Number of steps that are left, with this one.

        Raises:
            ValueError: If the loss has no gradient, or depends on a parameter that came late.
        """
        graphs, optimizers = self.graphs, self.optimizers
        self._ranks.share = step.share
        torch.clear_autocast_cache()  # of the weights as they were before the last step
        graphs.prepare(step, optimizers, number, left)
        tensors = graphs.tensors(step)
        if tensors is None or graphs.built is None or optimizers is None:
            with graphs.watching():
                return self._eager(step)
        before = int(graphs.skipped)
        value = graphs.built.take(tensors)
        applied = int(graphs.skipped) == before
        if applied:
            optimizers.step_schedules()
        return Taken(value, applied, self._ranks.elsewhere)

    def change_loss(self, loss: BoundLoss) -> None:
        """Go on with another loss of the same value.

        Args:
            loss: The loss.
        """
        self._loss = loss
        self.graphs.change_loss(loss)

    def state(self) -> dict[str, Any]:
        """Return the state of the optimizers, and whether there is a graph."""
        optimizers = None if self.optimizers is None else self.optimizers.state()
        return {"optimizers": optimizers, "graphs": self.graphs.state()}

    def load(self, state: dict[str, Any], what: str) -> None:
        """Take over the state of another stepper.

        Args:
            state: What ``state`` returned.
            what: The file that it comes from, for messages.

        Raises:
            DamagedFile: If it had other optimizers.
        """
        self.graphs.load(state["graphs"])
        if state["optimizers"] is not None:
            self.optimizers = self._make_optimizers(sparse=state["optimizers"]["sparse"])
            self.optimizers.load(state["optimizers"], what)

    def _eager(self, step: Step) -> Taken:
        validate, self._checked = not self._checked, True
        for param in self._params:
            param.grad = None
        known = len(pyro.get_param_store()._params)
        with pyro.validation_enabled(validate), step.context:
            loss = partial(self._loss.differentiable_loss, self._model, self._guide)
            value = loss(*step.args, **step.kwargs)
            check_none_new(known, self._params)
            finite = math.isfinite(value.item())
            if finite or self._ranks.size > 1:  # the others wait for a gradient
                if not value.requires_grad:
                    raise ValueError(
                        "fit: expected a loss with a gradient for what is trained; got "
                        f"{self._loss!r}, which gives the model none. Write: train='guide'."
                    )
                value.backward()
        joint, finite = self._averaged(value, finite=finite)
        # Only a gradient tells whether it is sparse.
        if self.optimizers is None and math.isfinite(joint.item()):
            self.optimizers = self._make_optimizers()
        if finite and self.optimizers is not None:
            self.optimizers.step()
        return Taken(joint, finite, self._ranks.elsewhere)

    def _averaged(self, value: Tensor, *, finite: bool) -> tuple[Tensor, bool]:
        """Let the parameters have the gradient of all processes; return its loss."""
        grads = [param.grad for param in self._params]
        given = [values(grad) for grad in grads if grad is not None]
        finite = finite and (not given or all_finite(given))
        loss, averaged, finite = self._ranks.average(value, self._params, grads, finite=finite)
        if self._ranks.size > 1:
            for param, grad in zip(self._params, averaged, strict=True):
                param.grad = grad
        return loss, finite
