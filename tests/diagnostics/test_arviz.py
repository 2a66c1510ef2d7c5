"""ArviZ's own functions on what this package hands over, each once."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from diagnostics.models import MODELS
from pyro.contrib.autoname import scope

import pyro_ext as px

EXACT = MODELS["regression"]


@pytest.fixture(scope="module")
def runs():
    families = {"mean field": px.Diagonal(), "full covariance": px.FullCovariance()}
    return {
        name: px.fit(
            EXACT.model,
            px.AutoJoint(EXACT.model, family=family),
            data=EXACT.args,
            num_steps=400,
            seed=0,
        )
        for name, family in families.items()
    }


@pytest.fixture(scope="module")
def trees(runs):
    return {name: px.to_datatree(run, num_samples=1000, seed=0) for name, run in runs.items()}


@pytest.fixture(scope="module")
def tree(trees):
    return trees["full covariance"]


@pytest.fixture(scope="module")
def elpd(runs):
    return {name: px.loo(run, num_samples=1000, seed=0) for name, run in runs.items()}


quiet = pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")


@quiet
@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_loo_and_its_kin(tree, elpd):
    import arviz_stats

    stats = tree["sample_stats"]
    found = arviz_stats.loo_approximate_posterior(tree, stats["log_p"], stats["log_q"])
    assert found.elpd == pytest.approx(elpd["full covariance"].elpd)
    for observations, error in ((6, 3.0), (12, 1e-9)):  # some of the 12 data, or all
        part = arviz_stats.loo_subsample(
            tree, observations=observations, log_p=stats["log_p"], log_q=stats["log_q"]
        )
        assert part.elpd == pytest.approx(found.elpd, abs=error)
    both = arviz_stats.compare(elpd)
    assert set(both.index) == set(elpd)


def test_loo_pit_is_a_probability(tree):
    import arviz_stats

    values = arviz_stats.loo_pit(tree)["y"].values
    assert values.min() >= 0
    assert values.max() <= 1


def test_distances_between_posteriors(trees):
    import arviz_stats

    left, right = trees.values()
    far = left.copy()
    far["posterior"] = left["posterior"] + 5.0
    for distance in (arviz_stats.kl_divergence, arviz_stats.wasserstein):
        near = distance(left, right, num_samples=200)
        assert 0 < near < 0.2 * distance(left, far, num_samples=200)
    assert arviz_stats.wasserstein(left, left, num_samples=50) == pytest.approx(0)


def test_summaries_need_no_chains(tree):
    import arviz_stats

    table = arviz_stats.summary(tree, kind="stats")
    assert not [name for name in table.columns if "hat" in name or "ess" in name]
    assert arviz_stats.eti(tree)["w"].shape == (3, 2)


PLOTS = {
    "plot_forest": {},
    "plot_dist": {},
    "plot_pair": {},
    "plot_ppc_dist": {},
    "plot_ppc_pit": {},
    "plot_loo_pit": {},
}


@quiet
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PLOTS)
def test_plots_of_a_tree(name, tree):
    arviz_plots = pytest.importorskip("arviz_plots")
    assert getattr(arviz_plots, name)(tree, backend="none", **PLOTS[name]) is not None


@quiet
def test_plots_of_leave_one_out(elpd):
    arviz_plots = pytest.importorskip("arviz_plots")
    assert arviz_plots.plot_khat(elpd["mean field"], backend="none") is not None


def test_k_hat_per_datapoint_has_no_datapoints_here(runs):
    with pytest.raises(ValueError, match=r"px.k_hat_joint"):
        px.k_hat_per_datapoint(runs["mean field"])
    assert torch.isfinite(px.k_hat_joint(runs["mean field"], num_samples=100).values)


def test_names_of_scopes(tmp_path):
    """A tree has a / between its groups, and a scope of Pyro's one in the names of its sites."""

    def model(x):
        with scope(prefix="top"):
            mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.deterministic("size", mu.exp())
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mu.sum(-1), 1.0), obs=x)

    def guide(x):
        """The exact posterior, of one direction known and one not."""
        with scope(prefix="top"):
            precision = torch.eye(2) + len(x) * torch.ones(2, 2)
            loc = torch.linalg.solve(precision, x.sum() * torch.ones(2))
            pyro.sample("mu", dist.MultivariateNormal(loc, precision_matrix=precision))

    x = torch.linspace(-1.0, 2.0, 5)
    tree = px.to_datatree(model, guide, x, num_samples=20, seed=0)
    assert set(tree["posterior"].data_vars) == {"top::mu", "top::size"}
    assert tree["posterior"]["top::mu"].dims == ("chain", "draw", "top::mu_dim_0")
    assert set(tree["observed_data"].data_vars) == {"top::x"}
    tree.to_netcdf(tmp_path / "tree.nc")
    assert px.distances(tree, tree).marginals.worst_mean_error == 0
    assert px.loo(model, guide, x, num_samples=200, seed=0).n_data_points == 5


def mean_of(name, mean="mu", plate="data"):
    """A mean, masked data of it, and its exact posterior, under any names."""

    def model(x, mask):
        mu = pyro.sample(mean, dist.Normal(0.0, 1.0))
        with pyro.plate(plate, len(x)), pyro.poutine.mask(mask=mask):
            pyro.sample(name, dist.Normal(mu, 1.0), obs=x)

    def guide(x, mask):
        precision = 1 + mask.sum()
        pyro.sample(mean, dist.Normal((x * mask).sum() / precision, precision**-0.5))

    return model, guide


X, MASK = torch.tensor([9.0, -1.0, 0.5, 2.0, 1.0, 0.0]), torch.arange(6) > 0


@pytest.mark.parametrize(
    "names", [("top/x",), ("a+b",), ("x", "mu", "top/data"), ("x", "draw", "chain")]
)
def test_names_change_no_number(names):
    options = {"num_samples": 500, "seed": 0}
    usual, other = (px.loo(*mean_of(*n), X, MASK, **options) for n in (("x",), names))
    assert other.n_data_points == usual.n_data_points == 5
    assert (other.elpd, other.se) == (usual.elpd, usual.se)
    assert px.loo(*mean_of(*names), X, MASK, var_name=names[0], **options).elpd == usual.elpd


def test_names_of_the_dims_of_every_tree():
    tree = px.to_datatree(*mean_of("x", "draw", "chain"), X, MASK, num_samples=30, seed=0)
    assert tree["posterior"]["draw_site"].dims == ("chain", "draw")
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "chain_plate")
    usual = px.to_datatree(*mean_of("x"), X, MASK, num_samples=30, seed=0)
    drawn = px.importance_resample(tree)["posterior"]["draw_site"].values
    assert (drawn == px.importance_resample(usual)["posterior"]["mu"].values).all()
    assert px.distances({"draw": drawn[0]}, {"draw": (0.5, 1.0)}).marginals.labels == ["draw_site"]
