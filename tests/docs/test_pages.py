"""Every Python block of every page runs, in one namespace a page."""

import doctest
import re
import warnings
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import pyro_ext as px

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text()
    for path in sorted(DOCS.rglob("*.md"))
    if path.parent.name != "lessons" and FENCE.search(path.read_text())
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# Pages that show calls on a model of the reader's, and what stands for it here.
LOCAL = """
from functools import partial
import pyro, torch
import pyro.distributions as dist
import pyro_ext as px
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
encoder = lambda x: x.unsqueeze(-1)
x, x_test, x_new = torch.randn(200), torch.randn(100), torch.randn(7)
guide = px.AutoAmortized(model, encoder)
loader = [(x[:100],), (x[100:],)]
"""
GLOBAL = """
from functools import partial
import pyro, torch
import pyro.distributions as dist
import pyro_ext as px
def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
x = data = torch.randn(20)
"""
BOTH = LOCAL.replace(
    "    with pyro.plate", "    mu = pyro.sample('mu', dist.Normal(0.0, 1.0))\n    with pyro.plate"
)
BOTH = BOTH.replace('"z", dist.Normal(0.0, 1.0)', '"z", dist.Normal(mu, 1.0)')
SAMPLES = (
    GLOBAL
    + "dim = 2; p, q = 0.1 + torch.randn(1000, dim), torch.randn(1000, dim)\nx, x_q = p, q\n"
)
SAMPLES += "log_f0 = dist.Normal(0.0, 1.0).log_prob(x).sum(-1)\n"
GIVEN = {"auto.md": BOTH, "compiled.md": LOCAL, "ratios.md": SAMPLES, "runs.md": LOCAL}
ELSEWHERE = ("init_process_group", "LightningModule")  # what tests of their own run
FEWER = 20  # steps of a fit on those pages
LONG = {"auto.md", "compiled.md", "howto/implicit.md", "quickstart.md", "ratios.md"}
"""Pages that take more than ten seconds."""


def run_block(code: str, page: str, line: int, namespace: dict[str, Any]) -> None:
    """Run one block: a session with its output, or a script."""
    where = str(DOCS / page)
    if not code.startswith(">>>"):
        exec(compile("\n" * (line - 1) + code, where, "exec"), namespace)
        return
    session = doctest.DocTestParser().get_doctest(code, namespace, page, where, line)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    said: list[str] = []
    result = runner.run(session, out=said.append, clear_globs=False)
    namespace.update(session.globs)
    assert not result.failed, "".join(said)


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p in LONG else []) for p in PAGES]
)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a page saves, it saves here
    namespace: dict[str, Any] = {"__name__": page}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for a reader
    try:
        if page in GIVEN:
            exec(GIVEN[page], namespace)
        if page in GIVEN and page != "auto.md":
            fit = px.fit

            def few(*args: Any, **options: Any) -> px.Run:
                return fit(*args, **options | {"num_steps": FEWER})

            resume = px.Run.resume
            monkeypatch.setattr(px, "fit", few)
            monkeypatch.setattr(px.Run, "resume", lambda run, num_steps: resume(run, FEWER))
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)  # a reader sees them
            for block in FENCE.finditer(PAGES[page]):
                if any(word in block[1] for word in ELSEWHERE):
                    continue
                line = PAGES[page].count("\n", 0, block.start(1)) + 1
                run_block(block[1], page, line, namespace)
    finally:
        torch.set_default_dtype(before)


def test_there_are_pages() -> None:
    assert len(PAGES) > 10
