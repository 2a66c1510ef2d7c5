"""The parameters that a fit trains, and those that it holds still."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from torch import Tensor
from torch.optim import Optimizer

from pyro_ext._checks import Pair
from pyro_ext._modules import of_stored_modules
from pyro_ext._run import replayed_model, traces
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.structure import trace_params, trainable
from pyro_ext.training.badrows import nonfinite_rows
from pyro_ext.training.batches import check_call
from pyro_ext.training.compiled.checked import checked_optimizer

__all__ = [
    "TRAIN",
    "Parameters",
    "check_none_new",
    "find_parameters",
    "optimizer_by_side",
]

TRAIN = ("both", "model", "guide")


@dataclass(frozen=True)
class Parameters:
    """All trainable tensors of a pair.

    Args:
        trained: What the optimizer gets.
        held: What stays as it is.
    """

    trained: list[Tensor]
    held: list[Tensor]


def find_parameters(pair: Pair, loss: BoundLoss, train: str) -> Parameters:
    """Run the loss once on all rows, so that every parameter exists, and split them.

    Args:
        pair: Model, guide and the model's full-data arguments.
        loss: The loss.
        train: ``"both"``, ``"model"`` or ``"guide"``.

    Raises:
        TypeError: If the model cannot be called with the arguments.
        ValueError: If there is nothing to train, ``train`` is unknown, or Pyro's store has another
            module under a name.
    """
    if train not in TRAIN:
        raise ValueError(
            f"fit: expected train to be one of {list(TRAIN)}; got {train!r}. Write: train='both'."
        )
    with poutine.trace(param_only=True) as capture:
        try:
            compute = partial(loss.differentiable_loss, pair.model, pair.guide)
            of_stored_modules(lambda: compute(*pair.args, **pair.kwargs))
        except TypeError as error:
            check_call(pair.model, pair.args, pair.kwargs, error)
            raise
        except ValueError as error:
            rows = nonfinite_rows((*pair.args, *pair.kwargs.values()), None)
            if not rows:
                raise
            raise ValueError(f"fit: before the first step, {error} {rows}") from error
    every = trainable(
        [*trace_params(capture.trace), *_of_module(pair.model), *_of_module(pair.guide)]
    )
    trained = every if train == "both" else _side(pair, train, every)
    if not trained:
        whose = "model and guide" if train == "both" else f"the {train}"
        raise ValueError(
            f"fit: expected a parameter to fit; got none in {whose}. Write: "
            "px.fit(model, px.AutoJoint(model), data=...)."
        )
    chosen = {id(param) for param in trained}
    return Parameters(trained, [param for param in every if id(param) not in chosen])


def check_none_new(known: int, trained: list[Tensor]) -> None:
    """Raise if a step has made a parameter, which no optimizer knows.

    Args:
        known: Number of parameters in Pyro's store before the step.
        trained: The trained parameters.

    Raises:
        ValueError: If there is a new one; the message names it.
    """
    stored = pyro.get_param_store()._params
    if len(stored) == known:
        return
    ids = {id(param) for param in trained}
    for name, param in list(stored.items())[known:]:
        if param.requires_grad and id(param) not in ids:
            raise ValueError(
                "fit: expected each parameter to be there from the first step on; got "
                f"'{name}' later, which would never be trained. Write: pyro.param('{name}', ...) "
                "before the first branch of the model, whatever the batch."
            )


def optimizer_by_side(
    optims: Mapping[str, Callable[[list[Tensor]], Optimizer]], pair: Pair
) -> Callable[[list[Tensor]], Optimizer]:
    """Return one function to an optimizer, whose groups have the options of model and guide.

    Args:
        optims: For ``"model"`` and for ``"guide"``, from parameters to a torch optimizer.
        pair: Model, guide and the model's full-data arguments.

    Raises:
        ValueError: If there are other keys, model and guide share a parameter, or the optimizers
            are of different kinds.
    """
    if set(optims) != {"model", "guide"}:
        raise ValueError(
            f"fit: expected optim for 'model' and 'guide'; got {sorted(optims)}. Write: "
            "optim={'model': f, 'guide': g}."
        )

    def both(params: list[Tensor]) -> Optimizer:
        ours = {id(param) for param in _side(pair, "model", params)}
        parts = {
            "model": [param for param in params if id(param) in ours],
            "guide": [param for param in params if id(param) not in ours],
        }
        made = [
            checked_optimizer(optims[side](part), "fit") for side, part in parts.items() if part
        ]
        kinds = {type(optimizer) for optimizer in made}
        if len(kinds) > 1:
            names = sorted(kind.__name__ for kind in kinds)
            raise ValueError(
                f"fit: expected optimizers of one kind for model and guide; got {names}. Write: "
                "one kind with other options, or fits with train='model' and train='guide'."
            )
        groups = [group for optimizer in made for group in optimizer.param_groups]
        kind: Any = type(made[0])
        joint: Optimizer = kind(groups)
        return joint

    return both


def _side(pair: Pair, train: str, every: list[Tensor]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        model_trace, guide_trace = traces(pair)
        if messenger := isinstance(poutine.unwrap(pair.guide), GuideMessenger):
            model_trace = replayed_model(pair, guide_trace)
    of_model, of_guide = ({id(p) for p in trace_params(t)} for t in (model_trace, guide_trace))
    if messenger:  # it runs the model inside
        of_guide = {id(param) for param in every} - of_model
    shared = of_model & of_guide
    if shared:
        shapes = [tuple(param.shape) for param in every if id(param) in shared]
        raise ValueError(
            f"fit: expected model and guide to share no parameter with train={train!r}; got "
            f"{len(shared)} that both have, of shapes {shapes}. Write: train='both'."
        )
    # A module may hold the other one as a part.
    of_model |= {id(param) for param in _of_module(pair.model)} - of_guide
    of_guide |= {id(param) for param in _of_module(pair.guide)} - of_model
    chosen = of_model if train == "model" else of_guide
    return [param for param in every if id(param) in chosen]


def _of_module(fn: Any) -> list[Tensor]:
    return list(fn.parameters()) if isinstance(fn, torch.nn.Module) else []
