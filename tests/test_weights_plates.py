"""Log weights against brute force on the same draws: plates of every shape."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from reference import log_normal
from torch import Tensor
from weight_pairs import (
    NUM,
    X,
    close,
    hierarchy,
    local_guide,
    local_log_p,
    local_log_q,
    local_model,
)

import pyro_ext as px


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
