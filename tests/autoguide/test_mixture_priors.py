"""Latents whose prior is a mixture: the bijection is its components'."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from reference import log_normal
from torch import Tensor

import pyro_ext as px
from helpers import assert_mean
from pyro_ext._bijections import bijection_to

X = torch.linspace(-1.0, 2.0, 4)
SHARE, LOC, SCALE = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0]), torch.tensor([0.5, 0.8])
GUIDES: dict[str, Callable[..., Any]] = {
    "AutoJoint": px.AutoJoint,
    "AutoPerDatapoint": px.AutoPerDatapoint,
    "AutoAmortized": lambda model, **options: px.AutoAmortized(
        model, lambda x: x.unsqueeze(-1), **options
    ),
}
EVERY_GUIDE = pytest.mark.parametrize("build", GUIDES.values(), ids=GUIDES)


def mixture(components: Any) -> Any:
    return dist.MixtureSameFamily(dist.Categorical(SHARE), components)


def of(prior: Any, observed: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(observed(z), 1.0), obs=x)

    return model


def log_mixture(each: Tensor) -> Tensor:
    return torch.logsumexp(SHARE.log() + each, -1)


VECTORS = torch.stack([LOC, -LOC, 2 * LOC], -1)
PRIORS: dict[str, tuple[Any, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "real": (
        dist.Normal(LOC, SCALE),
        lambda z: z,
        lambda z: log_normal(z.unsqueeze(-1), LOC, SCALE),
    ),
    "positive": (
        dist.LogNormal(LOC, SCALE),
        lambda z: z,
        lambda z: log_normal(z.log().unsqueeze(-1), LOC, SCALE) - z.log().unsqueeze(-1),
    ),
    "vectors": (
        dist.Normal(VECTORS, 1.0).to_event(1),
        lambda z: z.sum(-1),
        lambda z: log_normal(z.unsqueeze(-2), VECTORS, 1.0).sum(-1),
    ),
}


@EVERY_GUIDE
@pytest.mark.parametrize(("components", "observed", "each"), PRIORS.values(), ids=PRIORS)
def test_log_weights_are_those_written_out(
    build: Callable[..., Any],
    components: Any,
    observed: Callable[[Tensor], Tensor],
    each: Callable[[Tensor], Tensor],
) -> None:
    model = of(mixture(components), observed)
    guide = build(model)
    found = px.log_weights(model, guide, X, num_particles=3, joint=True)
    z = found.latents["z"]
    log_p = (log_mixture(each(z)) + log_normal(X, observed(z), 1.0)).sum(-1)
    torch.testing.assert_close(found.terms[0].log_p, log_p)
    torch.testing.assert_close(found.terms[0].log_q, guide.log_prob({"z": z}, X))


@EVERY_GUIDE
def test_the_mean_weight_is_the_evidence(build: Callable[..., Any]) -> None:
    """A false alarm at the rate of ``assert_mean``."""
    torch.manual_seed(0)
    model = of(mixture(dist.Normal(LOC, SCALE)), lambda z: z)
    guide = build(model, init_scale=3.0)
    joint = px.log_weights(model, guide, X[:1], num_particles=4_000, joint=True)
    exact = log_mixture(log_normal(X[:1, None], LOC, (1 + SCALE.square()).sqrt()))
    assert_mean((joint.terms[0].log_w.detach() - exact).exp(), torch.tensor(1.0))


def test_a_mixture_in_to_event() -> None:
    support = mixture(dist.LogNormal(LOC, SCALE)).expand([3]).to_event(1).support
    z = torch.randn(2, 3)
    torch.testing.assert_close(bijection_to(support)(z), z.exp())
    assert bijection_to(support).log_abs_det_jacobian(z, z.exp()).shape == (2,)


def test_components_with_bounds_of_their_own_raise() -> None:
    model = of(mixture(dist.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))), abs)
    with pytest.raises(ValueError, match=r"map to one to one; got site 'z' with support Mixture"):
        px.AutoJoint(model).setup(X)


def test_annealing_from_a_mixture() -> None:
    """The evidence of a model without data is 1; one false alarm in 16,000."""

    def model() -> None:
        pyro.sample("z", mixture(dist.Normal(LOC, SCALE)))

    def guide() -> None:
        pyro.sample("z", mixture(dist.Normal(LOC, 2 * SCALE)))

    found = px.ais(model, guide, num_chains=64, num_temperatures=20, seed=0).log_evidence
    assert abs(found.value) < 4 * found.se
