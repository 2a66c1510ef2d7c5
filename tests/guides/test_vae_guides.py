from functools import partial

import pytest
import torch

import pyro_ext as px
from guides.vae import GUIDES, mlp_encoder
from models.vae import VAE, data


@pytest.fixture
def model() -> VAE:
    return VAE(latent_dim=3, hidden=(16,))


def test_names() -> None:
    assert list(GUIDES) == [
        "per-datapoint-mean-field",
        "amortized-mean-field",
        "amortized-full-covariance",
    ]


@pytest.mark.parametrize(
    ("name", "num_params"),
    [
        ("per-datapoint-mean-field", 20 * 6),
        ("amortized-mean-field", 64 * 7 + 7 + 7 * 6 + 6),
        ("amortized-full-covariance", 64 * 7 + 7 + 7 * 9 + 9),
    ],
)
def test_sizes(model: VAE, name: str, num_params: int) -> None:
    x = data().train[:20]
    guide = GUIDES[name](model, **({} if name.startswith("per") else {"hidden": (7,)}))
    guide.setup(x)
    assert guide.num_params == num_params
    assert guide.sample_posterior(4, x)["z"].shape == (4, 20, 3)


@pytest.mark.parametrize("name", GUIDES)
def test_training_with_mini_batches_raises_the_bound(model: VAE, name: str) -> None:
    x = data().train[:60]
    guide = GUIDES[name](model)
    guide.setup(x)

    def bound() -> float:
        with torch.no_grad():
            (term,) = px.log_weights(model, guide, x, num_particles=100).terms
        return px.bounds.elbo(term.log_w).mean().item()

    before = bound()
    start = {
        n: p.detach().clone() for n, p in (*model.named_parameters(), *guide.named_parameters())
    }
    optim = partial(torch.optim.Adam, lr=0.01)
    px.fit(model, guide, px.ELBO(), x, optim, num_steps=60, batch_size=25, seed=0, progress=False)
    assert bound() > before + 5
    for parameters in (model.named_parameters(), guide.named_parameters()):
        assert not [n for n, p in parameters if torch.equal(p, start[n])]


@pytest.mark.parametrize("name", ["amortized-mean-field", "amortized-full-covariance"])
def test_encoder_serves_images_held_out(model: VAE, name: str) -> None:
    train, held_out = data()
    guide = GUIDES[name](model)
    guide.setup(train)
    (term,) = px.log_weights(model, guide, held_out, num_particles=2).terms
    assert term.log_w.shape == (2, 297)


def test_parameters_per_image_do_not(model: VAE) -> None:
    train, held_out = data()
    guide = GUIDES["per-datapoint-mean-field"](model)
    guide.setup(train)
    with pytest.raises(ValueError, match=r"1500.*297"):
        guide.sample_posterior(2, held_out)


def test_encoder_needs_a_width(model: VAE) -> None:
    with pytest.raises(ValueError, match=r"hidden=\(\); write \(128,\)"):
        mlp_encoder(model, ())
