"""What the page on ratios says of Dirac-GAN is what its script computes."""

import importlib.util
from pathlib import Path

from pyro_ext import ratio

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ratios.md"


def test_the_table_of_dirac_gan() -> None:
    path = ROOT / "benchmarks" / "dirac_gan.py"
    spec = importlib.util.spec_from_file_location("page_dirac_gan", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lines = script.table().splitlines()
    assert len(lines) == 2 + 2 * 3
    page = PAGE.read_text().splitlines()
    first = page.index(lines[0])
    assert page[first : first + len(lines)] == lines


def test_every_name_on_the_page_exists() -> None:
    words = PAGE.read_text().replace("(", " ").replace("`", " ").replace(")", " ").split()
    named = {word.removeprefix("px.ratio.") for word in words if word.startswith("px.ratio.")}
    assert len(named) > 8
    assert named <= set(ratio.__all__)
