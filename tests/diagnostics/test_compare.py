import base64
import inspect
import math
import sys
from dataclasses import dataclass
from html.parser import HTMLParser

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray

import pyro_ext as px
from pyro_ext.diagnostics import compare, from_draws
from pyro_ext.testing import NormalGlobal, NormalHierarchy, NormalLocal

GLOBAL = NormalGlobal.simulate(20)
LOCAL = NormalLocal.simulate(30)


@dataclass(frozen=True)
class Fit:
    """What a run is to diagnostics."""

    model: object
    guide: object
    args: tuple
    seconds: float = 1.5


def off(factor=1.0, shift=0.0):
    """The exact answer for the global latent, with its sd scaled and its mean moved by sds."""
    mean, covariance = GLOBAL.posterior()
    sd = covariance[0, 0].sqrt()

    def guide(x):
        pyro.sample("mu", dist.Normal(mean[0] + shift * sd, factor * sd))

    return Fit(GLOBAL.model, guide, GLOBAL.args)


def off_locally(factor):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, factor * 0.5**0.5))

    return Fit(LOCAL.model, guide, LOCAL.args)


def moments():
    mean, covariance = GLOBAL.posterior()
    return {"mu": (mean[0], covariance[0, 0].sqrt())}


@pytest.fixture(scope="module")
def comparison():
    runs = {"exact": off(), "narrow": off(0.3), "wide": off(1.5), "shifted": off(shift=0.5)}
    return compare(
        runs, reference=moments(), exact_evidence=GLOBAL.log_evidence(), num_samples=4000
    )


def test_table_holds_the_known_answers(comparison):
    table = comparison.table
    log_p = GLOBAL.log_evidence().item()
    assert abs(table.loc["exact", "ELBO"] - log_p) < 1e-10
    assert abs(table.loc["exact", "IWAE-10"] - log_p) < 1e-10
    assert table.loc["exact", "k-hat"] == 0
    assert table.loc["exact", "behind best"] == 0
    assert table.loc["exact", "effective share"] == pytest.approx(1.0)
    # The sd of 4000 draws is off by 1.1 %, their mean by 0.016 sd: five of these.
    for name, ratio in {"exact": 1.0, "narrow": 0.3, "wide": 1.5, "shifted": 1.0}.items():
        assert table.loc[name, "sd ratio"] == pytest.approx(ratio, rel=0.056)
    assert table.loc["shifted", "mean error"] == pytest.approx(0.5, abs=0.08)
    assert (table["seconds"] == 1.5).all()
    assert "parameters" not in table.columns


def test_gap_to_the_best_is_the_divergence_within_its_error(comparison):
    table = comparison.table
    expected = {
        "narrow": -math.log(0.3) - (1 - 0.3**2) / 2,
        "wide": (1.5**2 - 1) / 2 - math.log(1.5),
        "shifted": 0.5**2 / 2,
    }
    for name, divergence in expected.items():
        error = abs(table.loc[name, "behind best"] - divergence)
        assert error < 4.9 * table.loc[name, "behind best se"], name


def test_verdicts_say_what_is_wrong(comparison):
    verdicts = comparison.verdicts
    assert "no difference from the reference" in verdicts["exact"]
    assert "too narrow, sd down to 0.30" in verdicts["narrow"]
    assert "not to be trusted" in verdicts["narrow"]
    assert "too wide, sd up to 1.5" in verdicts["wide"]
    assert "weight its draws" in verdicts["wide"]
    assert "means off by up to +0.49" in verdicts["shifted"]
    assert comparison.choice.startswith("Use exact: its ELBO is the highest, by ")
    assert "no proof" in comparison.choice


def test_text_is_a_table_with_aligned_columns(comparison):
    lines = str(comparison).splitlines()
    assert lines[0].split()[:2] == ["guide", "ELBO"]
    assert set(lines[1]) == {"-", " "}
    assert all(len(line) <= len(lines[1]) for line in lines[2:6])
    assert "Exact log evidence" in str(comparison)
    assert comparison.to_markdown().splitlines()[2].startswith("| exact | ")


def test_save_writes_everything(comparison, tmp_path):
    comparison.save(tmp_path / "new" / "folder")
    found = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert found == {
        "report.html",
        "table.md",
        "table.csv",
        "bounds.png",
        "ladder.png",
        "k_hat.png",
        "forest.png",
        "marginals.png",
        "sd_ratio.png",
        "exact.nc",
        "narrow.nc",
        "wide.nc",
        "shifted.nc",
    }
    with xarray.open_datatree(tmp_path / "new" / "folder" / "wide.nc", engine="h5netcdf") as tree:
        assert tree["posterior"]["mu"].shape == (1, 4000)


class Page(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_holds_everything_and_refers_to_nothing(comparison):
    page = Page()
    page.feed(comparison.to_html())
    assert not page.open
    assert len(page.sources) == len(comparison.figures)
    for source in page.sources:
        start = "data:image/png;base64,"
        assert source.startswith(start)
        assert base64.b64decode(source[len(start) :]).startswith(b"\x89PNG")
    text = " ".join(page.text)
    assert comparison.choice in text
    for verdict in comparison.verdicts.values():
        assert verdict in text


def test_names_cannot_break_the_page():
    found = compare({"<script>a&b": off()}, num_samples=100)
    assert "<script>" not in found.to_html()
    assert "&lt;script&gt;a&amp;b" in found.to_html()


def test_gaps_and_calibration_on_request():
    x = LOCAL.x[:10]
    guides = {"amortized": px.AutoAmortized(LOCAL.model, lambda x: x.unsqueeze(-1) / 2)}
    runs = {name: Fit(LOCAL.model, guide, (x,)) for name, guide in guides.items()}
    runs["by hand"] = Fit(LOCAL.model, off_locally(1.0).guide, (x,))
    found = compare(runs, gaps=True, num_simulations=100, num_samples=100)
    assert {"gaps", "calibration", "pairs"} <= set(found.figures)
    table = found.table
    assert table.loc["amortized", "amortization gap"] > 0.5
    assert abs(table.loc["amortized", "approximation gap"]) < 0.01
    assert math.isnan(table.loc["by hand", "amortization gap"])
    assert table.loc["amortized", "calibration p-value"] < 1e-3
    assert table.loc["by hand", "calibration p-value"] > 1e-4
    assert "amortization" in str(found)


def test_pairs_are_the_two_that_depend_most():
    exact = NormalHierarchy.simulate(3, scale=0.1, local_scale=0.1, prior_scale=5.0)
    run = Fit(exact.model, exact.guide, exact.args)
    found = compare({"exact": run, "again": run}, num_samples=200)
    first, *_ = found.figures["pairs"].axes
    # mu and the z share what is known of mu: every pair of them depends, mu on each alike.
    assert first.get_ylabel() != first.get_xlabel()
    assert len(found.figures["pairs"].axes) == 2


def test_one_draw_far_out_does_not_squash_the_pairs():
    def model():
        pyro.sample("mu", dist.StudentT(0.4, 0.0, 1.0).expand([2]).to_event(1))

    found = compare({"prior": Fit(model, model, ())}, num_samples=2000, seed=0)
    axes, *_ = found.figures["pairs"].axes
    x = axes.collections[0].get_offsets()[:, 0]
    low, high = axes.get_xlim()
    assert x.max() - x.min() > 3 * (high - low)


def test_distances_to_draws_are_in_the_table():
    mean, sd = moments()["mu"]
    draws = {"mu": mean + sd * torch.randn(2000)}
    table = compare({"exact": off(), "narrow": off(0.4)}, reference=draws, num_samples=2000).table
    assert table.loc["exact", "MMD p-value"] > 1e-3
    assert table.loc["narrow", "MMD p-value"] < 0.01
    assert table.loc["narrow", "classifier accuracy"] > 0.6
    assert table.loc["narrow", "sliced Wasserstein"] > table.loc["exact", "sliced Wasserstein"]


def test_figures_need_no_pyplot(comparison):
    loaded = "matplotlib.pyplot" in sys.modules
    assert set(comparison.figures) == {
        "bounds",
        "ladder",
        "k_hat",
        "forest",
        "marginals",
        "sd_ratio",
    }
    assert comparison.figures is comparison.figures
    if not loaded:
        assert "matplotlib.pyplot" not in sys.modules


def test_a_diverged_guide_is_told_and_hides_no_other(tmp_path):
    runs = {"exact": off(), "wide": off(1.3), "diverged": off(1.0, 1e13)}
    mean, sd = moments()["mu"]
    draws = {"mu": mean + sd * torch.randn(2000)}
    found = compare(runs, reference=draws, num_samples=1000)
    found.save(tmp_path)
    assert math.isinf(found.table.loc["diverged", "k-hat"])
    assert found.table.loc["diverged", "effective share"] == pytest.approx(1e-3, rel=0.01)
    assert "not to be trusted, neither" in found.verdicts["diverged"]
    assert max(len(line) for line in str(found).splitlines()[:6]) < 200
    for name, side in (("bounds", "x"), ("ladder", "y"), ("forest", "x"), ("sd_ratio", "x")):
        low, high = getattr(found.figures[name].axes[0], f"get_{side}lim")()
        assert high - low < 50, name
    texts = [text.get_text() for text in found.figures["bounds"].axes[0].texts]
    assert any("◀ ELBO -" in text for text in texts)
    assert found.choice.startswith("Use exact")
    alone = compare({"diverged": off(1.0, 1e13)}, num_samples=100).choice
    assert "not to be trusted" in alone
    pair = compare({"far": off(1.0, 30.0), "farther": off(1.0, 40.0)}, num_samples=100)
    assert pair.choice.startswith("None of them is to be trusted. The nearest is far: its ELBO")


def test_names_that_make_one_file_name_do_not_overwrite(tmp_path):
    runs = {"a/b": off(), "a b": off(1.2), "A_B": off(1.3)}
    compare(runs, num_samples=100).save(tmp_path)
    assert len(list(tmp_path.glob("*.nc"))) == 3


@pytest.mark.parametrize("kind", ["draws", "tree", "moments"])
def test_kinds_of_reference(kind):
    mean, sd = moments()["mu"]
    draws = {"mu": mean + sd * torch.randn(4000)}
    reference = {"draws": draws, "tree": from_draws(draws), "moments": moments()}[kind]
    found = compare({"narrow": off(0.5)}, reference=reference, num_samples=4000)
    assert found.table.loc["narrow", "sd ratio"] == pytest.approx(0.5, rel=0.08)
    assert "forest" in found.figures


def test_noise_of_a_short_reference_is_no_fault():
    mean, sd = moments()["mu"]
    for seed in range(20):
        noise = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        found = compare({"exact": off()}, reference={"mu": mean + sd * noise}, num_samples=200)
        assert "no difference" in found.verdicts["exact"]


def test_local_latents_have_a_k_hat_per_datapoint():
    found = compare({"exact": off_locally(1.0), "narrow": off_locally(0.4)}, num_samples=500)
    table = found.table
    assert abs(table.loc["exact", "IWAE-500"] - LOCAL.log_evidence().item()) < 1e-10
    assert table.loc["exact", "k-hat share above"] == 0
    assert table.loc["narrow", "k-hat share above"] > 0.5
    assert "not to be trusted" in found.verdicts["narrow"]
    assert set(found.figures) == {"bounds", "ladder", "k_hat", "marginals", "pairs"}


def test_many_scalars_show_the_worst():
    mean, covariance = LOCAL.posterior()
    reference = {"z": (mean[:, 0], covariance[:, 0, 0].sqrt())}
    found = compare({"narrow": off_locally(0.7)}, reference=reference, num_samples=500)
    axes = found.figures["sd_ratio"].axes[0]
    assert len(axes.get_yticks()) == 24
    assert "24 of 30" in axes.get_title()
    assert len(found.figures["forest"].axes[0].get_yticks()) == 24


def test_held_out_data_go_to_guides_that_follow_them():
    new = torch.randn(7)
    per_datapoint = px.AutoPerDatapoint(LOCAL.model)
    runs = {"amortized": off_locally(1.0), "free": Fit(LOCAL.model, per_datapoint, LOCAL.args)}
    found = compare(runs, held_out=new, num_samples=100)
    expected = NormalLocal(new).log_evidence().item()
    assert abs(found.table.loc["amortized", "held-out ELBO"] - expected) < 1e-10
    assert math.isnan(found.table.loc["free", "held-out ELBO"])
    assert " - " in str(found)
    refitted = Fit(LOCAL.model, px.AutoPerDatapoint(LOCAL.model), (new,))
    found = compare(runs, held_out={"free": refitted}, num_samples=100)
    assert found.table.loc["free", "held-out ELBO"] < expected
    assert math.isnan(found.table.loc["amortized", "held-out ELBO"])


def test_parameters_and_attributes_of_a_run():
    run = px.fit(GLOBAL.model, px.AutoJoint(GLOBAL.model), data=GLOBAL.x, num_steps=3, seed=0)
    found = compare({"one": run}, num_samples=100)
    assert found.table.loc["one", "parameters"] == 2
    assert found.choice.startswith("Only one guide")


def test_leaves_the_random_state():
    state = torch.get_rng_state()
    compare({"a": off()}, num_samples=50)
    torch.testing.assert_close(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: compare({}), ValueError, "expected a dict of runs by name; got dict without"),
        (lambda: inspect.unwrap(compare)([off()]), ValueError, "got list"),
        (lambda: inspect.unwrap(compare)({"a": 1}), TypeError, "'a' to be a run.*got int"),
        (lambda: compare({"a": off()}, reference=3), TypeError, "got int"),
        (lambda: compare({"a": off()}, reference={}), ValueError, "empty dict"),
        (
            lambda: compare({"a": off()}, reference={"nu": (0.0, 1.0)}, num_samples=50),
            ValueError,
            r"\['mu'\]; got \['nu'\]",
        ),
        (
            lambda: compare({"a": off()}, reference={"mu": torch.zeros(19, 2)}, num_samples=50),
            ValueError,
            r"reference 'mu' of shape \(\); got \(2,\)",
        ),
        (
            lambda: compare({"a": off()}, reference={"mu": (0.0, -1.0)}, num_samples=50),
            ValueError,
            "sd >= 0",
        ),
        (
            lambda: compare({"a": off()}, num_samples=50, num_particles=51),
            ValueError,
            "num_particles <= num_samples",
        ),
    ],
)
def test_bad_input_raises(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_figures_of_sites_with_an_index_in_their_names():
    def model(x):
        pair = [pyro.sample(f"mu[{i}]", dist.Normal(0.0, 1.0)) for i in range(2)]
        pyro.sample("x", dist.Normal(sum(pair), 1.0), obs=x)

    guide = px.AutoJoint(model)
    run = px.fit(model, guide, data=torch.tensor(1.0), num_steps=5, seed=0)
    exact = {f"mu[{i}]": (torch.tensor(1 / 3), torch.tensor(2 / 3).sqrt()) for i in range(2)}
    figures = compare({"mean field": run}, reference=exact, num_samples=100).figures
    assert len(figures["forest"].axes) == 2


def test_corrections_of_an_encoder_say_nothing_about_held_out_data():
    exact = NormalLocal.simulate(6)
    runs = {
        kind.__name__: px.fit(
            exact.model, kind(exact.model, lambda x: x.unsqueeze(-1)), data=exact.x, num_steps=5
        )
        for kind in (px.AutoAmortized, px.AutoSemiAmortized)
    }
    for size in (6, 4):  # as many data as the guide has corrections for, and others
        table = compare(runs, held_out=torch.randn(size), num_samples=50).table
        assert list(table["held-out ELBO"].isna()) == [False, True]


def test_a_bar_in_a_name_is_no_column():
    run = off()
    lines = compare({"q(z | x)": run}, num_samples=50).to_markdown().splitlines()
    assert lines[2].startswith("| q(z \\| x) | ")
    assert lines[2].replace("\\|", "").count("|") == lines[0].count("|")
