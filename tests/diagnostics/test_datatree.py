import dataclasses

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import SplitReparam

import pyro_ext as px
from pyro_ext.diagnostics import from_draws, from_mcmc, to_datatree
from pyro_ext.testing import NormalHierarchy, NormalLocal

EXACT = NormalHierarchy.simulate(5)


def schools(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.fixture
def data():
    return torch.tensor([15.0, 10.0, 16.0, 11.0]), torch.tensor([28.0, 8.0, -3.0, 7.0])


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_groups_and_values(data, chunk_size):
    guide = px.AutoJoint(schools)
    tree = to_datatree(schools, guide, *data, num_samples=11, seed=0, chunk_size=chunk_size)
    posterior = tree["posterior"]
    assert dict(posterior["mu"].sizes) == {"chain": 1, "draw": 11}
    assert dict(posterior["theta"].sizes) == {"chain": 1, "draw": 11, "school": 4}
    assert set(posterior.data_vars) == {"mu", "tau", "eta", "theta"}
    assert float(posterior["tau"].min()) > 0
    np.testing.assert_allclose(
        posterior["theta"], posterior["mu"] + posterior["tau"] * posterior["eta"]
    )
    np.testing.assert_allclose(tree["observed_data"]["y"], data[1])
    sigma = data[0].numpy()
    log_lik = -0.5 * ((data[1].numpy() - posterior["theta"].values) / sigma) ** 2
    log_lik -= np.log(sigma) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(tree["log_likelihood"]["y"], log_lik)
    assert dict(tree["posterior_predictive"]["y"].sizes) == {"chain": 1, "draw": 11, "school": 4}
    assert dict(tree["sample_stats"]["log_p"].sizes) == {"chain": 1, "draw": 11}


def test_log_q_is_the_density_of_the_draws(data):
    guide = px.AutoJoint(schools)
    tree = to_datatree(schools, guide, *data, num_samples=9)
    draws = {n: torch.as_tensor(tree["posterior"][n].values[0]) for n in ("mu", "tau", "eta")}
    log_q = guide.log_prob(draws, *data)
    torch.testing.assert_close(
        torch.as_tensor(tree["sample_stats"]["log_q"].values[0]), log_q.detach()
    )


@pytest.mark.parametrize("subsample_size", [None, 2])
def test_log_p_minus_log_q_is_the_evidence_of_the_exact_guide(subsample_size):
    exact = dataclasses.replace(EXACT, subsample_size=subsample_size)
    tree = to_datatree(exact.model, exact.guide, exact.x, num_samples=20)
    stats = tree["sample_stats"]
    np.testing.assert_allclose(stats["log_p"] - stats["log_q"], exact.log_evidence(), atol=1e-10)
    assert tree["posterior"].sizes["data"] == 5


def test_posterior_predictive_follows_the_draws():
    tree = to_datatree(EXACT.model, EXACT.guide, EXACT.x, num_samples=4000, seed=0)
    residual = tree["posterior_predictive"]["x"].values - tree["posterior"]["z"].values
    # 20,000 standard normals: the limits are five standard errors.
    assert abs(residual.mean()) < 5 / 20_000**0.5
    assert abs(residual.std() - 1) < 5 / 40_000**0.5


def test_nested_plates_matrix_sites_and_masks():
    mask = torch.tensor([[True, False, True], [True, True, True]])

    def model(x):
        rows, columns = pyro.plate("row", 2, dim=-2), pyro.plate("column", 3, dim=-1)
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with rows:
            a = pyro.sample("a", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with rows, columns, pyro.poutine.mask(mask=mask):
            mean = pyro.deterministic("mean", a.sum(-1) + w.sum((-1, -2)))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    tree = to_datatree(model, px.AutoJoint(model), torch.zeros(2, 3), num_samples=6)
    posterior = tree["posterior"]
    assert posterior["a"].dims == ("chain", "draw", "row", "a_dim_0")
    assert posterior["w"].dims == ("chain", "draw", "w_dim_0", "w_dim_1")
    assert posterior["mean"].dims == ("chain", "draw", "row", "column")
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "row", "column")
    assert (tree["log_likelihood"]["x"].values[:, :, 0, 1] == 0).all()


def test_dims_coords_and_attributes(data):
    tree = to_datatree(
        schools,
        px.AutoJoint(schools, family=px.FullCovariance()),
        *data,
        num_samples=5,
        coords={"school": ["a", "b", "c", "d"]},
        seed=3,
    )
    assert tree["posterior"]["theta"].sel(school="c").shape == (1, 5)
    assert tree.attrs["inference_method"] == "VI"
    assert tree.attrs["guide"] == "AutoJoint"
    assert tree.attrs["family"] == repr(px.FullCovariance())
    assert tree.attrs["seed"] == 3
    assert tree.attrs["pyro_version"] == pyro.__version__


def test_auxiliary_sites_stay_out():
    def guide(x):
        scale = pyro.sample("helper", dist.LogNormal(0.0, 0.1), infer={"is_auxiliary": True})
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    exact = NormalLocal.simulate(3)
    tree = to_datatree(exact.model, guide, exact.x, num_samples=4)
    assert set(tree["posterior"].data_vars) == {"z"}


def test_a_plate_named_like_a_site():
    def model(x):
        with pyro.plate("x", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x_obs", dist.Normal(z, 1.0), obs=x)
            pyro.deterministic("x_", z)

    def named(x):
        with pyro.plate("z", len(x)):
            z = pyro.sample("z_", dist.Normal(0.0, 1.0))
            pyro.deterministic("z2", z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for each in (model, named):
        tree = to_datatree(each, px.AutoJoint(each), torch.zeros(3), num_samples=4)
        assert tree["observed_data"].sizes in ({"x": 3}, {"z": 3})


def test_netcdf_round_trip(tmp_path, data):
    run = px.fit(schools, px.AutoJoint(schools), data=data, num_steps=2, seed=0)
    tree = to_datatree(run, num_samples=6, coords={"school": ["a", "b", "c", "d"]})
    tree.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "draws.nc", engine="h5netcdf") as again:
        xarray.testing.assert_equal(again.load(), tree)
        assert again.attrs == tree.attrs
    assert tree.attrs["loss"] == "ELBO"
    assert tree.attrs["num_steps"] == 2


def test_netcdf_round_trip_of_booleans_and_text(tmp_path):
    tree = from_draws(
        {"flag": torch.tensor([True, False, True])},
        attrs={"converged": True, "note": "text", "nothing": None, "shape": (1, 2)},
    )
    tree.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "draws.nc", engine="h5netcdf") as again:
        assert again["posterior"]["flag"].values.tolist() == [[True, False, True]]
        assert again.attrs["converged"] == 1
        assert again.attrs["note"] == "text"
        assert "nothing" not in again.attrs


def test_arviz_reads_it(data):
    import arviz_stats

    tree = to_datatree(schools, px.AutoJoint(schools), *data, num_samples=400, seed=0)
    summary = arviz_stats.summary(tree, kind="stats")
    assert "theta[3]" in summary.index
    assert summary.loc["mu", "sd"] > 0


def test_from_mcmc_holds_what_a_guide_gives(data):
    mcmc = MCMC(NUTS(schools), num_samples=10, warmup_steps=10, disable_progbar=True)
    mcmc.run(*data)
    tree = from_mcmc(mcmc)
    posterior = tree["posterior"]
    assert dict(posterior["theta"].sizes) == {"chain": 1, "draw": 10, "school": 4}
    np.testing.assert_allclose(
        posterior["theta"], posterior["mu"] + posterior["tau"] * posterior["eta"]
    )
    np.testing.assert_allclose(posterior["eta"].values[0], mcmc.get_samples()["eta"])
    assert tree["log_likelihood"]["y"].shape == (1, 10, 4)
    assert tree.attrs["inference_method"] == "MCMC"


COVARIATES = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def product(weights):
    return COVARIATES @ weights  # takes no dim left of the three


def centred(weights):
    return (COVARIATES * (weights - weights.mean())).sum(-1)  # the mean of all draws, if it may


@pytest.mark.parametrize("mean", [product, centred])
def test_from_mcmc_of_a_model_that_takes_one_draw_at_a_time(mean):
    def model(y):
        weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", 6):
            found = pyro.deterministic("mean", mean(weights))
            pyro.sample("y", dist.Normal(found, 0.5), obs=y)

    y = COVARIATES.sum(-1)
    mcmc = MCMC(NUTS(model), num_samples=12, warmup_steps=5, disable_progbar=True)
    mcmc.run(y)
    tree = from_mcmc(mcmc)
    means = torch.stack([mean(weights) for weights in mcmc.get_samples()["weights"]])
    np.testing.assert_allclose(tree["posterior"]["mean"].values[0], means)
    expected = dist.Normal(means, 0.5).log_prob(y)
    np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0], expected)
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "data")


def test_from_draws():
    tree = from_draws(
        {"mu": torch.zeros(7), "theta": np.zeros((7, 3))},
        dims={"theta": ["school"]},
        coords={"school": ["a", "b", "c"]},
    )
    assert dict(tree["posterior"]["theta"].sizes) == {"chain": 1, "draw": 7, "school": 3}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_draws({"a": torch.zeros(3), "b": torch.zeros(4)}), "same number of draws"),
        (lambda: from_draws({}), "same number of draws"),
        (lambda: from_draws({"a": torch.zeros(3)}, dims={"b": ["d"]}), r"\['a'\]; got \['b'\]"),
        (lambda: from_draws({"a": torch.zeros(3, 2)}, dims={"a": ["d", "e"]}), "expected 1 names"),
        (
            lambda: from_draws({"a": torch.zeros(3, 2)}, dims={"a": ["d"]}, coords={"d": [1]}),
            "expected 2 values for dim 'd' of 'a'; got 1",
        ),
        (lambda: from_draws({"a": torch.zeros(3)}, coords={"d": [1]}), r"got \['d'\]"),
        (
            lambda: from_draws({"a": torch.zeros(3, 2), "s": torch.zeros(3)}, dims={"a": ["s"]}),
            r"no variables, each once; got \['s'\]. Write: dims={'a': \['s_0'\]}",
        ),
        (
            lambda: from_draws({"a": torch.zeros(3, 2, 2)}, dims={"a": ["d", "d"]}),
            r"no variables, each once; got \['d', 'd'\]",
        ),
        (
            lambda: to_datatree(EXACT.model, EXACT.guide, EXACT.x, num_samples=0),
            "num_samples >= 1",
        ),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("num_samples", [1, 2, 4])
def test_constants_and_vectors_of_a_scalar(num_samples):
    """Their dims are not those of a plate, nor of the draws."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("constant", torch.arange(3.0))
        pyro.deterministic("vector", z.unsqueeze(-1) * torch.ones(3))

    tree = to_datatree(model, px.AutoJoint(model), num_samples=num_samples, seed=0)
    found = tree["posterior"]
    assert (found["constant"].values == np.arange(3.0)).all()
    assert (found["vector"].values == found["z"].values[..., None] * np.ones(3)).all()
    assert found["constant"].shape == found["vector"].shape == (1, num_samples, 3)


def test_what_is_no_mcmc_raises():
    with pytest.raises(TypeError, match="got dict"):
        from_mcmc({})


def test_leaves_no_trace(data):
    guide = px.AutoJoint(schools)
    guide.setup(*data)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    state, store = torch.get_rng_state(), dict(pyro.get_param_store().items())
    one = to_datatree(schools, guide, *data, num_samples=5, seed=1)
    two = to_datatree(schools, guide, *data, num_samples=5, seed=1)
    xarray.testing.assert_equal(one, two)
    torch.testing.assert_close(torch.get_rng_state(), state)
    assert dict(pyro.get_param_store().items()) == store
    for name, value in guide.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The model 'walk' takes one draw at a time")
def test_a_split_latent_of_a_model_of_one_draw_is_no_datum():
    def walk(y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(0.0, scale).expand([4]).to_event(1))
        with pyro.plate("time", 4):
            pyro.sample("y", dist.Normal(z.cumsum(-1), 1.0), obs=y)

    model = poutine.reparam(walk, config={"z": SplitReparam([1, 3], -1)})
    tree = to_datatree(model, px.AutoJoint(model), torch.ones(4), num_samples=6, seed=0)
    posterior = tree["posterior"]
    parts = [posterior["z_split_0"].values, posterior["z_split_1"].values]
    np.testing.assert_array_equal(posterior["z"].values, np.concatenate(parts, axis=-1))
    for group in ("observed_data", "log_likelihood", "posterior_predictive"):
        assert list(tree[group].data_vars) == ["y"]
