"""Bad input: each gives one error that says what was expected, what came, and what to write."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList

import pyro_ext as px

X = torch.zeros(5)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def joint(model):
    return px.AutoJoint(model)


def per_datapoint(model):
    return px.AutoPerDatapoint(model)


def amortized(model):
    return px.AutoAmortized(model, lambda x: x.unsqueeze(-1))


EVERY_GUIDE = pytest.mark.parametrize("build", [joint, per_datapoint, amortized])


@EVERY_GUIDE
def test_load_before_setup(build):
    guide = build(local)
    with pytest.raises(RuntimeError, match=r"guide\.setup\(\*args\) before"):
        guide.load_state_dict({})


@EVERY_GUIDE
@pytest.mark.parametrize(
    "fn", [dist.Bernoulli(0.5), dist.Poisson(2.0), dist.Categorical(torch.ones(3))], ids=repr
)
def test_a_discrete_site(build, fn):
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", fn)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)

    name = type(build(model)).__name__
    with pytest.raises(ValueError, match=rf"(?s){name}: expected continuous .*'k'.*hide=\['k'\]"):
        build(model).setup(X)
    build(poutine.block(model, hide=["k"])).setup(X)


@EVERY_GUIDE
def test_all_discrete_sites_are_named(build):
    def model(x):
        k, z = 0, 0.0
        with pyro.plate("data", len(x)):
            for t in range(2):
                k = pyro.sample(f"k_{t}", dist.Bernoulli(0.2 + 0.5 * k))
                z = pyro.sample(f"z_{t}", dist.Normal(z + k, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"'k_0' has support.*hide=\['k_0', 'k_1'\]"):
        build(model).setup(X)
    build(poutine.block(model, hide=["k_0", "k_1"])).setup(X)


@EVERY_GUIDE
def test_a_sequential_plate(build):
    def model(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    with pytest.raises(ValueError, match=r"site 'z_0' .*sequential plate 'data'.*with pyro.plate"):
        build(model).setup(X)


@EVERY_GUIDE
def test_a_model_without_latents(build):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="expected a model with a latent site"):
        build(model).setup(X)


@EVERY_GUIDE
def test_a_batch_dim_without_plate(build):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, 5), 1.0))
            pyro.sample("x", dist.Normal(z.sum(0), 1.0), obs=x)

    with pytest.raises(ValueError, match=r"batch dims of site 'z'.*\(3, 5\).*to_event"):
        build(model).setup(X)


@pytest.mark.parametrize("subsample", [None, torch.tensor([0, 2])])
def test_a_joint_guide_of_subsampled_latents(subsample):
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2, subsample=subsample) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    with pytest.raises(
        ValueError, match=r"got site 'z' in plate 'data'.* 2 of 5 .*AutoPerDatapoint"
    ):
        px.AutoJoint(model).setup(X)


def test_a_joint_guide_of_local_latents_in_mini_batches():
    with pytest.raises(ValueError, match=r"'data'.*5"):
        px.fit(local, px.AutoJoint(local), px.ELBO(), X, num_steps=2, batch_size=2, progress=False)


@pytest.mark.parametrize(
    ("encoder", "got", "end"),
    [
        (lambda x: x, r"\(5,\)", "unsqueeze"),
        (lambda x: x.new_zeros(4, 3), r"\(4, 3\)", "flatten"),
        (lambda x: x.new_zeros(5, 3, 2), r"\(5, 3, 2\)", "flatten"),
        (lambda x: (x, x), "tuple", "flatten"),
    ],
)
def test_an_encoder_of_the_wrong_shape(encoder, got, end):
    match = rf"plate 'data' in the batch, shape \(5, features\); got {got}.*\.{end}\("
    with pytest.raises(ValueError, match=match):
        px.AutoAmortized(local, encoder).setup(X)


def test_an_encoder_whose_shape_goes_wrong_later():
    guide = px.AutoAmortized(local, lambda x: x.unsqueeze(-1)[:5])
    guide.setup(X)
    with pytest.raises(ValueError, match=r"shape \(6, features\); got \(5, 1\)"):
        guide(torch.zeros(6))


@EVERY_GUIDE
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_init_scale(build, scale):
    with pytest.raises(ValueError, match=r"a finite init_scale > 0; got .*Write: init_scale=0.1"):
        type(build(local))(local, *([len] if build is amortized else []), init_scale=scale)


@EVERY_GUIDE
def test_log_prob_without_a_site(build):
    guide = build(local)
    with pytest.raises(ValueError, match=r"each of the sites \['z'\]; got none for \['z'\]"):
        guide.log_prob({"w": X}, X)


@EVERY_GUIDE
@pytest.mark.parametrize("prob", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_quantiles_outside(build, prob):
    with pytest.raises(ValueError, match=r"probabilities in \(0, 1\); got"):
        build(local).quantiles([0.5, prob], X)


@EVERY_GUIDE
@pytest.mark.parametrize("quantiles", [[], 0.5])
def test_no_list_of_quantiles(build, quantiles):
    with pytest.raises(ValueError, match=r"list of probabilities in \(0, 1\); got .*Write: guide"):
        build(local).quantiles(quantiles, X)


@EVERY_GUIDE
@pytest.mark.parametrize("shape", [(), (1,), (4,), (5, 1)])
def test_log_prob_of_another_shape(build, shape):
    """One value is not spread over all data."""
    with pytest.raises(ValueError, match=r"'z' .*shape \(\*sample, 5\), with .*Write: guide.log"):
        build(local).log_prob({"z": torch.zeros(shape)}, X)
    assert build(local).log_prob({"z": torch.zeros(3, 2, 5)}, X).shape == (3, 2)


def test_log_prob_of_sites_with_other_sample_dims():
    def two():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    guide = px.AutoJoint(two)
    with pytest.raises(ValueError, match=r"'b' .*shape \(\*sample\), with .*got \(3,\)"):
        guide.log_prob({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"'a' .*; got float. Write"):
        guide.log_prob({"a": 0.5, "b": torch.zeros(())})


@EVERY_GUIDE
def test_number_of_draws(build):
    with pytest.raises(TypeError, match=r"to be a whole number; got 2.5. Write: guide"):
        build(local).sample_posterior(2.5, X)
    with pytest.raises(ValueError, match=r"num_samples >= 0; got -1. Write: guide"):
        build(local).sample_posterior(-1, X)
    assert build(local).sample_posterior(1e1, X)["z"].shape == (10, 5)


@pytest.mark.parametrize("build", [per_datapoint, amortized])
def test_a_model_that_loses_its_plate(build):
    def model(x):
        if len(x) > 5:
            return
        local(x)

    guide = build(model)
    guide.setup(X)
    with pytest.raises(RuntimeError, match="to enter plate 'data' as it did"):
        guide(torch.zeros(6))


def test_a_list_without_plates_of_the_batch():
    guide = AutoGuideList(local)
    guide.append(px.AutoPerDatapoint(poutine.block(local, expose=["z"])))
    with pytest.raises(
        ValueError,
        match=r"AutoPerDatapoint: .*to have 2 elements, .*got 5.*create_plates=lambda x",
    ):
        px.fit(local, guide, px.ELBO(), X, num_steps=2, batch_size=2, progress=False)


@pytest.mark.parametrize("option", ["family", "global_family"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (px.FullCovariance, r"got the class FullCovariance\. Write: {}=px\.FullCovariance\(\)\."),
        ("full", r"got 'full'\. Write: {}=px\.FullCovariance\(\)\."),
    ],
    ids=["class", "name"],
)
def test_a_family_that_is_none(option, given, message):
    message = rf"expected {option} to be a family; " + message.format(option)
    with pytest.raises(TypeError, match="AutoPerDatapoint: " + message):
        px.AutoPerDatapoint(local, **{option: given})
    if option == "family":
        with pytest.raises(TypeError, match="AutoJoint: " + message):
            px.AutoJoint(local, family=given)


def test_an_error_of_the_model_is_the_models():
    """Nothing that a model raises is taken for something else, and its except sees no signal."""

    def model(x):
        with pyro.plate("data", len(x)):
            try:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            except Exception as error:
                raise AssertionError("the model saw the guide's signal") from error
            if len(x) > 5:
                raise KeyError("mine")
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = amortized(model)
    assert px.ELBO().loss(model, guide, X) > 0
    with pytest.raises(KeyError, match="mine"):
        px.ELBO().loss(model, guide, torch.zeros(6))


def test_features_that_are_not_finite_name_sites_and_rows():
    x = X.clone()
    x[3] = torch.nan
    guide = px.AutoAmortized(local, lambda x: x.unsqueeze(-1))
    with pytest.raises(ValueError, match=r"sites \['z'\]: expected finite features.*rows \[3\]"):
        guide.setup(x)
