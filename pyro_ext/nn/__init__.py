"""Networks that models and guides share."""

from pyro_ext.nn.conv_encoder import ConvEncoder
from pyro_ext.nn.masked_conv import MaskedConv2d, causal_mask
from pyro_ext.nn.mlp import MLP
from pyro_ext.nn.pixel_cnn import PixelCNN
from pyro_ext.nn.receptive_field import (
    blind_spot,
    receptive_field,
    receptive_field_by_gradients,
)
from pyro_ext.nn.sequence_encoder import SequenceEncoder
from pyro_ext.nn.set_encoder import SetEncoder

__all__ = [
    "MLP",
    "ConvEncoder",
    "MaskedConv2d",
    "PixelCNN",
    "SequenceEncoder",
    "SetEncoder",
    "blind_spot",
    "causal_mask",
    "receptive_field",
    "receptive_field_by_gradients",
]
