"""Numbers next to zero, which processors compute with a hundred times slower."""

from types import TracebackType

import torch

__all__ = ["Flushed"]

_ONE, _TINY = 1.0, 5e-324


class Flushed:
    """Context in which denormal numbers count as zero, as they do in XLA.

    An importance weight of exp(-90) and all that it multiplies are denormal in float32; a step of
    IWAE takes several times longer with them. The setting is the processor's, for one thread.
    """

    def __enter__(self) -> None:
        self._before = _TINY * _ONE == 0.0
        torch.set_flush_denormal(True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        torch.set_flush_denormal(self._before)
