"""Pyro's SVI at the speed of a compiled training loop."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import repeat
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.optim import PyroOptim
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from tqdm.auto import tqdm

from pyro_ext._progress import hidden
from pyro_ext.training.compiled.batches import forever
from pyro_ext.training.compiled.builder import Built, buffers, build
from pyro_ext.training.compiled.eager import eager_step
from pyro_ext.training.compiled.nonfinite import Guard
from pyro_ext.training.compiled.optimizer import AllParameters, Factory
from pyro_ext.training.compiled.refusals import Refusals
from pyro_ext.training.compiled.signature import Call, call_of
from pyro_ext.training.compiled.simplify import Unsuitable
from pyro_ext.training.compiled.walk import TooMuch
from pyro_ext.training.compiled.watch import Watch
from pyro_ext.training.moving import MovingBuffers

__all__ = ["CompiledSVI"]

_VARIANTS = 4  # graphs for the same shapes: train and eval mode, say
_CHUNK = 200  # steps between two looks at the counter of steps left out


class CompiledSVI:
    r"""Stochastic variational inference whose whole step is one compiled graph.

    A drop-in for ``pyro.infer.SVI``: the guide's draws, the model, the loss, its gradient and the
    optimizer's update are recorded once and compiled. The parameters stay the tensors that they
    are, in the modules and in Pyro's store, and are up to date after every step.

    The first call on arguments of new shapes is an ordinary eager step with validation on. The
    second one records and compiles the step, and proves on the same random numbers that it gives
    the eager loss and gradient. A train/eval switch, a frozen or new parameter, or a variable of
    the model that is bound to something else, leads to a new graph. What the compiler cannot do
    is recorded alone, and what cannot be recorded runs eagerly, with validation off and one
    optimizer for all parameters; a warning says why.

    The same seed gives the numbers of the eager step, up to rounding.

    Args:
        model: A Pyro model, without Python branches on the values of tensors.
        guide: Its guide.
        optim: A function from a list of parameters to a torch optimizer, or one of
            ``pyro.optim``. The updates of Adam, AdamW, SGD and Pyro's ClippedAdam are part of the
            graph; others take their step outside.
        loss: A loss of this package, or any with a ``differentiable_loss``.
        compile: Whether to compile. ``"record"`` records the step as well, but torch runs it
            operation by operation, without a compiler: that is ready sooner, and its numbers are
            those of eager steps to the last bit. Without it every step is eager.
        clip_norm: Largest norm of the gradient of all parameters together.
        nonfinite: ``"raise"`` an error if a loss or gradient is not finite, or ``"skip"`` the
            step. Such a step is never applied.
        max_graphs: Number of different shapes that get a graph; others, such as a short last
            batch where it is 1, run eagerly.

    Raises:
        TypeError: If ``optim`` is no optimizer.
        ValueError: If an argument is not in its range.

    References:
        Automated Variational Inference in Probabilistic Programming (Wingate and Weber, 2013) |
        https://arxiv.org/abs/1301.1299

    Example:
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> guide = px.AutoJoint(model)
        >>> svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.1}), px.ELBO(), compile=False)
        >>> losses = [svi.step(torch.full((10,), 3.0)) for _ in range(100)]
        >>> round(guide.median()["mu"].item())
        3
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | Factory,
        loss: Any,
        *,
        compile: bool | str = True,
        clip_norm: float | None = None,
        nonfinite: str = "raise",
        max_graphs: int = 4,
        _backend: str = "inductor",
    ) -> None:
        if compile not in (True, False, "record"):
            raise ValueError(
                f"CompiledSVI: expected compile to be True, False or 'record'; got {compile!r}. "
                "Write: compile=True."
            )
        if max_graphs < 1:
            raise ValueError(
                f"CompiledSVI: expected max_graphs >= 1; got {max_graphs}. Write: max_graphs=4, "
                "or compile=False."
            )
        self.model, self.guide, self.optim, self.loss = model, guide, optim, loss
        self._all = AllParameters(optim, clip_norm)
        self._guard, self._moving = Guard(nonfinite), MovingBuffers()
        self._max_graphs = max_graphs
        self._backend = "record" if compile == "record" else _backend
        self._graphs: dict[Any, list[Built]] = {}
        self._checked: dict[Any, tuple[list[Tensor], Watch]] = {}
        self._refusals = Refusals()
        self._last: Built | None = None
        self._compile = bool(compile)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimizer of all parameters; None before the first step."""
        return self._all.torch

    @property
    def num_skipped(self) -> int:
        """Number of steps that were left out, as loss or gradient was not finite."""
        return self._guard.skipped

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take a gradient step and return the loss.

        Args:
            *args: Arguments of model and guide.
            **kwargs: Keyword arguments of both.

        Raises:
            ValueError: If a loss or gradient was not finite; looked at every 100 steps where the
                loss itself does not tell.
        """
        last = self._last
        if last is not None and self._built_for_these(last):
            tensors = last.tensors(args, kwargs)
            if tensors is not None and last.holds():
                return self._finish(last.take(tensors))
        return self._other_step(args, kwargs)

    def run(
        self,
        num_steps: int,
        *args: Any,
        batches: Iterable[Any] | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> Float[Tensor, " steps"]:
        """Take many steps, with less work between them than ``step`` has.

        What a graph depends on is looked at once, not at every step. The learning rate may be
        changed between two calls.

        Args:
            num_steps: Number of steps.
            *args: Arguments of model and guide.
            batches: What to call them with instead: each step takes the next batch, a tensor or a
                tuple of arguments, and begins anew at the end.
            progress: Whether to show a progress bar.
            **kwargs: Keyword arguments of both.

        Returns:
            Loss of each step.

        Raises:
            ValueError: If ``num_steps`` is negative, both arguments and batches are given, there
                are no batches, or a loss or gradient was not finite.
        """
        if num_steps < 0 or (args and batches is not None):
            got = f"num_steps={num_steps}" if num_steps < 0 else "arguments and batches"
            raise ValueError(
                f"CompiledSVI.run: expected num_steps >= 0, and arguments or batches; got {got}. "
                "Write: svi.run(1000, x), or svi.run(1000, batches=loader)."
            )
        parts, taken = [torch.zeros(0)], 0
        calls = repeat(args) if batches is None else forever(batches)
        shown = tqdm(total=num_steps, desc="run", leave=False, disable=hidden(wanted=progress))
        with shown as bar:
            while taken < num_steps:
                here = next(calls)
                last = self._last
                if last is not None and not self._built_for_these(last):
                    last = None
                tensors = None if last is None else last.tensors(here, kwargs)
                if last is None or tensors is None or not last.holds():
                    count, part = 1, torch.tensor([self.step(*here, **kwargs)])
                else:
                    count = 1 if batches is not None else min(num_steps - taken, _CHUNK)
                    part = torch.stack(last.take_many(tensors, count)).cpu()
                    self._guard.count(count)
                parts.append(part)
                taken += count
                bar.update(count)
        self._guard.count(0, now=True)
        return torch.cat(parts)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """Return an estimate of the loss, without gradient.

        Args:
            *args: Arguments of model and guide.
            **kwargs: Keyword arguments of both.
        """
        evaluate = getattr(self.loss, "loss", self.loss)
        with torch.no_grad():
            return float(evaluate(self.model, self.guide, *args, **kwargs))

    def _finish(self, value: Tensor) -> float:
        loss = value.item()
        self._guard.count(1, now=loss - loss != 0.0)
        return loss

    def _other_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Take a step with another graph than the last one, a new one, or none."""
        if not self._compile:
            return self._eager_step(args, kwargs, validate=self._guard.steps == 0)
        if _PYRO_STACK:
            self._refusals.tell(
                "an effect handler of Pyro is active around the step. Write it in the model"
            )
            return self._eager_step(args, kwargs, validate=False)
        call = call_of(args, kwargs)
        key = call.signature
        if key in self._refusals:
            return self._eager_step(args, kwargs, validate=False)
        for built in self._graphs.get(key, ()):
            if (
                self._built_for_these(built)
                and built.step.current()
                and (built.watch.holds() or built.watch.renew())
            ):
                self._last = built
                return self._finish(built.take(call.tensors))
        if key in self._checked:
            params, watch = self._checked.pop(key)
            if watch.holds() or watch.renew():
                if (new := self._build(key, call, params)) is not None:
                    return self._finish(new.take(call.tensors))
                return self._eager_step(args, kwargs, validate=False)
            self._refusals.changed(key, watch)
        elif self._graphs.get(key):
            self._refusals.changed(key, self._graphs[key][-1].watch)
        elif len(self._graphs) >= self._max_graphs:
            self._refusals.refuse(
                key,
                f"arguments of more than {self._max_graphs} shapes or values were given. Pass "
                "numbers that change as tensors, or write a larger max_graphs",
            )
        if key in self._refusals:
            return self._eager_step(args, kwargs, validate=False)
        return self._checked_step(key, args, kwargs)

    def _checked_step(self, key: Any, args: Any, kwargs: Any) -> float:
        """Take an eager step with validation, and remember what it saw."""
        loss, params = self._eager(args, kwargs, validate=True)
        if params:
            try:
                everything = Watch(self._roots, params, pyro.get_param_store(), closed=False)
                self._checked[key] = params, everything
            except TooMuch as error:
                self._refusals.refuse(key, str(error))
        return loss

    def _build(self, key: Any, call: Call, params: list[Tensor]) -> Built | None:
        skipped = self._guard.counter(params[0].device)
        try:
            built = build(self._roots, call, params, self._all, skipped, backend=self._backend)
        except Unsuitable as error:
            self._refusals.refuse(key, str(error))
            return None
        variants = self._graphs.setdefault(key, [])
        variants.append(built)
        del variants[:-_VARIANTS]
        self._last = built
        return built

    @property
    def _roots(self) -> tuple[Any, Any, Any]:
        return self.model, self.guide, self.loss

    def _built_for_these(self, built: Built) -> bool:
        """Tell whether model, guide and loss are those that a graph was built for."""
        model, guide, loss = built.roots
        return model is self.model and guide is self.guide and loss is self.loss

    def _eager_step(self, args: Any, kwargs: Any, *, validate: bool) -> float:
        return self._eager(args, kwargs, validate=validate)[0]

    def _eager(self, args: Any, kwargs: Any, *, validate: bool) -> tuple[float, list[Tensor]]:
        differentiable = getattr(self.loss, "differentiable_loss", self.loss)
        self._moving.keep()
        with self._moving.found(buffers(self._roots)) if validate else nullcontext():
            loss, params, applied = eager_step(
                lambda: differentiable(self.model, self.guide, *args, **kwargs),
                self._all,
                validate=validate,
            )
        if not applied:
            self._moving.restore()
        self._guard.count(1, skipped=not applied)
        return loss, params
