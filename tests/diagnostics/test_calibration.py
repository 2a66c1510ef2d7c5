import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from diagnostics.models import MODELS, Z_LIMIT, off
from scipy.stats import binom, norm
from torch.distributions import Normal

import pyro_ext as px
from pyro_ext.diagnostics import sbc
from pyro_ext.testing import NormalGlobal, NormalHierarchy, NormalLocal

EXACT = NormalLocal(torch.zeros(250), scale=0.7)
NORMAL = Normal(0.0, 1.0)


def calibrate(factor=1.0, shift=0.0, **options):
    guide = off(EXACT, factor, shift)
    return sbc(EXACT.model, guide, EXACT.x, num_simulations=2000, seed=0, **options)


@pytest.fixture(scope="module")
def right():
    return calibrate()


@pytest.mark.parametrize("prob", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_coverage_is_that_of_the_scaled_interval(factor, prob):
    found = calibrate(factor, num_draws=999).coverage(prob)["z"]
    half = NORMAL.icdf(torch.tensor((1 + prob) / 2))
    expected = (2 * NORMAL.cdf(factor * half) - 1).item()
    error = (expected * (1 - expected) / 2000) ** 0.5
    # 999 draws place the interval's ends to a thousandth.
    assert abs(found - expected) < Z_LIMIT * error + 0.005


def test_an_exact_guide_passes(right):
    assert right.p_value > 1e-4
    assert right.table.loc["z", "symmetry"] > 1e-4
    assert right.refits == 0
    assert right.pit["z"].shape == (2000,)


@pytest.mark.parametrize(
    ("factor", "shift", "fault"),
    [(0.7, 0.0, "too narrow"), (1.4, 0.0, "too wide"), (1.0, 0.5, "too high")],
)
def test_faults_are_named(factor, shift, fault):
    found = calibrate(factor, shift)
    assert found.p_value < 1e-6
    assert found.verdict == f"not calibrated: z is {fault}"
    assert (found.table.loc["z", "symmetry"] < 1e-6) == (shift != 0)
    assert fault in str(found)


@pytest.mark.filterwarnings("ignore:the guide has .* at a point")
def test_a_guide_at_a_point_is_too_narrow():
    exact = NormalGlobal(torch.zeros(5))

    def guide(x):
        pyro.sample("mu", dist.Delta(x.sum() / 6))

    found = sbc(exact.model, guide, exact.x, num_simulations=200, seed=0)
    assert found.verdict == "not calibrated: mu is too narrow"
    assert found.table.loc["mu", "coverage 95%"] == 0


def test_table_and_verdict_agree():
    """Of a hundred calibrated scalars one has a p-value below 0.01."""
    ranks = (np.arange(50) + 0.5) / 50
    pit = np.stack([ranks**2] + 99 * [ranks], -1)
    found = px.Calibration({"z": pit}, {"z": norm.ppf(pit)}, 99, 0)
    assert found.table["p-value"].min() < 0.01
    assert found.verdict == "no fault found in 50 simulations"
    assert (found.table["fault"] == "").all()
    alone = px.Calibration({"z": pit[:, 0]}, {"z": norm.ppf(pit[:, 0])}, 99, 0)
    assert alone.table.loc["z", "fault"] == "too high"
    assert alone.verdict == "not calibrated: z is too high"


def test_p_values_are_calibrated():
    small = NormalLocal(torch.zeros(50))
    p_values = [
        sbc(small.model, off(small), small.x, num_simulations=50, seed=seed).p_value
        for seed in range(60)
    ]
    assert sum(p <= 0.1 for p in p_values) <= binom.isf(1e-6, 60, 0.1)


@pytest.mark.parametrize("inside", [True, False])
def test_data_are_the_simulations_wherever_their_plate_lies(inside):
    """The plate of three latents a datum is on the left: its elements depend on each other."""

    def model(x):
        with pyro.plate("data", x.shape[-1], dim=-1):
            with pyro.plate("parts", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if inside:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            if not inside:
                pyro.sample("x", dist.Normal(z.sum(-2, keepdim=True), 1.0), obs=x)

    x = torch.zeros((3, 40) if inside else 40)

    def exact(x):
        with pyro.plate("data", x.shape[-1], dim=-1), pyro.plate("parts", 3, dim=-2):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    guide = px.AutoAmortized(model, lambda x: x.reshape(-1, 40).T, plate="data")
    found = sbc(model, exact if inside else guide, x, num_simulations=100, seed=0)
    # Where they do not, every element is a datum.
    assert found.pit["z"].shape == ((120,) if inside else (120, 3))
    assert not inside or found.p_value > 1e-4


def test_ranks_of_global_latents_are_one_per_data_set():
    exact = NormalGlobal(torch.zeros(5))

    def guide(x):
        mean = x.sum() / 6
        pyro.sample("mu", dist.Normal(mean, 6**-0.5))

    found = sbc(exact.model, guide, exact.x, num_simulations=100, seed=0)
    assert found.pit["mu"].shape == (100,)
    assert found.p_value > 1e-4


def test_free_parameters_are_fitted_anew():
    exact = MODELS["regression"]
    guide = px.AutoJoint(exact.model, init_scale=0.3)
    guide.setup(*exact.args)
    before = guide.params.detach().clone()
    found = sbc(exact.model, guide, *exact.args, num_simulations=4, num_steps=150, seed=0)
    assert found.refits == 4
    assert found.pit["w"].shape == (4, 3)
    assert list(found.table.index) == ["w[0]", "w[1]", "w[2]"]
    # Without the new fits the guide's own answer would be tens of sds from the truth.
    assert abs(found.scores["w"]).mean() < 3
    torch.testing.assert_close(guide.params.detach(), before, rtol=0, atol=0)


def test_corrections_of_an_encoder_are_fitted_anew():
    """They are those of the data that the guide was fitted to."""
    exact = NormalLocal.simulate(40)
    guide = px.AutoSemiAmortized(exact.model, lambda x: x.unsqueeze(-1))
    px.fit(exact.model, guide, px.ELBO(), exact.x, num_steps=300, seed=0)
    delta = guide.delta.detach().clone()
    assert delta.abs().max() > 0.3
    found = sbc(exact.model, guide, exact.x, num_simulations=200, seed=0)
    assert found.refits == 5
    assert found.p_value > 1e-4
    assert (guide.delta == delta).all()


def test_globals_of_an_amortized_guide_are_of_other_data():
    exact = NormalHierarchy.simulate(5)
    guide = px.AutoAmortized(exact.model, lambda x: x.unsqueeze(-1))
    options = {"num_simulations": 2, "seed": 0}
    with pytest.warns(UserWarning, match=r"a function of the data; got .*\['mu'\].*refit="):
        sbc(exact.model, guide, exact.x, **options)
    sbc(exact.model, guide, exact.x, refit=lambda x: NormalHierarchy(x).guide, **options)


def test_a_refit_of_ones_own():
    exact = NormalGlobal(torch.zeros(5))
    seen = []

    def refit(x):
        seen.append(x)
        return NormalGlobal(x).guide

    found = sbc(exact.model, exact.guide, exact.x, num_simulations=60, refit=refit, seed=0)
    assert len(seen) == found.refits == 60
    assert found.p_value > 1e-4


def test_tree_is_what_arviz_plots(right):
    arviz_plots = pytest.importorskip("arviz_plots")
    assert right.tree["prior_sbc"]["z"].dims == ("chain", "draw")
    arviz_plots.plot_ecdf_pit(
        right.tree, backend="none", stats={"ecdf_pit": {"n_simulations": 50}}
    )


def test_too_few_simulations_raise():
    with pytest.raises(ValueError, match=r"num_simulations >= 2.*got 1 and 99"):
        sbc(EXACT.model, EXACT.guide, EXACT.x, num_simulations=1)
