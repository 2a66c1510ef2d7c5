"""Log weights against brute force on the same draws: plates, masks, scales, particles."""

import gc
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from reference import log_normal
from torch import Tensor

import pyro_ext as px
from pyro_ext.testing import NormalHierarchy

NUM = 6
X = torch.linspace(-1.5, 2.0, NUM)
MASK = torch.tensor([True, False, True, True, False, True])


def close(got: Tensor, expected: Tensor) -> None:
    """The same numbers up to rounding, and the same shape."""
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def local_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.3, 1.0))
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def local_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.4 * x, 1.1))


def local_log_p(z: Tensor, x: Tensor = X, weight: Tensor | float = 1.0) -> Tensor:
    return log_normal(z, 0.3, 1.0) + weight * log_normal(x, z, 0.8)


def local_log_q(z: Tensor, x: Tensor = X) -> Tensor:
    return log_normal(z, 0.4 * x, 1.1)


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


# ---------------------------------------------------------------------- shapes of plates


def test_data_plate_left_of_a_feature_plate() -> None:
    """An element is a row, whichever dim the data plate has."""
    x = torch.randn(NUM, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", NUM, dim=-2), pyro.plate("features", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", NUM, dim=-2), pyro.plate("features", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.4 * x, 1.1))

    lw = px.log_weights(model, guide, x, num_particles=5)
    (term,) = lw.terms
    assert term.plates == ("data", "features")
    close(term.log_p, local_log_p(lw.latents["z"], x))
    close(term.log_q, local_log_q(lw.latents["z"], x))


@pytest.mark.parametrize("dim", [-1, -2])
def test_nested_plate_is_summed_inside_its_element(dim: int) -> None:
    other = -3 - dim
    x = torch.randn(NUM, 3) if dim == -2 else torch.randn(3, NUM)

    def model(x: Tensor) -> None:
        with pyro.plate("data", NUM, dim=dim):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            with pyro.plate("pixels", 3, dim=other):
                pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", NUM, dim=dim):
            loc = x.mean(other, keepdim=other == -1)
            pyro.sample("z", dist.Normal(loc, 1.1))

    lw = px.log_weights(model, guide, x, num_particles=5)
    (term,) = lw.terms
    assert term.plates == ("data",)
    z = lw.latents["z"].reshape(5, NUM)
    rows = x if dim == -2 else x.T
    log_p = log_normal(z, 0.3, 1.0) + log_normal(rows, z[..., None], 0.8).sum(-1)
    close(term.log_p, log_p)
    close(term.log_q, log_normal(z, rows.mean(-1), 1.1))


def test_independent_data_plates_have_a_term_each() -> None:
    def pair(name: str, x: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
        def model() -> None:
            with pyro.plate(name, len(x)):
                z = pyro.sample(f"z_{name}", dist.Normal(0.3, 1.0))
                pyro.sample(f"x_{name}", dist.Normal(z, 0.8), obs=x)

        def guide() -> None:
            with pyro.plate(name, len(x)):
                pyro.sample(f"z_{name}", dist.Normal(0.4 * x, 1.1))

        return model, guide

    data = {"a": X, "b": torch.linspace(-1, 1, 4)}
    pairs = [pair(name, x) for name, x in data.items()]

    def model() -> None:
        for part, _ in pairs:
            part()

    def guide() -> None:
        for _, part in pairs:
            part()

    lw = px.log_weights(model, guide, num_particles=5)
    assert [term.plates for term in lw.terms] == [("a",), ("b",)]
    for term, (name, x) in zip(lw.terms, data.items(), strict=True):
        close(term.log_p, local_log_p(lw.latents[f"z_{name}"], x))
        close(term.log_q, local_log_q(lw.latents[f"z_{name}"], x))


def test_observed_only_plates_do_not_couple() -> None:
    """A plate without latents has no weight of its own: its sites count once, globally."""
    y = torch.tensor([0.5, -0.2, 0.1])

    def model(x: Tensor) -> None:
        local_model(x)
        with pyro.plate("other", 3):
            pyro.sample("y", dist.Normal(0.0, 2.0), obs=y)

    lw = px.log_weights(model, local_guide, X, num_particles=5)
    assert [term.plates for term in lw.terms] == [(), ("data",)]
    close(lw.terms[0].log_w, log_normal(y, 0.0, 2.0).sum().reshape(1))
    close(lw.terms[1].log_p, local_log_p(lw.latents["z"]))


def test_deterministic_sites_are_ignored() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)
        pyro.deterministic("total", z.sum(-1))

    lw = px.log_weights(model, local_guide, X, num_particles=5)
    (term,) = lw.terms
    assert set(lw.latents) == {"z"}
    close(term.log_p, local_log_p(lw.latents["z"]))


def test_coupled_plates_become_one_joint_weight() -> None:
    """Latents per feature and observations per datum: no element is independent of another."""
    inputs, y = torch.randn(NUM, 3), torch.randn(NUM)

    def model(inputs: Tensor, y: Tensor) -> None:
        with pyro.plate("features", 3):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal((inputs * w.unsqueeze(-2)).sum(-1), 0.8), obs=y)

    def guide(inputs: Tensor, y: Tensor) -> None:
        with pyro.plate("features", 3):
            pyro.sample("w", dist.Normal(0.1, 0.5))

    lw = px.log_weights(model, guide, inputs, y, num_particles=4)
    (term,) = lw.terms
    w = lw.latents["w"]
    assert term.plates == ()
    assert w.shape == (4, 3)
    log_p = log_normal(w, 0.0, 1.0).sum(-1) + log_normal(y, w @ inputs.T, 0.8).sum(-1)
    close(term.log_p, log_p)
    close(term.log_q, log_normal(w, 0.1, 0.5).sum(-1))


def test_a_sum_over_a_plate_couples_its_elements() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
        pyro.sample("s", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.ones(1))

    lw = px.log_weights(model, local_guide, X, num_particles=5)
    (term,) = lw.terms
    z = lw.latents["z"]
    close(term.log_p, log_normal(z, 0.3, 1.0).sum(-1) + log_normal(torch.ones(()), z.sum(-1), 1))


def hierarchy(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def hierarchy_guide(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.2, 0.9))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.3 * x + 0.9 * mu, 1.1))


def hierarchy_weights(mu: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    local = log_normal(z, mu, 1.0) + log_normal(X, z, 0.7)
    local = local - log_normal(z, 0.3 * X + 0.9 * mu, 1.1)
    return log_normal(mu, 0.0, 1.0) - log_normal(mu, 0.2, 0.9), local


@pytest.mark.parametrize("outer", [1, 3])
@pytest.mark.parametrize("particles", [1, 5])
def test_hierarchy_has_local_particles_inside_each_global_draw(particles: int, outer: int) -> None:
    lw = px.log_weights(hierarchy, hierarchy_guide, X, num_particles=particles, num_outer=outer)
    shared, local = lw.terms
    assert (shared.plates, local.plates) == ((), ("data",))
    mu = lw.model_trace.nodes["mu"]["value"].reshape(1, outer, 1)
    z = lw.model_trace.nodes["z"]["value"].reshape(outer, particles, NUM).movedim(0, 1)
    log_w = hierarchy_weights(mu, z)
    lead = (outer,) if outer > 1 else ()
    close(shared.log_w, log_w[0].reshape(1, *lead))
    close(local.log_w, log_w[1].reshape(particles, *lead, NUM))


def test_joint_weight_of_a_hierarchy_is_the_sum() -> None:
    lw = px.log_weights(hierarchy, hierarchy_guide, X, num_particles=5, joint=True)
    mu, z = lw.latents["mu"], lw.latents["z"]
    assert (mu.shape, z.shape) == ((5,), (5, NUM))
    log_w = hierarchy_weights(mu[:, None], z)
    close(lw.terms[0].log_w, log_w[0][:, 0] + log_w[1].sum(-1))


def test_latents_have_their_sites_shape_behind_the_particles() -> None:
    def model() -> None:
        pyro.sample("vector", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with pyro.plate("left", 2, dim=-2):
            pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("right", 5, dim=-1):
                pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("alone", 7, dim=-1):
            pyro.sample("c", dist.Normal(0.0, 1.0))

    sites = {"vector": (4,), "a": (2, 1, 3), "b": (2, 5), "c": (7,)}
    for particles in (1, 6):
        lw = px.log_weights(model, model, num_particles=particles, joint=True)
        shapes = {name: tuple(value.shape) for name, value in lw.latents.items()}
        assert shapes == {name: (particles, *shape) for name, shape in sites.items()}


def test_auxiliary_sites_and_factors_of_the_guide_count() -> None:
    """The guide may draw in other coordinates, with the log-Jacobian in a Delta or a factor."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            half = pyro.sample("half", dist.Normal(0.2 * x, 0.55), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(2 * half, log_density=-torch.tensor(2.0).log()))

    lw = px.log_weights(local_model, guide, X, num_particles=5)
    close(lw.terms[0].log_q, local_log_q(lw.latents["z"]))


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


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["num_particles", "num_outer"])
def test_no_particles(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} >= 1; got 0"):
        px.log_weights(local_model, local_guide, X, **{name: 0})


def test_guide_lacks_a_latent() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'z' is latent in the model.*\['mu'\].*Add"):
        px.log_weights(hierarchy, guide, X)


def test_guide_has_an_extra_site() -> None:
    def guide(x: Tensor) -> None:
        local_guide(x)
        pyro.sample("extra", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'extra' is sampled by the guide.*\['z'\]"):
        px.log_weights(local_model, guide, X)


@pytest.mark.parametrize("particles", [1, 5])
def test_plate_sizes_differ(particles: int) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    message = r"site 'z': plate 'data' has 6 elements in the model, but the guide was built for 4"
    with pytest.raises(ValueError, match=message):
        px.log_weights(local_model, guide, X, num_particles=particles)


def test_plate_sizes_differ_in_a_model_that_takes_rows() -> None:
    """Replayed against a smaller plate, Pyro's plate would silently subsample."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"has 6 elements in the model.*built for 4"):
        px.log_weights(model, guide, X)


@pytest.mark.parametrize("particles", [1, 5, NUM])
def test_data_with_a_surplus_dim(particles: int) -> None:
    """With as many particles as rows, a surplus dim of the data looks like the particles'."""
    guide = px.AutoPerDatapoint(local_model)
    message = r"site 'x'.*plates \{'data': 6\}; got shape \(6, 6\).*to_event"
    with pytest.raises(ValueError, match=message):
        px.log_weights(local_model, guide, X[:, None], num_particles=particles)


@pytest.mark.parametrize("particles", [1, 5, NUM])
def test_data_without_a_plate(particles: int) -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"site 'x'.*plates \{\}; got shape \(6,\)"):
        px.log_weights(model, px.AutoJoint(model), X, num_particles=particles)


def test_data_of_the_wrong_size() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", NUM):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"(?s)site '?x'?.*6.*4|site 'x'.*4.*6"):
        px.log_weights(model, px.AutoPerDatapoint(model), X[:4], num_particles=5)


@pytest.mark.parametrize("particles", [1, 5])
def test_nan_in_the_data_names_the_site(particles: int) -> None:
    x = X.clone()
    x[2] = torch.nan
    with pytest.raises(ValueError, match=r"site 'x'.*within the support") as caught:
        px.log_weights(local_model, px.AutoPerDatapoint(local_model), x, num_particles=particles)
    assert not hasattr(caught.value, "__notes__")


def test_model_that_counts_dims_from_the_left_gets_a_note() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(1), 1.0), obs=x)

    guide = px.AutoPerDatapoint(model)
    px.log_weights(model, guide, X, joint=True)
    for joint in (False, True):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            px.log_weights(model, guide, X, num_particles=5, joint=joint)
        (note,) = caught.value.__notes__
        assert "counts dims from the left" in note


def test_model_that_drops_a_plate_dim_gets_a_note() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("s", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(0.0))

    for particles in (4, NUM):
        with pytest.raises(ValueError, match="site 's'") as caught:
            px.log_weights(model, local_guide, X, num_particles=particles)
        assert "keepdim=True" in caught.value.__notes__[0]


# ---------------------------------------------------------------------- particles apart


def mixing(how: str) -> Callable[[Tensor], None]:
    """Return a model that counts dims from the left where particles come in."""
    norm = torch.nn.BatchNorm1d(1).double()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            if how == "view":
                loc = z.view(len(x), -1).sum(-1)
            elif how == "batch norm":
                loc = norm(z.reshape(-1, 1)).reshape(z.shape)
            else:
                loc = 2 * z
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model


def guide_of_mixing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


@pytest.mark.parametrize("how", ["view", "batch norm"])
def test_a_model_that_mixes_particles_raises(how: str) -> None:
    """Silent otherwise: the shapes fit, and the loss is that of another model."""
    model, x = mixing(how), torch.randn(6)
    message = r"site 'x': .* it changes with 'z' of another particle.*flatten\(-2\).*model\.eval"
    for loss in (px.IWAE(5), px.ELBO(5)):
        with pytest.raises(ValueError, match=message):
            loss.loss(model, guide_of_mixing, x)
    assert px.ELBO(1).loss(model, guide_of_mixing, x) > 0


def test_a_model_that_keeps_particles_apart_does_not_raise() -> None:
    x = torch.randn(6)
    assert px.IWAE(5).loss(mixing("no"), guide_of_mixing, x) > 0
