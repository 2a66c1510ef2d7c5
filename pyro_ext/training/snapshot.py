"""What a fit is made of, by name: for checkpoints, and to go back to."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_ext.training.compiled.builder import buffers
from pyro_ext.training.compiled.private import flatten
from pyro_ext.training.compiled.walk import SCALARS
from pyro_ext.training.files import DamagedFile

__all__ = ["check_asked", "check_tensors", "digest", "load_tensors", "named_tensors"]


def named_tensors(
    model: Any, guide: Any, loss: Any, params: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return each parameter and buffer of a pair once, by a name that is the same in each process.

    Args:
        model: The model.
        guide: Its guide.
        loss: The loss.
        params: Their parameters, trained or held.
    """
    found: dict[str, Tensor] = {}
    for side, root in (("model", model), ("guide", guide)):
        if isinstance(root, torch.nn.Module):
            named = (*root.named_parameters(), *root.named_buffers())
            found |= {f"{side}: {name}": tensor for name, tensor in named}
    store = pyro.get_param_store()
    ours = {id(param) for param in params}
    stored = store._params.items()
    found |= {f"param: {name}": param for name, param in stored if id(param) in ours}
    for number, buffer in enumerate(buffers((model, guide, loss))):
        found[f"buffer: {number}"] = buffer
    for number, param in enumerate(params):
        found[f"parameter: {number}"] = param
    once: dict[int, str] = {}
    for name, tensor in found.items():
        once.setdefault(id(tensor), name)
    return {name: found[name] for name in once.values()}


def check_tensors(into: Mapping[str, Tensor], saved: Mapping[str, Tensor], what: str) -> None:
    """Raise unless saved tensors are like those of a pair.

    Args:
        into: The tensors of a pair.
        saved: What was saved of another one.
        what: The file that they come from, for the message.

    Raises:
        DamagedFile: If names, shapes or dtypes differ.
    """
    for name in (*into, *saved):
        if name not in saved or name not in into:
            which = "with" if name in saved else "without"
            raise DamagedFile(
                f"{what}: expected a checkpoint of this model and guide; got one {which} "
                f"'{name}'. Write: the model and guide that were saved, or another folder."
            )
        old, new = saved[name], into[name]
        if old.shape != new.shape or old.dtype != new.dtype:
            raise DamagedFile(
                f"{what}: expected '{name}' of shape {tuple(new.shape)} in {new.dtype}, as here; "
                f"got {tuple(old.shape)} in {old.dtype}. Write: the model and guide that were "
                "saved, or another folder."
            )


def load_tensors(into: Mapping[str, Tensor], saved: Mapping[str, Tensor], what: str) -> None:
    """Copy saved tensors into those of the same names.

    Args:
        into: The tensors of a pair.
        saved: What was saved of another one.
        what: The file that they come from, for the message.

    Raises:
        DamagedFile: If names, shapes or dtypes differ.
    """
    check_tensors(into, saved, what)
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(saved[name])


def digest(args: tuple[Any, ...]) -> str:
    """Return a short text that tells data from other data.

    Args:
        args: Arguments of a model, nested in tuples, lists and dicts; of what is neither a tensor,
            an array, a number nor a text only the type counts.
    """
    total = hashlib.sha256()
    for leaf in flatten(args)[0]:
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            total.update(b"array")
            leaf = torch.from_numpy(np.ascontiguousarray(leaf))
        if isinstance(leaf, Tensor):
            total.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
            whole = leaf.detach().cpu().contiguous().flatten()
            total.update(whole.view(torch.uint8).numpy().data)
        elif isinstance(leaf, SCALARS):
            total.update(f"{type(leaf).__name__} {leaf!r}".encode())
        else:
            total.update(type(leaf).__name__.encode())
    return total.hexdigest()[:16]


def check_asked(saved: Mapping[str, Any], asked: Mapping[str, Any], what: str) -> None:
    """Raise if a checkpoint is of a fit with other settings.

    Args:
        saved: Settings of the checkpoint.
        asked: Settings now.
        what: The file, for the message.

    Raises:
        DamagedFile: If they differ.
    """
    for name in (*asked, *saved):
        if saved.get(name) != asked.get(name):
            raise DamagedFile(
                f"{what}: expected a checkpoint of this fit, whose {name} is {asked.get(name)!r}; "
                f"got {saved.get(name)!r}. Write: the same {name}, or another folder."
            )
