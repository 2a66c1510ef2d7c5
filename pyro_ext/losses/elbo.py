"""The evidence lower bound."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext import bounds
from pyro_ext._checks import Pair
from pyro_ext._sitewise import sitewise
from pyro_ext._terms import Particles
from pyro_ext.losses.forms import FORMS, use_form
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.weights import Mode, weigh

__all__ = ["ELBO"]


class ELBO(BoundLoss):
    r"""Evidence lower bound, by Monte Carlo with reparameterized draws.

    .. math:: \mathcal{L} = \mathbb{E}_{q(z)} [\log p(x, z) - \log q(z)] \le \log p(x)

    Estimators of its gradient:

    - ``"reparam"``: differentiates the draws and log q.
    - ``"stl"`` (sticking the landing): leaves out the score of q, whose mean is zero. Unbiased
      too, and free of noise where q is the exact posterior.
    - ``"score"`` (REINFORCE): for guide sites that are not reparameterized, discrete ones say, the
      score function, with the mean of the other draws as baseline; reparameterized sites in the
      same guide are differentiated as by ``"reparam"``, and sites that reject proposals
      (``dist.Rejector``) by both. A ``pyro.factor(..., has_rsample=False)`` of the guide counts as
      the log density of such a draw.

    Forms, all of the same expectation:

    .. math::
        \mathcal{L} = \mathbb{E}_q [\log p(x \mid z)] - \mathrm{KL}(q(z) \,\|\, p(z))
        = \mathbb{E}_q [\log p(x, z)] + \mathrm{H}[q]

    - ``"mc"``: everything by Monte Carlo.
    - ``"kl"``: the KL divergence of a latent analytic, given its parents, where torch or Pyro has
      one registered for the guide's distribution and the prior and both are scaled and masked
      alike. A guide of this package with independent coordinates has a distribution of its own
      for each latent, through a constrained support too; one with dependent coordinates gets its
      entropy analytic.
    - ``"entropy"``: the entropy of a guide site analytic where its distribution has one; the
      Jacobian of a constrained support by Monte Carlo.

    ``forms`` tells which site got what. Where an expectation is not known, Monte Carlo serves.

    Args:
        num_particles: Number of draws that are averaged.
        estimator: ``"reparam"``, ``"stl"`` or ``"score"``.
        form: ``"mc"``, ``"kl"`` or ``"entropy"``; the last two with ``"reparam"`` only.

    Raises:
        ValueError: If estimator or form is unknown, or the form has no such estimator.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013) | https://arxiv.org/abs/1312.6114
        Sticking the Landing (Roeder, Wu and Duvenaud, 2017) | https://arxiv.org/abs/1703.09194
        Black Box Variational Inference (Ranganath, Gerrish and Blei, 2014) |
        https://arxiv.org/abs/1401.0118

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: every draw gives -log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> loss = ELBO(num_particles=10, estimator="stl")
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 4)
        1.5155
    """

    estimators: ClassVar[tuple[str, ...]] = ("reparam", "stl", "score")
    _linear = True

    def __init__(
        self, num_particles: int = 1, *, estimator: str = "reparam", form: str = "mc"
    ) -> None:
        # The ELBO is linear in log w: one joint weight serves, and any scale may stay inside. Only
        # the score function wants the cost of each element apart.
        super().__init__(num_particles, estimator=estimator, joint=estimator != "score")
        if form not in FORMS:
            raise ValueError(
                f"ELBO: expected form to be one of {list(FORMS)}; got {form!r}. Write: "
                f"px.ELBO(num_particles={num_particles}, form='kl')."
            )
        if form != "mc" and estimator != "reparam":
            raise ValueError(
                f"ELBO: expected estimator='reparam' with form={form!r}, which leaves no log q to "
                f"treat otherwise; got {estimator!r}. Write: px.ELBO(num_particles="
                f"{num_particles}, form={form!r}), or px.ELBO(num_particles={num_particles}, "
                f"estimator={estimator!r})."
            )
        self.particles = Particles(1, num_particles)
        self.form = form
        self._sitewise = form == "kl"

    def forms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> dict[str, str]:
        """Return how each guide site is treated: ``"analytic"`` or ``"monte carlo"``.

        Args:
            model: The model.
            guide: Its guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Raises:
            ValueError: If model and guide do not match.
        """
        found: dict[str, str] = {}

        def look(model_trace: Trace, guide_trace: Trace) -> None:
            found.update(use_form(self.form, model_trace, guide_trace))

        pair = Pair(model, guide, args, kwargs)
        with torch.no_grad(), torch.random.fork_rng(devices=()), sitewise(asked=self._sitewise):
            weigh(pair, Particles(1, 1), joint=True, mode=Mode(), adjust=look)
        return found

    def _options(self) -> dict[str, Any]:
        options = {"num_particles": self.num_particles, "estimator": self.estimator}
        return options if self.form == "mc" else options | {"form": self.form}

    def _adjust(self, model_trace: Trace, guide_trace: Trace) -> object:
        return use_form(self.form, model_trace, guide_trace)

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.elbo(log_weights, log_strata=log_strata)
