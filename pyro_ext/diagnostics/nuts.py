"""Reference draws from the no-U-turn sampler, in one call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_ext.diagnostics._passes import wholes
from pyro_ext.diagnostics._target import Target, undisturbed
from pyro_ext.diagnostics._types import DataTree
from pyro_ext.diagnostics.datatree import from_mcmc

__all__ = ["nuts"]


@dataclass(frozen=True)
class _Chains:
    """Chains that ran one after the other, in the form of a ``pyro.infer.MCMC``."""

    kernel: NUTS
    samples: dict[str, Tensor]
    _args: tuple[Any, ...]
    _kwargs: dict[str, Any]

    def get_samples(self, *, group_by_chain: bool) -> dict[str, Tensor]:
        return self.samples


def nuts(
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    warmup_steps: int = 1000,
    num_chains: int = 2,
    target_accept_prob: float = 0.9,
    seed: int = 0,
    **kwargs: Any,
) -> DataTree:
    """Draw from the posterior with NUTS, as a reference to hold guides against.

    Args:
        model: A Pyro model with continuous latents.
        *args: Its arguments.
        num_samples: Number of draws per chain.
        warmup_steps: Steps of adaptation before them.
        num_chains: Number of chains, run one after the other.
        target_accept_prob: Acceptance that the step size is adapted to.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: The model's keyword arguments.

    Raises:
        ValueError: If there is nothing to draw.

    Returns:
        What ``px.from_mcmc`` returns: ``px.compare(runs, reference=px.nuts(model, x))``.

    References:
        The No-U-Turn Sampler (Hoffman and Gelman, 2014) | https://arxiv.org/abs/1111.4246

    Example:
        >>> from pyro_ext.testing.conjugate import NormalGlobal
        >>> exact = NormalGlobal(torch.tensor([0.0, 2.0]))
        >>> tree = nuts(exact.model, exact.x, num_samples=20, warmup_steps=20)
        >>> dict(tree["posterior"]["mu"].sizes)
        {'chain': 2, 'draw': 20}
    """
    num_samples, warmup_steps, num_chains, seed = wholes(
        "nuts",
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        num_chains=num_chains,
        seed=seed,
    )
    if num_samples < 1 or num_chains < 1 or warmup_steps < 0:
        raise ValueError(
            f"nuts: expected num_samples >= 1, num_chains >= 1 and warmup_steps >= 0; got "
            f"{num_samples}, {num_chains} and {warmup_steps}. Write: num_samples=1000, "
            "num_chains=2, warmup_steps=1000."
        )
    target = Target(model, model, args, kwargs)
    parts: list[dict[str, Tensor]] = []
    with undisturbed(target, seed), torch.enable_grad():
        for chain in range(num_chains):
            pyro.set_rng_seed(seed + chain)
            kernel = NUTS(model, target_accept_prob=target_accept_prob)
            mcmc = MCMC(kernel, num_samples, warmup_steps, disable_progbar=True)
            mcmc.run(*args, **kwargs)
            parts.append(mcmc.get_samples(group_by_chain=True))
    samples = {name: torch.cat([part[name] for part in parts]).detach() for name in parts[0]}
    return from_mcmc(_Chains(kernel, samples, args, kwargs))
