import pytest
import torch

from guides.pixel_vae import GUIDES
from models.pixel_vae import PixelVAE
from pyro_ext.testing import check_guide


@pytest.mark.parametrize("name", GUIDES)
def test_guides_keep_their_contract(name: str) -> None:
    model = PixelVAE((2, 3), 2, channels=4, num_layers=2, context_channels=2, hidden=5)
    check_guide(lambda: GUIDES[name](model), model, torch.randint(2, (6, 6)).double())
