"""Parameters that ``ParamStore.load`` reads under the name that a guide had elsewhere."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_ext as px

X = torch.linspace(-1.0, 2.0, 6)

SCRIPT = """
import sys, torch, pyro, pyro.distributions as dist, pyro_ext as px
torch.set_default_dtype(torch.float64)
def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
x = torch.linspace(-1.0, 2.0, 6)
others = [px.AutoJoint(model) for _ in range(90)]
guide = px.AutoAmortized(model, torch.nn.Linear(1, 2), global_family=px.FullCovariance())
guide.encoder.forward = lambda x: torch.nn.functional.linear(
    x.unsqueeze(-1), guide.encoder.weight, guide.encoder.bias)
guide(x)
torch.nn.init.constant_(guide.global_params, 0.25)
guide(x)
pyro.get_param_store().save(sys.argv[1])
"""


def model(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Encoder(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(-1))


def amortized() -> px.AutoAmortized:
    return px.AutoAmortized(model, Encoder(), global_family=px.FullCovariance())


def saved(path: Path, *values: float) -> None:
    """Save the store with one guide for each value, in which all its parameters are that value."""
    guides: list[Any] = [px.AutoJoint(model) for _ in values]
    for guide, value in zip(guides, values, strict=True):
        guide(X)
        torch.nn.init.constant_(guide.params, value)
    pyro.get_param_store().save(str(path))
    pyro.clear_param_store()


def loaded(path: Path) -> None:
    pyro.get_param_store().load(str(path))


def test_a_file_of_another_process(tmp_path: Path) -> None:
    file = tmp_path / "store"
    subprocess.run([sys.executable, "-c", SCRIPT, str(file)], check=True)
    loaded(file)
    names = list(pyro.get_param_store())
    guide = amortized()
    guide(X)
    assert (guide.global_params == 0.25).all()
    assert not set(names) & set(pyro.get_param_store())
    expected = torch.load(file, weights_only=False)["params"]
    (weight,) = (value for name, value in expected.items() if name.endswith("encoder$$$weight"))
    assert torch.equal(guide.encoder.weight, weight)


@pytest.mark.parametrize("first", ["load", "setup"])
def test_a_cell_that_is_run_again(first: str, tmp_path: Path) -> None:
    saved(tmp_path / "store", 0.5)
    guide = px.AutoJoint(model)
    if first == "setup":
        guide.setup(X)
    loaded(tmp_path / "store")
    guide(X)
    assert (guide.params == 0.5).all()
    assert px.ELBO().loss(model, guide, X) > 0
    assert (guide.params == 0.5).all()


def test_what_a_guide_of_this_process_has_left_is_left_alone() -> None:
    """A fresh guide starts afresh: an old fit in the store is not its own."""
    px.AutoJoint(model)(X)
    torch.nn.init.constant_(next(iter(pyro.get_param_store()._params.values())), 0.5)
    guide = px.AutoJoint(model)
    guide(X)
    assert not (guide.params == 0.5).any()


def test_what_belongs_to_a_living_guide_is_left_alone(tmp_path: Path) -> None:
    first, second = px.AutoJoint(model), px.AutoJoint(model)
    first(X)
    torch.nn.init.constant_(first.params, 0.5)
    pyro.get_param_store().save(str(tmp_path / "store"))
    torch.nn.init.constant_(first.params, 0.25)
    loaded(tmp_path / "store")
    second(X)
    first(X)
    assert (first.params == 0.5).all()
    assert not (second.params == 0.5).any()


def test_several_that_fit_raise(tmp_path: Path) -> None:
    saved(tmp_path / "store", 0.5, 0.25)
    guide = px.AutoJoint(model)
    loaded(tmp_path / "store")
    names = re.escape(str([name.split(".")[0] for name in pyro.get_param_store()]))
    with pytest.raises(ValueError, match=rf"AutoJoint: .*got {names}.*load_pair"):
        guide(X)


def test_guides_of_another_shape_or_kind_do_not_fit(tmp_path: Path) -> None:
    saved(tmp_path / "store", 0.5)
    loaded(tmp_path / "store")
    guide = px.AutoJoint(model, family=px.FullCovariance())
    guide(X)
    px.AutoPerDatapoint(model)(X)
    assert not (guide.params == 0.5).any()
    assert len(pyro.get_param_store()) == 4
