"""The state of one optimizer of all parameters, as Pyro's optimizers save and load it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.optim import _get_state_dict, _load_state_dict
from torch import Tensor
from torch.optim import Optimizer

from pyro_ext.training.compiled.clipped_adam import ClippedAdam

__all__ = ["Saved", "own", "restore", "restore_schedule", "take_up"]

Saved = Mapping[Tensor, dict[str, Any]]


def take_up(spec: PyroOptim, params: Sequence[Tensor]) -> dict[Tensor, dict[str, Any]]:
    """Return what a Pyro optimizer was loaded with for parameters, or knows of them.

    Args:
        spec: The optimizer, which has the first no longer.
        params: Parameters.
    """
    store, found = pyro.get_param_store(), {}
    for param in params:
        name = store.param_name(param)
        saved = spec._state_waiting_to_be_consumed.pop(name, None)
        if saved is None and param in spec.optim_objs:
            saved = _get_state_dict(spec.optim_objs[param])
        if saved is not None:
            found[param] = copy.deepcopy(saved)
    return found


def restore(whole: Optimizer, saved: Saved) -> None:
    """Let an optimizer go on from the states of single parameters.

    Args:
        whole: The optimizer, whose groups have the saved options already.
        saved: What ``take_up`` returned.
    """
    merged = whole.state_dict()
    params = [param for group in whole.param_groups for param in group["params"]]
    for number, param in enumerate(params):
        for state in saved[param]["state"].values() if param in saved else ():
            merged["state"][number] = state
            if isinstance(whole, ClippedAdam):  # whose steps Pyro counts in an int
                state["step"] = torch.as_tensor(
                    state["step"], dtype=torch.float32, device=param.device
                )
    whole.load_state_dict(merged)


def restore_schedule(scheduler: Any, params: Sequence[Tensor], saved: Saved) -> None:
    """Let a scheduler and its optimizer go on from a state.

    Args:
        scheduler: A torch scheduler of the optimizer of all parameters.
        params: The parameters.
        saved: What ``take_up`` returned.

    Raises:
        ValueError: If it is the state of a scheduler for each parameter.
    """
    whole = saved.get(params[0], {}).get("optimizer", {"param_groups": []})
    if sum(len(group["params"]) for group in whole["param_groups"]) != len(params):
        raise ValueError(
            "CompiledSVI: expected a state of one learning-rate schedule for all "
            f"{len(params)} parameters, as it saves it; got one of single parameters, as Pyro's "
            "SVI does. Write: a new optimizer, or pyro.infer.SVI(model, guide, optim, loss)."
        )
    _load_state_dict(scheduler, saved[params[0]])


def own(spec: PyroOptim, whole: Optimizer, params: Sequence[Tensor]) -> None:
    """Let a Pyro optimizer have an optimizer for each parameter, with the state of the whole.

    Args:
        spec: The Pyro optimizer.
        whole: The optimizer of all parameters.
        params: Those that are new.
    """
    for param in params:
        one, link = spec._get_optim(param), _Link(whole, param)
        one.register_state_dict_pre_hook(link.pull)
        one.register_step_pre_hook(link.hand_over)
        spec.optim_objs[param] = one
        spec.grad_clip[param] = spec._get_grad_clip(cast(Any, param))


class _Link:
    """From the optimizer of all parameters to that of one, until Pyro's own SVI steps it."""

    def __init__(self, whole: Optimizer, param: Tensor) -> None:
        self._whole: Optimizer | None = whole
        self._param = param

    def pull(self, one: Optimizer) -> None:
        """Bring options and state up to date."""
        whole, param = self._whole, self._param
        if whole is None:
            return
        (options,) = one.param_groups
        for group in whole.param_groups:
            if any(other is param for other in group["params"]):
                options.update({name: group[name] for name in options.keys() - {"params"}})
        if param in whole.state:
            state = one.state[param] = whole.state[param]
            if isinstance(whole, ClippedAdam):
                one.state[param] = {**state, "step": int(state["step"])}

    def hand_over(self, one: Optimizer, *_: Any) -> None:
        """Go on alone."""
        self.pull(one)
        self._whole = None
