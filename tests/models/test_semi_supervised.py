from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

import pyro_ext as px
from guides.semi_supervised import GUIDES, M2Guide, semi_supervised_loss
from helpers import assert_mean
from models.semi_supervised import M2, data


def test_split() -> None:
    found = data(3, num_test=100, seed=1)
    assert (found.y_labelled.sum(0) == 3).all()
    assert len(found.x_labelled) + len(found.x_unlabelled) + len(found.x_test) == 1797
    assert ((found.x_test == 0) | (found.x_test == 1)).all()
    other = data(3, num_test=100, seed=2)
    assert not torch.equal(found.x_labelled, other.x_labelled)
    again = data(3, num_test=100, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_mnist_keeps_its_own_test_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = {f"x_{k}": rng.integers(0, 256, (n, 28, 28)) for k, n in (("train", 50), ("test", 20))}
    digits = {f"y_{k}": np.arange(n) % 10 for k, n in (("train", 50), ("test", 20))}
    np.savez(tmp_path / "mnist.npz", **grey, **digits)
    found = data(2, path=tmp_path / "mnist.npz", seed=1)
    assert found.x_test.equal(torch.from_numpy(grey["x_test"] > 127).flatten(1).to(found.x_test))
    assert found.y_test.argmax(-1).tolist() == digits["y_test"].tolist()
    train = torch.from_numpy(grey["x_train"] > 127).flatten(1).to(found.x_test)
    for image, label in zip(found.x_labelled, found.y_labelled, strict=True):
        row = (train == image).all(-1).nonzero().item()
        assert digits["y_train"][row] == label.argmax().item()
    assert (found.y_labelled.sum(0) == 2).all()
    assert len(found.x_unlabelled) == 30


@pytest.mark.parametrize("labels", [0, 1000])
def test_impossible_numbers_of_labels(labels: int) -> None:
    with pytest.raises(ValueError, match=rf"got {labels}. Write: labels_per_class=5"):
        data(labels)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_missing_label_is_summed_over(likelihood: str) -> None:
    """TraceEnum_ELBO = Σ_y q(y | x) (ELBO(x, y) - log q(y | x)), by draws of each label."""
    model = M2(5, 2, hidden=6, likelihood=likelihood)
    guide = M2Guide(model, hidden=6)
    x = torch.bernoulli(torch.full((1, 5), 0.5))
    log_q = guide.classify(x).log_softmax(-1)[0].detach()
    weights = px.log_weights(model, guide, x.expand(10, -1), torch.eye(10), num_particles=3000)
    by_label = weights.terms[0].log_w.detach()
    by_hand = (log_q.exp() * (by_label - log_q)).sum(-1)
    elbo, enumerated = TraceEnum_ELBO(max_plate_nesting=1), config_enumerate(guide, "parallel")
    draws = [-elbo.loss(model, enumerated, x) for _ in range(150)]
    spread = by_hand.var() / len(by_hand)
    found = torch.tensor(draws)
    off = found.mean() - by_hand.mean()
    assert abs(float(off)) < 5 * float((found.var() / len(found) + spread).sqrt())


def test_gradient_reaches_every_parameter() -> None:
    model = M2(5, 2, hidden=6)
    guide = M2Guide(model, hidden=6)
    x, y = torch.ones(4, 5), torch.eye(10)[:3]
    semi_supervised_loss(model, guide, x, torch.ones(3, 5), y, weight=1.0).backward()
    for name, param in [*model.named_parameters(), *guide.named_parameters()]:
        assert param.grad is not None, name


def test_the_loss_weighs_the_classifier() -> None:
    model = M2(5, 2, hidden=6)
    guide = M2Guide(model, hidden=6)
    x, y = torch.ones(4, 5), torch.eye(10)[:4]

    def loss(weight: float) -> torch.Tensor:
        pyro.set_rng_seed(0)
        return semi_supervised_loss(model, guide, x, x, y, weight=weight)

    cross_entropy = torch.nn.functional.cross_entropy(guide.classify(x), y)
    torch.testing.assert_close(loss(3.0) - loss(0.0), 3 * cross_entropy)


def test_names() -> None:
    assert list(GUIDES) == ["classifier-and-encoder"]


def test_labels_have_a_uniform_prior() -> None:
    model = M2(5, 2, hidden=6)
    trace = pyro.poutine.trace(pyro.poutine.uncondition(model)).get_trace(torch.zeros(5000, 5))
    assert_mean(trace.nodes["y"]["value"], torch.full((10,), 0.1))
