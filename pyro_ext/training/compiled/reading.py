"""Values of tensors that Python reads where no graph can see it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

__all__ = ["Read", "without_reading"]

_READERS = ("tolist", "numpy", "__array__")


class Read(Exception):
    """The values of a tensor were read; the argument names how."""


@contextmanager
def without_reading() -> Iterator[None]:
    """Within this context this thread is not to read the values of a tensor by Python or NumPy.

    ``item()`` and ``float(x)`` are torch's operations, which a recorder refuses by itself.

    Raises:
        Read: If it does.
    """
    here = threading.get_ident()
    own = {name: vars(Tensor).get(name) for name in _READERS}

    def tripped(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def read(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == here:
                raise Read(name)
            return original(*args, **kwargs)

        return read

    for name in _READERS:
        setattr(Tensor, name, tripped(name))
    try:
        yield
    finally:
        for name, original in own.items():
            if original is None:
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, original)
