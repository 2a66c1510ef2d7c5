import os
import subprocess
import sys

import pytest
import torch
from torch.distributions import Normal

import pyro_ext as px
from helpers import assert_at_most
from pyro_ext.families import Flow
from pyro_ext.families.flow_kinds import KINDS


def test_densities_of_families():
    assert {Flow(kind).density for kind in KINDS} == {"any", "own"}
    assert Flow("maf").density == "any"
    assert Flow(("nsf", "planar")).density == "own"


def test_a_sequence_takes_its_names_in_turn():
    layers = Flow(("planar", "nsf"), num_transforms=3).network(2)
    assert [type(layer).__name__ for layer in layers] == [
        "PlanarLayer",
        "ZukoLayer",
        "PlanarLayer",
    ]
    assert len(Flow(["nice", "realnvp"]).network(2)) == 2
    assert len(Flow("nice").network(2)) == 3
    assert Flow(["nsf"], hidden=[8]) == Flow(("nsf",), hidden=(8,))
    assert hash(Flow("nsf")) == hash(Flow("nsf"))


VALIDATION = """
import pickle, sys, torch
from torch.distributions import Distribution
import pyro_ext
from pyro_ext.families import Flow
assert "zuko" not in sys.modules
for found in (True, False):
    Distribution.set_default_validate_args(found)
    if sys.argv[1] == "build":
        torch.save(Flow("nsf").network(2), sys.argv[2])
    else:
        torch.load(sys.argv[2], weights_only=False)
    assert Distribution._validate_args is found
    for name in [name for name in sys.modules if "zuko" in name]:
        del sys.modules[name]
"""


def test_zuko_leaves_argument_validation_as_it_was(tmp_path):
    for how in ("build", "load"):
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-c", VALIDATION, how, str(tmp_path / "network.pt")]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "glow"},
            r"expected transforms among \['coupling', .*'sylvester'\]; got \['glow'\]",
        ),
        (
            {"kind": ()},
            r"expected transforms among .*; got an empty sequence. Write: px.Flow\('nsf'",
        ),
        ({"num_transforms": 0}, r"expected num_transforms >= 1; got 0. Write: px.Flow"),
        ({"num_bins": 1}, r"expected num_bins >= 2; got 1. Write: num_bins=8"),
        ({"context": -1}, r"Flow: expected a context of size >= 0; got -1. Write: context=8"),
        (
            {"base": px.LowRank()},
            r"expected a base that is an affine map .*LowRank.*base=px.Diagonal",
        ),
        ({"base": Flow("nsf")}, r"expected a base that is an affine map .*Flow.*base=px.Diagonal"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Flow(**options)


@pytest.mark.parametrize("make", [px.Flow, px.Implicit])
def test_one_width_for_all_layers_is_an_error(make):
    with pytest.raises(TypeError, match=r"expected hidden to be a sequence, .*hidden=\(64,\)"):
        make(hidden=64)


def test_a_base_that_is_a_class_is_an_error():
    with pytest.raises(TypeError, match=r"Flow: expected base .*Write: base=px\.LowRank\(\)"):
        Flow(base=px.LowRank)


def test_a_flow_without_its_networks_is_an_error():
    family = Flow("nice")
    with pytest.raises(ValueError, match=r"expected the networks .* got None. .*family.network"):
        family.distribution(family.initial_params(torch.zeros(2), torch.ones(2)), 2)


def bimodal(z):
    parts = torch.stack([Normal(m, 0.5).log_prob(z) for m in (-1.5, 1.5)])
    return parts.logsumexp(0).sum(-1) - torch.tensor(2.0).log()


def banana(z):
    first, second = z.unbind(-1)
    return Normal(0.0, 1.0).log_prob(first) + Normal(first**2, 0.5).log_prob(second)


def fitted_elbo(family, log_target, dim, steps):
    """Fit E_q[log p - log q] by reparameterization, and return its terms on new draws."""
    torch.manual_seed(0)
    params = family.initial_params(torch.zeros(dim), torch.ones(dim)).requires_grad_()
    network = family.network(dim)
    trained = [params, *(network.parameters() if network is not None else ())]
    optimizer = torch.optim.Adam(trained, lr=0.02)
    for _ in range(steps):
        q = family.distribution(params, dim, network)
        value = q.rsample((64,))
        optimizer.zero_grad()
        (q.log_prob(value) - log_target(value)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        value = q.rsample((4000,))
        return log_target(value) - q.log_prob(value)


@pytest.mark.parametrize(
    ("log_target", "dim", "kind", "gain"),
    [(bimodal, 1, "nsf", 0.6), (banana, 2, "realnvp", 0.4), (banana, 2, "planar", 0.15)],
)
def test_a_flow_fits_what_a_normal_cannot(log_target, dim, kind, gain):
    """Both targets are normalized: the exact posterior would reach an ELBO of 0."""
    normal = fitted_elbo(px.FullCovariance(), log_target, dim, 300)
    flow = fitted_elbo(Flow(kind, hidden=(16,)), log_target, dim, 300)
    assert_at_most(flow, 0.0)
    assert_at_most(normal - flow, -gain)
