"""Contracts of guides and losses, for the tests of this package and of third parties."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_ext.losses import ELBO, IWAE
from pyro_ext.structure import sample_sites, trace_params
from pyro_ext.testing.conjugate import ConjugateModel, NormalGlobal, NormalHierarchy, NormalLocal

__all__ = ["check_guide", "check_loss"]

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
        _check_pyro,
    ):
        with _isolated():
            check(factory, model, args)


def check_loss(factory: Callable[..., Any]) -> None:
    """Check that a loss keeps the contract of Pyro's losses and is exact where it can be.

    With the exact posterior as guide every bound on the evidence equals it, whatever the number of
    particles: the loss is minus the log evidence of three conjugate models. All forms of the loss
    agree at the same seed, and model and guide both get gradients.

    Args:
        factory: Builds the loss from ``num_particles``: a class, or a lambda with further options.

    Raises:
        AssertionError: If the loss breaks the contract.

    Example:
        >>> check_loss(px.ELBO)
        >>> check_loss(lambda num_particles: px.IWAE(num_particles, estimator="dreg"))
    """
    for num_particles in (1, 7):
        for exact in _conjugate_models():
            with _isolated():
                _check_exact(factory, exact, num_particles)
        with _isolated():
            _check_forms(factory, num_particles)


@contextmanager
def _isolated() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        torch.manual_seed(0)
        yield


def _close(left: Tensor, right: Tensor, what: str, *, atol: float = 1e-8) -> None:
    assert left.shape == right.shape, f"{what}: shapes {tuple(left.shape)}, {tuple(right.shape)}"
    worst = (left - right).abs().max().item() if left.numel() else 0.0
    size = 1 + right.abs().max().item() if right.numel() else 1.0
    assert worst <= atol * size, f"{what}: differ by {worst}, more than {atol} of {size}"


def _same_draws(left: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    assert left.keys() == right.keys(), f"{what}: sites {list(left)} and {list(right)}"
    for name, value in left.items():
        assert torch.equal(value, right[name]), f"{what}: site '{name}' differs"


def _seeded(call: Callable[[], Any], seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return call()


def _latents(model: Model, args: Any) -> dict[str, Any]:
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(*args)
    return {name: site for name, site in sample_sites(trace) if not site["is_observed"]}


def _ready(factory: GuideFactory, args: Any) -> Any:
    guide = factory()
    guide.setup(*args)
    return guide


# ---------------------------------------------------------------------- guides


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
    for loss in (ELBO(2), IWAE(3), IWAE(3, estimator="dreg"), ELBO(2, estimator="stl")):
        guide = _ready(factory, args)
        loss.differentiable_loss(model, guide, *args).backward()
        for name, param in guide.named_parameters():
            assert param.grad is not None, f"parameter '{name}' gets no gradient from {loss!r}"
            assert param.grad.isfinite().all(), f"parameter '{name}': {loss!r} gives nan or inf"


def _check_log_prob(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    for _ in range(3):
        trace = poutine.trace(guide).get_trace(*args)
        density = torch.stack(
            [site["fn"].log_prob(site["value"]).sum() for _, site in sample_sites(trace)]
        ).sum()
        values = {name: trace.nodes[name]["value"] for name in _latents(model, args)}
        _close(guide.log_prob(values, *args), density, "log_prob and the trace's density")
    many = guide.sample_posterior(4, *args)
    together = guide.log_prob(many, *args)
    assert together.shape == (4,), f"log_prob of 4 draws: shape {tuple(together.shape)}, not (4,)"
    for i in range(4):
        alone = guide.log_prob({name: value[i] for name, value in many.items()}, *args)
        _close(together[i], alone, "log_prob of draws together and one by one")


def _check_seed(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    _same_draws(
        _seeded(lambda: guide(*args)), _seeded(lambda: guide(*args)), "two calls at one seed"
    )
    value = _seeded(lambda: ELBO().loss(model, guide, *args))
    again = _seeded(lambda: ELBO().loss(model, guide, *args))
    assert value == again, f"two losses at one seed: {value} and {again}"


def _check_state_dict(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    _perturb(guide)
    fresh = _ready(factory, args)
    fresh.load_state_dict(guide.state_dict())
    _same_draws(_seeded(lambda: guide(*args)), _seeded(lambda: fresh(*args)), "state_dict")


def _check_copies(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    _perturb(guide)
    before = _seeded(lambda: guide(*args))
    other = copy.deepcopy(guide)
    _same_draws(before, _seeded(lambda: other(*args)), "deepcopy")
    shared = {p.data_ptr() for p in guide.parameters()} & {
        p.data_ptr() for p in other.parameters()
    }
    assert not shared, "deepcopy: the copy shares a parameter with the original"
    _perturb(other)
    for call in (guide, other):
        with pyro.get_param_store().scope():
            call(*args)
    _same_draws(before, _seeded(lambda: guide(*args)), "the original after a deepcopy")
    ELBO().loss(model, guide, *args)
    with poutine.trace(param_only=True) as capture:
        ELBO().differentiable_loss(model, other, *args)
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
        _close(median[name], quantiles[name][1], f"site '{name}': median and quantile 0.5")
        if not _elementwise(site["fn"].support):
            continue
        for low, high in pairwise(quantiles[name]):
            assert (low <= high).all(), f"site '{name}': quantiles fall"
        for prob, quantile in zip(probs, quantiles[name], strict=True):
            share = (draws[name] <= quantile).double().mean(0)
            z = (share - prob) / math.sqrt(prob * (1 - prob) / len(draws[name]))
            assert z.abs().max() < _Z_LIMIT, (
                f"site '{name}': quantile {prob} holds shares of draws from {share.min():.3f} "
                f"to {share.max():.3f}"
            )


def _elementwise(support: Any) -> bool:
    """Tell whether the bijection to the support acts on each element alone."""
    while isinstance(support, dist.constraints.independent):
        support = support.base_constraint
    return int(support.event_dim) == 0


def _check_dtype(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    for moved in (guide.double(), guide.to("cpu"), guide.to(torch.float64)):
        assert moved is guide, ".double() and .to() return another guide"
        values = guide(*args).values()
        assert all(value.dtype == torch.float64 for value in values), "a draw is not float64"


def _check_far_values(factory: GuideFactory, model: Model, args: Any) -> None:
    guide = _ready(factory, args)
    sites = _latents(model, args)
    draws = guide.sample_posterior(1, *args)
    for name, site in sites.items():
        support = site["fn"].support
        while isinstance(support, dist.constraints.independent):
            support = support.base_constraint
        if support is not dist.constraints.real:
            continue
        for far in (-1e3, 1e3):
            values = {**draws, name: torch.full_like(draws[name], far)}
            log_q = guide.log_prob(values, *args)
            assert log_q.isfinite().all(), f"log_prob is {log_q} where site '{name}' is {far}"


def _check_pyro(factory: GuideFactory, model: Model, args: Any) -> None:
    nesting = max(
        (-f.dim for site in _all_sites(model, args) for f in site["cond_indep_stack"]), default=0
    )
    for loss in (
        ELBO(2),
        pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=False),
        pyro.infer.Trace_ELBO(2, max_plate_nesting=nesting, vectorize_particles=True),
    ):
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
    for parallel in (False, True):
        predictive = pyro.infer.Predictive(model, guide=guide, num_samples=5, parallel=parallel)
        sites = _latents(model, args)
        draws = predictive(*args)
        for name in sites:
            if name in draws:
                assert len(draws[name]) == 5, f"Predictive(parallel={parallel}): site '{name}'"


def _all_sites(model: Model, args: Any) -> list[Any]:
    with torch.no_grad():
        return [site for _, site in sample_sites(poutine.trace(model).get_trace(*args))]


# ---------------------------------------------------------------------- losses


def _conjugate_models() -> tuple[ConjugateModel, ...]:
    x = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4], dtype=torch.float64)
    return NormalLocal(x, 0.7), NormalGlobal(x, 0.7), NormalHierarchy(x, 0.7, 0.5, 2.0)


def _check_exact(factory: Callable[..., Any], exact: ConjugateModel, num_particles: int) -> None:
    loss = factory(num_particles=num_particles)
    assert loss.num_particles == num_particles, f"num_particles is {loss.num_particles}"
    for _ in range(3):
        value = loss.loss(exact.model, exact.guide, *exact.args)
        assert isinstance(value, float), f"loss returns {type(value).__name__}, not float"
        gap = value + exact.log_evidence().item()
        assert abs(gap) < 1e-10 * (1 + abs(value)), (
            f"{type(exact).__name__} with its exact posterior, {num_particles} particles: loss + "
            f"log evidence is {gap}, not 0 (the loss is minus the bound)"
        )


class _Learned(pyro.nn.PyroModule):
    """Normal data with a learned prior mean, or their learned guide."""

    def __init__(self, *, is_guide: bool) -> None:
        super().__init__("learned_guide" if is_guide else "learned_model")
        self.is_guide = is_guide
        self.loc = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        scale = x.new_tensor(0.8)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc + (x / 2 if self.is_guide else 0.0), scale))
            if not self.is_guide:
                pyro.sample("x", dist.Normal(z, scale), obs=x)


def _check_forms(factory: Callable[..., Any], num_particles: int) -> None:
    x = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    model, guide = _Learned(is_guide=False), _Learned(is_guide=True)
    loss = factory(num_particles=num_particles)
    params = (model.loc, guide.loc)
    loss.loss(model, guide, x)  # what a first call finds out must not shift the random numbers
    plain = _seeded(lambda: loss.loss(model, guide, x))
    tensor = _seeded(lambda: loss.differentiable_loss(model, guide, x))
    assert tensor.shape == (), f"differentiable_loss has shape {tuple(tensor.shape)}, not ()"
    wanted = torch.autograd.grad(tensor, params, allow_unused=True)
    module = _seeded(lambda: loss(model, guide)(x))
    by_module = torch.autograd.grad(module, params, allow_unused=True)
    stepped = _seeded(lambda: loss.loss_and_grads(model, guide, x))
    for form, value in {"differentiable_loss": tensor, "loss(model, guide)": module}.items():
        assert abs(value.item() - plain) < 1e-10, f"{form}: {value.item()}, loss: {plain}"
    assert abs(stepped - plain) < 1e-10, f"loss_and_grads: {stepped}, loss: {plain}"
    for side, param, grad, other in zip(
        ("model", "guide"), params, wanted, by_module, strict=True
    ):
        assert grad is not None, f"the {side}'s parameter gets no gradient"
        assert other is not None, f"loss(model, guide) gives the {side} no gradient"
        assert param.grad is not None, f"loss_and_grads gives the {side} no gradient"
        assert grad.isfinite(), f"the {side}'s gradient is {grad}"
        _close(param.grad, grad, f"the {side}'s gradient by loss_and_grads")
        _close(other, grad, f"the {side}'s gradient by loss(model, guide)")
