from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from implicit_cases import XS, Guide, X, model

import pyro_ext as px


def mixed_homes(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def bernoulli(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=loc + z), obs=(x > 0).double())


def masked(x):
    with pyro.plate("data", len(x)):
        with pyro.poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def tempered(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.poutine.scale(scale=0.5):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a + b, 1.0), obs=x.sum())


def two_latents(x):
    a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
    pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


def discrete(x):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x.sum())


def discrete_guide(x):
    pyro.sample("z", dist.Bernoulli(pyro.param("share", torch.tensor(0.3))))


def without_path(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("z", dist.VonMises(loc, 1.0))


def jumps(x, share=None):
    share = pyro.param("share", torch.tensor(0.3)) if share is None else share
    loc = pyro.param("loc", torch.tensor(0.1))
    jump = pyro.sample("jump", dist.Bernoulli(share), infer={"is_auxiliary": True})
    pyro.sample("z", dist.Delta(jump + loc + torch.randn_like(jump)))


def test_noise_without_parameters_may_be_discrete():
    step(model, partial(jumps, share=torch.tensor(0.5)), X)
    assert pyro.param("loc").grad.abs() > 0


def step(target, guide=None, x=XS, **options):
    guide = guide or px.AutoJoint(target)
    px.Adversarial(4, warmup=0, **options).loss_and_grads(target, guide, x)


def two_pairs(target=model, guide=None, *, call="loss_and_grads"):
    loss, first = px.Adversarial(4, warmup=0), Guide()
    loss.loss_and_grads(model, first, X)
    getattr(loss, call)(target, guide or first, X)


def other_features():
    def features(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    loss, guide = px.Adversarial(4, warmup=0), px.AutoAmortized(features, lambda x: x[:, :1])
    for size in (2, 3):
        loss.loss_and_grads(features, guide, torch.ones(3, size))


ERRORS = {
    "contrast": (lambda: px.Adversarial(contrast="none"), r"expected contrast .*'adaptive'"),
    "bound": (lambda: px.Adversarial(bound="none"), r"expected bound to be one of"),
    "homes": (
        lambda: step(mixed_homes, px.AutoAmortized(mixed_homes, lambda x: x.unsqueeze(-1))),
        r"sites \['mu'\] outside, .*Write: px\.Adversarial\(joint=True\)",
    ),
    "no gradient for the model": (
        lambda: step(bernoulli, Guide(), contrast="joint"),
        r"expected data that the model draws by reparameterization.*contrast='prior'",
    ),
    "mask": (lambda: step(masked, Guide()), r"without a mask; got one on site 'z'"),
    "scales": (lambda: step(tempered), r"expected latents with one scale; got .*poutine\.scale"),
    "untrained": (
        lambda: px.Adversarial().loss(model, Guide(), X),
        r"expected a critic that was trained.*Write: loss\.evaluate",
    ),
    "another guide": (
        lambda: two_pairs(guide=Guide()),
        r"expected the pair that the critic was trained for, of 'model' and 'Guide'; got another "
        r"guide, 'Guide'\. Write: a new px\.Adversarial\(\)",
    ),
    "another model": (
        lambda: two_pairs(two_latents),
        r"of 'model' and 'Guide'; got another model, 'two_latents'",
    ),
    "another pair without gradients": (
        lambda: two_pairs(guide=Guide(), call="loss"),
        r"got another guide",
    ),
    "another pair to evaluate": (
        lambda: two_pairs(guide=Guide(), call="evaluate"),
        r"got another guide",
    ),
    "other features": (
        other_features,
        r"expected elements as the critic was trained for, of 3 numbers; got 4\. Write: a new",
    ),
    "a column": (
        lambda: step(model, Guide(), X, critic=lambda size: torch.nn.Linear(size, 1)),
        r"expected one number for each x, .*Write: return net\(x\)\.squeeze\(-1\)",
    ),
    "discrete": (
        lambda: step(discrete, discrete_guide),
        r"expected continuous latents.* site 'z', Bernoulli\. Write: px\.ELBO\(estimator=",
    ),
    "mixture": (
        lambda: step(model, px.AutoJoint(model, family=px.Mixture(px.Diagonal())), X),
        r"reparameterized, .*; got site '\w+', \w*Mixture\w*, .*px\.ELBO\(num_particles=2\)",
    ),
    "no path": (
        lambda: step(model, without_path, X),
        r"reparameterized, .*; got site 'z', VonMises, which is not\. Write: px\.ELBO\(est",
    ),
    "auxiliary draw without a path": (
        lambda: step(model, jumps, X),
        r"got site 'jump', Bernoulli, which is not",
    ),
    "steps": (
        lambda: px.Adversarial(critic_steps=-1),
        r"Adversarial: expected critic_steps to be a whole number >= 0; got -1\. Write: critic_",
    ),
    "warm-up": (lambda: px.Adversarial(warmup=1.5), r"expected warmup .* got 1\.5"),
    "moments": (
        lambda: step(two_latents, None, X, contrast="adaptive", num_moments=2),
        r"expected num_moments above the 2 numbers of an element's latents.*; got 2\. Write: ",
    ),
    "no steps of evaluate": (
        lambda: px.Adversarial().evaluate(model, Guide(), X, num_steps=0),
        r"Adversarial\.evaluate: expected num_steps to be .* got 0",
    ),
    "one draw of evaluate": (
        lambda: px.Adversarial().evaluate(model, Guide(), X, num_particles=1),
        r"Adversarial\.evaluate: expected num_particles to be .* >= 2; got 1",
    ),
    "site": (
        lambda: step(model, lambda x: pyro.sample("y", dist.Normal(0.0, 1.0))),
        r"site 'z': expected the guide to sample every latent.*Write: pyro.sample\('z', ...\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_joint_option_takes_latents_in_and_out_of_the_plate():
    guide = px.AutoAmortized(mixed_homes, lambda x: x.unsqueeze(-1))
    step(mixed_homes, guide, joint=True)
