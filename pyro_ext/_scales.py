"""Scales of sites: what multiplies a bound from outside, and what stays inside its log."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Scale", "split_scales"]

Scale = float | Tensor


def split_scales(
    sites: Sequence[Any], plates: Sequence[tuple[str, int]], *, linear: bool
) -> tuple[Scale, list[Scale], str | None]:
    """Split sites' scales into one factor outside the log and what must stay inside.

    The subsampling of the term's own plates goes outside, and so does a ``poutine.scale`` around
    all of its sites. Any other scale (a subsampled plate within an element, a tempered likelihood)
    stays.

    Args:
        sites: The sites of a term.
        plates: The term's plates and their dims, left to right.
        linear: Whether the bound is linear in log w, so that tensors may stay inside.

    Returns:
        The factor outside, a number or a tensor that broadcasts to the plates, a factor inside for
        each site, and a subsampled plate whose scale is among these, or None.
    """
    names = {name for name, _ in plates}
    outside, residuals, subsampled = 1.0, [], None
    for site in sites:
        own = 1.0
        for frame in site["cond_indep_stack"]:
            ratio = (frame.full_size or frame.size) / frame.size
            if frame.name in names:
                own *= ratio
            elif ratio != 1:
                subsampled = frame.name
        outside, scale = own, site["scale"]
        residual = scale / own
        snap = not isinstance(residual, Tensor) and math.isclose(residual, 1, rel_tol=1e-12)
        residuals.append(1.0 if snap else residual)
    if any(isinstance(residual, Tensor) for residual in residuals):
        if linear:
            return outside, residuals, subsampled
        shared, residuals = _split_tensors(residuals, [dim for _, dim in plates])
        return outside * shared, residuals, subsampled
    shared = residuals[0]
    if all(math.isclose(residual, shared, rel_tol=1e-12) for residual in residuals):
        return outside * shared, [1.0] * len(sites), subsampled
    return outside, residuals, subsampled


def _split_tensors(scales: list[Scale], dims: Sequence[int]) -> tuple[Scale, list[Scale]]:
    """Split off, for each element, the scale that its sites share.

    A graph cannot branch on values: it is a where, in each element for itself.
    """
    like = next(scale for scale in scales if isinstance(scale, Tensor))
    tensors = [s if isinstance(s, Tensor) else like.new_full((), s) for s in scales]
    alike = (scale for scale in tensors if math.prod(_sizes(scale, dims)) == scale.numel())
    shared = next(alike, None)  # does not vary within an element
    if shared is None:
        return 1.0, scales
    tolerance = 4 * max(torch.finfo(scale.dtype).eps for scale in tensors)
    same = torch.ones_like(shared, dtype=torch.bool)
    for scale in tensors:
        close = (scale - shared).abs() <= tolerance * shared.abs()
        inside = [dim for dim in range(-close.dim(), 0) if dim not in dims]
        same = same & (close.all(inside, keepdim=True) if inside else close)
    factor = torch.where(same, shared, 1.0)
    return factor.reshape(_sizes(factor, dims)), [torch.where(same, 1.0, s) for s in tensors]


def _sizes(scale: Tensor, dims: Sequence[int]) -> list[int]:
    return [scale.shape[dim] if scale.dim() >= -dim else 1 for dim in dims]
