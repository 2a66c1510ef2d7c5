"""The contract of automatic guides, for the tests of this package and of third parties."""

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.optim import PyroOptim

from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.losses import ELBO
from pyro_ext.structure import sample_sites, trace_params
from pyro_ext.testing._battery import losses_of, powers_of
from pyro_ext.testing._common import close, isolated, same_draws, seeded

__all__ = ["check_guide"]

Model = Callable[..., Any]
GuideFactory = Callable[[], Any]

_Z_LIMIT = 6.0
"""Limit of a z-test whose false-alarm rate is 2e-9 per scalar."""


def check_guide(factory: GuideFactory, model: Model, *args: Any) -> None:
    """Check that a guide keeps the contract of the automatic guides of this package.

    Site shapes, gradients of all parameters, ``log_prob``, reproducibility, saving and copying,
    summaries, dtypes, extreme values, and the losses and ``Predictive`` of Pyro. Any test
    framework will do: a broken contract raises ``AssertionError``. The caller's random state and
    parameter store stay as they were.

    Args:
        factory: Function without arguments that builds a new guide of the model.
        model: The model.
        *args: Its arguments, with all rows, in float64.

    Raises:
        AssertionError: If the guide breaks the contract.

    Example:
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> check_guide(lambda: px.AutoJoint(model), model, torch.zeros(3).double())
    """
    for check in (
        _check_shapes,
        _check_gradients,
        _check_log_prob,
        _check_seed,
        _check_state_dict,
        _check_copies,
        _check_summaries,
        _check_dtype,
        _check_far_values,
        _check_bijection,
        _check_pyro,
    ):
        with isolated():
            check(factory, model, args)


def _latents(model: Model, args: Any) -> dict[str, Any]:
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(*args)
    return {name: site for name, site in sample_sites(trace) if not site["is_observed"]}


def _ready(factory: GuideFactory, args: Any) -> Any:
    guide = factory()
    guide.setup(*args)
    return guide


def _check_shapes(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = factory()
    assert isinstance(guide, AutoGuide), f"expected a pyro AutoGuide; got {type(guide).__name__}"
    guide.setup(*args)
    names = {name for name, _ in guide.named_parameters()}
    assert names, "no parameter exists after setup"
    sites = _latents(model, args)
    draws = guide(*args)
    assert set(draws) == set(sites), f"guide returns {sorted(draws)}, model has {sorted(sites)}"
    drawn = guide.sample_posterior(3, *args)
    for name, site in sites.items():
        shape = site["value"].shape
        got = draws[name].shape
        assert got == shape, f"site '{name}': model {tuple(shape)}, guide {tuple(got)}"
        assert drawn[name].shape == (3, *shape), (
            f"site '{name}': sample_posterior(3) gives {tuple(drawn[name].shape)}, not (3, *site)"
        )
        inside = site["fn"].support.check(draws[name].detach())
        assert inside.all(), f"site '{name}': a draw lies outside {site['fn'].support}"
        assert not drawn[name].requires_grad, f"site '{name}': sample_posterior carries gradients"
    after = {name for name, _ in guide.named_parameters()}
    assert after == names, f"parameters that came up after setup: {sorted(after - names)}"


def _check_gradients(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    suited, refused = losses_of(powers_of(guide))
    for loss in suited:
        guide.zero_grad(set_to_none=True)
        value = loss.differentiable_loss(model, guide, *args)
        assert value.isfinite(), f"{loss!r} is {value.item()}"
        value.backward()
        for name, param in guide.named_parameters():
            assert param.grad is not None, f"parameter '{name}' gets no gradient from {loss!r}"
            assert param.grad.isfinite().all(), f"parameter '{name}': {loss!r} gives nan or inf"
    for loss in refused:
        try:
            loss.differentiable_loss(model, guide, *args)
        except ValueError:
            continue
        raise AssertionError(
            f"check_guide: expected {loss!r} to refuse a family whose gradient it cannot have; "
            "got a value. Write: raise ValueError(...), where the family is asked to score such z."
        )


def _check_log_prob(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    _perturb(guide)
    powers = powers_of(guide)
    many = guide.sample_posterior(4, *args)
    if powers.density != "any":
        try:
            guide.log_prob(many, *args)
        except ValueError:
            return
        raise AssertionError(
            "check_guide: expected log_prob to refuse draws that the family cannot score; got a "
            "density. Write: density = 'any', or raise ValueError(...) in log_prob."
        )
    for _ in range(3):
        trace = poutine.trace(guide).get_trace(*args)
        density = torch.stack(
            [site["fn"].log_prob(site["value"]).sum() for _, site in sample_sites(trace)]
        ).sum()
        values = {name: trace.nodes[name]["value"] for name in _latents(model, args)}
        close(guide.log_prob(values, *args), density, "log_prob and the trace's density")
    together = guide.log_prob(many, *args)
    assert together.shape == (4,), f"log_prob of 4 draws: shape {tuple(together.shape)}, not (4,)"
    for i in range(4):
        alone = guide.log_prob({name: value[i] for name, value in many.items()}, *args)
        close(together[i], alone, "log_prob of draws together and one by one")


def _check_seed(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    same_draws(seeded(lambda: guide(*args)), seeded(lambda: guide(*args)), "two calls at one seed")
    powers = powers_of(guide)
    if powers.density != "none":
        loss = ELBO(powers.strata)
        value = seeded(lambda: loss.loss(model, guide, *args))
        again = seeded(lambda: loss.loss(model, guide, *args))
        assert value == again, f"two losses at one seed: {value} and {again}"


def _check_state_dict(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    _perturb(guide)
    fresh = _ready(factory, args)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    same_draws(seeded(lambda: guide(*args)), seeded(lambda: fresh(*args)), "save and load")


def _check_copies(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    _perturb(guide)
    before = seeded(lambda: guide(*args))
    other = copy.deepcopy(guide)
    same_draws(before, seeded(lambda: other(*args)), "deepcopy")
    shared = {p.data_ptr() for p in guide.parameters()} & {
        p.data_ptr() for p in other.parameters()
    }
    assert not shared, "deepcopy: the copy shares a parameter with the original"
    _perturb(other)
    for call in (guide, other):
        with pyro.get_param_store().scope():
            call(*args)
    same_draws(before, seeded(lambda: guide(*args)), "the original after a deepcopy")
    guide(*args)
    with poutine.trace(param_only=True) as capture:
        other(*args)
    mine = {id(param) for param in guide.parameters()}
    captured = {id(param) for param in trace_params(capture.trace)}
    assert not mine & captured, "deepcopy: the copy trains the original's parameters"


def _perturb(guide: Any) -> None:
    with torch.no_grad():
        for param in guide.parameters():
            param.add_(0.05 * torch.randn_like(param))


def _check_summaries(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    _perturb(guide)
    probs = [0.1, 0.5, 0.8]
    median, quantiles = guide.median(*args), guide.quantiles(probs, *args)
    draws = guide.sample_posterior(1000, *args)
    for name, site in _latents(model, args).items():
        shape = tuple(site["value"].shape)
        got = tuple(quantiles[name].shape)
        assert got == (3, *shape), f"site '{name}': quantiles of shape {got}, not (3, *site)"
        for low, high in pairwise(quantiles[name]):
            assert (low <= high).all(), f"site '{name}': quantiles fall"
        if not _elementwise(site["fn"].support):
            continue
        close(median[name], quantiles[name][1], f"site '{name}': median and quantile 0.5")
        for prob, quantile in zip(probs, quantiles[name], strict=True):
            share = (draws[name] <= quantile).double().mean(0)
            z = (share - prob) / math.sqrt(prob * (1 - prob) / len(draws[name]))
            assert z.abs().max() < _Z_LIMIT, (
                f"site '{name}': quantile {prob} holds shares of draws from {share.min():.3f} "
                f"to {share.max():.3f}"
            )


def _elementwise(support: Any) -> bool:
    """Tell whether the bijection to the support acts on each element alone."""
    return int(_of_elements(support).event_dim) == 0


def _of_elements(support: Any) -> Any:
    """Return the constraint on the elements of which a support is made up."""
    while isinstance(support, dist.constraints.independent):
        support = support.base_constraint
    return support


def _check_dtype(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    for moved in (guide.double(), guide.to("cpu"), guide.to(torch.float64)):
        assert moved is guide, ".double() and .to() return another guide"
        values = guide(*args).values()
        assert all(value.dtype == torch.float64 for value in values), "a draw is not float64"


def _check_far_values(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    if powers_of(guide).density != "any":
        return
    sites = _latents(model, args)
    draws = guide.sample_posterior(1, *args)
    for name, site in sites.items():
        if _of_elements(site["fn"].support) is not dist.constraints.real:
            continue
        for far in (-1e3, 1e3):
            values = {**draws, name: torch.full_like(draws[name], far)}
            log_q = guide.log_prob(values, *args)
            assert log_q.isfinite().all(), f"log_prob is {log_q} where site '{name}' is {far}"


def _check_bijection(factory: GuideFactory, model: Model, args: Any) -> None:
    """Compare each family's log-determinant with the autograd Jacobian of its map from noise."""
    guide = _ready(factory, args)
    _perturb(guide)
    for group in guide.groups if isinstance(guide, PackedGuide) else ():
        dim, family = group.packing.dim, group.family
        params = family.initial_params(torch.randn(dim), torch.rand(dim) + 0.5)
        params = params + 0.1 * torch.randn_like(params)
        transform = family.transform(params, dim, getattr(guide, f"{group.name}_network", None))
        if transform is None:
            continue
        noise = torch.randn(dim, dtype=params.dtype)
        jacobian: Any = torch.autograd.functional.jacobian(transform, noise)
        found = transform.log_abs_det_jacobian(noise, transform(noise))
        close(found, torch.linalg.slogdet(jacobian)[1], f"{family}: log-determinant")


def _check_pyro(factory: GuideFactory, model: Model, args: Any) -> None:
    powers = powers_of(_ready(factory, args))
    nesting = max(
        (-f.dim for site in _all_sites(model, args) for f in site["cond_indep_stack"]), default=0
    )
    losses = (
        ELBO(2 * powers.strata),
        pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=False),
        pyro.infer.Trace_ELBO(2, max_plate_nesting=nesting, vectorize_particles=True),
    )
    for loss in losses if powers.density != "none" else ():
        guide = factory()  # not set up: the first call does it
        optim = PyroOptim(torch.optim.Adam, {"lr": 0.01})
        svi = pyro.infer.SVI(model, guide, optim, loss)
        first = svi.step(*args)
        before = [param.detach().clone() for param in guide.parameters()]
        assert math.isfinite(first), f"SVI with {loss!r}: loss {first}"
        assert math.isfinite(svi.step(*args)), f"SVI with {loss!r}: second loss not finite"
        for old, (name, param) in zip(before, guide.named_parameters(), strict=True):
            moved = not torch.equal(old, param)
            assert moved, f"SVI with {loss!r}: parameter '{name}' does not move"
    sites = tuple(_latents(model, args))
    for parallel in (False, True):
        predictive = pyro.infer.Predictive(
            model, guide=factory(), num_samples=5, parallel=parallel, return_sites=sites
        )
        draws = predictive(*args)
        for name in sites:
            assert len(draws[name]) == 5, f"Predictive(parallel={parallel}): site '{name}'"


def _all_sites(model: Model, args: Any) -> list[Any]:
    with torch.no_grad():
        return [site for _, site in sample_sites(poutine.trace(model).get_trace(*args))]
