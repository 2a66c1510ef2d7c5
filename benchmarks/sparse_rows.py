"""Time per step of a fit against the number of datapoints: dense tables beside sparse rows.

A mini-batch of 64 rows should cost what 64 rows cost, not what the table costs. All sizes run in
one process, in turn, so that whatever else the machine does falls on all of them alike. Prints a
Markdown table:

    python benchmarks/sparse_rows.py
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from tqdm.auto import tqdm

import pyro_ext as px

__all__ = ["SIZES", "Timing", "main", "markdown", "measure"]

SIZES = (1_000, 10_000, 100_000)
BATCH = 64
BAR = 1.3
_DIM = 8


@dataclass
class Timing:
    """Seconds of the steps of fits with one size and kind of table.

    Args:
        size: Number N of datapoints.
        sparse: Whether the table's gradient holds the rows of the batch alone.
        blocks: Seconds per step, one entry per block of steps.
    """

    size: int
    sparse: bool
    blocks: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median over blocks, in seconds per step."""
        return statistics.median(self.blocks)


def _model(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(_DIM), x.new_ones(())).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, x.new_ones(())).to_event(1))
        pyro.sample("x", dist.Normal(z, x.new_ones(())).to_event(1), obs=x)


@contextmanager
def _clock(steps: list[float]) -> Iterator[None]:
    """Note in the list when each step of an optimizer begins."""

    def note(*_: Any) -> None:
        steps.append(time.perf_counter())

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _block(timing: Timing, x: Tensor, num_steps: int) -> float:
    """Return the seconds per step of a fit, without its set-up.

    The fit's own steps count whole: drawing of rows, loss, gradient, update, record.
    """
    guide = px.AutoPerDatapoint(_model, sparse=timing.sparse)
    begins: list[float] = []
    with _clock(begins):
        px.fit(
            _model,
            guide,
            px.ELBO(),
            x,
            num_steps=num_steps + 10,
            batch_size=BATCH,
            seed=0,
            progress=False,
        )
    per_step = len(begins) // (num_steps + 10)  # optimizers: one for the globals, one for rows
    return (begins[-1] - begins[10 * per_step]) / (num_steps - 1)


def measure(sizes: tuple[int, ...] = SIZES, num_steps: int = 200, blocks: int = 7) -> list[Timing]:
    """Return the timings of all sizes, block by block in turn.

    Args:
        sizes: Numbers of datapoints.
        num_steps: Steps of one block.
        blocks: Blocks of each size.
    """
    data = {size: torch.randn(size, _DIM) for size in sizes}
    timings = [Timing(size, sparse) for sparse in (True, False) for size in sizes]
    for _ in tqdm(range(blocks), desc="blocks", disable=None):
        for timing in timings:
            timing.blocks.append(_block(timing, data[timing.size], num_steps))
    return timings


def markdown(timings: list[Timing]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"| table | N | ms per step (batch {BATCH}) | ratio to the smallest N |",
        "| :-- | --: | --: | --: |",
    ]
    for timing in timings:
        first = next(t for t in timings if t.sparse == timing.sparse)
        # Blocks are paired: what disturbed one size disturbed its neighbours.
        ratio = statistics.median(b / a for a, b in zip(first.blocks, timing.blocks, strict=True))
        mark = "" if ratio <= BAR else f" (above {BAR})"
        kind = "sparse rows" if timing.sparse else "dense"
        lines.append(
            f"| {kind} | {timing.size:,} | {timing.median * 1e3:.2f} | {ratio:.2f}{mark} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="steps of one block")
    parser.add_argument("--blocks", type=int, default=7, help="blocks of each size")
    options = parser.parse_args()
    pyro.set_rng_seed(0)
    print(markdown(measure(num_steps=options.steps, blocks=options.blocks)))


if __name__ == "__main__":
    main()
