"""The sleep phase of wake-sleep: the guide learns from the model's dreams."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext import bounds
from pyro_ext._checks import Pair, check_pair
from pyro_ext._site_log_prob import site_log_prob
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.structure import is_delta, sample_sites

__all__ = ["Sleep"]


class Sleep(BoundLoss):
    r"""Sleep phase: the guide follows the forward KL on data that the model dreams.

    .. math::
        \mathbb{E}_{p(z, x)} [-\log q_\phi(z \mid x)]
        = \mathbb{E}_{p(x)} \mathrm{KL}(p(z \mid x) \,\|\, q_\phi(z \mid x)) + \text{const}

    The optimum is the posterior of the model's own data, which a guide can reach only if it looks
    at the data: an amortized one. Draws are never differentiated, the model gets no gradient, and
    the data given serve for their shape alone: one dream per datum. Mini-batches are scaled.

    The guide must be able to score given latents: one that samples each latent from a distribution
    with a density, or a guide of this package.

    Args:
        observed: For each observed site of the model, the argument that its data come in by:
            the position, or the keyword. ``{"x": 0}`` for ``def model(x)``.

    Raises:
        TypeError: If an argument is named neither by position nor by keyword, or sites are given
            without their arguments.
        ValueError: If no site is named.

    References:
        The wake-sleep algorithm for unsupervised neural networks (Hinton et al., 1995) |
        https://doi.org/10.1126/science.7761831
        Revisiting Reweighted Wake-Sleep (Le et al., 2019) | https://arxiv.org/abs/1805.10469

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: the conditional entropy
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> _ = pyro.set_rng_seed(0)
        >>> x = torch.zeros(100_000)
        >>> round(Sleep({"x": 0}).loss(model, guide, x) / len(x), 1)
        1.1
    """

    papers: ClassVar[tuple[str, ...]] = ("hinton1995wake", "le2019revisiting")

    chunks: ClassVar[bool] = False
    estimators: ClassVar[tuple[str, ...]] = ("sleep",)

    def __init__(self, observed: Mapping[str, int | str]) -> None:
        super().__init__(1, estimator="sleep", joint=True)
        if not isinstance(observed, Mapping):
            raise TypeError(
                "Sleep: expected for each observed site the argument that its data come in by; "
                f"got {observed!r}. Write: px.Sleep(observed={{'x': 0}})."
            )
        if not observed:
            raise ValueError(
                "Sleep: expected the observed sites and the arguments that their data come in "
                "by; got none. Write: px.Sleep(observed={'x': 0})."
            )
        for name, place in observed.items():
            if isinstance(place, bool) or not isinstance(place, int | str):
                raise TypeError(
                    f"Sleep: expected a position or a keyword for site '{name}'; got {place!r}. "
                    f"Write: px.Sleep(observed={{'{name}': 0}})."
                )
        self.observed = dict(observed)

    def _options(self) -> dict[str, Any]:
        return {"observed": self.observed}

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.elbo(log_weights, log_strata=log_strata)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """Return minus log q of dreamed latents given dreamed data.

        Args:
            model: The model.
            guide: Its guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Raises:
            ValueError: If a site is not observed by the model, or data of a site have no place
                to go, or the guide cannot score the latents.
        """
        with torch.no_grad():
            unconditioned = poutine.uncondition(model)
            dream = poutine.trace(unconditioned).get_trace(*args, **kwargs)
        data = self._data(dream)
        dreamed = self._replaced(Pair(model, guide, args, kwargs), data)
        latents = {n: s["value"] for n, s in sample_sites(dream) if not s["is_observed"]}
        auxiliary = getattr(guide, "auxiliary", None)
        given = latents
        if auxiliary is not None:
            with torch.no_grad():
                given = auxiliary(latents, *dreamed.args, **dreamed.kwargs)
        conditioned = poutine.condition(guide, data=given)
        trace = poutine.trace(conditioned).get_trace(*dreamed.args, **dreamed.kwargs)
        check_pair(dream, trace)
        if auxiliary is None:
            self._check_density(trace)
        log_q = [(s["scale"] * site_log_prob(s)).sum() for _, s in sample_sites(trace)]
        return -self._bound(torch.stack(log_q).sum().unsqueeze(0))

    def _data(self, dream: Trace) -> dict[str, Tensor]:
        """Return the dreamed data; their sites count as observed again."""
        sites = dict(sample_sites(dream))
        seen = {name: s for name, s in sites.items() if s["infer"].get("was_observed")}
        if set(seen) != set(self.observed):
            line = {name: self.observed.get(name, i) for i, name in enumerate(seen)}
            raise ValueError(
                f"{self!r}: expected the names of the model's observed sites; got "
                f"{sorted(self.observed)}, and the model observes {sorted(seen)}. Write: "
                f"px.Sleep(observed={line}), with the argument that each comes in by."
            )
        for name, site in seen.items():
            if isinstance(site["fn"], dist.Unit):
                raise ValueError(
                    f"{self!r}: expected a model that data can be drawn from; got a pyro.factor "
                    f"at site '{name}'. Write: pyro.sample('{name}', ..., obs=...), or "
                    "px.WakeSleep()."
                )
            site["is_observed"] = True
        return {name: site["value"] for name, site in seen.items()}

    def _replaced(self, pair: Pair, data: dict[str, Tensor]) -> Pair:
        """Return the pair with the dreamed data in the place of the given ones."""
        args, kwargs = list(pair.args), dict(pair.kwargs)
        for name, place in self.observed.items():
            held: Any = args if isinstance(place, int) else kwargs
            there = 0 <= place < len(args) if isinstance(place, int) else place in kwargs
            if not there:
                raise ValueError(
                    f"{self!r}: expected the data of site '{name}' as argument {place!r}; got "
                    f"{len(args)} positional arguments and the keywords "
                    f"{sorted(kwargs)}. Write: px.Sleep(observed={{'{name}': 0}}) for the first."
                )
            old, new = held[place], data[name]
            if not isinstance(old, Tensor) or old.shape != new.shape:
                got = tuple(old.shape) if isinstance(old, Tensor) else repr(old)
                raise ValueError(
                    f"{self!r}: expected argument {place!r} to be a tensor of the shape "
                    f"{tuple(new.shape)} that the model draws for site '{name}'; got {got}. "
                    "Write: pyro.plate('data', len(x)) in a model of the rows it is called with, "
                    "and px.fit(..., batch_size=...) for mini-batches."
                )
            held[place] = new.to(old.dtype)
        return Pair(pair.model, pair.guide, tuple(args), kwargs)

    def _check_density(self, trace: Trace) -> None:
        for name, site in sample_sites(trace):
            if is_delta(site):
                raise ValueError(
                    f"{self!r}: expected a guide that can score given latents; got a Delta at "
                    f"site '{name}'. Write: px.AutoAmortized(model, encoder), or sample the site "
                    "from a distribution with a density."
                )
