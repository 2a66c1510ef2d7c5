"""Models, guides and references of which a diagnostic could say what is not so."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import LocScaleReparam

import pyro_ext as px
from pyro_ext.testing import NormalGlobal, NormalLocal

GLOBAL = NormalGlobal.simulate(20)


def run_of(model, guide, *args):
    return SimpleNamespace(model=model, guide=guide, args=args)


def bimodal(scale):
    places = dist.Normal(torch.tensor([-5.0, 5.0]), scale)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), places)


def two_modes():
    pyro.sample("m", bimodal(1.0))


def given(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def prior(x):
    pyro.sample("mu", dist.Normal(x / 2, 0.8))


def hierarchical(x, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("d", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    with pyro.plate("e", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def centred(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("d", len(x)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=x)


NONCENTRED = poutine.reparam(centred, {"theta": LocScaleReparam(0.0)})


def test_a_guide_that_misses_a_mode_is_not_chosen():
    guides = {
        "one": lambda: pyro.sample("m", dist.Normal(5.0, 1.05)),
        "both": lambda: pyro.sample("m", bimodal(1.4)),
    }
    found = px.compare({name: run_of(two_modes, guide) for name, guide in guides.items()})
    assert "one: not to be trusted" in found.verdicts["one"]
    assert "it misses a part of the posterior that both finds" in found.verdicts["one"]
    assert found.choice.startswith("Use both")
    assert "misses" in found.table.loc["one", "verdict"]

    def another():
        pyro.sample("m", bimodal(1.0))
        pyro.factor("worse", torch.tensor(-1.0))

    runs = {"one": run_of(another, guides["one"]), "both": run_of(two_modes, guides["both"])}
    assert "misses" not in px.compare(runs).verdicts["one"]  # of another model
    runs = {n: run_of(given, prior, torch.tensor(x)) for n, x in (("near", 0.0), ("far", 9.0))}
    assert "misses" not in px.compare(runs).verdicts["far"]  # of other data
    alone = px.compare({"one": run_of(two_modes, guides["one"])})
    assert "k-hat finds no fault" in alone.verdicts["one"]  # nobody knows better


def test_a_guide_with_a_point_has_no_posterior():
    guide = pyro.infer.autoguide.AutoDelta(GLOBAL.model)
    guide(*GLOBAL.args)
    with pytest.warns(UserWarning, match=r"has \['mu'\] at a point"):
        px.evidence(GLOBAL.model, guide, *GLOBAL.args, seed=0)
    with pytest.warns(UserWarning, match="at a point"):
        found = px.compare({"point": run_of(GLOBAL.model, guide, *GLOBAL.args)})
    assert "no posterior of mu, which it has at a point" in found.verdicts["point"]
    assert "It is not to be trusted" in found.choice


def test_automatic_guides_have_no_points():
    """Their sites are Deltas at functions of a draw."""
    guide = pyro.infer.autoguide.AutoMultivariateNormal(GLOBAL.model)
    guide(*GLOBAL.args)
    for fitted in (guide, px.AutoJoint(GLOBAL.model)):
        px.k_hat_joint(GLOBAL.model, fitted, *GLOBAL.args, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_narrow_guide_is_caught_beside_a_large_constant(dtype):
    """Rounding of log weights near 1e5, in single precision, is 0.01 nats."""
    data = torch.tensor([500.0, -500.0], dtype=dtype)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("d", 2):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 0.3 * 3**-0.5))

    found = px.k_hat_joint(model, guide, data, seed=0)
    assert found.verdict == "not to be trusted"


def test_ties_are_no_fault_of_calibration():
    def model(x):
        pyro.sample("L", dist.LKJCholesky(3, 2.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("d", len(x)):
            pyro.sample("x", dist.Normal(0.0 * k, 1.0), obs=x)

    def guide(x):
        pyro.sample("L", dist.LKJCholesky(3, 2.0))
        pyro.sample("k", dist.Bernoulli(0.3))

    def biased(x):
        pyro.sample("L", dist.LKJCholesky(3, 2.0))
        pyro.sample("k", dist.Bernoulli(0.6))

    x = torch.zeros(5)
    found = px.sbc(model, guide, x, seed=0)
    assert found.verdict == "no fault found in 200 simulations", str(found)
    assert px.sbc(model, biased, x, seed=0).verdict.startswith("not calibrated: k is too high")


def test_each_plate_has_the_number_of_simulations():
    def model(x, y):
        for name, data in {"a": x, "b": y}.items():
            with pyro.plate(f"plate_{name}", len(data)):
                z = pyro.sample(f"z_{name}", dist.Normal(0.0, 1.0))
                pyro.sample(name, dist.Normal(z, 1.0), obs=data)

    def guide(x, y):
        for name, data, off in (("a", x, 0.7), ("b", y, 0.0)):
            with pyro.plate(f"plate_{name}", len(data)):
                pyro.sample(f"z_{name}", dist.Normal(data / 2 + off, 0.5**0.5))

    found = px.sbc(model, guide, torch.zeros(5), torch.zeros(500), seed=0)
    assert found.pit["z_a"].shape == (200,)
    assert found.verdict == "not calibrated: z_a is too high"


def test_an_argument_that_equals_the_data_by_chance_stays():
    given = []

    def model(covariates, x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("d", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=mu * covariates), obs=x)

    def guide(covariates, x):
        given.append(covariates)
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    covariates = torch.tensor([0.0, 1.0, 1.0, 0.0])
    px.sbc(model, guide, covariates, covariates.clone(), num_simulations=5, seed=0)
    assert all(torch.equal(seen, covariates) for seen in given)


def test_masked_data_are_no_data_for_loo():
    x, shown = GLOBAL.args[0], torch.arange(20) % 2 == 0
    part = NormalGlobal(x[shown])
    mean, covariance = part.posterior()

    def masked(x, shown):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=shown):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def unmasked(x):
        masked(x, torch.ones(len(x), dtype=torch.bool))

    def guide(*args):
        pyro.sample("mu", dist.Normal(mean[0] + 0.02, 1.1 * covariance[0, 0].sqrt()))

    whole = px.loo(masked, guide, x, shown, num_samples=2000, seed=0)
    alone = px.loo(unmasked, guide, x[shown], num_samples=2000, seed=0)
    assert whole.n_data_points == 10
    torch.testing.assert_close(whole.elpd, alone.elpd)
    torch.testing.assert_close(whole.se, alone.se)
    assert whole.elpd_i.x_shown.values.tolist() == list(range(0, 20, 2))


def test_loo_of_data_without_latents_of_their_own():
    x, y = torch.randn(6), torch.randn(4)
    mean, sd = (x.sum() / 2 + y.sum()) / 8, 8**-0.5

    def guide(x, y):
        pyro.sample("mu", dist.Normal(mean, sd))
        with pyro.plate("d", len(x)):
            pyro.sample("z", dist.Normal((mean + x) / 2, 0.75**0.5))

    tree = px.marginal_log_likelihood(hierarchical, guide, x, y, num_samples=50, seed=0)
    assert {name: v.sizes for name, v in tree["log_likelihood"].data_vars.items()} == {
        "x": {"chain": 1, "draw": 50, "d": 6},
        "y": {"chain": 1, "draw": 50, "e": 4},
    }
    draws = px.to_datatree(hierarchical, guide, x, y, num_samples=50, seed=0)
    mu = torch.as_tensor(draws["posterior"]["mu"].values)[0]
    expected = dist.Normal(mu[:, None], 1.0).log_prob(y)
    torch.testing.assert_close(torch.as_tensor(draws["log_likelihood"]["y"].values)[0], expected)
    for name, size in {"x": 6, "y": 4}.items():
        found = px.loo(hierarchical, guide, x, y, num_samples=500, var_name=name, seed=0)
        assert found.n_data_points == size


def test_what_a_reparam_leaves_is_no_datum():
    x = torch.randn(5)
    tree = px.to_datatree(NONCENTRED, px.AutoJoint(NONCENTRED), x, num_samples=30, seed=0)
    assert set(tree["posterior"].data_vars) == {"mu", "theta", "theta_decentered"}
    for group in ("log_likelihood", "observed_data", "posterior_predictive"):
        assert list(tree[group].data_vars) == ["y"]


def test_sites_that_a_kernel_sums_out_are_told():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        with pyro.plate("d", len(x)):
            pyro.sample("x", dist.Normal(mu + k, 1.0), obs=x)

    kernel = NUTS(model, max_plate_nesting=1)
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=10, disable_progbar=True)
    mcmc.run(torch.randn(5))
    with pytest.warns(UserWarning, match=r"sums out \['k'\]"):
        tree = px.from_mcmc(mcmc)
    assert list(tree["posterior"].data_vars) == ["mu"]
    assert "log_likelihood" not in tree.children
    assert list(tree["observed_data"].data_vars) == ["x"]


def test_a_single_datum_has_no_dims():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    tree = px.to_datatree(model, px.AutoJoint(model), torch.tensor(0.5), num_samples=30, seed=0)
    assert tree["observed_data"]["x"].item() == 0.5
    assert tree["posterior_predictive"]["x"].sizes == {"chain": 1, "draw": 30}


def test_an_encoder_in_a_closure_is_evaluated_too():
    local = NormalLocal(torch.linspace(-1, 1, 30))
    encoder = torch.nn.Sequential(
        torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)
    )

    def guide(x):
        pyro.module("encoder", encoder)
        loc = encoder(x.unsqueeze(-1)).mean(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    before = encoder[1].running_mean.clone()
    elbos = [px.evidence(local.model, guide, *local.args, seed=0).elbo.value]
    assert torch.equal(encoder[1].running_mean, before)
    assert encoder.training
    encoder.eval()
    elbos.append(px.evidence(local.model, guide, *local.args, seed=0).elbo.value)
    assert elbos[0] == elbos[1]


def test_a_part_of_a_plate_is_told():
    def model(x, rows):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("d", len(x), subsample=rows):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])

    def guide(x, rows):
        pyro.sample("mu", dist.Normal(x[rows].mean() * 100 / 101, 101**-0.5))

    x = torch.randn(100)
    with pytest.warns(UserWarning, match="a part of plate 'd'"):
        px.evidence(model, guide, x, torch.arange(10), seed=0)
    found = px.evidence(model, guide, x, torch.arange(100), seed=0)
    assert found.log_evidence.value == pytest.approx(NormalGlobal(x).log_evidence().item())


def test_parametrisations_are_compared_by_what_both_have(tmp_path):
    x = torch.randn(5)
    models = {"centred": centred, "noncentred": NONCENTRED}
    runs = {name: run_of(model, px.AutoJoint(model), x) for name, model in models.items()}
    for order in (runs, dict(reversed(runs.items()))):
        reference = {"mu": torch.randn(100), "theta": torch.randn(100, 5)}
        found = px.compare(order, num_samples=200, reference=reference)
        assert {"forest", "marginals", "pairs"} <= set(found.figures)
    found.save(tmp_path)
    assert (tmp_path / "pairs.png").exists()


def test_a_reference_is_matched_by_position():
    draws = {"theta": torch.randn(100, 5)}
    named = px.from_draws(draws, dims={"theta": ["school"]}, coords={"school": list("abcde")})
    runs = {"centred": run_of(centred, px.AutoJoint(centred), torch.randn(5))}
    found = [px.compare(runs, num_samples=200, reference=r) for r in (draws, named)]
    assert str(found[0]) == str(found[1])
    assert list(found[1].figures) == list(found[0].figures)


def test_all_chains_count():
    chains = torch.randn(4, 500)
    chains[1:] += 3.0
    tree = px.from_draws({"mu": chains.flatten()})
    stacked = tree["posterior"]["mu"].values.reshape(4, 500)
    from arviz_base import from_dict

    found = px.distances(from_dict({"posterior": {"mu": stacked}}), {"mu": (0.0, 1.0)})
    assert found.marginals.mean_error[0] == pytest.approx(chains.mean().item(), abs=1e-6)
    assert found.marginals.noise[0] > 0.1  # the chains disagree


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            {"mu": [1.0, 0.3]},
            r"at least 10 reference draws.*Write: reference=\{'mu': \(mean, sd\)",
        ),
        ({"mu": torch.zeros(100)}, r"a reference that varies.*Write: reference=\{'mu'"),
    ],
)
def test_references_that_say_nothing_raise(reference, message):
    guide = px.AutoJoint(GLOBAL.model)
    with pytest.raises(ValueError, match=message):
        px.compare({"one": run_of(GLOBAL.model, guide, *GLOBAL.args)}, reference=reference)


def test_draws_that_are_few_again_and_again_are_told():
    guide = px.AutoJoint(GLOBAL.model, init_loc_fn=lambda site: torch.tensor(30.0))
    tree = px.to_datatree(GLOBAL.model, guide, *GLOBAL.args, num_samples=500, seed=0)
    with pytest.warns(UserWarning, match="importance_resample: k-hat"):
        px.importance_resample(tree)
