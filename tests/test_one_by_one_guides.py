"""Losses, guides and diagnostics of models that take one draw at a time."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from one_draw import (
    LOSSES,
    MODELS,
    SLOWER,
    Network,
    X,
    Y,
    guide_of,
    posterior,
    regression,
    unbatched,
    with_auxiliary,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from torch import Tensor
from weight_pairs import close

import pyro_ext as px

FAMILIES = {"diagonal": px.Diagonal(), "full": px.FullCovariance()}


def value_and_gradient(loss: Any, model: Any, guide: Any) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = loss.differentiable_loss(model, guide, X, Y)
    params = list(guide.parameters())
    return value, list(torch.autograd.grad(value, params, materialize_grads=True))


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses_and_gradients_are_those_of_the_model_for_many_draws(loss: Any, make: Any) -> None:
    guide = guide_of(make(many=True))
    expected = value_and_gradient(loss, make(many=True), guide)
    got = value_and_gradient(loss, make(many=False), guide)
    close(got[0], expected[0])
    for one, other in zip(got[1], expected[1], strict=True):
        close(one, other)


def test_a_divergence_that_is_not_known_is_estimated() -> None:
    """The prior may be another in each draw: none of them stands for all."""
    model = regression(many=False)
    guide = px.AutoJoint(model, init_scale=0.5)
    with pytest.warns(UserWarning, match=SLOWER):
        found = px.ELBO(5, form="kl").loss(model, guide, X, Y)
    assert found > 0


# ---------------------------------------------------------------------- guides


def log_joint(w: Tensor) -> Tensor:
    """The log density of the regression at each w."""
    prior = dist.Normal(0.0, 1.0).log_prob(w).sum(-1)
    return prior + dist.Normal(w @ X.mT, 0.5).log_prob(Y).sum(-1)


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal, AutoNormalMessenger])
@pytest.mark.parametrize("num", [5, 6])
def test_guides_of_pyro(make: Any, num: int) -> None:
    model = regression(many=False)
    guide = make(model)
    guide(X, Y)
    with pytest.warns(UserWarning, match=SLOWER):
        found = px.log_weights(model, guide, X, Y, num_particles=num, joint=True)
    w = found.latents["w"]
    assert w.std(0).min() > 0
    close(found.terms[0].log_p, log_joint(w))
    if make is AutoNormal:
        loc, scale = guide.locs.w, guide.scales.w
        close(found.terms[0].log_q, dist.Normal(loc, scale).log_prob(w).sum(-1))


def test_a_guide_that_takes_one_draw_too() -> None:
    model = with_auxiliary(regression(many=False))
    for joint in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = px.log_weights(
                model, unbatched, X, Y, num_particles=3, num_outer=2, joint=joint
            )
        a, w = (found.latents[name].reshape(6, -1) for name in ("a", "w"))
        (term,) = found.terms
        mean = torch.cat([a, -a, a / 2], 1)
        log_q = dist.Normal(0.0, 1.0).log_prob(a[:, 0]) + dist.Normal(mean, 1.0).log_prob(w).sum(1)
        log_p = dist.Normal(0.0, 1.0).log_prob(a[:, 0]) + log_joint(w)
        close(term.log_q.mT.reshape(-1), log_q)
        close(term.log_p.mT.reshape(-1), log_p)


# ---------------------------------------------------------------------- diagnostics


def test_a_network_of_layers_has_diagnostics() -> None:
    model = Network()
    guide = px.AutoJoint(model, init_scale=0.3)
    with pytest.warns(UserWarning, match=r"write h = \(self\.first\.weight @ h"):
        tree = px.to_datatree(model, guide, X, Y, num_samples=30, seed=0)
    assert tree["posterior"]["first.weight"].shape == (1, 30, 2, 3)
    assert tree["posterior_predictive"]["y"].shape == (1, 30, 6)
    assert px.k_hat_joint(model, guide, X, Y, num_samples=30).num_draws == 30


def of_tree(tree: Any) -> dict[str, Any]:
    return {
        f"{group}/{name}": torch.as_tensor(values.values)
        for group in ("posterior", "log_likelihood", "observed_data", "sample_stats")
        for name, values in tree[group].data_vars.items()
    }


@pytest.mark.parametrize("make", MODELS)
def test_the_tree_is_that_of_the_model_for_many_draws(make: Any) -> None:
    guide = guide_of(make(many=True))
    trees = []
    for many in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = px.to_datatree(make(many=many), guide, X, Y, num_samples=40, seed=0)
        trees.append(tree)
    expected, got = map(of_tree, trees)
    assert expected.keys() == got.keys()
    for name, values in expected.items():
        close(got[name], values)
    assert trees[0]["posterior_predictive"]["y"].dims == trees[1]["posterior_predictive"]["y"].dims


def test_predictive_draws_have_the_moments_of_the_model() -> None:
    """Exact: the guide is the posterior, so that a draw is normal, of known mean and variance."""
    model, guide, num = regression(many=False), posterior(), 2000
    with pytest.warns(UserWarning, match=SLOWER):
        tree = px.to_datatree(model, guide, X, Y, num_samples=num, seed=0)
    drawn = torch.as_tensor(tree["posterior_predictive"]["y"].values)[0]
    covariance = torch.linalg.inv(torch.eye(3) + X.mT @ X / 0.25)
    mean = X @ covariance @ X.mT @ Y / 0.25
    variance = (X @ covariance @ X.mT).diagonal() + 0.25
    z = (drawn.mean(0) - mean) / (variance / num).sqrt()
    assert z.abs().max() < 4
    ratio = drawn.var(0) / variance - 1
    assert (ratio.abs() < 4 * (2 / num) ** 0.5).all()


@pytest.mark.parametrize(
    "diagnose",
    [
        lambda *pair: px.loo(*pair, num_samples=400, seed=0).elpd,
        lambda *pair: px.k_hat_joint(*pair, num_samples=100, seed=0).values.item(),
        lambda *pair: px.ais(*pair, num_chains=4, num_temperatures=3, seed=0).log_evidence.value,
        lambda model, _, *args: px.gaps(
            model, guide_of(model), *args, num_steps=5, seed=0
        ).elbo.value.item(),
        lambda *pair: px.sbc(*pair, num_simulations=3, seed=0).pit["w"].sum(),
    ],
    ids=["loo", "k_hat_joint", "ais", "gaps", "sbc"],
)
def test_diagnostics_are_those_of_the_model_for_many_draws(
    diagnose: Callable[..., float],
) -> None:
    guide = posterior(1.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, got = (diagnose(regression(many=m), guide, X, Y) for m in (True, False))
    assert got == pytest.approx(expected, rel=1e-8)


def test_chains_from_the_prior_of_such_a_model_are_refused() -> None:
    message = r"annealing: expected a start.*many draws.*Write: start='guide', or in the model"
    with (
        pytest.warns(UserWarning, match=SLOWER),
        pytest.raises(ValueError, match=message),
    ):
        px.ais(regression(many=False), posterior(), X, Y, start="prior", num_chains=4)


def test_runs_are_compared() -> None:
    model = regression(many=False)
    options: dict[str, Any] = {"data": (X, Y), "num_steps": 20, "seed": 0, "compile": False}
    runs = {name: px.fit(model, family=family, **options) for name, family in FAMILIES.items()}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        report = px.compare(runs)
    assert list(report.table.index) == list(FAMILIES)
    assert [str(one.message) for one in told if "one draw" in str(one.message)] == [
        str(told[0].message)
    ]
