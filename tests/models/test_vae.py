from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyro
import pytest
import sklearn.datasets
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal
from torch.utils.data import DataLoader

from helpers import assert_mean
from models.linear_gaussian import LinearGaussian
from models.vae import VAE, DynamicBinarization, data


@pytest.fixture
def images() -> Tensor:
    return torch.bernoulli(torch.full((5, 6), 0.4))


def trace_with(model: VAE, x: Tensor, z: Tensor) -> poutine.Trace:
    with pyro.plate("particles", len(z), dim=-2):
        trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    return trace


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_log_density_by_hand(likelihood: str, images: Tensor) -> None:
    model = VAE(6, 2, hidden=(4,), likelihood=likelihood)
    z = torch.randn(3, 5, 2)
    trace = trace_with(model, images, z)
    output = model.decoder(z)
    pixels = Bernoulli(logits=output) if likelihood == "bernoulli" else Normal(output, model.noise)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], pixels.log_prob(images).sum(-1))
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_linear_gaussian_decoder_is_probabilistic_pca(images: Tensor) -> None:
    exact = LinearGaussian.random(num_features=6, latent_dim=2, sigma=0.3)
    decoder = nn.Linear(2, 6)
    decoder.load_state_dict({"weight": exact.weight, "bias": exact.bias})
    model = VAE(6, 2, likelihood="gaussian", decoder=decoder)
    z = torch.randn(3, 5, 2)
    trace = trace_with(model, images, z)
    log_joint = trace.nodes["x"]["log_prob"] + trace.nodes["z"]["log_prob"]
    log_posterior = MultivariateNormal(*exact.posterior(images)).log_prob(z)
    expected = exact.log_evidence_per_datum(images).expand(3, 5)
    torch.testing.assert_close(log_joint - log_posterior, expected)


def test_every_parameter_gets_a_gradient(images: Tensor) -> None:
    model = VAE(6, 2, hidden=(4, 3), likelihood="gaussian")
    poutine.trace(model).get_trace(images).log_prob_sum().backward()
    assert "noise_unconstrained" in dict(model.named_parameters())
    assert all(p.grad is not None and (p.grad != 0).any() for p in model.parameters())


def test_state_dict_round_trips(images: Tensor) -> None:
    first, second = (VAE(6, 2, likelihood="gaussian") for _ in range(2))
    second.load_state_dict(first.state_dict())
    z = torch.randn(1, 5, 2)
    expected = trace_with(first, images, z).log_prob_sum()
    torch.testing.assert_close(trace_with(second, images, z).log_prob_sum(), expected)


def test_draws_images(images: Tensor) -> None:
    model = poutine.uncondition(VAE(6, 2))
    draws = Predictive(model, num_samples=3)(images)["x"]
    assert draws.shape == (3, 5, 6)
    assert set(draws.unique().tolist()) == {0.0, 1.0}


def test_own_decoder_may_be_any_module_that_keeps_leading_dimensions(images: Tensor) -> None:
    class Flattening(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.zeros(z.flatten(0, -2).shape[0], 6)

    z = torch.randn(3, 5, 2)
    with pytest.raises(ValueError, match=r"site 'x': .*\(3, 5, 2\) to \(3, 5, 6\), got \(15, 6\)"):
        trace_with(VAE(6, 2, decoder=Flattening()), images, z)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(5, 2, 3), r"site 'x': expected data of shape \(batch, 6\), got \(5, 2, 3\)"),
        (torch.full((5, 6), 0.25), r"site 'x': expected binary pixels.*got 0.25"),
        (torch.full((5, 6), torch.nan), r"site 'x': expected binary pixels.*got nan"),
    ],
)
def test_wrong_images_are_named(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(6, 2)(x)


def test_gaussian_likelihood_takes_grey_images() -> None:
    VAE(6, 2, likelihood="gaussian")(torch.full((5, 6), 0.25))


def test_unknown_likelihood_is_named() -> None:
    with pytest.raises(ValueError, match=r"'bernoulli', 'gaussian'.*got 'poisson'"):
        VAE(likelihood="poisson")


def sorted_rows(x: Tensor) -> Tensor:
    return torch.tensor(sorted(x.tolist()))


def test_split_holds_every_image_once() -> None:
    train, held_out = data(binarize=False)
    assert (train.shape, held_out.shape) == ((1500, 64), (297, 64))
    digits = torch.tensor(sklearn.datasets.load_digits().data) / 16
    assert torch.equal(sorted_rows(torch.cat([train, held_out])), sorted_rows(digits))


def test_data_is_seeded_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(data(), data(), strict=True))
    assert not torch.equal(data().train, data(seed=1).train)
    assert torch.equal(before, torch.random.get_rng_state())


def test_binarization_keeps_the_images_and_is_unbiased() -> None:
    grey, binary = data(binarize=False).train, data().train
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    residual = ((binary - grey) / (grey * (1 - grey)).sqrt())[(grey > 0) & (grey < 1)]
    assert_mean(residual, 0.0)  # about 50 000 pixels: a bias of 0.02 standard deviations shows
    assert torch.equal(binary[(grey == 0) | (grey == 1)], grey[(grey == 0) | (grey == 1)])


def test_dtype_and_number_held_out() -> None:
    train, held_out = data(num_held_out=0, dtype=torch.float32)
    assert train.dtype == torch.float32
    assert len(train) == 1797
    assert len(held_out) == 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("letters",), {}, r"'digits', 'mnist'.*got 'letters'"),
        (("digits",), {"path": "x.npz"}, r"data\('mnist', path=...\)"),
        (("digits",), {"num_held_out": 1797}, r"num_held_out < 1797.*got 1797"),
        (("digits",), {"num_held_out": -1}, r"got -1"),
    ],
)
def test_wrong_options_are_named(arguments, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(*arguments, **options)


def test_mnist_from_a_file(tmp_path: Path) -> None:
    images = np.arange(5 * 28 * 28).reshape(5, 28, 28) % 256
    np.savez(tmp_path / "m.npz", x_train=images[:3].astype("u1"), x_test=images[3:].astype("u1"))
    train, held_out = data("mnist", path=tmp_path / "m.npz", binarize=False)
    assert (train.shape, held_out.shape) == ((3, 784), (2, 784))
    expected = torch.tensor(images).flatten(1) / 255
    torch.testing.assert_close(torch.cat([train, held_out]), expected)


def test_mnist_from_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bunch:
        data = np.full((70, 784), 255.0)

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *_, **__: Bunch)
    train, held_out = data("mnist", num_held_out=10)
    assert (train.shape, held_out.shape) == ((60, 784), (10, 784))
    assert train.unique().tolist() == [1.0]


def test_file_without_the_arrays_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", images=np.zeros((3, 28, 28)))
    with pytest.raises(ValueError, match=r"'x_train' and 'x_test'.*got \['images'\]"):
        data("mnist", path=tmp_path / "m.npz")


def test_mnist_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", offline)
    with pytest.raises(RuntimeError, match=r"could not be downloaded.*path='mnist.npz'"):
        data("mnist")


def test_dynamic_binarization_draws_anew() -> None:
    grey = torch.full((4, 6), 0.3)
    grey[0] = 1.0
    drawn = DynamicBinarization(grey)
    draws = torch.stack([torch.stack([drawn[i] for i in range(len(drawn))]) for _ in range(2000)])
    assert (draws[:, 0] == 1).all()
    assert_mean(draws[:, 1:], grey[1:])  # a bias of 0.05 shows
    batches = list(DataLoader(drawn, batch_size=3))
    assert [batch.shape for batch in batches] == [(3, 6), (1, 6)]


def test_dynamic_binarization_is_seeded() -> None:
    grey = torch.full((4, 6), 0.3)
    first, second = (DynamicBinarization(grey, seed=1) for _ in range(2))
    assert torch.equal(first[2], second[2])
    with pytest.raises(ValueError, match=r"grey levels in \[0, 1\]"):
        DynamicBinarization(2 * grey + 1)
