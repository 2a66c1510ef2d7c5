"""Annealed importance sampling: the evidence where no guide is good enough to weight its draws."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext._run import prior_of
from pyro_ext.diagnostics import _annealing
from pyro_ext.diagnostics._density import Density, Point
from pyro_ext.diagnostics._estimates import Elements, Estimate, log_mean, mean
from pyro_ext.diagnostics._passes import (
    Layout,
    inspect,
    only_rows,
    pairs_per_pass,
    progress,
    sizes_of_passes,
    wholes,
)
from pyro_ext.diagnostics._simulate import Simulated, drawable, simulate
from pyro_ext.diagnostics._target import Fitted, Target, resolve, undisturbed

__all__ = ["Annealing", "ais", "bdmc"]

_DECORRELATE = 30
_PILOT_CHAINS = 64
_MIN_PILOT_CHAINS = 16
_MIN_CHAINS = 2
_MIN_EFFECTIVE = 20.0


@dataclass(frozen=True, eq=False)
class Annealing:
    """Bounds on log p(x) from annealed chains.

    Args:
        lower: Mean log weight of the forward chains: a lower bound, whatever the chains do.
        log_evidence: Log of their mean weight, corrected to first order for the bias of the
            logarithm.
        upper: Mean log weight of the backward chains: an upper bound; on simulated data only.
        per_datum: The same per datapoint, if there are local latents only; else None.
        acceptance: Share of moves that were accepted.
        effective: Number of chains that the weights are worth, shape ``batch``. Where it is small
            the best chain is one that few others have followed; ``log_evidence`` is then too low,
            by more than its standard error, which those few chains cannot know.
        log_weights: Log weights of the forward chains, shape ``(num_chains, *batch)``.
        simulated: The data and latents that were simulated, if they were.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> found = px.ais(exact.model, exact.guide, exact.x, num_chains=8, num_temperatures=3)
        >>> found.reliable, found.upper  # an upper bound is of simulated data only
        (True, None)
    """

    lower: Estimate
    log_evidence: Estimate
    upper: Estimate | None
    per_datum: dict[str, Elements] | None
    acceptance: float
    effective: Float[Tensor, " *batch"]
    log_weights: Float[Tensor, " chains *batch"]
    simulated: Simulated | None = None

    @property
    def reliable(self) -> bool:
        """Whether enough chains carry the weights, everywhere, for ``log_evidence`` and its SE."""
        return self.effective.min().item() >= min(_MIN_EFFECTIVE, len(self.log_weights) / 4)

    @property
    def verdict(self) -> str:
        """What the weights allow, in plain words."""
        worst, num = self.effective.min().item(), len(self.log_weights)
        where = "" if self.effective.numel() == 1 else " at the worst datapoint"
        if self.reliable:
            return f"good: the weights are worth {worst:.0f} of {num} chains{where}"
        return (
            f"not to be trusted: the weights are worth {worst:.1f} of {num} chains{where}. The "
            "bounds hold, but the log evidence is likely to be higher than its estimate"
        )

    def __str__(self) -> str:
        """One line a bound, and whether to believe the estimate."""
        rows = {"lower bound": self.lower, "log evidence": self.log_evidence}
        if self.upper is not None:
            rows["upper bound"] = self.upper
        lines = [f"{name:<12}  {estimate}" for name, estimate in rows.items()]
        return "\n".join([*lines, f"acceptance    {self.acceptance:.2f}", self.verdict])

    __repr__ = __str__  # as a console and a notebook show it


def ais(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    start: Literal["guide", "prior"] = "guide",
    num_chains: int = 64,
    num_temperatures: int = 100,
    num_leapfrog: int = 5,
    chunk_size: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Annealing:
    r"""Estimate the log evidence by annealed importance sampling with Hamiltonian moves.

    .. math:: f_\beta(z) = q(z)^{1 - \beta}\, p(x, z)^\beta, \qquad
        \log w = \sum_t (\beta_t - \beta_{t-1}) \log \frac{p(x, z_{t-1})}{q(z_{t-1})}, \qquad
        \mathrm{E} \log w \le \log p(x)

    The chains start at draws of the guide, or of the prior, and need no guide that covers the
    posterior. They move in unconstrained coordinates; temperatures and step sizes are tuned in a
    pilot run and fixed after it, so that the bound holds exactly. With one latent per datapoint
    and no global ones, every datapoint has chains of its own, all at once.

    A warning says where so few chains carry the weights that the estimate is too low. From a wide
    prior to a narrow posterior that is the rule: start from a fitted guide.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: Its guide; left out with a run. It must be able to score any value.
        *args: Arguments of both; by default the run's.
        start: Whether chains start from the guide or from the model's prior.
        num_chains: Number of chains.
        num_temperatures: Number of steps from the start to the posterior.
        num_leapfrog: Leapfrog steps of a move.
        chunk_size: Largest number of (chain, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If there are too few chains or temperatures, or a latent is discrete.

    References:
        Annealed Importance Sampling (Neal, 2001) | https://arxiv.org/abs/physics/9803008
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2016) |
        https://arxiv.org/abs/1611.04273

    Example:
        >>> from pyro_ext.testing.conjugate import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> found = ais(exact.model, exact.guide, exact.x, num_chains=4, num_temperatures=3)
        >>> round(found.lower.value, 3), round(exact.log_evidence().item(), 3)
        (-3.531, -3.531)
    """
    num_chains, num_temperatures, num_leapfrog = _checked(
        "ais", num_chains, num_temperatures, num_leapfrog
    )
    target = _with_start("ais", resolve("ais", model, guide, args, kwargs), start)
    settings = (num_chains, num_temperatures, num_leapfrog, chunk_size)
    with undisturbed(target, seed) as plates:
        with drawable("ais") if start == "prior" else nullcontext():
            layout = inspect(target, plates)
        found = _run("AIS", target, layout, settings, None)
    return _warned("ais", found, num_temperatures, start)


def bdmc(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    start: Literal["guide", "prior"] = "prior",
    num_chains: int = 64,
    num_temperatures: int = 100,
    num_leapfrog: int = 5,
    chunk_size: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Annealing:
    r"""Sandwich the log evidence of data that are simulated from the model.

    .. math:: \mathrm{E} \log w_\text{forward} \le \log p(x) \le \mathrm{E} \log w_\text{backward}

    The latents that the data were simulated from are an exact draw of the posterior; chains that
    start there and run back give an upper bound (bidirectional Monte Carlo). The gap between the
    two bounds tells how far ``ais`` with these settings can be off on real data of this kind.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: Its guide; left out with a run.
        *args: Arguments of both, whose data are replaced; by default the run's.
        start: Whether chains start from the guide or from the model's prior.
        num_chains: Number of chains in each direction.
        num_temperatures: Number of steps between start and posterior.
        num_leapfrog: Leapfrog steps of a move.
        chunk_size: Largest number of (chain, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If an observed site's values are no argument of the model, or a latent is
            discrete.

    References:
        Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani and
        Adams, 2015) | https://arxiv.org/abs/1511.02543

    Example:
        >>> from pyro_ext.testing.conjugate import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> found = bdmc(exact.model, exact.guide, exact.x, num_chains=16, num_temperatures=20)
        >>> found.lower.value < found.upper.value
        True
    """
    num_chains, num_temperatures, num_leapfrog = _checked(
        "bdmc", num_chains, num_temperatures, num_leapfrog
    )
    real = resolve("bdmc", model, guide, args, kwargs)
    settings = (num_chains, num_temperatures, num_leapfrog, chunk_size)
    with undisturbed(real, seed) as plates:
        drawn = simulate("bdmc", real)
        simulated = replace(real, args=drawn.args, kwargs=drawn.kwargs)
        target = _with_start("bdmc", simulated, start)
        found = _run("BDMC", target, inspect(target, plates), settings, drawn)
    return _warned("bdmc", found, num_temperatures, start)


def _warned(owner: str, found: Annealing, num_temperatures: int, start: str) -> Annealing:
    if not found.reliable:
        fitted = " or start='guide' with a fitted guide," if start == "prior" else ""
        warnings.warn(
            f"{owner}: {found.verdict}. Write: num_temperatures={4 * num_temperatures},{fitted} "
            "or num_leapfrog=20.",
            stacklevel=3,
        )
    return found


def _run(
    what: str,
    target: Target,
    layout: Layout,
    settings: tuple[int, int, int, int | None],
    drawn: Simulated | None,
) -> Annealing:
    num_chains, num_temperatures, num_leapfrog, chunk_size = settings
    local = layout.each_alone
    axis = layout.axis if local else 0
    rows = layout.size
    if local and layout.rows is not None:
        most = max(num_chains, _MIN_PILOT_CHAINS)
        rows = min(rows, max(1, pairs_per_pass(layout, chunk_size) // most))
    at_once = pairs_per_pass(layout, chunk_size) // rows
    chains = min(num_chains, max(_MIN_CHAINS, at_once))
    pilot = min(_PILOT_CHAINS, max(_MIN_PILOT_CHAINS, at_once))
    counts = sizes_of_passes(num_chains, chains)
    exact = None
    if drawn is not None:
        exact = _point(target, Density(target, joint=not local), drawn)
    forward, backward, rates = [], [], []
    chunks = torch.arange(layout.size, device="cpu").split(rows)
    with progress(len(chunks) * len(counts), what) as bar:
        for chunk in chunks:
            with only_rows(target, layout, chunk) as part:
                density = Density(part, joint=not local)
                moves = _annealing.tune(density, num_leapfrog, pilot).refined(num_temperatures)
                ahead, back = [], []
                for count in counts:
                    log_w, rate = _annealing.forward(density, moves, count)
                    ahead.append(log_w.cpu())
                    rates.append(rate.mean().item())
                    if exact is not None:
                        here = _rows(exact, density, axis, chunk) if local else exact
                        here = {n: v.expand(count, *v.shape[1:]) for n, v in here.items()}
                        here = _annealing.stay(density, moves, here, _DECORRELATE)
                        back.append(_annealing.backward(density, moves, here).cpu())
                    bar.update()
                forward.append(torch.cat(ahead))
                if back:
                    backward.append(torch.cat(back))
    log_w = torch.cat(forward, 1 + axis) if local else forward[0]
    found = {"lower": mean(log_w), "log_evidence": log_mean(log_w)}
    if backward:
        found["upper"] = mean(torch.cat(backward, 1 + axis) if local else backward[0])
    totals = {name: elements.total() for name, elements in found.items()}
    return Annealing(
        totals["lower"],
        totals["log_evidence"],
        totals.get("upper"),
        found if local else None,
        sum(rates) / len(rates),
        1 / log_w.softmax(0).square().sum(0),
        log_w,
        drawn,
    )


def _with_start(owner: str, target: Target, start: str) -> Target:
    if start == "guide":
        return target
    if start != "prior":
        raise ValueError(
            f"{owner}: expected start to be 'guide' or 'prior'; got {start!r}. Write: "
            "start='prior'."
        )
    return replace(target, guide=prior_of(target.model))


def _point(target: Target, density: Density, drawn: Simulated) -> Point:
    """Return simulated latents in the guide's unconstrained coordinates, with one particle."""
    values = dict(drawn.latents)
    if hasattr(target.guide, "auxiliary"):
        values = target.guide.auxiliary(values, *target.args, **target.kwargs)
    return density.locate(values)


def _rows(point: Point, density: Density, axis: int, chunk: Tensor) -> Point:
    dim = 1 + density.structure.nesting + density.dims[axis]
    return {n: v.index_select(dim, chunk.to(v.device)) for n, v in point.items()}


def _checked(
    owner: str, num_chains: int, num_temperatures: int, num_leapfrog: int
) -> tuple[int, int, int]:
    num_chains, num_temperatures, num_leapfrog = wholes(
        owner,
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        num_leapfrog=num_leapfrog,
    )
    if num_chains < _MIN_CHAINS or num_temperatures < 1 or num_leapfrog < 1:
        raise ValueError(
            f"{owner}: expected num_chains >= 2, num_temperatures >= 1 and num_leapfrog >= 1; got "
            f"{num_chains}, {num_temperatures} and {num_leapfrog}. Write: num_chains=64, "
            "num_temperatures=100, num_leapfrog=5."
        )
    return num_chains, num_temperatures, num_leapfrog
