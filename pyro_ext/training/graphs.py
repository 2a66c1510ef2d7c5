"""When the step of a fit is recorded or compiled, and the graph."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.batches import Step
from pyro_ext.training.compiled.builder import Built, build
from pyro_ext.training.compiled.proof import NotFinite
from pyro_ext.training.compiled.signature import Call, call_of
from pyro_ext.training.compiled.simplify import Unsuitable
from pyro_ext.training.optimizers import Optimizers
from pyro_ext.training.payoff import RECORDING_PAYS, CountOperations, cheapest

__all__ = ["BACKEND", "Graphs"]


BACKEND = "inductor"
"""What compiles; ``"graph"`` runs what it is given, operation by operation."""

_COUNTED, _TIMED = 1, range(2, 12)  # eager steps that are looked at
_MOST_CHANGES = 5


class Graphs:
    """The graph of a fit's step, from the step on from which it pays.

    Args:
        roots: Model, guide and loss.
        params: The trained parameters.
        compile: ``"auto"``, True, ``"record"`` or False.
        deterministic: Whether ``"auto"`` keeps the bits of eager steps, and asks no clock.
        say: Called with what the fit is doing while it records and compiles, and with None
            afterwards.
    """

    def __init__(
        self,
        roots: tuple[Callable[..., Any], Callable[..., Any], BoundLoss],
        params: Sequence[Tensor],
        *,
        compile: str | bool,
        deterministic: bool,
        say: Callable[[str | None], None],
    ) -> None:
        self._roots, self._params, self._say = roots, params, say
        self._compile, self._deterministic = compile, deterministic
        self._seen, self._operations, self._changes = 0, 0, 0
        self._times: list[float] = []
        self._due_at_once = False
        self._chosen: str | None = None
        self._open = compile is not False
        self._first: list[tuple[int, ...]] | None = None
        self.built: Built | None = None
        self.skipped = torch.zeros((), dtype=torch.int64, device=params[0].device)
        self.told = "no: compile=False" if compile is False else "no"

    def tensors(self, step: Step) -> Sequence[Tensor] | None:
        """Return what the graph takes for a step, or None if the step is to be eager.

        Args:
            step: The step.
        """
        built = self.built
        if built is None:
            return None
        if built.holds() or built.watch.renew():
            return built.tensors(step.inputs, step.kwargs)
        self._changes += 1
        self.built, self._seen = None, 0
        if self._changes > _MOST_CHANGES:
            self._refuse(f"{built.watch.changed()} again and again. Change it in place")
        return None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context an eager step is taken, and looked at."""
        if not self._open or self.built is not None:
            yield
            return
        start = time.perf_counter()
        if self._compile == "auto" and not self._deterministic and self._seen == _COUNTED:
            with CountOperations() as operations:
                yield
            self._operations = operations.count
        else:
            yield
        if self._seen in _TIMED:
            self._times.append(time.perf_counter() - start)
        self._seen += 1

    def prepare(self, step: Step, optimizers: Optimizers | None, number: int, left: int) -> None:
        """Compile the step, if that is due.

        Args:
            step: The step, which is not taken here.
            optimizers: The optimizers, once there are some.
            number: Number of the step.
            left: Number of steps that are left.
        """
        if not self._open or self.built is not None or optimizers is None:
            return
        call = call_of(step.inputs, step.kwargs)
        shapes = [tuple(tensor.shape) for tensor in call.tensors]
        if self._first is None:
            self._first = shapes
        # A short last batch is no reason for a graph.
        backend = self._due(number, left) if shapes == self._first else None
        if backend is None:
            return
        if (why := self._unsuitable(optimizers)) is not None:
            self._refuse(why)
            return
        start = time.perf_counter()
        self._say("recording" if backend == "record" else "compiling")
        try:
            self.built = self._build(call, step, optimizers, backend)
            how = "recorded " if self.built.backend == "record" else ""
            seconds = time.perf_counter() - start
            self.told = f"{how}from step {number} on, in {seconds:.1f} s"
        except NotFinite as error:  # the eager step says where; another batch may do
            self._changes += 1
            if self._changes > _MOST_CHANGES:
                self._refuse(str(error))
        except Unsuitable as error:
            self._refuse(str(error))
        finally:
            self._say(None)

    def change_loss(self, loss: BoundLoss) -> None:
        """Forget the graph, and go on with another loss of the same value.

        Args:
            loss: The loss.
        """
        self._roots = (*self._roots[:2], loss)
        self.built, self._seen = None, 0
        self._times.clear()

    def state(self) -> dict[str, Any]:
        """Return what it takes to go on by graph where one was in use."""
        return {
            "used": self.built is not None,
            "backend": None if self.built is None else self.built.backend,
            "seen": min(self._seen, 1),
            "first": self._first,
            "told": self.told,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on by graph, without an eager step first, if that is what was done.

        Args:
            state: What ``state`` returned.
        """
        self._first = None if state["first"] is None else [tuple(s) for s in state["first"]]
        self._due_at_once = state["used"]
        self._chosen = state.get("backend")  # which files of earlier versions do not have
        if self._compile is True or self._deterministic:  # no clock decides: due where it was
            self._seen = state["seen"]
        if self._open:
            self.told = state["told"]

    def _build(self, call: Call, step: Step, optimizers: Optimizers, backend: str) -> Built:
        for param in self._params:
            param.grad = None
        if optimizers.for_graph is None:
            raise Unsuitable("it has no optimizer for a graph")
        return build(
            self._roots,
            call,
            optimizers.params,
            optimizers.for_graph,
            self.skipped,
            backend=backend,
            within=step.entered,
        )

    def _due(self, number: int, left: int) -> str | None:
        """Return what to build now, if anything; the first step is always eager, and validated."""
        if self._seen < 1 and not self._due_at_once:
            return None
        if self._chosen is None:
            self._chosen = self._choice(number, left)
        return self._chosen

    def _choice(self, number: int, left: int) -> str | None:
        way: str | None
        if self._compile == "record":
            return "record"
        if self._compile is True:
            return BACKEND
        if self._deterministic:
            way = "record" if number + left >= RECORDING_PAYS else None
            self.told = f"no: fewer than {RECORDING_PAYS} steps"
        elif len(self._times) < len(_TIMED):
            return None
        else:
            eager = statistics.median(self._times)
            way = cheapest(left, self._operations, eager)
            self.told = f"no: {left} steps of {eager * 1e3:.2g} ms do not pay for it"
        self._open = way is not None
        return BACKEND if way == "inductor" else way

    def _unsuitable(self, optimizers: Optimizers) -> str | None:
        if not self._roots[2].needs_density:
            return "its loss trains a critic as it goes"
        if optimizers.for_graph is None:
            return "a gradient is sparse. Write sparse=False for tables that are small"
        if _PYRO_STACK:
            return "an effect handler of Pyro is active around it. Write it in the model"
        return None

    def _refuse(self, why: str) -> None:
        self._open, self.built, self.told = False, None, f"no: {why}"
        if self._compile == "auto" and self._chosen == "record":
            return  # nobody asked for it, and little is lost
        warnings.warn(f"fit runs eagerly, because {why}.", UserWarning, stacklevel=2)
