"""One torch optimizer for all parameters, from a torch factory or one of Pyro's optimizers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from pyro.optim.clipped_adam import ClippedAdam as PyroClippedAdam
from torch import Tensor

from pyro_ext.training.compiled.checked import checked_optimizer
from pyro_ext.training.compiled.clipped_adam import ClippedAdam
from pyro_ext.training.compiled.pyro_state import (
    Saved,
    own,
    restore,
    restore_schedule,
    take_up,
)

__all__ = [
    "CLIP_NORM",
    "CLIP_VALUE",
    "AllParameters",
    "Average",
    "Factory",
    "clip",
    "constructor_of",
    "joint_factor",
    "option_groups",
]

Factory = Callable[[list[Tensor]], torch.optim.Optimizer]

Average = Callable[..., tuple[Tensor, list[Tensor | None], bool]]
"""From loss, gradient and whether they are finite of one process to all, as ``Ranks.average``."""

CLIP_NORM, CLIP_VALUE = "clip_grad_norm", "clip_grad_value"
"""Keys of a parameter group: Pyro's clipping of each parameter's own gradient."""

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


class AllParameters:
    """The optimizer of all parameters seen so far, made when the first ones are seen.

    Args:
        spec: A function from a list of parameters to a torch optimizer, or one of
            ``pyro.optim``.
        clip_norm: Largest norm of the gradient of all parameters together, or None.
        average: What makes the gradient of all processes of that of one, before each step; None
            where there is one alone.
        owner: Whose it is, for messages.
    """

    def __init__(
        self,
        spec: PyroOptim | Factory,
        clip_norm: float | None,
        average: Average | None = None,
        owner: str = "CompiledSVI",
    ) -> None:
        if not isinstance(spec, PyroOptim) and not callable(spec):
            raise TypeError(
                "CompiledSVI: expected optim to be a function from a list of parameters to a "
                f"torch optimizer, or one of pyro.optim; got {spec!r}. Write: "
                "lambda params: torch.optim.Adam(params, lr=0.01)."
            )
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(
                f"CompiledSVI: expected clip_norm > 0; got {clip_norm}. Write: clip_norm=10.0."
            )
        self.spec, self.clip_norm, self.average = spec, clip_norm, average
        self.owner = owner
        self.torch: torch.optim.Optimizer | None = None
        self.version = 0
        self._known: set[int] = set()

    def include(self, params: Sequence[Tensor]) -> None:
        """Take in the parameters that are new.

        Args:
            params: Trainable tensors.
        """
        new = [param for param in params if id(param) not in self._known]
        if not new:
            return
        self._known |= {id(param) for param in new}
        self.version += 1
        saved = take_up(self.spec, new) if isinstance(self.spec, PyroOptim) else {}
        if self.torch is None:
            self.torch = self._make(new, saved)
            self.torch.register_load_state_dict_post_hook(self._loaded)
        else:
            for group in self._groups(new, saved):
                self.torch.add_param_group(group)
        _fuse(self.torch)
        if isinstance(self.spec, PyroOptim) and not isinstance(self.spec, PyroLRScheduler):
            if saved:
                restore(self.torch, saved)
            own(self.spec, self.torch, new)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        return [] if self.torch is None else self.torch.param_groups

    def clipped(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients, clipped as the groups and ``clip_norm`` say.

        Args:
            params: Parameters.
            grads: Their gradients.
        """
        group_of = {id(param): group for group in self.groups for param in group["params"]}
        return clip([group_of[id(param)] for param in params], grads, self.clip_norm)

    def step(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Take one step.

        Args:
            params: Parameters.
            grads: Their gradients, None where there is none.
        """
        if self.torch is None:
            raise RuntimeError(
                "CompiledSVI: expected parameters before a step; got none. Write: svi.step(*args)."
            )
        given = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
        clipped = self.clipped([p for p, _ in given], [g for _, g in given])
        for (param, _), grad in zip(given, clipped, strict=True):
            param.grad = grad
        self.torch.step()
        for param, _ in given:
            param.grad = None

    def _loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell graphs that the state tensors are others."""
        self.version += 1

    def _make(self, params: list[Tensor], saved: Saved) -> torch.optim.Optimizer:
        spec = self.spec
        if not isinstance(spec, PyroOptim):
            return checked_optimizer(spec(params), self.owner)
        optimizer = checked_optimizer(
            constructor_of(spec)(self._groups(params, saved)), self.owner
        )
        if isinstance(spec, PyroLRScheduler):
            scheduler = spec.pt_scheduler_constructor(optimizer, **spec.kwargs)
            if saved:
                restore_schedule(scheduler, params, saved)
            # Under this key the scheduler is stepped with spec.step(), as Pyro has it.
            spec.optim_objs[params[0]] = scheduler
        return optimizer

    def _groups(self, params: Iterable[Tensor], saved: Saved) -> list[dict[str, Any]]:
        if not isinstance(self.spec, PyroOptim):
            return [{"params": list(params)}]
        return option_groups(self.spec, params, saved)


def constructor_of(spec: PyroOptim) -> Callable[..., torch.optim.Optimizer]:
    """Return what makes a torch optimizer for all parameters, as one of Pyro's makes one for each.

    Args:
        spec: One of ``pyro.optim``.
    """
    constructor: Any = spec.pt_optim_constructor
    return ClippedAdam if constructor is PyroClippedAdam else constructor


def option_groups(spec: PyroOptim, params: Iterable[Tensor], saved: Saved) -> list[dict[str, Any]]:
    """Return parameter groups, one for each set of options, which a saved state has too.

    Args:
        spec: One of ``pyro.optim``.
        params: The parameters.
        saved: What was saved of each.
    """
    of_pyro: Any = spec
    groups: list[dict[str, Any]] = []
    for param in params:
        options = dict(of_pyro._get_optim_args(param))
        for group in saved.get(param, {}).get("param_groups", ()):
            options |= {name: value for name, value in group.items() if name != "params"}
        clips = of_pyro._get_grad_clip_args(param)
        options[CLIP_NORM] = clips.get("clip_norm")
        options[CLIP_VALUE] = clips.get("clip_value")
        for group in groups:
            if {k: v for k, v in group.items() if k != "params"} == options:
                group["params"].append(param)
                break
        else:
            groups.append({"params": [param], **options})
    return groups


def clip(
    groups: Sequence[dict[str, Any]], grads: Sequence[Tensor], clip_norm: float | None
) -> list[Tensor]:
    """Return clipped gradients, without a branch on their values.

    Args:
        groups: The parameter group of each.
        grads: Gradients.
        clip_norm: Largest norm of all together, or None.
    """
    clipped = []
    for group, grad in zip(groups, grads, strict=True):
        norm, value = group.get(CLIP_NORM), group.get(CLIP_VALUE)
        if norm is not None:
            grad = grad * _factor(grad.square().sum().sqrt(), norm)
        if value is not None:
            grad = grad.clamp(-value, value)
        clipped.append(grad)
    if clip_norm is None:
        return clipped
    factor = joint_factor(clipped, clip_norm)
    return [grad * factor.to(grad.dtype) for grad in clipped]


def joint_factor(grads: Sequence[Tensor], largest: float) -> Tensor:
    """Return what brings the norm of all gradients together to at most the largest.

    Args:
        grads: Gradients, of a sparse one the entries that are there.
        largest: Largest norm.
    """
    return _factor(torch.stack([grad.square().sum() for grad in grads]).sum().sqrt(), largest)


def _factor(norm: Tensor, largest: float) -> Tensor:
    return (largest / (norm + 1e-6)).clamp(max=1.0)


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let torch update all parameters in one kernel, unless the user chose how."""
    if type(optimizer) not in _FUSED:
        return
    for group in optimizer.param_groups:
        params, chosen = group["params"], ("foreach", "fused", "capturable", "differentiable")
        fits = all(param.is_floating_point() for param in params)
        if fits and not any(group.get(option) for option in chosen):
            group["fused"] = True
