"""π(x_i) + δ_i, and refinement from the encoder's answer."""

from functools import partial

import pytest
import torch
from awkward import awkward_locals, one_local
from pyro import poutine
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from helpers import assert_at_most, assert_mean
from pyro_ext.autoguide import AutoSemiAmortized
from pyro_ext.testing import NormalHierarchy, NormalLocal, check_guide
from pyro_ext.training import refine

X = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4])
HIERARCHY = NormalHierarchy(X, 0.7, 0.5, 2.0)


def linear(x):
    return x.unsqueeze(-1)


def blind(x):
    """An encoder that sees nothing of the datum."""
    return torch.ones(len(x), 1)


def built(kind, model=one_local, encoder=linear, **options):
    torch.manual_seed(0)
    guide = kind(model, encoder, plate="data", **options)
    guide.setup(X)
    return guide


@pytest.mark.parametrize(
    "family",
    [px.Diagonal(), px.FullCovariance(), px.FullCovariance(factor="dense"), px.LowRank(rank=2)],
    ids=repr,
)
@pytest.mark.parametrize("model", [one_local, awkward_locals])
def test_the_contract(model, family):
    def build():
        return AutoSemiAmortized(
            model,
            nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 4), nn.Tanh()),
            plate="data",
            family=family,
            global_family=family,
        )

    check_guide(build, model, X)


# ---------------------------------------------------------------------- one thing apart


@pytest.mark.parametrize("condition_on_globals", [False, True])
def test_at_zero_it_is_the_amortized_guide(condition_on_globals):
    options = {"model": HIERARCHY.model, "condition_on_globals": condition_on_globals}
    plain, semi = built(px.AutoAmortized, **options), built(AutoSemiAmortized, **options)
    assert not semi.delta.any()
    assert set(dict(semi.named_parameters())) - set(dict(plain.named_parameters())) == {"delta"}
    draws = []
    for guide in (plain, semi):
        torch.manual_seed(1)
        draws.append(guide.sample_posterior(3, X))
    for name, value in draws[0].items():
        assert torch.equal(value, draws[1][name])


def test_with_delta_held_it_trains_as_the_amortized_guide():
    ends = []
    for kind in (px.AutoAmortized, AutoSemiAmortized):
        guide = built(kind)
        params = [p for name, p in guide.named_parameters() if name != "delta"]
        optimizer = Adam(params, lr=0.1)
        torch.manual_seed(1)
        for _ in range(10):
            optimizer.zero_grad()
            px.ELBO(2).differentiable_loss(one_local, guide, X).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in params]))
    assert torch.equal(*ends)


def fitted(kind, encoder):
    exact = NormalLocal(X)
    guide = built(kind, exact.model, encoder)
    px.fit(
        exact.model,
        guide,
        px.ELBO(4, estimator="stl"),
        X,
        partial(Adam, lr=0.1),
        schedule=partial(CosineAnnealingLR, T_max=300),
        num_steps=300,
        seed=0,
        progress=False,
    )
    with torch.no_grad():
        return px.log_weights(exact.model, guide, X, num_particles=2000, joint=True).terms[0].log_w


def test_delta_closes_the_gap_of_a_blind_encoder():
    """One q for all rows costs ½ log(1 + a var(x)) and more per datum; free rows cost nothing."""
    evidence = NormalLocal(X).log_evidence()
    assert abs(fitted(AutoSemiAmortized, blind).mean() - evidence) < 1e-3
    # The best shared normal N(m, s²), 1/s² = 2: mean x̄/2, KL = Σ (x_i - x̄)² / 4.
    gap = ((X - X.mean()) ** 2).sum() / 4
    assert_mean(fitted(px.AutoAmortized, blind), (evidence - gap).item())


def test_a_mini_batch_updates_its_own_rows():
    guide = built(AutoSemiAmortized)
    rows = torch.tensor([3, 1])
    with px.MiniBatch("data", len(X), rows, sliced=True):
        px.ELBO().differentiable_loss(one_local, guide, X[rows]).backward()
    assert guide.delta.grad.abs().sum(-1).nonzero().flatten().tolist() == [1, 3]


def test_other_data_are_an_error():
    guide = built(AutoSemiAmortized)
    with pytest.raises(ValueError, match=r"AutoSemiAmortized: .*'data' to have the 5 .*got 6"):
        guide(torch.zeros(6))


# ---------------------------------------------------------------------- missing data


def test_the_mask_reaches_the_encoder():
    """It gets the model's own arguments, cut to the rows of the batch."""
    exact = NormalLocal(X, mask=torch.tensor([True, False, True, True, False]))
    seen = []

    def encoder(x, mask):
        seen.append(mask)
        return torch.stack([x * mask, mask.to(x)], -1)

    for kind in (px.AutoAmortized, AutoSemiAmortized):
        guide = kind(exact.model, encoder)
        guide.setup(*exact.args)
        assert torch.equal(seen[-1], exact.mask)
        rows = torch.tensor([4, 0])
        with px.MiniBatch("data", len(X), rows, sliced=True):
            guide(*(value[rows] for value in exact.args))
        assert torch.equal(seen[-1], exact.mask[rows])
    guide = px.AutoAmortized(exact.model, encoder)
    px.fit(
        exact.model,
        guide,
        px.ELBO(4, estimator="stl"),
        exact.args,
        partial(Adam, lr=0.1),
        schedule=partial(CosineAnnealingLR, T_max=400),
        num_steps=400,
        seed=0,
        progress=False,
    )
    value = -px.ELBO(4000).loss(exact.model, guide, *exact.args)
    assert value == pytest.approx(exact.log_evidence().item(), abs=1e-3)


# ---------------------------------------------------------------------- refinement


NEW = torch.tensor([-2.0, 0.1, 1.5])


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("condition_on_globals", [False, True])
@pytest.mark.parametrize("family", [px.Diagonal(), px.FullCovariance()], ids=repr)
@pytest.mark.parametrize("kind", [px.AutoAmortized, AutoSemiAmortized])
def test_it_starts_at_the_encoders_answer(kind, family, condition_on_globals):
    model = HIERARCHY.model
    guide = built(kind, model, family=family, condition_on_globals=condition_on_globals)
    with torch.no_grad():
        for name, param in guide.named_parameters():
            if name != "delta":
                param.add_(0.2 * torch.randn_like(param))
    run = refine(model, guide, data=X, num_steps=1, lr=1e-300, seed=0, progress=False)
    draws = guide.sample_posterior(4, X)
    torch.testing.assert_close(run.guide.log_prob(draws, X), guide.log_prob(draws, X))


@pytest.mark.parametrize("condition_on_globals", [False, True])
@pytest.mark.parametrize("kind", [px.AutoAmortized, AutoSemiAmortized])
def test_refinement_raises_the_bound_and_leaves_the_rest(kind, condition_on_globals):
    model = HIERARCHY.model
    guide = built(kind, model, condition_on_globals=condition_on_globals)
    px.fit(model, guide, px.ELBO(4), X, num_steps=30, seed=0, progress=False)
    before = state(guide)
    run = refine(model, guide, px.ELBO(4), NEW, num_steps=60, lr=0.05, seed=0, progress=False)
    assert isinstance(run.guide, px.AutoPerDatapoint)
    assert run.guide.local_params.shape[0] == 3
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(param.requires_grad for param in guide.parameters())
    assert torch.equal(run.guide.global_params, guide.global_params)
    trained = [name for name, p in run.guide.named_parameters() if p.requires_grad]
    assert trained == ["local_params"]
    encoded = refine(model, guide, data=NEW, num_steps=1, lr=1e-300, seed=0, progress=False)
    bounds = []
    for seed in range(20):
        pair = []
        for refined in (encoded.guide, run.guide):
            torch.manual_seed(seed)
            pair.append(-px.ELBO(50).loss(model, refined, NEW))
        bounds.append(pair)
    before_after = torch.tensor(bounds)
    assert_at_most(before_after[:, 0] - before_after[:, 1], 0.0)


def test_refinement_approaches_the_exact_posterior():
    exact = NormalLocal(NEW)
    guide = built(px.AutoAmortized, exact.model, blind)
    values = []
    for num_steps in (1, 30, 300):
        run = refine(
            exact.model,
            guide,
            px.ELBO(4, estimator="stl"),
            NEW,
            num_steps=num_steps,
            lr=0.1,
            seed=0,
            progress=False,
        )
        values.append(-px.ELBO(4000).loss(exact.model, run.guide, NEW))
    assert values[0] < values[1] < values[2]
    assert values[2] == pytest.approx(exact.log_evidence().item(), abs=1e-3)


def test_refinement_in_mini_batches_and_of_networks_with_dropout():
    encoder = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 8), nn.Dropout(0.5))
    guide = built(px.AutoAmortized, one_local, encoder)
    run = refine(one_local, guide, data=NEW, num_steps=4, batch_size=2, seed=0, progress=False)
    assert run.guide.median(NEW)["z"].shape == (3,)
    assert guide.encoder.training


def test_the_refined_guide_is_a_guide():
    guide = built(px.AutoAmortized, HIERARCHY.model, condition_on_globals=True)
    run = refine(HIERARCHY.model, guide, data=NEW, num_steps=2, seed=0, progress=False)
    for loss in (px.ELBO(2), px.IWAE(3, estimator="dreg")):
        assert loss.loss(HIERARCHY.model, run.guide, NEW) > 0
    trace = poutine.trace(run.guide).get_trace(NEW)
    values = {name: trace.nodes[name]["value"] for name in ("mu", "z")}
    torch.testing.assert_close(run.guide.log_prob(values, NEW), trace.log_prob_sum())


def test_a_guide_without_encoder_is_an_error():
    guide = px.AutoPerDatapoint(one_local)
    with pytest.raises(TypeError, match=r"a guide with an encoder; got AutoPerDatapoint.*px\.fit"):
        refine(one_local, guide, data=X, progress=False)
