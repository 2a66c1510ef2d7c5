"""A module under a name by which Pyro's store knows another one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.params.param_store import param_with_module_name
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_ext.structure import unconstrained

__all__ = ["evaluated", "leaves_of", "of_stored_modules"]

_DIVIDER = param_with_module_name("", "")


def of_stored_modules(loss: Callable[[], Tensor]) -> Tensor:
    """Return ``loss()``, unless it depends on a module that is never trained.

    Under a name Pyro trains the module that it saw first. Another one under that name, such as
    that of a model defined anew in a notebook, is used as it is.

    Args:
        loss: Computes a loss.

    Raises:
        ValueError: If it depends on such a module; the message names it.
    """
    with _OtherModules() as others:
        value = loss()
    used = leaves_of(value) if others.given else {}
    for (name, given), param in others.given.items():
        if given in used:
            raise ValueError(
                f"pyro.module '{name.partition(_DIVIDER)[0]}': expected the module that Pyro's "
                "store has under this name, as it is the one that is trained; got another one, "
                f"with '{name}' of shape {tuple(param.shape)}. Write: pyro.clear_param_store() "
                "before the first step of a new model, or a name of its own for each module."
            )
    return value


@contextmanager
def evaluated(*modules: nn.Module) -> Iterator[None]:
    """Within this context modules are in evaluation mode: no dropout, no batch statistics.

    Args:
        *modules: The modules.
    """
    training = {part for module in modules for part in module.modules() if part.training}
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def leaves_of(*values: Tensor) -> dict[int, Tensor]:
    """Return the parameters that tensors were computed from, by their ids.

    Args:
        *values: The tensors.
    """
    found: dict[int, Tensor] = {}
    stack: list[Any] = [value.grad_fn for value in values if value.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                stack.append(before)
    return found


class _OtherModules(Messenger):
    """Collects the parameters of ``pyro.module`` that Pyro's store does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[tuple[str, int], Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        name, given = msg["name"], msg["args"][1:2]
        if _DIVIDER in name and given and unconstrained(msg["value"]) is not given[0]:
            self.given[name, id(given[0])] = given[0]
