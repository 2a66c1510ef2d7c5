"""A multi-layer perceptron over the last dimension."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["MLP", "check_widths"]


def check_widths(owner: str, option: str, widths: object) -> None:
    """Raise if widths of layers are one number.

    Args:
        owner: Whose option it is, for the message.
        option: Its name.
        widths: What was given.

    Raises:
        TypeError: If they are no sequence.
    """
    if not isinstance(widths, Iterable):
        raise TypeError(
            f"{owner}: expected {option} to be a sequence, a width for each layer; got "
            f"{widths!r}. Write: {option}=({widths},)."
        )


class MLP(nn.Module):
    r"""Linear layers with an activation between them, applied to the last dimension.

    .. math:: h_0 = x, \quad h_l = a(W_l h_{l-1} + b_l), \quad y = W_L h_{L-1} + b_L

    Every leading dimension is a batch dimension, so one network serves a decoder that is called
    with ``(particles, batch, latents)`` and an encoder that is called with ``(batch, features)``.

    Args:
        in_features: Size of the last dimension of the input.
        hidden: Widths of the hidden layers; empty for one linear layer.
        out_features: Size of the last dimension of the output.
        activation: Makes the activation that follows each hidden layer, e.g. ``torch.nn.Tanh``.

    Raises:
        TypeError: If ``hidden`` is one number.
        ValueError: If a width is not positive, or an input's last dimension is not that.

    Example:
        >>> import torch
        >>> encoder = MLP(64, hidden=(128, 32), out_features=10)
        >>> encoder(torch.zeros(7, 5, 64)).shape
        torch.Size([7, 5, 10])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        check_widths("MLP", "hidden", hidden)
        widths = [in_features, *hidden, out_features]
        if min(widths) < 1:
            raise ValueError(
                f"MLP: expected positive widths; got in_features={in_features}, "
                f"hidden={tuple(hidden)}, out_features={out_features}. Write: "
                "px.nn.MLP(784, (200,), 50)."
            )
        self.in_features = in_features
        self.out_features = out_features
        layers: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            layers += [nn.Linear(before, after), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))

    def forward(
        self, x: Float[Tensor, " *batch in_features"]
    ) -> Float[Tensor, " *batch out_features"]:
        """Map ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"MLP: expected input of shape (*batch, {self.in_features}); got "
                f"{tuple(x.shape)}. Write: mlp(x.flatten(-2)) for images."
            )
        y: Tensor = self.layers(x)
        return y
