"""Pages of memory that steps wait for, counted in a process of its own."""

import platform
import subprocess
import sys

import pytest

_COUNT = """
import resource
import torch
from pyro_ext.training.compiled.memory import keep_freed_memory

def pages(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        blocks = [torch.ones(100_000) for _ in range(20)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
pages(3)
print(pages(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory")
def test_freed_memory_is_kept():
    """Without it some 30 to 100 pages are asked for at each step."""
    output = subprocess.run(
        [sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True
    ).stdout
    assert int(output) <= 20  # one at each step
