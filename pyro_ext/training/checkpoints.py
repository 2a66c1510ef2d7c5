"""Checkpoints of a fit in a folder: when, how many, and which one is taken up again."""

import errno
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_ext._whole import whole
from pyro_ext.training.files import DamagedFile, read, unreadable, write

__all__ = ["Checkpoints"]

_DAMAGED = ("raise", "previous")
_NEVER = (errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a folder that is none, or is not ours to write to."""


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often ``fit`` saves what it takes to go on to the last bit.

    The same call of ``fit`` on a folder that has checkpoints goes on from the last one: after a
    crash, run the same script again. Besides, a run saves when it ends and when it is told to
    (SIGTERM, Ctrl-C). A file is written under another name, brought to the disk and renamed, so
    that there is none that is not whole.

    Args:
        folder: The folder, of one fit alone.
        every: Number of steps between two checkpoints.
        keep: How many of the last ones are kept.
        damaged: What to do about a last checkpoint that is truncated, altered or foreign:
            ``"raise"`` an error that names what is wrong, or take the ``"previous"`` good one and
            warn.

    Raises:
        TypeError: If ``folder`` is no path, or a number no whole one.
        ValueError: If an option is not in its range.

    Example:
        >>> import tempfile
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> x, folder = torch.ones(9), tempfile.mkdtemp()
        >>> first = px.fit(model, data=x, num_steps=20, seed=0, checkpoints=folder)
        >>> again = px.fit(model, data=x, num_steps=20, seed=0, checkpoints=folder)
        >>> bool((first.losses == again.losses).all())
        True
    """

    folder: str | Path
    every: int = 1000
    keep: int = 3
    damaged: str = "raise"

    def __post_init__(self) -> None:
        """Check the options."""
        if not isinstance(self.folder, (str, Path)):
            raise TypeError(
                f"Checkpoints: expected a folder; got {self.folder!r}. Write: "
                "px.Checkpoints('runs/first')."
            )
        for name in ("every", "keep"):
            write = f"{name}={3 if name == 'keep' else 1000}"
            number = whole(getattr(self, name), name, write=write, owner="Checkpoints")
            object.__setattr__(self, name, number)
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Checkpoints: expected {name} >= 1; got {getattr(self, name)}. Write: "
                    f"{name}=3."
                )
        if self.damaged not in _DAMAGED:
            raise ValueError(
                f"Checkpoints: expected damaged to be one of {list(_DAMAGED)}; got "
                f"{self.damaged!r}. Write: damaged='previous'."
            )

    @property
    def files(self) -> list[Path]:
        """The checkpoints, the last one first."""
        return sorted(Path(self.folder).glob("step-*.pt"), reverse=True)

    @property
    def seed(self) -> int | None:
        """The seed of the run whose checkpoints these are; None if there are none."""
        found = self.last()
        return None if found is None else int(found[1]["asked"]["seed"])

    def check(self, state: dict[str, Any]) -> None:
        """Raise if a part of what is to be saved could not be read again.

        Args:
            state: The part.

        Raises:
            TypeError: If it holds more than tensors, numbers and strings.
        """
        if found := unreadable(state):
            raise TypeError(
                "fit: expected optimizer, schedule and loss to keep tensors, numbers and texts "
                f"alone, as a checkpoint is read without running code; got {found}. Write: "
                "schedules with attributes of such kinds, as LambdaLR with a function, or "
                "checkpoints=None."
            )

    def save(self, step: int, payload: dict[str, Any]) -> None:
        """Write a checkpoint, and remove those that are too old; a full disk is told, no error.

        Args:
            step: Number of steps that were taken.
            payload: What to save.

        Raises:
            ValueError: If nothing can ever be written there, as to a file or without permission.
        """
        try:
            write(Path(self.folder) / f"step-{step:09d}.pt", "checkpoint", payload)
        except OSError as error:
            if not self.files and error.errno in _NEVER:
                raise ValueError(
                    "fit: expected a folder that checkpoints can be written to; got "
                    f"{str(self.folder)!r} ({error.strerror}). Write: another folder."
                ) from error
            known = f"The last good one is {self.files[0].name}." if self.files else ""
            warnings.warn(
                f"fit: could not write the checkpoint of step {step} to {self.folder}: "
                f"{error.strerror}. The run goes on. {known}",
                UserWarning,
                stacklevel=2,
            )
            return
        for old in self.files[self.keep :]:
            old.unlink(missing_ok=True)

    def last(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the last checkpoint that can be used, with its file; None if there is none.

        Raises:
            DamagedFile: If the last one, or with ``damaged="previous"`` every one, is damaged.
        """
        files = self.files
        for number, path in enumerate(files):
            try:
                return path, _checked(path)
            except DamagedFile as error:
                if self.damaged == "raise" or number == len(files) - 1:
                    instead = (
                        "Write: px.Checkpoints(..., damaged='previous') to go on from the one "
                        "before."
                        if len(files) > number + 1
                        else "There is no other. Write: another folder, to begin anew."
                    )
                    raise DamagedFile(f"fit: {error} {instead}") from error
                warnings.warn(
                    f"fit: {error} Going on from the one before.", UserWarning, stacklevel=2
                )
        return None


def _checked(path: Path) -> dict[str, Any]:
    payload = read(path, "checkpoint")
    if not isinstance(payload, dict) or "asked" not in payload:
        raise DamagedFile(f"{path}: expected what px.fit saves; got something else.")
    return payload
