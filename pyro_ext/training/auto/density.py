"""The model's log density at many unconstrained points at once."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext._bijections import bijection_to
from pyro_ext._checks import check_shapes
from pyro_ext._site_log_prob import unmask
from pyro_ext._supports import check_supports
from pyro_ext._unchecked import is_unchecked
from pyro_ext.autoguide import AutoJoint
from pyro_ext.autoguide.packing import Packing
from pyro_ext.families import Family
from pyro_ext.structure import (
    ParticlePlate,
    is_subsampled,
    plate_frames,
    sample_sites,
    trace_params,
)
from pyro_ext.training.batches import check_call
from pyro_ext.training.compiled.private import flatten, unflatten

__all__ = ["Density", "Unfit", "support_centre"]

_CHUNK_ENTRIES = 2**17  # what a chunk of points has in data stays in the cache
_MAX_DIM, _MAX_ENTRIES = 1000, 200_000  # with both, a fit takes minutes


class Unfit(ValueError):
    """A model that automatic fits do not take.

    Args:
        message: What was expected and what came.
        why: What came, in words that follow "because".
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


def support_centre(site: Any) -> Tensor:
    """Return the image of 0 under the bijection to a site's support, prior or no prior."""
    fn = site["fn"]
    transform = bijection_to(fn.support)
    shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
    value: Tensor = transform(torch.zeros(shape))
    return value.expand(fn.batch_shape + fn.event_shape)


class Density:
    r"""Log density of a model over its unconstrained latents, for many points in one call.

    .. math:: \log p(x, T(z)) + \log\lvert\det \partial T(z)/\partial z\rvert

    Computed in double precision where the model allows it. Points are a plate left of the model's
    own; a model that does not broadcast over it is mapped by ``torch.func.vmap``, or called point
    by point. Which one gives the right values is found by trying.

    Args:
        model: A Pyro model with continuous latents.
        args: Its arguments, with all rows.

    Raises:
        Unfit: If data are on a GPU, a plate is subsampled, the model has parameters of its own, or
            it draws anything but its latents.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.model = model
        self.num_gradients, self.num_values = 0, 0
        leaves, _ = flatten(args)
        tensors = [a for a in leaves if isinstance(a, Tensor)]
        for device in {a.device for a in tensors} - {torch.device("cpu")}:
            raise Unfit(
                f"fit: expected data on the CPU with optim='auto'; got some on {device}. Write: "
                "num_steps=2000.",
                f"data are on {device}",
            )
        floating = [a.dtype for a in leaves if _is_floating(a)]
        self._own_dtype = max([torch.get_default_dtype(), *floating], key=lambda t: t.itemsize)
        self.dtype = self._own_dtype
        try:
            template = self.guide(None, args)
        except TypeError as error:
            check_call(model, args, {}, error)
            raise
        (group,) = template.groups
        self.packing: Packing = group.packing
        self.dim = self.packing.dim
        self.nesting = _nesting(self._trace(args))
        self.args, self.together = args, True
        self.entries = sum(a.numel() for a in tensors)
        self.chunk = min(max(_CHUNK_ENTRIES // (self.dim + self.entries), 64), 4096)
        self._evaluate = self._choose(args)
        self._check_supports(template)

    def check_cost(self) -> None:
        """Raise ``Unfit`` for a model that would take more than minutes."""
        why = None
        if self.dim > _MAX_DIM:
            why = f"there are {self.dim} latent dimensions, more than {_MAX_DIM}"
        elif self.entries > _MAX_ENTRIES:
            why = f"the data have {self.entries} entries, more than {_MAX_ENTRIES}"
        elif not self.together:
            why = "the model does not broadcast over a plate on the left of its own"
        if why is not None:
            raise Unfit(
                f"fit: expected a small model; got another: {why}. Write: optim='auto'.", why
            )

    def guide(self, family: Family | None, args: tuple[Any, ...]) -> AutoJoint:
        """Return a guide over the same vector, set up.

        Args:
            family: Family of the vector.
            args: The model's arguments.
        """
        guide = AutoJoint(self.model, family=family, init_loc_fn=support_centre)
        with _default_dtype(self._own_dtype):
            guide.setup(*args)
        return guide

    def _trace(self, args: tuple[Any, ...]) -> Trace:
        """Return a trace with the observed sites too, which a guide does not look at."""
        model = InitMessenger(support_centre)(self.model)
        with torch.no_grad(), _default_dtype(self._own_dtype):
            return poutine.block(poutine.trace(model).get_trace)(*args)

    # ------------------------------------------------------------------ evaluation

    def value(self, z: Float[Tensor, " points dim"]) -> Float[Tensor, " points"]:
        """Return the log density; -inf where it is not a number.

        Args:
            z: Unconstrained points.
        """
        self.num_values += len(z)
        with torch.no_grad(), self._quiet():
            parts = [self._safely(part) for part in z.split(self.chunk)]
        return _finite(torch.cat(parts))

    def value_and_grad(
        self, z: Float[Tensor, " points dim"]
    ) -> tuple[Float[Tensor, " points"], Float[Tensor, " points dim"]]:
        """Return log density and gradient; -inf and 0 where they are not numbers.

        Args:
            z: Unconstrained points.
        """
        self.num_gradients += len(z)
        values, grads = [], []
        with torch.enable_grad(), self._quiet():
            for part in z.split(self.chunk):
                leaf = part.detach().requires_grad_()
                value = self._safely(leaf)
                grads.append(_gradient(value, leaf))
                values.append(value.detach())
        value, grad = _finite(torch.cat(values)), torch.cat(grads)
        bad = ~torch.isfinite(grad).all(-1) | (value == -math.inf)
        return value.masked_fill(bad, -math.inf), grad.masked_fill(bad[:, None], 0.0)

    def hessian(self, z: Float[Tensor, " points dim"]) -> Float[Tensor, " points dim dim"]:
        """Return the Hessians, one gradient of a gradient per row; NaN where there is none.

        Args:
            z: Unconstrained points.
        """
        num, dim = z.shape
        rows = torch.eye(dim, dtype=z.dtype).repeat(num, 1)
        hessian = self.curvature(z.repeat_interleave(dim, 0), rows).reshape(num, dim, dim)
        return (hessian + hessian.mT) / 2

    def curvature(
        self, z: Float[Tensor, " points dim"], along: Float[Tensor, " points dim"]
    ) -> Float[Tensor, " points dim"]:
        """Return the Hessian at each point times a vector, a gradient of a gradient.

        Args:
            z: Unconstrained points.
            along: The vectors.
        """
        # A gradient of a gradient costs about two.
        self.num_gradients += 3 * len(z)
        out = []
        with torch.enable_grad(), self._quiet():
            for part, row in zip(z.split(self.chunk), along.split(self.chunk), strict=True):
                leaf = part.detach().requires_grad_()
                grad = _gradient(self._safely(leaf), leaf, create_graph=True)
                total = (grad * row).sum()
                out.append(
                    torch.autograd.grad(total, leaf, allow_unused=True, materialize_grads=True)[0]
                    if total.requires_grad
                    else torch.zeros_like(leaf)
                )
        return torch.cat(out)

    def latents(self, z: Float[Tensor, " points dim"]) -> dict[str, Tensor]:
        """Return the constrained values of the sites, shape ``(points, *site)`` each.

        Args:
            z: Unconstrained points.
        """
        nesting = self.packing.nesting
        unpacked = self.packing.unpack(z.reshape(len(z), *(1,) * nesting, self.dim))
        return self.packing.align({name: value for name, (value, _) in unpacked.items()}, 1)

    # ------------------------------------------------------------------ ways to run the model

    def _choose(self, args: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
        leaves, nesting = flatten(args)
        double: Any = unflatten([_to_double(leaf) for leaf in leaves], nesting)
        error: Exception | None = None
        for dtype, cast in ((torch.float64, double), (self._own_dtype, args)):
            self.dtype, self.args = dtype, cast
            generator = torch.Generator().manual_seed(0)
            z = torch.rand((3, self.dim), generator=generator, dtype=dtype) - 0.5
            with torch.no_grad(), self._quiet():
                try:
                    check_shapes(self._conditioned(self.packing.unpack(z[0])))
                    expected = torch.stack([self._single(row) for row in z])
                    again = torch.stack([self._single(row) for row in z])
                except (RuntimeError, TypeError) as failure:
                    error = failure
                    continue
                _check_same(expected, again)
                for way in (self._plates, torch.func.vmap(self._single)):
                    with suppress(Exception):
                        found = way(z)
                        tol = 1e-4 if dtype == torch.float32 else 1e-8
                        if found.shape == expected.shape and torch.allclose(
                            found, expected, rtol=tol, atol=tol, equal_nan=True
                        ):
                            return way
            self.together = False
            return lambda points: torch.stack([self._single(row) for row in points])
        raise error if error is not None else RuntimeError("no precision was tried")

    def _plates(self, z: Tensor) -> Tensor:
        num = len(z)
        plate = ParticlePlate("points", num, -1 - self.nesting, None)
        unpacked = self.packing.unpack(z.reshape(num, *(1,) * self.nesting, self.dim))
        with plate:
            return self._joint(unpacked)

    def _single(self, z: Tensor) -> Tensor:
        return self._joint(self.packing.unpack(z)).squeeze(0)

    def _joint(self, unpacked: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        trace = self._conditioned(unpacked)
        unmask(trace, unpacked)
        trace.compute_log_prob()
        terms = [site["log_prob"] for _, site in sample_sites(trace)]
        terms += [log_det for _, log_det in unpacked.values()]
        total: Any = 0.0
        for term in terms:
            lead = term.shape[: max(term.dim() - self.nesting, 0)]
            total = total + term.reshape(*(lead or (1,)), -1).sum(-1)
        return total

    def _conditioned(self, unpacked: dict[str, tuple[Tensor, Tensor]]) -> Trace:
        values = {name: value for name, (value, _) in unpacked.items()}
        conditioned = poutine.condition(self.model, data=values)
        trace: Trace = poutine.block(poutine.trace(conditioned).get_trace)(*self.args)
        return trace

    def _safely(self, z: Tensor) -> Tensor:
        """Evaluate; a point that makes a factorization fail must not take the others with it."""
        try:
            return self._evaluate(z)
        except (torch.linalg.LinAlgError, ValueError):  # type: ignore[attr-defined]
            if is_unchecked():  # a graph would leave the point out whatever it is
                raise
            if len(z) == 1:
                return torch.full_like(z[:, 0], -math.inf)
            half = len(z) // 2
            return torch.cat([self._safely(z[:half]), self._safely(z[half:])])

    def _check_supports(self, guide: AutoJoint) -> None:
        off_centre = torch.full((self.dim,), 0.5, dtype=self.dtype)
        with torch.no_grad(), self._quiet():
            check_supports(guide, self._conditioned(self.packing.unpack(off_centre)))

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        with _default_dtype(self.dtype), pyro.validation_enabled(is_validate=False):
            yield


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _to_double(value: Any) -> Any:
    return value.double() if _is_floating(value) else value


def _check_same(values: Tensor, again: Tensor) -> None:
    same = torch.isclose(again, values, equal_nan=True)
    if not same.all():
        (first, *_), (second, *_) = values[~same], again[~same]
        raise Unfit(
            "fit: expected a model with one density at each point with optim='auto'; got "
            f"{first:.6g} and {second:.6g} at the same one, as with dropout or a draw that is "
            "hidden by poutine.block. Write: model.eval() for dropout, pyro.sample(name, ...) for "
            "a draw, or leave out optim='auto'.",
            "its density is another at each call, as with dropout or a hidden draw",
        )


def _finite(value: Tensor) -> Tensor:
    return torch.where(torch.isfinite(value), value, -math.inf)


def _gradient(value: Tensor, leaf: Tensor, *, create_graph: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(value.sum(), leaf, create_graph=create_graph)[0]


def _nesting(trace: Trace) -> int:
    _check_params(trace)
    sites = [site for _, site in sample_sites(trace)]
    for frame in [frame for site in sites for frame in site["cond_indep_stack"]]:
        if is_subsampled(frame):
            raise Unfit(
                f"fit: expected all rows at once with optim='auto'; got plate '{frame.name}' with "
                f"{frame.size} of {frame.full_size}. Write: pyro.plate('{frame.name}', "
                f"{frame.full_size}).",
                f"plate '{frame.name}' shows {frame.size} of {frame.full_size} rows",
            )
    return max((-frame.dim for site in sites for frame in plate_frames(site)), default=0)


def _check_params(trace: Trace) -> None:
    nodes: dict[str, Any] = trace.nodes
    names = [name for name, site in nodes.items() if site["type"] == "param"]
    for name, value in zip(names, trace_params(trace), strict=True):
        if value.requires_grad:
            raise Unfit(
                f"fit: expected a model without parameters of its own with optim='auto'; got "
                f"'{name}'. Write: pyro.sample('{name}', ...), with a prior, or leave out "
                "optim='auto'.",
                f"the model has a parameter of its own, '{name}'",
            )
