"""How the benchmarks on images train, stop, go on and judge."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from scripts import load
from torch import Tensor

import pyro_ext as px
from guides.linear_gaussian import LinearGuide
from models.linear_gaussian import LinearGaussian, data


def test_schedule_of_burda() -> None:
    stages = load("iwae").schedule(59_600, 1.0)
    assert sum(stage.num_steps for stage in stages) == 3280 * 2980
    rates = [1e-3, 7.2e-4, 5.2e-4, 3.7e-4, 2.7e-4, 1.9e-4, 1.4e-4, 1e-4]
    assert [round(stage.lr, 6) for stage in stages] == rates
    part = load("iwae").schedule(59_600, 0.01)
    assert abs(sum(stage.num_steps for stage in part) - 32.8 * 2980) <= 4


def test_second_moments_start_at_one() -> None:
    """The first step is lr √(1-β₂) (1-β₁) g / ((1-β₁) (√v + ε')), v = β₂ + (1-β₂) g²."""
    param = torch.tensor([2.0], requires_grad=True)
    optim = load("iwae").adam([param])
    (3 * param).sum().backward()
    optim.step()
    root = (0.999 + 0.001 * 9) ** 0.5
    step = 1e-3 * 3 / (root / 0.001**0.5 + 1e-4)
    assert param.item() == pytest.approx(2.0 - step, abs=1e-12)


def training(loss: Any, layers: int = 1) -> tuple[Any, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, 784, generator=generator)
    made = load("iwae").training_of(layers, loss, images, 0, compile=False)
    return made, images


def test_training_makes_nothing_on_another_device(tmp_path: Path) -> None:
    """Numbers without a device of their own lie on ``meta``, where a step cannot use them."""
    script = load("_images")
    run, images = training(px.IWAE(2, estimator="dreg"), layers=2)
    with torch.device("meta"):
        script.train(run, images, [script.Stage(2, 1e-3)], checkpoint=tmp_path / "a.pt")
        run.load(tmp_path / "a.pt")
        run.take(images.round()[:20], 1e-3)
        found, _ = script.negative_log_likelihood(
            run.model, run.guide, images.round()[:4], num_samples=6, particles=3
        )
    assert found > 0


@pytest.mark.parametrize("layers", [1, 2])
def test_a_run_goes_on_to_the_last_bit(layers: int, tmp_path: Path) -> None:
    images_script = load("_images")
    stages = [images_script.Stage(4, 1e-3), images_script.Stage(3, 1e-4)]
    loss = px.IWAE(2, estimator="dreg")
    whole, images = training(loss, layers)
    images_script.train(whole, images, stages)
    assert whole.svi.optimizer.param_groups[0]["lr"] == 1e-4
    first, _ = training(loss, layers)
    images_script.train(first, images, stages[:1], checkpoint=tmp_path / "a.pt", every=2)
    second, _ = training(loss, layers)
    images_script.train(second, images, stages, checkpoint=tmp_path / "a.pt", every=2)
    assert second.step == 7
    for (name, a), b in zip(
        whole.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    untouched, _ = training(loss, layers)
    assert not torch.equal(
        untouched.guide.layers[0].network.layers[0].weight,
        second.guide.layers[0].network.layers[0].weight,
    )


def test_likelihood_of_an_exact_guide_is_exact() -> None:
    """log w = log p(x) for every draw, so that chunks and log-mean-exp must return it."""
    model = LinearGaussian.random(num_features=6, latent_dim=3, sigma=0.8)
    x = data(7, model=model)
    judge = partial(load("_images").negative_log_likelihood, model, LinearGuide.exact(model), x)
    nats = -model.log_evidence_per_datum(x)
    mean, se = judge(num_samples=10, rows=3, particles=4)
    assert mean == pytest.approx(nats.mean().item(), rel=1e-6)
    assert se == pytest.approx((nats.std() / 7**0.5).item(), rel=1e-6)


def test_active_units_of_a_known_guide() -> None:
    """Two units follow x, one by less than 0.01, one not at all; a layer above follows one."""

    class Guide(torch.nn.Module):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                weights = torch.tensor([1.0, 0.2, 0.05, 0.0])
                normal = pyro.distributions.Normal
                z = pyro.sample("z1", normal(x[:, :1] * weights, 1.0).to_event(1))
                pyro.sample("z2", normal(z[:, [0, 3]], 1.0).to_event(1))

    x = torch.linspace(-1.7, 1.7, 200).unsqueeze(-1)  # of variance 1
    assert load("_images").active_units(Guide(), x, num_draws=400) == [2, 1]


def test_fixed_pixels_and_packed_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = {n: rng.integers(0, 256, (450, 784), dtype=np.uint8) for n in ("x_train", "x_test")}
    np.savez(tmp_path / "grey.npz", **pixels)
    read = load("_images").load
    grey, test = read(tmp_path / "grey.npz", fixed=False)
    assert len(grey) == 50
    assert not ((grey == 0) | (grey == 1)).all()
    fixed, same = read(tmp_path / "grey.npz", fixed=True)
    assert ((fixed == 0) | (fixed == 1)).all()
    assert torch.equal(test, same)
    bits = rng.integers(0, 2, (5, 784), dtype=np.uint8)
    packed = np.packbits(bits, axis=1)
    np.savez(tmp_path / "packed.npz", train=packed, test=packed)
    unpacked, _ = read(tmp_path / "packed.npz", fixed=True)
    assert (unpacked.numpy() == bits).all()


def test_results_of_another_machine_are_refused(tmp_path: Path) -> None:
    results, path = load("_results"), tmp_path / "cells.json"
    assert results.Cells(path).get("a", lambda: 1) == 1
    assert results.Cells(path).get("a", lambda: 2) == 1
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"about": content["about"] | {"machine": "other"}}))
    with pytest.raises(SystemExit, match="results of this machine; machine was other, is"):
        results.Cells(path)
    path.write_text('{"a": 1}')
    with pytest.raises(SystemExit, match="expected results of a benchmark"):
        results.Cells(path)
