"""What an error tells of where it comes from."""

import torch

from pyro_ext._strata import JoinedElements

__all__ = ["of_batch_dims", "out_of_memory"]

_OF_BATCH_DIMS = (RuntimeError, ValueError, IndexError, TypeError)
_OTHERS = (JoinedElements, torch.linalg.LinAlgError)  # type: ignore[attr-defined]


def of_batch_dims(error: BaseException) -> bool:
    """Tell whether an error may come of a batch dim for particles that a model does not take.

    Args:
        error: The error.
    """
    other = isinstance(error, _OTHERS) or out_of_memory(error)
    return isinstance(error, _OF_BATCH_DIMS) and not other


def out_of_memory(error: BaseException) -> bool:
    """Tell whether memory did not suffice.

    Args:
        error: The error.
    """
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
