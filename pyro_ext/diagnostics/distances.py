"""How far draws are from a reference, in one table."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext.diagnostics._distances import (
    TwoSample,
    classifier_test,
    covariance_error,
    ecdf_difference,
    mmd_test,
    sliced_wasserstein,
)
from pyro_ext.diagnostics._reference import (
    Distance,
    Moments,
    Reference,
    distance,
    draws_at,
    is_markov,
    moments_of,
    places_of,
    to_reference,
)
from pyro_ext.diagnostics._target import Fitted
from pyro_ext.diagnostics._types import Array, DataFrame, DataTree
from pyro_ext.diagnostics.datatree import from_draws, to_datatree

__all__ = ["Distances", "distances", "measure"]

_MIN_DRAWS = 10


@dataclass(frozen=True, eq=False)
class Distances:
    """Distances of a posterior to a reference.

    Lengths are in sds of the reference. What needs reference draws is None if there are moments
    only.

    Args:
        marginals: Error of each mean, ratio of each sd, and their noise.
        covariance_error: Frobenius norm of the error of the covariance, in coordinates in which
            the reference is white, over the root of the dimension.
        sliced_wasserstein: Mean 1-Wasserstein distance of projections.
        mmd: Squared maximum mean discrepancy, with its permutation p-value.
        classifier: Held-out accuracy of a classifier, with its p-value; 0.5 if it sees nothing.
        ecdf: Largest difference of the distribution functions of each marginal.

    Example:
        >>> draws = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
        >>> found = px.distances({"mu": 1 + draws[0]}, {"mu": draws[1]})
        >>> bool(found.sliced_wasserstein > 0.8), found.mmd.p_value < 0.01
        (True, True)
    """

    marginals: Distance
    covariance_error: float | None
    sliced_wasserstein: float | None
    mmd: TwoSample | None
    classifier: TwoSample | None
    ecdf: Array | None

    @property
    def table(self) -> DataFrame:
        """One row a marginal."""
        from pandas import DataFrame as Frame

        columns: dict[str, Any] = {
            "mean error": self.marginals.mean_error,
            "noise": self.marginals.noise,
            "sd ratio": self.marginals.sd_ratio,
        }
        if self.ecdf is not None:
            columns["ecdf"] = self.ecdf
        return Frame(columns, index=self.marginals.labels)

    def __str__(self) -> str:
        """One line a distance."""
        lines = [
            f"worst mean error     {self.marginals.worst_mean_error:+.3f} sd",
            f"worst sd ratio       {self.marginals.worst_sd_ratio:.3f}",
        ]
        if self.mmd is not None and self.classifier is not None and self.ecdf is not None:
            lines += [
                f"covariance error     {self.covariance_error:.3f}",
                f"sliced Wasserstein   {self.sliced_wasserstein:.3f} sd",
                f"MMD²                 {self.mmd.value:.5f} (p = {self.mmd.p_value:.3f})",
                f"classifier accuracy  {self.classifier.value:.3f} "
                f"(p = {self.classifier.p_value:.3f})",
                f"worst ECDF           {self.ecdf.max():.3f}",
            ]
        return "\n".join(lines)

    __repr__ = __str__  # as a console and a notebook show it


def distances(
    posterior: Any, reference: Any, *, num_samples: int = 4000, seed: int = 0
) -> Distances:
    """Return distances of a posterior to reference draws, or to exact moments.

    The tests compare independent draws: those of a Markov chain are thinned to their effective
    sample size first.

    Args:
        posterior: What ``px.fit`` returned, a DataTree, or draws ``{"mu": (S, ...)}``.
        reference: Draws, a DataTree such as ``px.nuts`` returns, a ``pyro.infer.MCMC``, or exact
            moments ``{"mu": (mean, sd)}``.
        num_samples: Number of draws of a run.
        seed: Seed of draws, projections, permutations and splits.

    Raises:
        ValueError: If there are too few draws, they share no variable, or their shapes differ.

    References:
        A Kernel Two-Sample Test (Gretton et al., 2012) | https://jmlr.org/papers/v13/gretton12a.html
        Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017) |
        https://arxiv.org/abs/1610.06545

    Example:
        >>> draws = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
        >>> found = distances({"mu": 0.5 * draws[0]}, {"mu": draws[1]})
        >>> bool(0.45 < found.marginals.worst_sd_ratio < 0.55), found.mmd.p_value < 0.01
        (True, True)
    """
    tree = _tree(posterior, num_samples, seed)
    count = tree["posterior"].sizes["chain"] * tree["posterior"].sizes["draw"]
    if count < _MIN_DRAWS:
        raise ValueError(
            f"distances: expected {_MIN_DRAWS} draws or more of the posterior; got {count}. "
            "Write: px.distances(run, reference), or {'mu': mu} with mu of shape (draws, ...)."
        )
    return measure(tree, to_reference(reference), seed)


def measure(tree: DataTree, reference: Reference, seed: int) -> Distances:
    """Return the distances of a tree of draws to a reference.

    Args:
        tree: The draws.
        reference: What to hold them against.
        seed: Seed of projections, permutations and splits.
    """
    marginals = distance(tree, reference)
    if reference.tree is None:
        return Distances(marginals, None, None, None, None, None)
    varies = {name: (known.sd > 0).reshape(-1) for name, known in reference.moments.items()}
    places = [(n, i) for _, (n, i) in places_of(tree) if n in varies and varies[n][i]]
    left, right = (
        torch.from_numpy(draws_at(source, places)).T for source in (tree, reference.tree)
    )
    if is_markov(tree):
        left = _thinned(left, moments_of(tree))
    right = _thinned(right, reference.moments)
    centre, width = right.mean(0), right.std(0).clamp(min=1e-300)
    left, right = (left - centre) / width, (right - centre) / width
    generator = torch.Generator().manual_seed(seed)
    full = len(right) > left.shape[1] + 1
    return Distances(
        marginals,
        covariance_error(left, right) if full else None,
        sliced_wasserstein(left, right, generator),
        mmd_test(left, right, generator),
        classifier_test(left, right, generator),
        ecdf_difference(left, right),
    )


def _thinned(draws: Tensor, moments: dict[str, Moments]) -> Tensor:
    """Return as many evenly spaced draws as the mean of any variable is worth."""
    least = min(known.size.min() for known in moments.values())
    effective = int(min(len(draws), max(_MIN_DRAWS, least)))
    return draws[torch.linspace(0, len(draws) - 1, effective).long()]


def _tree(posterior: Any, num_samples: int, seed: int) -> DataTree:
    if hasattr(posterior, "children"):
        return posterior
    if isinstance(posterior, Fitted):
        return to_datatree(
            posterior, num_samples=num_samples, seed=seed, predictive=False, log_likelihood=False
        )
    return from_draws(posterior)
