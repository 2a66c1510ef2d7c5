"""The forms of the ELBO: which expectations are taken analytically."""

from collections.abc import Iterable
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_ext._site_log_prob import set_log_prob
from pyro_ext.structure import is_random, sample_sites

__all__ = ["FORMS", "use_form"]

FORMS = ("mc", "kl", "entropy")


def use_form(form: str, model_trace: Trace, guide_trace: Trace) -> dict[str, str]:
    r"""Replace sites' log densities by quantities of the same expectation and less variance.

    A latent's :math:`\log p(z) - \log q(z)` becomes :math:`-\mathrm{KL}(q \| p)` given the latents
    that both depend on (form ``"kl"``), a guide site's :math:`-\log q(z)` its entropy (form
    ``"entropy"``, and sites of the guide alone).

    Args:
        form: ``"mc"``, ``"kl"`` or ``"entropy"``.
        model_trace: Trace of the model, replayed against the guide.
        guide_trace: Trace of the guide.

    Returns:
        For each guide site, ``"analytic"`` or ``"monte carlo"``.
    """
    priors = {name: s for name, s in sample_sites(model_trace) if not s["is_observed"]}
    sites = {name: s for name, s in sample_sites(guide_trace) if not s["is_observed"]}
    treated = dict.fromkeys(sites, "monte carlo")
    for name, site in sites.items():
        if form == "mc" or not is_random(site):
            continue
        prior = priors.get(name)
        if prior is None or form == "entropy":
            value = _entropy(site)
            if value is not None:
                set_log_prob(site, -value)
                treated[name] = "analytic"
        elif _agrees(site, prior) and _ordered(name, priors, sites):
            value = _divergence(site, prior)
            if value is not None:
                set_log_prob(site, value)
                set_log_prob(prior, torch.zeros_like(value))
                treated[name] = "analytic"
    return treated


def _entropy(site: Any) -> Tensor | None:
    try:
        entropy: Tensor = site["fn"].entropy()
    except NotImplementedError:
        return None
    return entropy


def _divergence(site: Any, prior: Any) -> Tensor | None:
    if site["fn"].event_shape != prior["fn"].event_shape:
        return None
    try:
        return kl_divergence(site["fn"], prior["fn"])
    except NotImplementedError:
        return None


def _agrees(site: Any, prior: Any) -> bool:
    """Tell whether a site is scaled and masked alike in model and guide."""
    return all(_same(site[key], prior[key]) for key in ("scale", "mask"))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return bool(one == other)


def _ordered(name: str, priors: dict[str, Any], sites: dict[str, Any]) -> bool:
    """Tell whether q of this site is not conditional on what its prior takes as given.

    The KL divergence of a conditional q(z | a) from p(z | a, b) is right if, given a, q draws z
    and b independently: b was drawn before z, or by itself.
    """
    before = set(_until(name, sites))
    return all(
        other in before or sites[other]["infer"].get("independent")
        for other in _until(name, priors)
        if other in sites
    )


def _until(name: str, names: Iterable[str]) -> Iterable[str]:
    for other in names:
        if other == name:
            return
        yield other
