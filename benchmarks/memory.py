"""Peak memory of a step of IWAE on a VAE, with all particles at once and in chunks.

``python benchmarks/memory.py`` measures three steps in a process of their own, after two others:
what the largest resident set gained over the one before (Linux), and prints a table.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

ROWS = ((100, None), (1000, 50), (1000, 100), (1000, None))


def resident(key: str) -> float:
    """Return megabytes of resident memory, now (VmRSS) or at the most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def measure(num_particles: int, chunk_size: int | None) -> None:
    sys.path.insert(0, str(Path(__file__).parent / "speed"))
    import torch
    from workloads import vae

    import pyro_ext as px

    def adam(params: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=1e-3)

    torch.manual_seed(0)
    work = vae(20, num_particles)
    loss = work.loss if chunk_size is None else work.loss.in_chunks(chunk_size)
    svi = px.CompiledSVI(work.model, work.guide, adam, loss, compile=False)
    for _ in range(2):
        svi.step(*work.args)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    start = time.perf_counter()
    for _ in range(3):
        svi.step(*work.args)
    seconds = (time.perf_counter() - start) / 3
    print(f"{resident('VmHWM') - before:.0f} {seconds * 1e3:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", type=int, help="measure one row in this process")
    options = parser.parse_args()
    if options.row is not None:
        measure(*ROWS[options.row])
        return
    print("| K | chunks of | peak of a step | time |")
    print("| --: | --: | --: | --: |")
    # Large tensors are given back to the system when they are freed, as their peak is meant.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    for number, (num_particles, chunk_size) in enumerate(ROWS):
        command = [sys.executable, __file__, "--row", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        gained, milliseconds = done.stdout.split()[-2:]
        chunks = "all" if chunk_size is None else chunk_size
        print(f"| {num_particles:,} | {chunks} | {gained} MB | {milliseconds} ms |", flush=True)


if __name__ == "__main__":
    main()
