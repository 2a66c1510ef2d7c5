"""From a model, guide and loss to a step that was proved to be the eager one."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_ext._one_run import Unrecorded
from pyro_ext._precision import active_autocast
from pyro_ext._unchecked import unchecked
from pyro_ext.losses import Annealed
from pyro_ext.training.compiled.annealing import Weight
from pyro_ext.training.compiled.denormals import Flushed
from pyro_ext.training.compiled.graph import record
from pyro_ext.training.compiled.memory import keep_freed_memory
from pyro_ext.training.compiled.optimizer import AllParameters
from pyro_ext.training.compiled.private import untested
from pyro_ext.training.compiled.proof import Uncompiled, prove, unchanged
from pyro_ext.training.compiled.reading import Read, without_reading
from pyro_ext.training.compiled.signature import Call, call_of, shape_of
from pyro_ext.training.compiled.simplify import Unsuitable, simplify
from pyro_ext.training.compiled.step import StepGraph, build_step
from pyro_ext.training.compiled.thin import thin
from pyro_ext.training.compiled.walk import TooMuch, modules
from pyro_ext.training.compiled.watch import Watch
from pyro_ext.training.moving import MovingBuffers
from pyro_ext.training.randomness import Drawn, without_numpy

__all__ = ["Built", "buffers", "build"]

Entered = tuple[AbstractContextManager[Any], tuple[Any, ...]]


class Built:
    """A step, and what it was built for.

    Args:
        roots: Model, guide and loss.
        call: The arguments that it was built for.
        step: The step.
        watch: What it depends on.
        weight: The weight of an annealed loss.
        backend: What runs it, see ``build_step``.
    """

    def __init__(
        self,
        roots: tuple[Any, Any, Any],
        call: Call,
        step: StepGraph,
        watch: Watch,
        weight: Weight | None,
        backend: str,
    ) -> None:
        self.roots = roots
        self.step, self.watch, self._weight = step, watch, weight
        self.backend = backend
        self._signature = call.signature
        self._shapes = [shape_of(tensor) for tensor in call.tensors]
        self._plain = len(call.leaves) == len(call.tensors)

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Tensor] | None:
        """Return the tensors among the arguments, or None if the step is not for them.

        Args:
            args: Arguments.
            kwargs: Keyword arguments.
        """
        if self._plain and not kwargs and all(isinstance(a, Tensor) for a in args):
            return args if [shape_of(tensor) for tensor in args] == self._shapes else None
        call = call_of(args, kwargs)
        return call.tensors if call.signature == self._signature else None

    def holds(self) -> bool:
        """Tell whether nothing has changed that the step depends on."""
        return self.watch.holds() and self.step.current()

    def take(self, tensors: Sequence[Tensor]) -> Tensor:
        """Take a step and return the loss.

        Args:
            tensors: The tensors among the arguments.
        """
        if self._weight is not None:
            self._weight.advance()
        with Flushed():
            return self.step(tensors)

    def take_many(self, tensors: Sequence[Tensor], count: int) -> list[Tensor]:
        """Take steps on the same tensors and return their losses.

        Args:
            tensors: The tensors among the arguments.
            count: Number of steps.
        """
        if self._weight is not None:
            return [self.take(tensors) for _ in range(count)]
        with Flushed():
            return self.step.many(tensors, count)


def build(
    roots: tuple[Any, Any, Any],
    call: Call,
    params: Sequence[Tensor],
    optimizer: AllParameters,
    skipped: Tensor,
    *,
    backend: str,
    within: Callable[[tuple[Any, ...]], Entered] | None = None,
) -> Built:
    """Record a step, compile it, and prove it; if it cannot be compiled, it is recorded alone.

    Args:
        roots: Model, guide and loss.
        call: Arguments of the step.
        params: The parameters that the loss reads.
        optimizer: The optimizer, which knows them.
        skipped: Counter of the steps that were not applied.
        backend: ``"inductor"``, ``"record"`` or ``"graph"``, see ``build_step``.
        within: If given, makes of the arguments the context that the loss runs in, and the
            model's own arguments.

    Raises:
        Unsuitable: If the step cannot be made into a graph, or is not the eager one.
    """
    keep_freed_memory()
    build_by = partial(_build, roots, call, params, optimizer, skipped, within)
    try:
        if backend == "inductor" and (why := untested()):
            raise Uncompiled(f"{why}. Write compile='record', or install one of these")
        return build_by(backend)
    except Uncompiled as error:
        warnings.warn(
            f"steps are recorded, but not compiled, because {error}.", UserWarning, stacklevel=2
        )
        return build_by("record")


def _build(
    roots: tuple[Any, Any, Any],
    call: Call,
    params: Sequence[Tensor],
    optimizer: AllParameters,
    skipped: Tensor,
    within: Callable[[tuple[Any, ...]], Entered] | None,
    backend: str,
) -> Built:
    model, guide, loss = roots
    _check_before(loss, call)
    weight = Weight(loss, params[0]) if isinstance(loss, Annealed) else None
    used: Any = loss if weight is None else weight.loss
    differentiable: Callable[..., Tensor] = getattr(used, "differentiable_loss", used)

    def eager(*tensors: Tensor) -> Tensor:
        args, kwargs = call.rebuilt(tensors)
        context: AbstractContextManager[Any] = nullcontext()
        if within is not None:
            context, args = within(args)
        validation_off = pyro.validation_enabled(is_validate=False)
        with validation_off, unchecked(), torch.enable_grad(), context:
            return differentiable(model, guide, *args, **kwargs)

    # In this call alone one tensor may be two arguments, or one and a variable of the model.
    own = {id(param) for param in params}
    tensors = [t if id(t) in own else _alias(t) for t in call.tensors]
    try:
        changing, moving = buffers(roots), MovingBuffers()
        untouched = unchanged(changing, skipped.device)
        with untouched, moving.found(changing), without_numpy(), without_reading():
            rewrite = thin if backend == "record" else simplify
            recorded = record(eager, params, tensors, rewrite)
        _check_memory(recorded.held, recorded.params)
        watch = Watch(roots, recorded.held, pyro.get_param_store())
        with _compiling():
            step = build_step(recorded, optimizer, tensors, skipped, moving, backend=backend)
        prove(step, eager, tensors, [*changing, skipped], skipped.device)
    except Unsuitable:
        raise
    except TooMuch as error:
        raise Unsuitable(str(error)) from error
    except Unrecorded as error:
        raise Unsuitable(
            "draws of the model are run one by one. Write (x * w).sum(-1) for x @ w, and the like "
            "(docs/howto/particles.md), or one particle"
        ) from error
    except Drawn as error:
        raise Unsuitable(
            "it draws random numbers by NumPy, which a graph would hold as they came. Write "
            "torch.rand(()), or pass them as arguments"
        ) from error
    except Read as error:
        raise Unsuitable(
            f"Python reads the values of a tensor ({error}()), which a graph would hold as they "
            "are. Write it in torch"
        ) from error
    except Exception as error:
        raise Unsuitable(_reason(error)) from error
    return Built(roots, call, step, watch, weight, backend)


def _check_before(loss: Any, call: Call) -> None:
    """Raise if it is known before any recording that there can be no graph."""
    if getattr(loss, "_chunk_size", None) is not None:
        raise Unsuitable(
            "its particles come in chunks to save memory, which a graph would not. Write the loss "
            "without in_chunks, or compile=False"
        )
    if active_autocast():
        raise Unsuitable(
            "torch.autocast is active around it. Write it around the networks, inside the model "
            "and the encoder"
        )
    if call.opaque:
        raise Unsuitable(
            f"an argument is a {call.opaque[0]}, whose content may change unseen. Pass its "
            "tensors and numbers, torch.as_tensor(x) of an array"
        )


def _alias(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


@contextmanager
def _compiling() -> Iterator[None]:
    """Within this context an error says that the step is recorded, but cannot be compiled."""
    try:
        yield
    except Exception as error:
        raise Uncompiled(f"{_said(error)}. Write compile='record' to go without it") from error


def buffers(roots: Sequence[Any]) -> list[Tensor]:
    """Return the buffers of all modules in sight, which a layer may change as it runs."""
    known: list[torch.nn.Module] = []
    try:
        known.extend(modules(*roots))
    except TooMuch:
        warnings.warn(
            f"the model sees too many objects to look at all: buffers of {len(known)} modules "
            "are known, and others are neither saved nor restored. Pass the data as arguments.",
            UserWarning,
            stacklevel=2,
        )
    found = {id(b): b for module in known for b in module.buffers(recurse=False)}
    return list(found.values())


def _check_memory(held: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """Raise if a tensor shares memory with a parameter, which changes under its feet."""
    trained = {param.untyped_storage().data_ptr() for param in params}
    ids = {id(param) for param in params}
    for tensor in held:
        if id(tensor) not in ids and tensor.untyped_storage().data_ptr() in trained:
            raise Unsuitable(
                f"a tensor of shape {tuple(tensor.shape)} that it closes over shares memory with "
                "a parameter. Write param.detach() inside the model"
            )


def _reason(error: Exception) -> str:
    text = str(error)
    if "_local_scalar_dense" in text or "data-dependent control flow" in text:
        return (
            "Python looks at the value of a tensor (an if, float(x), x.item(), a loop over a "
            "plate, a loss of Pyro's own). Write torch.where for a branch on latents or data, "
            "with pyro.plate(...) for a loop, px.ELBO() for Trace_ELBO()"
        )
    return f"{_said(error)}. Write compile=False to go without"


def _said(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"of {type(error).__name__}: {text.splitlines()[0][:200]}"
