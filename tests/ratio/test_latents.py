import pyro
import pyro.distributions as dist
import torch
from implicit_cases import XS, local_model

import pyro_ext as px
from helpers import assert_mean
from pyro_ext._checks import Pair
from pyro_ext.ratio.contrast import CONTRASTS, Scene
from pyro_ext.ratio.latents import Elements


def mixed(x):
    """Latents with other supports, in nested plates, all inside the data plate."""
    with pyro.plate("data", len(x), dim=-1):
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        s = pyro.sample("s", dist.LogNormal(0.3, 0.5))
        with pyro.plate("inner", 2, dim=-2):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(u, s), obs=x.T)
        pyro.sample("v", dist.Normal(w, 1.0).to_event(1), obs=torch.zeros(3))


def test_elements_of_constrained_latents_in_nested_plates():
    x = torch.randn(4, 2)
    guide = px.AutoAmortized(mixed, lambda x: x, plate="data")
    pair = Pair(mixed, guide, (x,), {})
    elements = Elements(pair, joint=False)
    torch.manual_seed(3)
    draws = elements.from_guide(pair, 5)
    torch.manual_seed(3)
    log_w = px.log_weights(mixed, guide, x, num_particles=5, joint=True)
    assert draws.z.shape == (5, 4, 2 + 1 + 2)
    assert draws.data.shape == (5, 4, 2 + 3)
    torch.testing.assert_close(draws.data[0, :, :2], x)
    s = log_w.latents["s"]
    torch.testing.assert_close(draws.z[..., 2], s.log().reshape(5, 4))
    u = log_w.latents["u"]
    torch.testing.assert_close(draws.z[..., 3:], u.reshape(5, 2, 4).mT)
    # log p(x, z) in the unconstrained space is log p(x, θ) + log |dθ/dz|, which log q has too.
    auxiliary = [v for n, v in log_w.guide_trace.nodes.items() if n.endswith("_local")]
    log_q_z = auxiliary[0]["fn"].log_prob(auxiliary[0]["value"]).reshape(5, -1).sum(1)
    log_weight = draws.log_likelihood + draws.log_prior - log_q_z
    torch.testing.assert_close(log_weight, log_w.terms[0].log_w.reshape(5))


def test_draws_of_the_prior_are_scored_as_draws_of_the_guide():
    x = torch.randn(4, 2)
    pair = Pair(mixed, px.AutoAmortized(mixed, lambda x: x, plate="data"), (x,), {})
    elements = Elements(pair, joint=False)
    draws = elements.from_model(pair, 4000)
    assert_mean(draws.z[..., 2].reshape(4000, -1), 0.3)
    entropy = dist.Normal(0.0, 1.0).entropy() * 2 + dist.Normal(0.0, 0.5).entropy()
    dirichlet = draws.log_prior.mean() / 4 + entropy
    w = dist.Dirichlet(torch.ones(3)).sample((4000,))
    stick = torch.distributions.biject_to(torch.distributions.constraints.simplex)
    log_det = stick.log_abs_det_jacobian(stick.inv(w), w)
    assert abs(float(dirichlet - dist.Dirichlet(torch.ones(3)).log_prob(w).mean() - log_det.mean())
               ) < 0.2  # fmt: skip
    dreamed = elements.from_model(pair, 5, dream=True)
    assert not torch.equal(dreamed.data[0, :, :2], x)
    assert dreamed.data.shape == (5, 4, 5)


def test_joint_latents_make_one_vector():
    x = torch.randn(4, 2)
    pair = Pair(mixed, px.AutoAmortized(mixed, lambda x: x, plate="data"), (x,), {})
    draws = Elements(pair, joint=True).from_guide(pair, 5)
    assert draws.z.shape == (5, 1, 4 * 5)
    assert draws.data.shape == (5, 1, 0)


def test_coupled_elements_make_one_vector():
    """A guide with all latents in one vector: its q does not factorize over the plate."""
    pair = Pair(local_model, px.AutoJoint(local_model, family=px.FullCovariance()), (XS,), {})
    assert Elements(pair, joint=False).from_guide(pair, 5).z.shape == (5, 1, 3)


def test_whitening_makes_moments_of_white_noise():
    guide = px.AutoJoint(local_model, family=px.FullCovariance())
    pair = Pair(local_model, guide, (XS,), {})
    elements = Elements(pair, joint=False)
    with torch.no_grad():
        guide.params.add_(0.3 * torch.randn_like(guide.params))
    scene = Scene(pair, elements, CONTRASTS["adaptive"], num=4000, num_moments=20_000)
    z, other = scene.critic_inputs()
    assert z.shape == other.shape == (4000, 3)
    moments = scene._moments(elements.from_guide(pair, 1))
    # Means of 20 000 draws: 0.05 is seven standard errors.
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=0.12, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(3), atol=0.15, rtol=0)
    drawn = elements.from_guide(pair, 7).z
    covariance = moments.factor @ moments.factor.mT
    expected = dist.MultivariateNormal(moments.loc, covariance).log_prob(drawn)
    torch.testing.assert_close(moments.log_prob(drawn), expected)
