"""What the page on ratios says of Dirac-GAN is what its script computes."""

from pathlib import Path

from scripts import load

from pyro_ext import ratio

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ratios.md"


def test_the_table_of_dirac_gan() -> None:
    lines = load("dirac_gan").table().splitlines()
    assert len(lines) == 2 + 2 * 3
    page = PAGE.read_text().splitlines()
    first = page.index(lines[0])
    assert page[first : first + len(lines)] == lines


def test_every_name_on_the_page_exists() -> None:
    words = PAGE.read_text().replace("(", " ").replace("`", " ").replace(")", " ").split()
    named = {word.removeprefix("px.ratio.") for word in words if word.startswith("px.ratio.")}
    assert len(named) > 8
    assert named <= set(ratio.__all__)
