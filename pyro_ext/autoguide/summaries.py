"""What a fitted guide says about each latent: its density, draws, medians and quantiles."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._precision import in_full_precision
from pyro_ext._whole import whole
from pyro_ext.autoguide.group import Group
from pyro_ext.autoguide.module import GuideModule
from pyro_ext.autoguide.plates import Batch
from pyro_ext.families._quantile import quantile_of_sorted, seeded

__all__ = ["SummarizedGuide"]

_DRAWS = 4_000


class SummarizedGuide(GuideModule):
    """A guide of groups, each with a distribution over its unconstrained vector."""

    groups: tuple[Group, ...]

    @abstractmethod
    def _batch(self, args: Any, kwargs: Any, *, draw: bool) -> Batch | None:
        """Return the rows of the data plate in this call."""

    @abstractmethod
    def _params(self, group: Group, batch: Batch | None, args: Any, kwargs: Any) -> Tensor:
        """Return π of the group in this call, shape ``(P,)`` or ``(B, P)``."""

    @abstractmethod
    def _posterior(
        self, group: Group, params: Tensor, given: Tensor | None = None
    ) -> Distribution:
        """Return q with the batch dims that the data plate's position asks for."""

    def _conditions_others(self, group: Group) -> bool:
        """Tell whether the groups after this one depend on its draw."""
        return False

    @in_full_precision
    def log_prob(self, latents: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        r"""Return log q of given latents, constrained as the model has them.

        .. math:: \log q(\theta) = \log q(z; \pi) - \log\lvert\det \partial\theta/\partial z\rvert

        Args:
            latents: A value for each latent site, shape ``(*sample, *site)``.
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Log density, summed over plates, shape ``sample``.

        Raises:
            ValueError: If a site is missing, or has another shape.
        """
        self.setup(*args, **kwargs)
        self._check_sites(latents)
        batch = self._batch(args, kwargs, draw=False)
        total: list[Tensor] = []
        given: Tensor | None = None
        for group in self.groups:
            group.packing.check(latents, None if batch is None else batch.size)
            z, log_det = group.packing.pack(latents)
            params = self._params(group, batch, args, kwargs)
            posterior = self._posterior(group, params, group.packing.lift(given))
            given = group.packing.lower(z) if self._conditions_others(group) else given
            log_q = posterior.log_prob(z) - log_det
            nesting = group.packing.nesting
            total.append(log_q.flatten(-nesting).sum(-1) if nesting else log_q)
        return torch.stack(torch.broadcast_tensors(*total)).sum(0)

    @in_full_precision
    def sample_posterior(self, num_samples: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw from the guide, all rows of the data plate at once, without gradients.

        Args:
            num_samples: Number of draws S.
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Constrained values, each of shape ``(S, *site)``.

        Raises:
            TypeError: If the number of draws is no whole number.
        """
        call = "guide.sample_posterior(1000, *args)"
        num_samples = whole(num_samples, "num_samples", write=call, owner="sample_posterior")
        if num_samples < 0:
            raise ValueError(
                f"sample_posterior: expected num_samples >= 0; got {num_samples}. Write: {call}."
            )
        self.setup(*args, **kwargs)
        return self._summarize(
            # What is given brings its own sample dim.
            lambda group, posterior: posterior.sample(
                (num_samples,) if len(posterior.batch_shape) == group.packing.nesting else ()
            ),
            1,
            args,
            kwargs,
            given_draws=True,
        )

    @in_full_precision
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the marginal median of each latent, mapped through its support's bijection.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Constrained medians, each of the site's shape.
        """
        self.setup(*args, **kwargs)
        return self._summarize(
            lambda group, posterior: group.family.quantile(posterior, 0.5), 0, args, kwargs
        )

    @in_full_precision
    def quantiles(
        self, quantiles: Sequence[float], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return marginal quantiles of each latent, entry by entry.

        Those of a bijection that mixes entries, as that of a simplex, are those of 4,000 draws,
        the same at each call.

        Args:
            quantiles: Probabilities in (0, 1).
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Constrained quantiles, each of shape ``(len(quantiles), *site)``.

        Raises:
            ValueError: If a probability is outside (0, 1).
        """
        probs = list(quantiles) if isinstance(quantiles, Iterable) else [quantiles]
        outside = [q for q in probs if not 0 < q < 1]
        if outside or not probs or not isinstance(quantiles, Iterable):
            raise ValueError(
                f"quantiles: expected a list of probabilities in (0, 1); got "
                f"{outside or quantiles}. "
                "Write: guide.quantiles([0.05, 0.5, 0.95], *args)."
            )
        self.setup(*args, **kwargs)
        found = self._summarize(
            lambda group, posterior: torch.stack(
                [group.family.quantile(posterior, q) for q in probs]
            ),
            1,
            args,
            kwargs,
        )
        sites = [site for group in self.groups for site in group.packing.sites]
        if mixed := [site.name for site in sites if not site.increasing]:
            with seeded():
                draws = self.sample_posterior(_DRAWS, *args, **kwargs)
            for name in mixed:
                rows = draws[name].sort(dim=0).values
                found[name] = torch.stack([quantile_of_sorted(rows, q) for q in probs])
        return found

    def _summarize(
        self,
        of: Callable[[Group, Distribution], Tensor],
        leading: int,
        args: Any,
        kwargs: Any,
        *,
        given_draws: bool = False,
    ) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        given: Tensor | None = None
        with torch.no_grad(), poutine.block():
            batch = self._batch(args, kwargs, draw=False)
            for group in self.groups:
                params = self._params(group, batch, args, kwargs)
                posterior = self._posterior(group, params, group.packing.lift(given))
                missing = group.packing.nesting - len(posterior.batch_shape)
                posterior = posterior.expand((1,) * missing + posterior.batch_shape)
                z = of(group, posterior)
                if self._conditions_others(group):
                    at = z if given_draws else group.family.quantile(posterior, 0.5)
                    given = group.packing.lower(at)
                unpacked = group.packing.unpack(z)
                values = {name: value for name, (value, _) in unpacked.items()}
                result.update(group.packing.align(values, leading))
        return result

    def _check_sites(self, latents: dict[str, Tensor]) -> None:
        names = [site.name for group in self.groups for site in group.packing.sites]
        missing = [name for name in names if name not in latents]
        if missing:
            raise ValueError(
                f"log_prob: expected a value for each of the sites {names}; got none for "
                f"{missing}. Write: guide.log_prob({{'{missing[0]}': value, ...}}, *args)."
            )
