"""What an automatic fit costs as the dimension grows.

A logistic regression with 500 rows on D correlated predictors, so that a gradient costs as much
per dimension whatever D is: time and memory of the whole fit, and the size of its family. Each
dimension runs in a process of its own, whose peak memory is its own. Prints a Markdown table:

    python benchmarks/auto_dims.py
    python benchmarks/auto_dims.py --rank 10 --dims 300 1000 3000  # one family all along
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import pyro
import pyro.distributions as dist
import torch

import pyro_ext as px

__all__ = ["main", "measure"]


def model(x: torch.Tensor, y: torch.Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        logits = (beta.unsqueeze(-2) @ x.mT).squeeze(-2)
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(dim: int, rank: int | None) -> dict[str, object]:
    """Return what one fit cost."""
    generator, num = torch.Generator().manual_seed(dim), 500
    shared = torch.randn((num, 1), generator=generator)
    x = (torch.randn((num, dim), generator=generator) + shared) / dim**0.5
    beta = torch.randn(dim, generator=generator)
    y = (torch.rand(num, generator=generator) < (x @ beta).sigmoid()).to(x)
    before, start = _peak(), time.process_time()
    family = "auto" if rank is None else px.LowRank(rank=rank)
    run = px.fit(model, data=(x, y), optim="auto", family=family, seed=0, progress=False)
    found = run.guide.groups[0].family
    climbs = [a for a in run.history if "(" in a.name and not a.name.startswith("Flow")]
    return {
        "dim": dim,
        "family": type(found).__name__,
        "size": found.num_params(dim),
        "normals": sum(a.seconds for a in climbs),
        "gradients": sum(a.gradients for a in climbs),
        "all": run.num_gradients,
        "seconds": time.process_time() - start,
        "megabytes": _peak() - before,
        "grade": run.verdict.grade,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="*", default=[10, 30, 100, 300, 1000, 3000])
    parser.add_argument("--rank", type=int, help="fit low rank normals alone")
    parser.add_argument("--one", type=int, help="measure one dimension and print JSON")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.rank)))
        return
    print(
        "| D | family | its size | gradients of the climb | all gradients | CPU s | MB more | "
        "verdict |\n|--:|---|--:|--:|--:|--:|--:|---|",
        flush=True,
    )
    for dim in options.dims:
        command = [sys.executable, __file__, "--one", str(dim)]
        command += [] if options.rank is None else ["--rank", str(options.rank)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        r = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {dim} | {r['family']} | {r['size']:,} | {r['gradients']:,} | {r['all']:,} | "
            f"{r['seconds']:.1f} | {r['megabytes']:.0f} | {r['grade']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
