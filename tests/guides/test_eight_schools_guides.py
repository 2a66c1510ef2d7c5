from functools import partial

import pytest
import torch

import pyro_ext as px
from guides.eight_schools import GUIDES
from helpers import assert_at_most
from models import eight_schools

# The optimum of each family, by quasi-Newton on 2 x 2^14 quasi-random draws, +- 0.0015.
BEST_ELBO = {"mean-field": -31.599, "full-covariance": -31.535}


def test_names() -> None:
    assert list(GUIDES) == ["mean-field", "full-covariance"]


@pytest.mark.parametrize("model", [eight_schools.model, eight_schools.centred_model])
@pytest.mark.parametrize(("name", "num_params"), [("mean-field", 20), ("full-covariance", 65)])
def test_sizes(name: str, num_params: int, model) -> None:
    guide = GUIDES[name](model, init_scale=0.3)
    guide.setup(*eight_schools.data())
    assert guide.num_params == num_params
    draws = guide.sample_posterior(4, *eight_schools.data())
    assert (draws["tau"] > 0).all()
    assert draws["mu"].shape == (4,)


@pytest.mark.parametrize("name", GUIDES)
def test_fit_reaches_the_best_of_the_family(name: str) -> None:
    data = eight_schools.data()
    guide = GUIDES[name](eight_schools.model)
    loss = px.ELBO(num_particles=256, estimator="stl")
    for lr, num_steps in [(0.05, 200), (0.01, 200)]:
        optim = partial(torch.optim.Adam, lr=lr)
        px.fit(eight_schools.model, guide, loss, data, optim, num_steps=num_steps, progress=False)
    with torch.no_grad():
        weights = px.log_weights(eight_schools.model, guide, *data, num_particles=100_000)
    log_w = weights.terms[0].log_w
    elbo = px.bounds.elbo(log_w).item()
    assert elbo == pytest.approx(BEST_ELBO[name], abs=0.03)
    iwae = px.bounds.iwae(log_w.reshape(10, -1))
    exact = eight_schools.exact_posterior(*data).log_evidence
    assert_at_most(iwae, exact)
    assert elbo < iwae.mean().item() < exact
