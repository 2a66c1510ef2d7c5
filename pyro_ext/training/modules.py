"""A module under a name by which Pyro's store knows another one."""

from typing import Any

import torch
from pyro.params.param_store import param_with_module_name
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ext.structure import unconstrained

__all__ = ["OtherModules"]

_DIVIDER = param_with_module_name("", "")


class OtherModules(Messenger):
    """Watches for parameters of ``pyro.module`` that Pyro's store does not hold.

    Under a name Pyro trains the module that it saw first. Another one under that name, such as
    that of the model defined anew in a notebook, is used as it is and never trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[tuple[str, int], Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        name, given = msg["name"], msg["args"][1:2]
        if _DIVIDER in name and given and unconstrained(msg["value"]) is not given[0]:
            self._given[name, id(given[0])] = given[0]

    def check(self, loss: Tensor, *, owner: str) -> None:
        """Raise if the loss depends on such a parameter.

        Args:
            loss: What was computed meanwhile; its graph is kept.
            owner: The function that was called, for the message.

        Raises:
            ValueError: If it does; the message names the module.
        """
        if not self._given or not loss.requires_grad:
            return
        grads = torch.autograd.grad(
            loss, list(self._given.values()), retain_graph=True, allow_unused=True
        )
        for (name, _), grad in zip(self._given, grads, strict=True):
            if grad is not None:
                module = name.partition(_DIVIDER)[0]
                raise ValueError(
                    f"{owner}: expected '{module}' to be the module that Pyro's store has under "
                    "this name, as it is the one that is trained; got another one. Write: "
                    "pyro.clear_param_store() before the first step of a new model, or a name of "
                    "its own in pyro.module."
                )
