"""A guide for binary causes, written by hand: automatic guides have continuous latents only.

Example:
    >>> from models.binary_latents import BinaryLatents, data
    >>> model = BinaryLatents()
    >>> x = data(5, model=model)
    >>> guide = GUIDES["per-datapoint"](model, len(x))
    >>> guide(x).shape
    torch.Size([5, 3])
"""

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from models._names import unique_name
from models.binary_latents import BinaryLatents

__all__ = ["GUIDES", "BernoulliGuide"]


class BernoulliGuide(PyroModule):
    """Independent Bernoullis with logits of their own for each datum.

    Args:
        model: The model.
        num_data: Number of data.
    """

    def __init__(self, model: BinaryLatents, num_data: int) -> None:
        super().__init__(unique_name("bernoulli_guide"))
        self.logits = nn.Parameter(torch.zeros(num_data, model.num_latents).to(model.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Sample ``z`` in the plate ``"data"``.

        Args:
            x: Data, shape ``(num_data, num_features)``.
        """
        q = dist.Bernoulli(logits=self.logits).to_event(1)
        with pyro.plate("data", len(x)):
            z: Tensor = pyro.sample("z", q)
        return z


GUIDES: Mapping[str, Callable[[BinaryLatents, int], BernoulliGuide]] = {
    "per-datapoint": BernoulliGuide,
}
