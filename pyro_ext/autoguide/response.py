"""How the π of a datapoint answers a draw of the globals."""

import torch
from torch import Tensor, nn

__all__ = ["LinearResponse", "NetworkResponse"]

_HIDDEN = 32


class LinearResponse(nn.Module):
    """A_i z, where the context of a datapoint is its own matrix A_i."""

    def forward(self, context: Tensor, given: Tensor) -> Tensor:
        """Return the change of π.

        Args:
            context: A, shape ``(*batch, params * globals)``.
            given: Draw z of the globals, shape ``(*batch, globals)``.
        """
        slopes = context.unflatten(-1, (-1, given.shape[-1]))
        return (slopes @ given.unsqueeze(-1)).squeeze(-1)


class NetworkResponse(nn.Module):
    """B z + C tanh(W h + V z + b), where the context h is what an encoder says of a datapoint.

    B and C start at zero.

    Args:
        features: Size of h.
        num_globals: Size of z.
        num_params: Size of π.
    """

    def __init__(self, features: int, num_globals: int, num_params: int) -> None:
        super().__init__()
        self.of_context = nn.Linear(features, _HIDDEN)
        self.of_given = nn.Linear(num_globals, _HIDDEN, bias=False)
        self.linear = nn.Linear(num_globals, num_params, bias=False)
        self.hidden = nn.Linear(_HIDDEN, num_params, bias=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.hidden.weight)

    def forward(self, context: Tensor, given: Tensor) -> Tensor:
        """Return the change of π.

        Args:
            context: h, shape ``(*batch, features)``.
            given: Draw z of the globals, shape ``(*batch, globals)``.
        """
        hidden = torch.tanh(self.of_context(context) + self.of_given(given))
        change: Tensor = self.linear(given) + self.hidden(hidden)
        return change
