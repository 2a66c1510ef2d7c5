"""Loss and gradient of many particles, of which only some are in memory at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext._checks import Pair
from pyro_ext._discover import recall
from pyro_ext._modules import leaves_of
from pyro_ext._noise import Noise
from pyro_ext._terms import Particles, PathScale, Term
from pyro_ext.weights import LogWeights

if TYPE_CHECKING:
    from pyro_ext.losses.loss import BoundLoss

__all__ = ["in_chunks"]

_PARTS = ("log_p", "log_q", "log_q_score", "log_strata", "log_outer_strata")


def in_chunks(loss: "BoundLoss", pair: Pair, chunk_size: int) -> Tensor:
    r"""Return the loss of all particles, with its gradient, computed chunk by chunk.

    .. math:: \nabla \mathcal{L}(\log w_{1..K}) = \sum_{\text{chunks } c} \sum_{k \in c}
        \frac{\partial \mathcal{L}}{\partial \log w_k} \nabla \log w_k

    A first pass computes all log weights without gradient, and the factors from them; a second
    one, on the same random numbers, the gradients of each chunk's log weights.

    Args:
        loss: The loss.
        pair: Model, guide and their arguments.
        chunk_size: Largest number of particles at once.

    Raises:
        ValueError: If the particles share draws of global latents.
    """
    axis, plan = _plan(loss.particles, chunk_size)
    rows = _SameRows()
    noises: list[Noise] = []
    weighed: list[LogWeights] = []
    leaves: list[Tensor] = []
    wanted = torch.is_grad_enabled()
    for part in {part.count_dims: part for part in plan}.values():
        _look(loss, pair, part)
    for part in plan:
        noises.append(Noise())
        # The first chunk's graph tells which tensors the loss depends on.
        with torch.set_grad_enabled(wanted and not leaves), noises[-1], rows:
            log_weights = loss._weigh(pair, part)
            if axis == 0 and len(plan) > 1:
                _check_whole(loss, log_weights, part)
            loss._check(log_weights)
        if wanted and not leaves:
            parts = [t for term in log_weights.terms for t in _parts(term).values()]
            leaves = list(leaves_of(*parts).values())
        terms = tuple(_on_their_own(term, {}) for term in log_weights.terms)
        weighed.append(LogWeights(terms, Trace(), Trace(), log_weights.max_plate_nesting))
        _forget(log_weights)
        del log_weights
    whole = _joined(weighed, plan, axis)
    inputs = [t.requires_grad_(wanted) for term in whole.terms for t in _parts(term).values()]
    value = loss._value(whole)
    if not (wanted and leaves):
        return value
    given = torch.autograd.grad(value, inputs, allow_unused=True)
    factors = [None if g is None else g.split(_sizes(plan, axis), axis) for g in given]
    grads: list[Tensor | None] = [None] * len(leaves)
    for number, (part, noise) in enumerate(zip(plan, noises, strict=True)):
        with noise.again(), rows:
            log_weights = loss._weigh(pair, part)
            loss._check(log_weights)
            for term, full in zip(log_weights.terms, whole.terms, strict=True):
                if (weight := full._path.weight) is not None:
                    term._path.weight = _part_of(full, weight, plan, axis, number)
            outputs = [
                t for term in log_weights.terms for t in _aligned(term, part, axis).values()
            ]
            _forget(log_weights)
            del log_weights, term, full
            known = [None if factor is None else factor[number] for factor in factors]
            found = _gradient(outputs, known, leaves)
            del outputs
        grads = [_sum(one, other) for one, other in zip(grads, found, strict=True)]
    return _Known.apply(value.detach(), grads, *leaves)


class _Known(torch.autograd.Function):
    """A value whose gradient by its inputs is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor | None], *leaves: Tensor) -> Tensor:
        ctx.grads = grads
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, None, *(None if grad is None else outer[0] * grad for grad in ctx.grads)


class _SameRows(Messenger):
    """Keeps the subsample of each plate: all particles see the same rows."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is None:
            msg["value"] = self._rows.get(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._rows.setdefault(msg["name"], msg["value"])


def _look(loss: "BoundLoss", pair: Pair, part: Particles) -> None:
    """Let the pair's plates be found, which draws random numbers, before any are kept."""
    many, rerun = part.count_dims > 0, loss._mode().rerun
    if recall(pair, joint=loss.joint, rerun=rerun, many=many) is None:
        few = Particles(min(part.inner, 2), min(part.outer, 2))
        loss._check(loss._weigh(pair, few))


def _forget(log_weights: LogWeights) -> None:
    """Empty the traces, whose cycles of references would keep their tensors for a while."""
    for trace in (log_weights.model_trace, log_weights.guide_trace):
        nodes: dict[str, Any] = trace.nodes
        for node in nodes.values():
            node.clear()
        nodes.clear()


def _plan(particles: Particles, chunk_size: int) -> tuple[int, list[Particles]]:
    """Return the dim of a term that is cut, and the particles of each chunk."""
    inner, outer = particles.inner, particles.outer
    if outer > 1 and inner <= chunk_size:
        sizes = _split(outer, max(1, chunk_size // inner))
        return 1, [Particles(inner, size) for size in sizes]
    return 0, [Particles(size, outer) for size in _split(inner, max(1, chunk_size // outer))]


def _split(total: int, largest: int) -> Iterator[int]:
    """Yield the sizes of as many chunks as are needed, which differ by one at most."""
    number = -(-total // largest)
    for index in range(number):
        yield total // number + (index < total % number)


def _sizes(plan: Sequence[Particles], axis: int) -> list[int]:
    return [part.outer if axis else part.inner for part in plan]


def _check_whole(loss: "BoundLoss", log_weights: LogWeights, part: Particles) -> None:
    if any(term.log_p.shape[0] < part.inner for term in log_weights.terms):
        raise ValueError(
            f"{loss!r}: expected particles that are independent of each other; got those of "
            "local latents, which share the draw of the global ones. Write: joint=True, or a "
            f"chunk_size of at least num_particles={loss.particles.inner}."
        )


def _parts(term: Term) -> dict[str, Tensor]:
    found = {name: getattr(term, name) for name in _PARTS}
    return {name: part for name, part in found.items() if part is not None}


def _aligned(term: Term, part: Particles, axis: int) -> dict[str, Tensor]:
    """Return the tensors of a chunk's term, with the dim that is cut even if it is one."""
    alone = axis == 1 and part.outer == 1
    return {
        name: tensor.unsqueeze(1) if alone and name != "log_outer_strata" else tensor
        for name, tensor in _parts(term).items()
    }


def _on_their_own(term: Term, parts: dict[str, Any]) -> Term:
    """Return a term with other tensors, or its own without their history."""
    path = PathScale()
    return replace(term, **(parts or {n: t.detach() for n, t in _parts(term).items()}), _path=path)


def _joined(weighed: list[LogWeights], plan: list[Particles], axis: int) -> LogWeights:
    """Return the log weights of all chunks as one, without history."""
    terms = []
    particles = Particles(
        sum(part.inner for part in plan) if axis == 0 else plan[0].inner,
        sum(part.outer for part in plan) if axis == 1 else plan[0].outer,
    )
    for group in zip(*(log_weights.terms for log_weights in weighed), strict=True):
        aligned = [_aligned(term, part, axis) for term, part in zip(group, plan, strict=True)]
        parts = {
            name: torch.cat(
                [tensors[name] for tensors in aligned],
                0 if name == "log_outer_strata" else axis,
            )
            for name in aligned[0]
        }
        term = _on_their_own(group[0], parts)
        terms.append(
            replace(
                term,
                scale=term.scale * plan[0].outer / particles.outer,
                _layout=replace(term._layout, particles=particles),
            )
        )
    return replace(weighed[0], terms=tuple(terms))


def _part_of(full: Term, weight: Tensor, plan: list[Particles], axis: int, number: int) -> Tensor:
    """Return the factors on the paths of a chunk's particles, in the layout of a trace."""
    layout = full._layout
    dim = layout.particles.dims(layout.nesting)[0 if axis else 1]
    if dim is None:
        return weight
    part = weight.split(_sizes(plan, axis), dim)[number]
    return part.squeeze(dim) if part.shape[dim] == 1 else part


def _gradient(
    outputs: list[Tensor], factors: list[Tensor | None], leaves: list[Tensor]
) -> list[Tensor | None]:
    terms = [
        (factor * output).sum()
        for output, factor in zip(outputs, factors, strict=True)
        if factor is not None and output.requires_grad
    ]
    if not terms:
        return [None] * len(leaves)
    surrogate = torch.stack(terms).sum()
    return list(torch.autograd.grad(surrogate, leaves, allow_unused=True))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
