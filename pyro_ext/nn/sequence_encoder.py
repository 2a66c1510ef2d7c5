"""A recurrent encoder of sequences."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["SequenceEncoder"]


class SequenceEncoder(nn.Module):
    r"""The last state of a gated recurrent unit, read forwards and backwards.

    .. math:: h_t = \mathrm{GRU}(x_t, h_{t-1}), \qquad y = [\overrightarrow{h}_n,
        \overleftarrow{h}_1]

    Args:
        in_features: Size of one element.
        out_features: Size of the result, an even number.

    Raises:
        ValueError: If ``out_features`` is odd, if sequences have another shape, if there is not
            one length for each sequence, or a length is no whole number in 1 to the padded one.

    References:
        Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
        Translation (Cho et al., 2014) | https://arxiv.org/abs/1406.1078

    Example:
        >>> encoder = px.nn.SequenceEncoder(2, out_features=8)
        >>> encoder(torch.randn(5, 10, 2), torch.tensor([10, 3, 1, 7, 7])).shape
        torch.Size([5, 8])
    """

    def __init__(self, in_features: int, *, out_features: int = 32) -> None:
        super().__init__()
        if out_features < 2 or out_features % 2:
            raise ValueError(
                f"SequenceEncoder: expected an even out_features, half for each direction; got "
                f"{out_features}. Write: out_features={out_features + 1}."
            )
        half = out_features // 2
        self.gru = nn.GRU(in_features, half, batch_first=True, bidirectional=True)

    def forward(
        self,
        x: Float[Tensor, "batch steps in_features"],
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_features"]:
        """Map sequences to features.

        Args:
            x: Shape ``(batch, steps, in_features)``, padded at the end.
            lengths: Number of steps of each, shape ``(batch,)``; all if None.
        """
        if x.dim() != 3 or x.shape[-1] != self.gru.input_size:
            raise ValueError(
                f"SequenceEncoder: expected sequences of shape (batch, steps, "
                f"{self.gru.input_size}); got shape {tuple(x.shape)}. Write: x.reshape(len(x), "
                f"-1, {self.gru.input_size})."
            )
        if lengths is None:
            lengths = torch.full((len(x),), x.shape[1], device=x.device)
        if not isinstance(lengths, Tensor) or lengths.shape != x.shape[:1]:
            got = tuple(lengths.shape) if isinstance(lengths, Tensor) else type(lengths).__name__
            raise ValueError(
                f"SequenceEncoder: expected a tensor of {len(x)} lengths, one for each sequence; "
                f"got {got}. Write: torch.tensor([...]) with {len(x)} whole numbers."
            )
        if lengths.is_floating_point():
            raise ValueError(
                f"SequenceEncoder: expected lengths that are whole numbers; got {lengths.dtype}. "
                "Write: lengths.long()."
            )
        if bool((lengths < 1).any()) or bool((lengths > x.shape[1]).any()):
            raise ValueError(
                f"SequenceEncoder: expected lengths from 1 to {x.shape[1]}; got "
                f"{int(lengths.min())} to {int(lengths.max())}. Write: lengths=None for all steps."
            )
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, last = self.gru(packed)
        return last.transpose(0, 1).flatten(1)
