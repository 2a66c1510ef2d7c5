import pytest

from guides.radon import GUIDES
from models import radon
from pyro_ext.testing import check_guide


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDES)
def test_guides_keep_their_contract(name: str) -> None:
    houses = radon.data(num_counties=6)
    check_guide(lambda: GUIDES[name](radon.model), radon.model, *houses)


@pytest.mark.parametrize("name", GUIDES)
def test_draws_have_the_shapes_of_the_model(name: str) -> None:
    houses = radon.data(num_counties=6)
    draws = GUIDES[name](radon.model).sample_posterior(3, *houses)
    assert draws["eta"].shape == (3, 6)
    assert (draws["tau"] > 0).all()
