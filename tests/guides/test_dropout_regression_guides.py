import pytest

from guides.dropout_regression import GUIDES
from models.dropout_regression import data, model
from pyro_ext.testing import check_guide


@pytest.mark.parametrize("name", GUIDES)
def test_guides_keep_their_contract(name: str) -> None:
    x, y = data()
    check_guide(lambda: GUIDES[name](model), model, x[:20], y[:20])
