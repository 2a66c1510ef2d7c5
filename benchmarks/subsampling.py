"""Mini-batches and K-sample bounds: pyro_ext beside Pyro's RenyiELBO, against the exact evidence.

A scale N/B belongs outside the logarithm. Inside it, a bound of K > 1 particles is none: it
exceeds the evidence. Prints a Markdown table:

    python benchmarks/subsampling.py
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

import pyro_ext as px

__all__ = ["NUM", "WAYS", "Row", "exact_evidence", "main", "markdown", "measure", "table"]

NUM = 40
SIZES = (40, 20, 4)
PARTICLES = (1, 5, 50)
WAYS = ("subsample_size", "subsample", "sliced")
_X = torch.linspace(-2.5, 2.5, NUM, dtype=torch.float64)


@dataclass(frozen=True)
class Row:
    """Estimates of one bound for one batch size.

    Args:
        particles: K.
        size: B, rows of a mini-batch.
        way: How the mini-batch reaches the model, or ``"RenyiELBO"``.
        values: Independent estimates, each from a mini-batch of its own.
        adjusted: The same with the noise of the choice of rows taken out: the exact evidence of
            the batch's own rows, whose mean is known, replaced by that of all rows.
    """

    particles: int
    size: int
    way: str
    values: Tensor
    adjusted: Tensor

    @property
    def mean(self) -> float:
        """Mean of the estimates."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(self.values.std()) / math.sqrt(len(self.values))


def _evidence(x: Tensor) -> Tensor:
    """Log p(x_i): z is integrated out."""
    return torch.distributions.Normal(0.0, math.sqrt(2.0)).log_prob(x)


def exact_evidence() -> float:
    """Log p(x) of all rows."""
    return float(_evidence(_X).sum())


def _model(x: Tensor, size: int | None = None, rows: Tensor | None = None) -> None:
    with pyro.plate("data", len(x), size, subsample=rows) as index:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def _guide(x: Tensor, size: int | None = None, rows: Tensor | None = None) -> None:
    """Close to the posterior N(x / 2, 1 / 2), but too wide."""
    with pyro.plate("data", len(x), size, subsample=rows) as index:
        pyro.sample("z", dist.Normal(0.4 * x[index], x.new_tensor(0.9)))


class _SeeRows(Messenger):
    """Remember which rows the data plate last drew."""

    def __init__(self, rows: Tensor | None) -> None:
        super().__init__()
        self.rows, self._known = rows, rows is not None

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == "data" and not self._known:
            self.rows = msg["value"]


def _batch(way: str, size: int) -> tuple[tuple[Any, ...], _SeeRows, AbstractContextManager[Any]]:
    """Return the arguments, what sees the rows, and the context to run in."""
    rows = torch.randperm(NUM)[:size]
    if way == "subsample":
        return (_X, None, rows), _SeeRows(rows), nullcontext()
    if way == "sliced":
        batch = px.MiniBatch("data", NUM, rows, sliced=True)
        return (_X[rows],), _SeeRows(rows), batch
    return (_X, size), _SeeRows(None), nullcontext()


def measure(
    loss: Any, way: str, size: int, repeats: int, particles: int, name: str | None = None
) -> Row:
    """Return independent estimates of minus a loss.

    Args:
        loss: A loss of Pyro's interface.
        way: One of ``WAYS``.
        size: Rows of a mini-batch.
        repeats: Number of estimates.
        particles: Number K of particles of the loss.
        name: What to call it in the table, instead of its way.
    """
    values, exact = [], []
    for _ in range(repeats):
        args, seen, context = _batch(way, size)
        with context, seen:
            values.append(-loss.loss(_model, _guide, *args))
        exact.append(float(_evidence(_X[seen.rows]).sum()) * NUM / size)
    bound = torch.tensor(values, dtype=torch.float64)
    adjusted = bound - torch.tensor(exact, dtype=torch.float64) + exact_evidence()
    return Row(particles, size, name or way, bound, adjusted)


def table(repeats: int = 200, ways: tuple[str, ...] = WAYS[:1]) -> list[Row]:
    """Return the rows of the table: each way of ``px.IWAE``, then ``RenyiELBO(alpha=0)``.

    Args:
        repeats: Estimates of each cell.
        ways: Which ways of mini-batching to show.
    """
    rows = []
    for particles in PARTICLES:
        for size in SIZES:
            rows += [measure(px.IWAE(particles), way, size, repeats, particles) for way in ways]
            if particles > 1:
                renyi = RenyiELBO(
                    alpha=0,
                    num_particles=particles,
                    max_plate_nesting=1,
                    vectorize_particles=True,
                )
                rows.append(
                    measure(renyi, "subsample_size", size, repeats, particles, "RenyiELBO")
                )
    return rows


def markdown(rows: list[Row]) -> str:
    """Return the table as Markdown."""
    exact = exact_evidence()
    lines = [
        f"Exact log evidence: {exact:.2f}",
        "",
        "| K | B of N | loss | bound | standard error | minus evidence |",
        "| --: | --: | :-- | --: | --: | --: |",
    ]
    for row in rows:
        name = "`RenyiELBO(alpha=0)`" if row.way == "RenyiELBO" else f"`px.IWAE`, {row.way}"
        gap = row.mean - exact
        mark = " (above)" if gap > 4 * row.error else ""
        lines.append(
            f"| {row.particles} | {row.size} of {NUM} | {name} | {row.mean:.2f} "
            f"| {row.error:.2f} | {gap:+.2f}{mark} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    pyro.set_rng_seed(0)
    print(markdown(table()))


if __name__ == "__main__":
    main()
