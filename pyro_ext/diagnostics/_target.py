"""A fitted pair, evaluated so that random state, parameter store and modules stay as they were."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyro_ext._checks import Pair
from pyro_ext._modules import evaluated
from pyro_ext._whole import whole
from pyro_ext.training.compiled.walk import in_sight

__all__ = ["Fitted", "Target", "WholePlates", "resolve", "undisturbed"]


@runtime_checkable
class Fitted(Protocol):
    """What ``px.fit`` returns, as far as diagnostics are concerned."""

    @property
    def model(self) -> Callable[..., Any]:
        """The model."""

    @property
    def guide(self) -> Callable[..., Any]:
        """Its guide."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments of both."""


@dataclass(frozen=True)
class Target(Pair):
    """A pair that is diagnosed, with the modules and devices that it takes."""

    @cached_property
    def modules(self) -> list[nn.Module]:
        """The torch modules that model and guide are or see, as functions see an encoder."""
        return in_sight(self.model, self.guide)

    def devices(self) -> list[torch.device]:
        """Return the CUDA devices in use."""
        tensors = [value for value in (*self.args, *self.kwargs.values())]
        tensors += [p for module in self.modules for p in module.parameters()]
        found = {t.device for t in tensors if isinstance(t, Tensor) and t.is_cuda}
        return sorted(found, key=str)


def resolve(
    owner: str,
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Target:
    """Return the target that a diagnostic was called with: a run, or a model and a guide.

    Args:
        owner: Name of the diagnostic, for messages.
        model: A model, or a run.
        guide: A guide, or None with a run.
        args: Arguments of both; by default the run's.
        kwargs: Keyword arguments of both; by default none.

    Raises:
        TypeError: If it is neither.
        ValueError: If the run has no data, as its fit got a ``DataLoader``.
    """
    kwargs = kwargs or {}
    if guide is None:
        if not isinstance(model, Fitted):
            raise TypeError(
                f"{owner}: expected a run, or a model and a guide; got {type(model).__name__} "
                f"alone. Write: px.{owner}(run), or px.{owner}(model, guide, *args)."
            )
        args = args or tuple(model.args)
        if args and isinstance(args[0], DataLoader):
            raise ValueError(
                f"{owner}: expected data; got a run that was fitted to a DataLoader. Write: "
                f"px.{owner}(run.model, run.guide, x)."
            )
        return Target(model.model, model.guide, args, kwargs)
    if isinstance(model, Fitted):
        raise TypeError(
            f"{owner}: expected a run alone, whose data are its own; got a run and a "
            f"{type(guide).__name__}. Write: px.{owner}(run.model, run.guide, x), for other data."
        )
    for role, fn in (("model", model), ("guide", guide)):
        if not callable(fn):
            raise TypeError(
                f"{owner}: expected the {role} to be callable; got {type(fn).__name__}. "
                f"Write: px.{owner}(model, guide, *args)."
            )
    return Target(model, guide, args, kwargs)


@contextmanager
def undisturbed(target: Target, seed: int | None) -> Iterator["WholePlates"]:
    """Evaluate without gradients, and leave no trace.

    Modules are in evaluation mode (no dropout, no update of running statistics). Plates that the
    model subsamples show all their elements. While the context is active the way in which Pyro's
    plates draw subsamples is replaced, so it is not for use in several threads.

    Args:
        target: What will be run.
        seed: Seed of the random numbers; None to start from the caller's state.

    Yields:
        Which plates are subsampled, and how many of their elements to show.
    """
    if seed is not None:
        seed = whole(seed, "seed", write="seed=0", owner="diagnostics")
    store = pyro.get_param_store()
    state = pyro.util.get_rng_state()
    with ExitStack() as stack:
        stack.callback(pyro.util.set_rng_state, state)
        stack.enter_context(torch.random.fork_rng(devices=target.devices()))
        stack.enter_context(store.scope(store.get_state()))
        stack.enter_context(torch.no_grad())
        plates = WholePlates()
        stack.enter_context(plates.active())
        stack.enter_context(evaluated(*target.modules))
        if seed is not None:
            pyro.set_rng_seed(seed)
        yield plates


class WholePlates:
    """Makes plates that the model subsamples show all their elements, or a chosen number of them.

    Attributes:
        subsampled: Names of the plates that would have shown fewer.
        shown: Number of elements to show of a plate, by name; all by default.
    """

    def __init__(self) -> None:
        self.subsampled: set[str] = set()
        self.shown: dict[str, int] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace how Pyro's plates draw a subsample."""
        original = SubsampleMessenger._subsample

        def subsample(
            name: str,
            size: int | None = None,
            subsample_size: int | None = None,
            subsample: Any = None,
            use_cuda: Any = None,
            device: Any = None,
        ) -> Any:
            if size is not None and subsample is None:
                if subsample_size is not None and subsample_size < size:
                    self.subsampled.add(name)
                subsample_size = self.shown.get(name)
            return original(name, size, subsample_size, subsample, use_cuda, device)

        SubsampleMessenger._subsample = staticmethod(subsample)  # type: ignore[method-assign]
        try:
            yield
        finally:
            SubsampleMessenger._subsample = staticmethod(original)  # type: ignore[method-assign]
