"""A fitted joint guide straightens the posterior for NUTS: Pyro's NeuTraReparam."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoGuideList
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.reparam import NeuTraReparam

import pyro_ext as px
from helpers import assert_mean
from pyro_ext.families import Flow, Householder, Implicit

X = torch.tensor([0.3, -1.2, 2.0, 0.7])

BIJECTIONS = {
    "diagonal": px.Diagonal(),
    "triangle": px.FullCovariance(),
    "dense": px.FullCovariance("dense"),
    "householder": Householder(),
    "splines": Flow("nsf"),
    "planar": Flow("planar"),
}
EVERY_BIJECTION = pytest.mark.parametrize("family", BIJECTIONS.values(), ids=BIJECTIONS)


def awkward(x):
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("group", 2, dim=-2):
        shift = pyro.sample("shift", dist.Normal(0.0, tau))
    with pyro.plate("data", 4, dim=-1):
        z = pyro.sample("z", dist.Normal(weights[..., :1], tau))
        pyro.sample("x", dist.Normal(z + shift.sum(-2, keepdim=True), 1.0), obs=x)


def perturbed(model, family, *args):
    guide = px.AutoJoint(model, family=family)
    guide.setup(*args)
    with torch.no_grad():
        for param in guide.parameters():
            param.add_(0.2 * torch.randn_like(param))
    return guide


def free_coordinates(latents):
    """Return the latents without the last weight, which the others fix."""
    latents = latents | {"weights": latents["weights"][:-1]}
    return torch.cat([latents[name].flatten() for name in sorted(latents)])


@EVERY_BIJECTION
def test_density_of_the_warped_model(family):
    """Log p(x, θ(ε)) + log |det dθ/dε|, the determinant by autograd."""
    guide = perturbed(awkward, family, X)
    neutra = NeuTraReparam(guide)
    warped = neutra.reparam(awkward)
    noise = 0.7 * torch.randn(guide.latent_dim)
    conditioned = poutine.condition(warped, data={"tau_shared_latent": noise})
    trace = poutine.trace(conditioned).get_trace(X)
    latents = neutra.transform_sample(noise)
    for name, value in latents.items():
        assert torch.equal(trace.nodes[name]["value"], value), name
    log_p = poutine.trace(poutine.condition(awkward, data=latents)).get_trace(X).log_prob_sum()
    jacobian = torch.autograd.functional.jacobian(
        lambda noise: free_coordinates(neutra.transform_sample(noise)), noise
    )
    expected = log_p + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(trace.log_prob_sum(), expected)


@pytest.mark.parametrize(
    "family", [f for f in BIJECTIONS.values() if f.density == "any"], ids=repr
)
def test_the_warped_prior_of_the_noise_is_the_guide(family):
    """θ(ε) of normal noise has the guide's density: log q(θ) = log N(ε) - log |det dθ/dε|."""
    guide = perturbed(awkward, family, X)
    neutra = NeuTraReparam(guide)
    noise = torch.randn(guide.latent_dim)
    conditioned = poutine.condition(neutra.reparam(awkward), {"tau_shared_latent": noise})
    total = poutine.trace(conditioned).get_trace(X).log_prob_sum()
    latents = neutra.transform_sample(noise)
    log_p = poutine.trace(poutine.condition(awkward, data=latents)).get_trace(X).log_prob_sum()
    log_q = guide.get_base_dist().log_prob(noise) - (total - log_p)
    torch.testing.assert_close(guide.log_prob(latents, X), log_q)


@EVERY_BIJECTION
def test_many_draws_at_once(family):
    guide = perturbed(awkward, family, X)
    neutra = NeuTraReparam(guide)
    poutine.trace(neutra.reparam(awkward)).get_trace(X)
    noise = torch.randn(3, 1, 1, guide.latent_dim)
    together = neutra.transform_sample(noise)
    shapes = {name: tuple(value.shape) for name, value in together.items()}
    assert shapes == {
        "tau": (3, 1, 1),
        "weights": (3, 1, 1, 3),
        "shift": (3, 2, 1),
        "z": (3, 1, 4),
    }
    for i in range(3):
        for name, value in neutra.transform_sample(noise[i, 0, 0]).items():
            torch.testing.assert_close(together[name][i].reshape(value.shape), value)


def test_nuts_in_the_space_of_a_fitted_guide():
    """A Gamma posterior, known exactly."""
    x = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    guide = px.AutoJoint(model)
    adam = partial(torch.optim.Adam, lr=0.05)
    px.fit(model, guide, px.ELBO(10), x, adam, num_steps=100, seed=0, progress=False)
    neutra = NeuTraReparam(guide)
    kernel = NUTS(neutra.reparam(model))
    mcmc = MCMC(kernel, num_samples=450, warmup_steps=50, disable_progbar=True)
    mcmc.run(x)
    noise = mcmc.get_samples()["rate_shared_latent"]
    rate = neutra.transform_sample(noise)["rate"].detach()[::3]
    exact = dist.Gamma(2.0 + x.sum(), 1.0 + len(x))
    assert_mean(rate, exact.mean)
    assert_mean((rate - exact.mean) ** 2, exact.variance)


def test_the_interface_of_auto_continuous():
    guide = perturbed(awkward, px.FullCovariance(), X)
    assert isinstance(guide, AutoContinuous)
    assert guide.latent_dim == 1 + 2 + 2 + 4
    posterior = guide.get_posterior(X)
    torch.manual_seed(3)
    with pyro.poutine.trace() as traced:
        z = guide.sample_latent(X)
    torch.manual_seed(3)
    drawn = guide(X)
    ((name, _),) = traced.trace.nodes.items()
    assert name == next(iter(guide.auxiliary(drawn, X)))
    for site, value in guide._unpack_latent(z):
        bijection = torch.distributions.biject_to(site["fn"].support)
        torch.testing.assert_close(bijection(value), drawn[site["name"]])
    base = dist.TransformedDistribution(guide.get_base_dist(), [guide.get_transform()])
    torch.testing.assert_close(base.log_prob(z), posterior.log_prob(z))
    assert set(guide.plates) == {"data", "group"}
    assert set(copy.deepcopy(guide).plates) == {"data", "group"}


@pytest.mark.parametrize("family", [px.LowRank(rank=1), Implicit()], ids=repr)
def test_a_family_that_is_no_bijection(family):
    guide = px.AutoJoint(awkward, family=family)
    guide.setup(X)
    match = r"AutoJoint: expected a family that maps 9 normal variables to z one to one; got"
    with pytest.raises(ValueError, match=match):
        NeuTraReparam(guide).reparam(awkward)(X)


def test_a_guide_in_a_list_warps_its_part():
    guide = AutoGuideList(awkward)
    guide.append(px.AutoJoint(poutine.block(awkward, expose=["tau", "z"])))
    guide.append(px.AutoJoint(poutine.block(awkward, hide=["tau", "z"])))
    guide(X)
    trace = poutine.trace(NeuTraReparam(guide[0]).reparam(awkward)).get_trace(X)
    assert trace.nodes["tau_shared_latent"]["value"].shape == (5,)
    assert not trace.nodes["weights"]["is_observed"]
