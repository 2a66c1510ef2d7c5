"""What log weights cannot be made of: bad arguments, sites, plates and data."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from weight_pairs import NUM, X, hierarchy, local_guide, local_model

import pyro_ext as px


@pytest.mark.parametrize("name", ["num_particles", "num_outer"])
def test_no_particles(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} >= 1; got 0"):
        px.log_weights(local_model, local_guide, X, **{name: 0})


def test_guide_lacks_a_latent() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(
        ValueError,
        match=r"site 'z': .*every latent of the model; got one .*\['mu'\]. Write: pyro.sample",
    ):
        px.log_weights(hierarchy, guide, X)


def test_data_left_out_for_predictions_are_predicted_by_the_line_to_write() -> None:
    def model(size: int, x: Tensor | None = None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    guide = px.AutoJoint(model)
    guide.setup(NUM, X)
    with pytest.raises(ValueError, match=r"site 'x': .*to predict, pyro\.infer\.Predictive\("):
        px.to_datatree(model, guide, 3)
    assert Predictive(model, guide=guide, num_samples=10)(3)["x"].shape == (10, 3)


def test_guide_lacks_a_latent_that_pyro_would_sum_out() -> None:
    def model(x: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu + k, 1.0), obs=x)

    guide = px.AutoJoint(poutine.block(model, hide=["k"]))
    message = r"site 'k': .*\['mu'\]. Write: .*sum it out: dist.MixtureSameFamily.*TraceEnum_ELBO"
    for call in (px.evidence, px.k_hat_joint, px.to_datatree, px.ELBO().loss):
        with pytest.raises(ValueError, match=message):
            call(model, guide, X)


def test_a_model_of_other_sites_in_each_draw_gets_a_note() -> None:
    """Its draws cannot be put together: only one at a time is run."""
    number = itertools.count()

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if z < 0:
            z = -z
        pyro.factor(f"{next(number)}", -z)

    guide = px.AutoJoint(model)
    with pytest.raises(RuntimeError, match="Boolean value of Tensor") as caught:
        px.log_weights(model, guide, num_particles=30)
    (note,) = caught.value.__notes__
    assert "(x * w).sum(-1) for x @ w" in note
    assert "chunk_size=1 in the diagnostics" in note
    found = px.evidence(model, guide, num_particles=30, num_repeats=1, chunk_size=1, seed=0)
    assert len(found.draws) == 30


def test_a_model_of_other_sites_in_some_draws() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("high" if z > 2 else "low", z)

    guide = px.AutoJoint(model, init_scale=1.0)
    torch.manual_seed(0)
    message = r"site 'high': .*same sites in each draw; got it in some alone\. Write: the site in"
    with (
        pytest.warns(UserWarning, match="'model' takes one draw at a time"),
        pytest.raises(ValueError, match=message) as caught,
    ):
        px.log_weights(model, guide, num_particles=300)
    assert not hasattr(caught.value, "__notes__")


def handled(handler: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """Return a model for one draw whose data are in a handler that depends on a latent."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)), handler((x.new_ones(len(x), 3) @ w).abs().sum()):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return model


def test_a_scale_that_depends_on_a_latent() -> None:
    """One scale for all draws would be wrong, so they are not run one by one."""
    model = handled(lambda total: poutine.scale(scale=total))
    with pytest.raises(RuntimeError) as caught:
        px.log_weights(model, px.AutoJoint(model, init_scale=1.0), X, num_particles=30)
    assert "counts dims from the left" in caught.value.__notes__[0]


def test_a_mask_that_depends_on_a_latent() -> None:
    """That it does shows late: two draws have the same."""
    model = handled(lambda total: poutine.mask(mask=total > 1.0))
    guide = px.AutoJoint(model, init_scale=1.0)
    torch.manual_seed(0)
    message = r"site 'x': expected the same mask in each draw; got another.* Write: poutine\.mask"
    with (
        pytest.warns(UserWarning, match="'model' takes one draw at a time"),
        pytest.raises(ValueError, match=message),
    ):
        px.log_weights(model, guide, X, num_particles=300)


def test_guide_has_an_extra_site() -> None:
    def guide(x: Tensor) -> None:
        local_guide(x)
        pyro.sample("extra", dist.Normal(0.0, 1.0))

    with pytest.raises(
        ValueError, match=r"site 'extra': .*latents alone, \['z'\]; got this site too. Write"
    ):
        px.log_weights(local_model, guide, X)


@pytest.mark.parametrize("particles", [1, 5])
def test_guide_draws_what_the_model_observes(particles: int) -> None:
    """Its density would count, and nothing in the model would depend on it."""
    known = poutine.condition(local_model, {"z": X})
    with pytest.raises(
        ValueError, match=r"site 'z': .*latents alone.*observes it.*Write: poutine\.condition\(gui"
    ):
        px.log_weights(known, local_guide, X, num_particles=particles)
    both = px.log_weights(known, poutine.condition(local_guide, {"z": X}), X)
    expected = poutine.trace(known).get_trace(X).log_prob_sum()
    torch.testing.assert_close(both.terms[0].log_w.sum(), expected)


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("auto", [True, False])
def test_guide_is_given_what_the_model_draws(particles: int, auto: bool) -> None:  # noqa: FBT001
    guide = px.AutoPerDatapoint(local_model) if auto else local_guide
    with pytest.raises(
        ValueError,
        match=r"site 'z': .*does not observe; got a value that is given\. Write: poutine",
    ):
        px.log_weights(local_model, poutine.condition(guide, {"z": X}), X, num_particles=particles)


@pytest.mark.parametrize("particles", [1, 5])
def test_plate_sizes_differ(particles: int) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    message = r"site 'z': expected plate 'data' to have 6 elements, .*; got a guide .* built for 4"
    with pytest.raises(ValueError, match=message):
        px.log_weights(local_model, guide, X, num_particles=particles)


def test_a_guide_of_pyros_under_mini_batches_is_told_one_that_takes_them() -> None:
    options: dict[str, Any] = {"data": X, "batch_size": 3, "num_steps": 2, "progress": False}
    with pytest.raises(ValueError, match=r"plate 'data' .*AutoPerDatapoint\(model\) for mini-b"):
        px.fit(local_model, AutoNormal(local_model), **options)
    assert len(px.fit(local_model, px.AutoPerDatapoint(local_model), **options).losses) == 2


def test_plate_sizes_differ_in_a_model_that_takes_rows() -> None:
    """Replayed against a smaller plate, Pyro's plate would silently subsample."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"to have 6 elements, as in the model.*built for 4"):
        px.log_weights(model, guide, X)


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("make", [dist.Normal, lambda loc, _: dist.Delta(loc)])
def test_guide_without_the_models_plate(make: Callable[..., Any], particles: int) -> None:
    """One value for all elements would count once in the guide, and six times in the model."""

    def guide(x: Tensor) -> None:
        pyro.sample("z", make(pyro.param("loc", torch.tensor(0.1)), 1.0))

    message = r"site 'z': .*the 6 elements of plate 'data'.*; got 1 in dim -1\. Write: with"
    with pytest.raises(ValueError, match=message):
        px.log_weights(local_model, guide, X, num_particles=particles)


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize(("drawn", "event"), [((1,), 1), ((), 0), ((NUM,), 0)])
def test_guide_of_another_event_shape(drawn: Any, event: int, particles: int) -> None:
    """It would broadcast: the model counts the density of each entry, the guide of one."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(NUM), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.sum(-1, keepdim=True), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(torch.zeros(drawn), 1.0).to_event(event))

    got = re.escape(str(drawn if event else ()))
    message = rf"site 'w': .*values of event shape \(6,\), as the model does; got {got}\. Write"
    with pytest.raises(ValueError, match=message):
        px.log_weights(model, guide, X, num_particles=particles)


@pytest.mark.parametrize("sizes", [(1, NUM), (NUM, 1), (NUM, 4)])
def test_an_automatic_guide_of_an_event_that_has_changed(sizes: tuple[int, int]) -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    guide, (before, now) = px.AutoJoint(model), sizes
    px.log_weights(model, guide, X[:before])
    message = rf"event shape \({now},\), as the model does; got \({before},\)\. Write: .*a new one"
    with pytest.raises(ValueError, match=message):
        px.log_weights(model, guide, X[:now])


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


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Tensor.numpy,
            r"a tensor as its value; got numpy\.ndarray\. Write: torch\.as_tensor\(x\)",
        ),
        (lambda x: {"x": x}, r"got builtins\.dict\. Write: data\['x'\], one tensor of it"),
        (
            Tensor.long,
            r"floating-point numbers as its value; got torch\.int64.*Write: x\.float\(\)",
        ),
        (Tensor.bool, r"got torch\.bool, .*Write: x\.float\(\)"),
    ],
    ids=["array", "dict", "integers", "booleans"],
)
def test_data_of_another_kind(kind: Callable[..., Any], message: str, particles: int) -> None:
    def model(x: Any) -> None:
        logits = pyro.sample("logits", dist.Normal(0.0, 1.0))
        with pyro.plate("data", NUM):
            pyro.sample("x", dist.Bernoulli(logits=logits), obs=x)

    guide = px.AutoJoint(model)
    with pytest.raises(ValueError, match=rf"site 'x': expected .*{message}"):
        px.log_weights(model, guide, kind(torch.ones(NUM)), num_particles=particles)


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


def test_a_matrix_that_is_not_positive_definite_gets_no_note_on_shapes() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(2.0, 1.0))
        covariance = z[..., None, None] * torch.eye(2)
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance), obs=torch.ones(2))

    def guide() -> None:
        pyro.sample("z", dist.Normal(2.0, 1.0))

    with (
        pyro.validation_enabled(is_validate=False),
        pytest.raises(torch.linalg.LinAlgError, match="not positive-definite") as caught,
    ):
        px.log_weights(model, guide, num_particles=500)
    assert not hasattr(caught.value, "__notes__")


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
@pytest.mark.parametrize("particles", [5, NUM])
def test_a_model_that_mixes_particles_is_run_one_by_one(how: str, particles: int) -> None:
    """Silent otherwise: the shapes fit, and the loss is that of another model."""
    model, x = mixing(how), torch.randn(6)
    with pytest.warns(UserWarning, match="'model' takes one draw at a time"):
        found = px.log_weights(model, guide_of_mixing, x, num_particles=particles, joint=True)
    for draw, log_p in zip(found.latents["z"], found.terms[0].log_p, strict=True):
        alone = poutine.trace(poutine.condition(model, {"z": draw})).get_trace(x)
        torch.testing.assert_close(log_p, alone.log_prob_sum())


def test_a_model_that_mixes_particles_raises() -> None:
    """It cannot be run one by one either, as the sites are others in each draw."""

    def model(x: Tensor) -> None:
        mixing("view")(x)
        pyro.deterministic(f"{next(number)}", x)

    number = itertools.count()
    message = r"site 'x': .* got one that changes with 'z' of another.*flatten\(-2\).*model\.eval"
    for loss in (px.IWAE(5), px.ELBO(5)):
        with pytest.raises(ValueError, match=message):
            loss.loss(model, guide_of_mixing, torch.randn(6))
    assert px.ELBO(1).loss(model, guide_of_mixing, torch.randn(6)) > 0


def test_a_model_that_keeps_particles_apart_does_not_raise() -> None:
    x = torch.randn(6)
    assert px.IWAE(5).loss(mixing("no"), guide_of_mixing, x) > 0
