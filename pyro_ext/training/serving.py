"""Fitted pairs in a file, for a process that never sees the training data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_ext._checks import Pair
from pyro_ext._run import traces
from pyro_ext.structure import trace_params
from pyro_ext.training.files import DamagedFile, read, write
from pyro_ext.training.snapshot import load_tensors, named_tensors

__all__ = ["load_pair", "save_pair"]


def save_pair(
    path: str | Path, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
) -> None:
    """Save the parameters and buffers of a model and its guide; no data, and no code.

    Args:
        path: The file.
        model: The model.
        guide: Its fitted guide.
        *args: Arguments that both can be called with.

    Example:
        >>> import tempfile, pathlib
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "fitted.pt"
        >>> guide = px.AutoAmortized(model, lambda x: x.unsqueeze(-1))
        >>> save_pair(file, model, guide, torch.zeros(3))
        >>> other = px.AutoAmortized(model, lambda x: x.unsqueeze(-1))
        >>> load_pair(file, model, other, torch.zeros(5))  # in another process, with other data
        >>> other.sample_posterior(2, torch.zeros(5))["z"].shape
        torch.Size([2, 5])
    """
    write(Path(path), "pair", {name: t.detach() for name, t in _named(model, guide, args).items()})


def load_pair(
    path: str | Path, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
) -> None:
    """Load what ``save_pair`` saved into a model and a guide that were built alike.

    Args:
        path: The file.
        model: The model.
        guide: A new guide of the same kind.
        *args: Arguments to call both with, such as the new data: they show the shapes of the
            parameters.

    Raises:
        ValueError: If the file is damaged, or of another model or guide; the message names what
            differs. No code in a file is run.

    Example:
        >>> import tempfile, pathlib
        >>> def model():
        ...     pyro.sample("mu", dist.Normal(0.0, 1.0))
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "fitted.pt"
        >>> run = px.fit(model, num_steps=5, seed=0)
        >>> px.save_pair(file, model, run.guide)
        >>> guide = px.AutoJoint(model)
        >>> load_pair(file, model, guide)
        >>> guide.median() == run.guide.median()
        True
    """
    try:
        saved = read(Path(path), "pair")
    except DamagedFile as error:
        raise DamagedFile(
            f"load_pair: {error} Write: px.save_pair(path, model, guide, x), to save it again."
        ) from error
    load_tensors(_named(model, guide, args), saved, f"load_pair: {path}")


def _named(model: Any, guide: Any, args: tuple[Any, ...]) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=()), torch.no_grad():
        both = traces(Pair(model, guide, args, {}))
    return named_tensors(model, guide, None, [p for trace in both for p in trace_params(trace)])
