"""Log weights against brute force on the same draws: particles, masks, scales."""

import gc
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from weight_pairs import NUM, X, close, local_guide, local_log_p, local_log_q, local_model

import pyro_ext as px
from pyro_ext.testing import NormalHierarchy

MASK = torch.tensor([True, False, True, True, False, True])


def test_local_latents_give_one_weight_for_each_element() -> None:
    lw = px.log_weights(local_model, local_guide, X, num_particles=5)
    (term,) = lw.terms
    z = lw.latents["z"]
    assert (term.plates, term.scale, term.subsampled) == (("data",), 1.0, None)
    assert lw.max_plate_nesting == 1
    close(term.log_p, local_log_p(z))
    close(term.log_q, local_log_q(z))
    close(term.log_w, term.log_p - term.log_q)
    assert z.shape == (5, NUM)
    assert len(z.unique()) == z.numel()


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("outer", [1, 3])
def test_outer_particles_come_second(particles: int, outer: int) -> None:
    lw = px.log_weights(local_model, local_guide, X, num_particles=particles, num_outer=outer)
    (term,) = lw.terms
    shape = (particles, outer, NUM) if outer > 1 else (particles, NUM)
    assert term.log_w.shape == shape
    assert term.scale == 1 / outer
    z = lw.model_trace.nodes["z"]["value"].reshape(outer, particles, NUM).movedim(0, 1)
    expected = local_log_p(z) - local_log_q(z)
    close(term.log_w, expected.reshape(shape))


def test_joint_weight_is_the_sum_over_elements() -> None:
    lw = px.log_weights(local_model, local_guide, X, num_particles=5, joint=True)
    (term,) = lw.terms
    assert term.plates == ()
    close(term.log_p, local_log_p(lw.latents["z"]).sum(-1))
    close(term.log_q, local_log_q(lw.latents["z"]).sum(-1))


def nested(x: Tensor) -> None:
    """Constrained, vector and matrix sites; the data plate left of another; a global latent."""
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    with pyro.plate("data", len(x), dim=-2):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
            loc = (weights * torch.arange(3.0)).sum(-1)
            pyro.sample("x", dist.Normal(loc * rate, scale), obs=x)


LOOPS: dict[str, tuple[Any, Any, Tensor]] = {
    "hierarchy": (NormalHierarchy(X).model, px.AutoPerDatapoint, X),
    "hierarchy, joint guide": (NormalHierarchy(X).model, px.AutoJoint, X),
    "nested": (nested, lambda model: px.AutoPerDatapoint(model, plate="data"), X.view(2, 3)),
    "nested, full": (
        nested,
        lambda m: px.AutoPerDatapoint(m, plate="data", family=px.FullCovariance()),
        X.view(2, 3),
    ),
    "nested, amortized": (
        nested,
        lambda m: px.AutoAmortized(
            m, lambda x: x, plate="data", family=px.FullCovariance("dense")
        ),
        X.view(2, 3),
    ),
    "nested, joint guide": (
        nested,
        lambda m: px.AutoJoint(m, family=px.FullCovariance()),
        X.view(2, 3),
    ),
    "nested, the inner plate's": (
        nested,
        lambda m: px.AutoPerDatapoint(m, plate="pixels"),
        X.view(2, 3),
    ),
}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", LOOPS)
def test_vectorized_particles_equal_a_loop(name: str, joint: bool) -> None:  # noqa: FBT001
    model, make, x = LOOPS[name]
    guide = make(model)
    lw = px.log_weights(model, guide, x, num_particles=4, joint=joint)
    total = sum(t.log_w.reshape(t.log_w.shape[0], -1).sum(-1) for t in lw.terms)
    for k in range(4):
        values = {name: v[k if len(v) > 1 else 0] for name, v in lw.latents.items()}
        trace = poutine.trace(poutine.condition(model, values)).get_trace(x)
        log_w = trace.log_prob_sum() - guide.log_prob(values, x)
        torch.testing.assert_close(total[k], log_w, rtol=0, atol=1e-9)


def test_same_seed_gives_the_same_weights_on_the_first_call_too() -> None:
    """The look at a new pair may not use up random numbers."""
    results = []
    for _ in range(2):
        pyro.set_rng_seed(7)
        results.append(px.log_weights(local_model, local_guide, X, num_particles=5))
    assert torch.equal(results[0].terms[0].log_w, results[1].terms[0].log_w)


# ---------------------------------------------------------------------- masks and scales


def test_masks_go_inside() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            with poutine.mask(mask=MASK):
                pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    lw = px.log_weights(model, local_guide, X, num_particles=5)
    close(lw.terms[0].log_p, local_log_p(lw.latents["z"], weight=MASK.double()))
    close(lw.terms[0].log_q, local_log_q(lw.latents["z"]))


def test_masked_nan_is_harmless() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8).mask(MASK), obs=x.where(MASK, 0.0 * x))

    lw = px.log_weights(model, local_guide, X, num_particles=5)
    close(lw.terms[0].log_p, local_log_p(lw.latents["z"], weight=MASK.double()))


def scaled(fn: Callable[..., Any], scale: float) -> Callable[..., Any]:
    return poutine.scale(fn, scale=scale)


def test_a_scale_of_model_and_guide_goes_outside() -> None:
    lw = px.log_weights(scaled(local_model, 0.25), scaled(local_guide, 0.25), X, num_particles=5)
    (term,) = lw.terms
    assert term.scale == 0.25
    close(term.log_p, local_log_p(lw.latents["z"]))


def test_a_scale_of_the_model_alone_stays_inside() -> None:
    lw = px.log_weights(scaled(local_model, 0.25), local_guide, X, num_particles=5)
    (term,) = lw.terms
    assert term.scale == 1.0
    close(term.log_p, 0.25 * local_log_p(lw.latents["z"]))
    close(term.log_q, local_log_q(lw.latents["z"]))


def test_the_scale_of_a_subsample_goes_outside() -> None:
    rows = torch.tensor([4, 1])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample=rows):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample=rows):
            pyro.sample("z", dist.Normal(0.4 * x[rows], 1.1))

    lw = px.log_weights(model, guide, X, num_particles=5)
    (term,) = lw.terms
    assert term.scale == NUM / 2
    close(term.log_p, local_log_p(lw.latents["z"], X[rows]))
    close(term.log_q, local_log_q(lw.latents["z"], X[rows]))


@pytest.mark.parametrize("joint", [False, True])
def test_all_particles_share_one_mini_batch(joint: bool) -> None:  # noqa: FBT001
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("z", dist.Normal(0.4 * x[rows], 1.1))

    seen = set()
    for _ in range(20):
        lw = px.log_weights(model, guide, X, num_particles=5, joint=joint)
        rows = lw.model_trace.nodes["data"]["value"]
        assert torch.equal(rows, lw.guide_trace.nodes["data"]["value"])
        expected = local_log_p(lw.latents["z"], X[rows])
        close(lw.terms[0].log_p, expected.sum(-1) if joint else expected)
        assert lw.terms[0].scale == NUM / 2
        seen.add(tuple(rows.tolist()))
    assert len(seen) > 5


# ---------------------------------------------------------------------- remembered structure


def test_a_new_function_at_an_old_address_is_looked_at_anew() -> None:
    """CPython reuses addresses: what was found for a function may not outlive it."""

    def make(coupled: bool) -> Callable[[Tensor], None]:  # noqa: FBT001
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            loc = z.sum(-1, keepdim=True) if coupled else torch.zeros(1)
            pyro.sample("s", dist.Normal(loc, 1.0), obs=torch.zeros(1))

        return model

    for step in range(40):
        model = make(step % 2 == 0)
        lw = px.log_weights(model, local_guide, X, num_particles=3)
        assert [t.plates for t in lw.terms] == ([()] if step % 2 == 0 else [(), ("data",)])
        del model
        gc.collect(0)


def test_a_model_whose_plates_depend_on_its_arguments() -> None:
    def model(x: Tensor, plated: bool) -> None:  # noqa: FBT001
        if plated:
            local_model(x)
        else:
            z = pyro.sample("z", dist.Normal(0.3, 1.0).expand(x.shape).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.8).to_event(1), obs=x)

    def guide(x: Tensor, plated: bool) -> None:  # noqa: FBT001
        if plated:
            local_guide(x)
        else:
            pyro.sample("z", dist.Normal(0.4 * x, 1.1).to_event(1))

    for plated in (True, False, True):
        lw = px.log_weights(model, guide, X, plated, num_particles=5)
        assert lw.terms[0].plates == (("data",) if plated else ())
        expected = local_log_p(lw.latents["z"])
        close(lw.terms[0].log_p, expected if plated else expected.sum(-1))


def test_the_size_of_the_data_may_change_between_calls() -> None:
    for num in (6, 3, 1, 4):
        lw = px.log_weights(local_model, local_guide, X[:num], num_particles=5)
        close(lw.terms[0].log_p, local_log_p(lw.latents["z"], X[:num]))
