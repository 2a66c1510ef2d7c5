"""Peak memory of a step of IWAE on a VAE, with all particles at once and in chunks.

``python benchmarks/memory.py`` measures each step in a process of its own, as what the largest
resident set gained over the one before the first step, and prints a table.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

ROWS = (
    ("eager", 100, None),
    ("eager", 1000, 100),
    ("eager", 1000, None),
    ("compiled", 100, None),
    ("compiled", 1000, 100),
)
MEGABYTE = 1024  # ru_maxrss counts in kilobytes


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def measure(how: str, num_particles: int, chunk_size: int | None) -> None:
    sys.path.insert(0, str(Path(__file__).parent / "speed"))
    import torch
    from workloads import vae

    import pyro_ext as px

    def adam(params: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=1e-3)

    torch.manual_seed(0)
    work = vae(20, num_particles)
    loss = work.loss if chunk_size is None else work.loss.in_chunks(chunk_size)
    svi = px.CompiledSVI(work.model, work.guide, adam, loss, compile=how == "compiled")
    if how == "compiled":
        small = vae(20, 2)  # what compiling itself takes is not meant
        px.CompiledSVI(small.model, small.guide, adam, small.loss).run(2, *small.args)
    before = peak()
    for _ in range(2):
        svi.step(*work.args)
    compiled = peak()
    start = time.perf_counter()
    for _ in range(3):
        svi.step(*work.args)
    seconds = (time.perf_counter() - start) / 3
    print(f"{peak() - before:.0f} {compiled - before:.0f} {seconds * 1e3:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", type=int, help="measure one row in this process")
    parser.add_argument("--eager", action="store_true", help="leave out the compiled steps")
    options = parser.parse_args()
    if options.row is not None:
        measure(*ROWS[options.row])
        return
    print("| step | K | chunks of | peak above the start | a step |")
    print("| --- | --: | --: | --: | --: |")
    for number, (how, num_particles, chunk_size) in enumerate(ROWS):
        if options.eager and how == "compiled":
            continue
        command = [sys.executable, __file__, "--row", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        gained, _, milliseconds = done.stdout.split()[-3:]
        chunks = "all" if chunk_size is None else chunk_size
        row = f"| {how} | {num_particles:,} | {chunks} | {gained} MB | {milliseconds} ms |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
